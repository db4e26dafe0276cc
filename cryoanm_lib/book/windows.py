"""The posterior of one image over pose and amplitude, on a grid: the whole of it, or where it is."""

import math
from dataclasses import dataclass, replace
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from cryoanm_lib.inference.exact_posterior import ExactPosterior
from cryoanm_lib.particles.particles import Simulated

# Half of a window in deviations of the posterior.
_SHOWN_DEVIATIONS = 5.0


@dataclass(frozen=True, eq=False)
class Window:
    """A piece of the plane of pose and amplitude, and the posterior there.

    Attributes
    ----------
    pose, amplitude : Float[Tensor, "poses"], Float[Tensor, "amplitudes"]
        Of the grid, in radians, which do not jump within the window, and in Å.
    log_density : Float[Tensor, "poses amplitudes"]
        log p(pose, amplitude | image).
    truth, deviation : Float[Tensor, "2"]
        Pose and amplitude that made the image, and the posterior's deviations.
    draws : Float[Tensor, "draws 2"]
        From the posterior.
    """

    pose: Float[Tensor, "poses"]
    amplitude: Float[Tensor, "amplitudes"]
    log_density: Float[Tensor, "poses amplitudes"]
    truth: Float[Tensor, "2"]
    deviation: Float[Tensor, "2"]
    draws: Float[Tensor, "draws 2"]

    @property
    def density(self) -> Float[Tensor, "poses amplitudes"]:
        """As a share of the highest."""
        return (self.log_density - self.log_density.max()).exp()


def window(
    posterior: ExactPosterior,
    points: tuple[int, int] = (81, 81),
    n_draws: int = 2000,
    reach: float | None = None,
) -> Window:
    """The posterior of one image about its mean.

    Parameters
    ----------
    posterior : ExactPosterior
        Of one simulated image, whose pose and amplitude are inferred.
    points : tuple of int
        Poses and amplitudes of the grid.
    n_draws : int
        For the deviations, and to be shown.
    reach : float, optional
        Show all poses, and amplitudes up to this one on either side of zero; default: the truth and five
        deviations.
    """
    unknowns = posterior.model.unknowns
    draws = unknowns.points(posterior.sample(n_draws, torch.Generator().manual_seed(0)))[:, 0].double()
    truth = unknowns.points(cast(Simulated, posterior.particles).truth)[0].double()
    mean = unknowns.points(posterior.mean())[0]
    deviation = unknowns.offset(draws, mean).std(0)
    if reach is None:
        centre = mean
        half = torch.maximum(_SHOWN_DEVIATIONS * deviation, 1.15 * unknowns.offset(truth, mean).abs())
        half[0] = half[0].clamp(max=math.pi)
    else:
        centre, half = torch.zeros_like(mean), mean.new_tensor([math.pi, reach])
    sides = [torch.linspace(-1, 1, n, dtype=torch.float64) * h for n, h in zip(points, half, strict=True)]
    grid = torch.stack(torch.meshgrid(*sides, indexing="ij"), dim=-1)
    values = unknowns.moved(centre, grid).flatten(0, 1)[:, None]
    log_density = posterior.log_density(unknowns.values(values.float()))[:, 0].view(points)
    truth, draws = (centre + unknowns.offset(place, centre) for place in (truth, draws))
    return Window(sides[0] + centre[0], sides[1] + centre[1], log_density, truth, deviation, draws)


def posterior_of(posterior: ExactPosterior, image: int) -> ExactPosterior:
    """That of one image of a batch."""
    cells, one = posterior.image == image, slice(image, image + 1)
    columns = ("centre", "spacing", "log_mass", "slope", "bend")
    return replace(
        posterior,
        particles=posterior.particles[one],
        image=posterior.image[cells] - image,
        log_evidence=posterior.log_evidence[one],
        **{name: getattr(posterior, name)[cells] for name in columns},
    )
