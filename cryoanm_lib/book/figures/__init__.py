"""Every figure of the book, one function each, returning the Figure."""

from cryoanm_lib.book.figures.calibration import (
    plot_against_signal,
    plot_coverage,
    plot_elbo_gap,
    plot_ranks,
    plot_reach,
    plot_referees,
    plot_sharpening,
)
from cryoanm_lib.book.figures.components import plot_disagreements, plot_sides, plot_two_sidedness
from cryoanm_lib.book.figures.costs import plot_growth, plot_steps
from cryoanm_lib.book.figures.ideas import plot_aliases, plot_phase_contrast, plot_turned_ring
from cryoanm_lib.book.figures.images import (
    plot_conformations,
    plot_crop_levels,
    plot_projection_steps,
    plot_projector_agreement,
    projector_deviations,
)
from cryoanm_lib.book.figures.landscape import (
    plot_blurred_profiles,
    plot_difficulty,
    plot_landscapes,
    plot_planes,
    plot_pose_profiles,
)
from cryoanm_lib.book.figures.misfit import plot_alarm, plot_explanations, plot_ring_misfit
from cryoanm_lib.book.figures.molecule import (
    plot_agreement,
    plot_bonds,
    plot_coarse_images,
    plot_difference,
    plot_luzzati,
    plot_states,
)
from cryoanm_lib.book.figures.optics import plot_noise_spectra, plot_optics
from cryoanm_lib.book.figures.own_particles import (
    plot_amplitudes,
    plot_lacking,
    plot_learned,
    plot_pairs,
    plot_population,
    plot_predictions,
    plot_twin,
)
from cryoanm_lib.book.figures.pipeline import plot_pipeline
from cryoanm_lib.book.figures.population import plot_densities, plot_moved, plot_told
from cryoanm_lib.book.figures.posterior import (
    plot_components,
    plot_joint,
    plot_offsets,
    plot_pose_stages,
    plot_projected_normal,
    plot_residual_distributions,
    plot_residuals,
)
from cryoanm_lib.book.figures.program import (
    encoder_layers,
    guide_graph,
    model_graph,
    plot_encoder,
    plot_graph,
)
from cryoanm_lib.book.figures.recipes import plot_ablation, plot_generalisation, plot_headline, plot_recipes
from cryoanm_lib.book.figures.rings import plot_rings
from cryoanm_lib.book.figures.space import (
    plot_beside_limit,
    plot_double_cover,
    plot_particles,
    plot_ways_to_train,
)
from cryoanm_lib.book.figures.structure import (
    plot_fluctuations,
    plot_modes,
    plot_spectrum,
    plot_spring_energy,
    plot_swings,
    plot_transition,
)
from cryoanm_lib.book.figures.style import set_style
from cryoanm_lib.book.figures.views import plot_in_plane, plot_knows, plot_rivals, plot_view_maps

# What figures are made of has names of its own; all else here is a module.
__all__ = [name for name, thing in globals().items() if callable(thing) and not name.startswith("_")]
