"""The posterior of one image over pose and amplitude, on a grid: the whole of it, or where it is."""

import math
from dataclasses import dataclass
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
    pose, amplitude : Float[Tensor, "points"]
        Of the grid, in radians, which do not jump within the window, and in Å.
    log_density : Float[Tensor, "pose amplitude"]
        log p(pose, amplitude | image).
    truth, deviation : Float[Tensor, "2"]
        Pose and amplitude that made the image, and the posterior's deviations.
    draws : Float[Tensor, "draws 2"]
        From the posterior.
    """

    pose: Float[Tensor, "points"]
    amplitude: Float[Tensor, "points"]
    log_density: Float[Tensor, "points points"]
    truth: Float[Tensor, "2"]
    deviation: Float[Tensor, "2"]
    draws: Float[Tensor, "draws 2"]

    @property
    def density(self) -> Float[Tensor, "points points"]:
        """As a share of the highest."""
        return (self.log_density - self.log_density.max()).exp()


def window(
    posterior: ExactPosterior, points: int = 81, n_draws: int = 2000, reach: float | None = None
) -> Window:
    """The posterior of one image about its mean.

    Parameters
    ----------
    posterior : ExactPosterior
        Of one simulated image, whose pose and amplitude are inferred.
    points : int
        Of the grid along each axis.
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
    sides = [torch.linspace(-1, 1, points, dtype=torch.float64) * side for side in half]
    grid = torch.stack(torch.meshgrid(*sides, indexing="ij"), dim=-1)
    values = unknowns.moved(centre, grid).flatten(0, 1)[:, None]
    log_density = posterior.log_density(unknowns.values(values.float()))[:, 0].view(points, points)
    truth, draws = (centre + unknowns.offset(place, centre) for place in (truth, draws))
    return Window(sides[0] + centre[0], sides[1] + centre[1], log_density, truth, deviation, draws)
