"""How a network on rings reads a pose: image, rings, correlations, attention."""

from typing import cast

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from cryoanm_lib.book.figures.style import COLOURS, TRUTH_COLOUR, new_figure
from cryoanm_lib.numerics.fourier import coefficients_to_image, crop_coefficients
from cryoanm_lib.numerics.rotation import unit_vector_to_angle
from cryoanm_lib.particles.particles import Simulated
from cryoanm_lib.program.guides import SeparateNetworks
from cryoanm_lib.program.program import Guide
from cryoanm_lib.program.rings import EquivariantPoseEncoder, Rings


@torch.no_grad()
def plot_rings(guide: Guide, particles: Simulated, index: int = 0, shown: int = 3) -> Figure:
    """The way of one image through a pose network on rings.

    The guide is in evaluation mode, as of `load_fit`; of the learned references those are shown that respond
    most sharply to the image of this index.
    """
    family, encoder = guide.family, guide.encoders["pose"]
    assert isinstance(family, SeparateNetworks) and isinstance(encoder, EquivariantPoseEncoder)
    rings = cast(Rings, family.representation)
    image = coefficients_to_image(
        crop_coefficients(particles.coefficients[index : index + 1], rings.size), rings.size
    )
    seen = rings(image)
    radii = torch.arange(rings.n_rings) + 0.5
    unrolled = torch.fft.irfft(rings.grid(seen)[0], n=rings.n_angles, norm="ortho") / radii.sqrt()[:, None]
    correlations = encoder.correlations(seen)[0]
    sharpest = (correlations.amax(-1) / correlations.std(-1)).topk(shown).indices
    true = torch.rad2deg(unit_vector_to_angle(particles.truth["pose"][index])).item() % 360
    figure, axes = new_figure(2, 2, height=4.6)
    _draw_rings(axes[0, 0], image[0], radii)
    axes[0, 1].imshow(unrolled.numpy(), origin="lower", aspect="auto", extent=(0, 360, 0, rings.n_rings))
    axes[0, 1].set(title="unrolled", xlabel="φ (°)", ylabel="radius (px)", xticks=[0, 90, 180, 270, 360])
    angles = torch.arange(rings.n_angles) * (360.0 / rings.n_angles)
    for reference, colour in zip(sharpest, COLOURS, strict=False):
        curve = correlations[reference] / correlations[reference].std()
        axes[1, 0].plot(angles, curve, color=colour)
    axes[1, 0].set(title="correlation with learned references", xlabel="turned back by (°)", yticks=[])
    attention = encoder.attention(encoder.along(correlations[None]))[0].softmax(-1)
    for component, weights in enumerate(attention):
        axes[1, 1].plot(angles, weights, color=COLOURS[component], label=f"component {component + 1}")
    axes[1, 1].set(title="where each component attends", xlabel="turned back by (°)", yticks=[])
    axes[1, 1].legend(fontsize=8)
    for ax in axes[1]:
        ax.axvline(true, color=TRUTH_COLOUR, linestyle="--", linewidth=1)
        ax.set(xticks=[0, 90, 180, 270, 360], xlim=(0, 360))
    return figure


def _draw_rings(axes: Axes, image: torch.Tensor, radii: torch.Tensor) -> None:
    centre = image.shape[-1] // 2
    axes.imshow(image.numpy(), origin="lower")
    for radius in radii[1::3].tolist():
        axes.add_patch(Circle((centre, centre), radius, fill=False, edgecolor=COLOURS[1], linewidth=0.8))
    axes.set(title="image and every third ring", xticks=[], yticks=[])
