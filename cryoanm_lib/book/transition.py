"""Images of a molecule on its way between two known structures, which no single mode spans."""

from dataclasses import dataclass
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
from cryoanm_lib.particles.particles import Particles, to_forward
from cryoanm_lib.program.program import CryoProgram

# Posterior draws for each image.
_DRAWS = 199


class Transition:
    """The straight path from a program's reference to another structure, x(t) = x̄ + t d.

    Parameters
    ----------
    program : CryoProgram
        Its reference is where the path begins, at t = 0; its forward model says how images are made.
    end : Float[Tensor, "atoms 3"]
        Where it ends, at t = 1, in any orientation: it is superposed on the beginning.
    """

    def __init__(self, program: CryoProgram, end: Float[Tensor, "atoms 3"]) -> None:
        model = program.forward_model
        self.program = program
        self.displacement = superpose(end.to(model.reference), model.reference) - model.reference
        self.length = self.displacement.norm().item()
        # A mode of its own: the forward model bends along it as along any other.
        direction = (self.displacement / self.length)[None]
        sizes = (model.box_size, model.pixel_size, model.atom_width, model.projector)
        self.forward_model = ForwardModel(model.reference, direction, *sizes)

    @cached_property
    def search(self) -> LatticeSearch:
        """Looks over the program's whole prior."""
        return LatticeSearch(self.program)

    @property
    def amplitudes(self) -> Float[Tensor, "modes"]:
        """Amplitudes of the program's modes that come closest to the end, u·d: what they can know of it."""
        return (self.program.forward_model.modes * self.displacement).sum((-2, -1))

    @property
    def unspanned(self) -> float:
        """RMSD in Å that the program's modes leave at the end of the path."""
        modes = self.program.forward_model.modes
        left = self.displacement - torch.tensordot(self.amplitudes, modes, dims=1)
        return (left.norm() / len(left) ** 0.5).item()

    @torch.no_grad()
    def simulate(self, fraction: float, n_images: int, resolution: int) -> Particles:
        """Images of the molecule at a fraction t of the way, with poses from the program's prior.

        The amplitude that they are said to have is t u·d, and the pose that of the superposed structures.

        Parameters
        ----------
        fraction : float
            t.
        n_images : int
            How many.
        resolution : int
            K at which they are kept.
        """
        latents = dict(self.program.simulate(n_images, resolution).latents)
        latents["amplitude"] = latents["amplitude"].new_full((n_images, 1), fraction * self.length)
        images = self.forward_model.simulate(to_forward(latents), self.program.noise_of(latents), resolution)
        nearest = (fraction * self.amplitudes).expand(n_images, -1)
        return Particles(images, latents | {"amplitude": nearest})


@dataclass(frozen=True, eq=False)
class Explained:
    """What a program says of images from somewhere on the way, and how wrong it is.

    Attributes
    ----------
    images : Particles
        With what one would wish to be told as their latents.
    posterior : RefinedPosterior
        What is told.
    draws : dict of Tensor
        (draws, images, …) from it.
    p_value : Float[Tensor, "images"]
        The predictive check at one draw an image.
    """

    images: Particles
    posterior: RefinedPosterior
    draws: dict[str, Tensor]
    p_value: Float[Tensor, "images"]

    def draw(self, count: int | None = None) -> dict[str, Tensor]:
        """One draw for each of the first images, of all by default."""
        return {name: value[0, :count] for name, value in self.draws.items()}

    @property
    def truth(self) -> float:
        """The nearest amplitude of the first mode."""
        return self.images.latents["amplitude"][0, 0].item()

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
        return residuals(self.draws, self.images.latents)["pose"].mean().item()

    @cached_property
    def coverage(self) -> dict[float, float]:
        """Share of images whose truth is inside the region of all latents, at each of `LEVELS`."""
        level = credible_level(self.posterior, self.draws, self.images.latents)
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
    """Simulate images at a fraction of the way, and refine them by the program, from the wide search alone.

    Parameters
    ----------
    transition : Transition
        The way, and the program that does not know of it.
    fraction : float
        t.
    n_images : int
        How many.
    resolution : int
        K, at least that of the search.
    """
    program = transition.program
    images = transition.simulate(fraction, n_images, resolution)
    starts = transition.search.starts(images)
    posterior = refine(program, images, resolution, starts, transition.search)
    draws = posterior.sample(_DRAWS)
    one = {name: value[0] for name, value in draws.items()}
    return Explained(images, posterior, draws, predictive_p_value(program, images, one, resolution))
