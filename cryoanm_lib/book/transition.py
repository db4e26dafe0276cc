"""Images of a molecule on its way between two known structures, which no single mode spans."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from cryoanm_lib.checks.calibration import LEVELS, coverage, credible_level, uniformity
from cryoanm_lib.checks.predictive import predictive_p_value
from cryoanm_lib.checks.residuals import residuals
from cryoanm_lib.imaging.forward_model import ForwardModel
from cryoanm_lib.inference.lattice_search import LatticeSearch
from cryoanm_lib.inference.refinement import SUSPICIOUS, RefinedPosterior, refine
from cryoanm_lib.molecule.structure import superpose
from cryoanm_lib.particles.particles import Simulated
from cryoanm_lib.program.program import Model

# Posterior draws for each image.
_DRAWS = 199


class Transition:
    """The straight path from a model's reference to another structure, x(ξ) = x̄ + ξ d.

    Parameters
    ----------
    model : Model
        Its reference is where the path begins, at ξ = 0; its forward model says how images are made.
    end : Float[Tensor, "atoms 3"]
        Where it ends, at ξ = 1, in any orientation: it is superposed on the beginning.
    """

    def __init__(self, model: Model, end: Float[Tensor, "atoms 3"]) -> None:
        self.model, forward = model, model.forward_model
        self.displacement = superpose(end.to(forward.reference), forward.reference) - forward.reference
        self.length = self.displacement.norm().item()
        # A mode of its own: the forward model bends along it as along any other.
        direction = (self.displacement / self.length)[None]
        sizes = (forward.box_size, forward.pixel_size, forward.atom_width, forward.projector)
        self.forward_model = ForwardModel(forward.reference, direction, *sizes, forward.transfer)

    @cached_property
    def search(self) -> LatticeSearch:
        """Looks over the model's whole prior."""
        return LatticeSearch(self.model)

    @property
    def amplitudes(self) -> Float[Tensor, "modes"]:
        """Amplitudes of the model's modes that come closest to the end, u·d: what they can know of it."""
        return (self.model.forward_model.modes * self.displacement).sum((-2, -1))

    @property
    def unspanned(self) -> float:
        """RMSD in Å that the model's modes leave at the end of the path."""
        modes = self.model.forward_model.modes
        left = self.displacement - torch.tensordot(self.amplitudes, modes, dims=1)
        return (left.norm() / len(left) ** 0.5).item()

    @torch.no_grad()
    def simulate(self, fraction: float, n_images: int, resolution: int) -> Simulated:
        """Images of the molecule at a fraction ξ of the way, with poses from the model's prior, kept at K.

        The amplitude that they are said to have is ξ u·d, and the pose that of the superposed structures.
        """
        images = self.model.simulate(n_images, resolution)
        bent = images.truth["pose"].new_full((n_images, 1), fraction * self.length)
        clean = self.forward_model.coefficients({**images.truth, "amplitude": bent}, resolution)
        nearest = {"amplitude": (fraction * self.amplitudes).expand(n_images, -1)}
        coefficients, truth = images.noise.sample(clean), {**images.truth, **nearest}
        return replace(images, coefficients=coefficients, truth=truth)


@dataclass(frozen=True, eq=False)
class Explained:
    """What a model says of images from somewhere on the way, and how wrong it is.

    Attributes
    ----------
    images : Simulated
        With what one would wish to be told as their truth.
    posterior : RefinedPosterior
        What is told.
    draws : dict of Tensor
        (draws, images, …) from it.
    p_value : Float[Tensor, "images"]
        The predictive check at one draw an image.
    """

    images: Simulated
    posterior: RefinedPosterior
    draws: dict[str, Tensor]
    p_value: Float[Tensor, "images"]

    def draw(self, count: int | None = None) -> dict[str, Tensor]:
        """One draw for each of the first images, of all by default."""
        return {name: value[0, :count] for name, value in self.draws.items()}

    @property
    def truth(self) -> float:
        """The nearest amplitude of the first mode."""
        return self.images.truth["amplitude"][0, 0].item()

    @property
    def amplitude_median(self) -> float:
        """Median over images of the posterior's mean amplitude."""
        return self.draws["amplitude"][..., 0].mean(0).median().item()

    @property
    def amplitude_claimed(self) -> float:
        """Median over images of the deviation of the amplitude that the posterior claims."""
        return self.draws["amplitude"][..., 0].std(0).median().item()

    @property
    def pose_residual(self) -> float:
        """Mean residual of the pose in degrees."""
        return residuals(self.draws, self.images.truth)["pose"].mean().item()

    @cached_property
    def coverage(self) -> dict[float, float]:
        """Share of images whose truth is inside the region of all latents, at each of `LEVELS`."""
        level = credible_level(self.posterior, self.draws, self.images.truth)
        return {nominal: coverage(level, nominal, _DRAWS) for nominal in LEVELS}

    @property
    def alarm_fraction(self) -> float:
        """Share of images that are not explained."""
        return (self.p_value < SUSPICIOUS).double().mean().item()

    @property
    def pooled_p(self) -> float:
        """p-value of the test that those of all images are uniform."""
        return uniformity(self.p_value)


def explain(transition: Transition, fraction: float, n_images: int, resolution: int) -> Explained:
    """Simulate images at a fraction ξ of the way, and refine them by the model, from the wide search alone.

    The resolution K is at least that of the search.
    """
    model = transition.model
    images = transition.simulate(fraction, n_images, resolution)
    starts = transition.search.starts(images)
    posterior = refine(model, images, resolution, starts, transition.search)
    draws = posterior.sample(_DRAWS)
    one = {name: value[0] for name, value in draws.items()}
    return Explained(images, posterior, draws, predictive_p_value(model, images, one, resolution))
