"""A reference that learns: moved where all images have it, and their posteriors with it, until it settles."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from cryoanm_lib.checks.predictive import chi_square_tail
from cryoanm_lib.inference.peak_finding import MARCH
from cryoanm_lib.inference.reference_error import (
    ReferenceEstimate,
    ReferenceStatistics,
    reference_error,
    reference_statistics,
)
from cryoanm_lib.inference.refinement import RefinedPosterior

#: The posteriors of all images, part by part, with the reference displaced so far and at a K.
Posteriors = Callable[[Float64[Tensor, "atoms 3"], int], Iterable[RefinedPosterior]]

#: A reference has settled where a step is this share of its deviations, root mean square; and steps at most.
_SETTLED, _STEPS = 0.1, 12
#: Alarms ring at a p-value that chance gives once in 10⁴ times, and where slopes vary more by this factor.
_SELDOM, _EXCESS = 1e-4, 1.25


@dataclass(frozen=True, eq=False)
class MovedReference:
    """Where a reference has settled.

    Attributes
    ----------
    error : ReferenceEstimate
        What was wrong with the one that it began with.
    halves : tuple of ReferenceStatistics
        Of every other image, and of those between, with the reference where it was before the last step.
    steps : tuple of float
        RMSD in Å of each.
    settled : bool
        Whether the last was small against what is known of the reference.
    """

    error: ReferenceEstimate
    halves: tuple[ReferenceStatistics, ReferenceStatistics]
    steps: tuple[float, ...]
    settled: bool

    @property
    def all(self) -> ReferenceStatistics:
        """Of all images."""
        return self.halves[0] + self.halves[1]

    @property
    def excess(self) -> float:
        """By what factor slopes vary more than the model says, tr(H⁻¹ Σ_i s_i s_iᵀ) / M: 1 if it is right.

        Of n images that say alike of M directions it is 1 ± √(2 / (n M)); where they do not, it varies more.
        """
        seen = self.all
        ratio = torch.linalg.lstsq(seen.information, seen.squares, driver="gelsd").solution
        return ratio.trace().item() / len(seen.slope)

    @property
    def half_p_value(self) -> float:
        """How often two halves of the images would disagree as much by chance.

        Where the reference is now, both have slopes of mean 0, and the difference g₁ - g₂ has the covariance
        H₁ + H₂.
        """
        first, second = self.halves
        apart, both = first.slope - second.slope, first.information + second.information
        chi_square = apart @ torch.linalg.lstsq(both, apart[:, None], driver="gelsd").solution[:, 0]
        return chi_square_tail(chi_square, int(torch.linalg.matrix_rank(both))).item()

    @property
    def alarms(self) -> dict[str, str]:
        """What speaks against it, by name and in words; nothing where the model is right."""
        rings = {
            "unsettled": (not self.settled, f"the last step was {self.steps[-1]:.3g} Å"),
            "halves": (self.half_p_value < _SELDOM, f"chance parts two halves so in {self.half_p_value:.2g}"),
            "excess": (self.excess > _EXCESS, f"slopes vary {self.excess:.3g} times as much as they should"),
        }
        return {name: told for name, (ringing, told) in rings.items() if ringing}


@torch.no_grad()
def moved_reference(
    posteriors: Posteriors,
    directions: Float64[Tensor, "directions atoms 3"],
    scales: Float64[Tensor, "directions"],
    resolution: int,
    seed: int = 1,
) -> MovedReference:
    """The reference where all images together have it, by Gauss-Newton steps at rising resolution.

    In each step the posteriors of all images are climbed anew, and `reference_error` of their statistics says
    where the reference is. It is marched, as poses are, because a displacement must be small against the
    waves. Draws are the same in each step, so that it ends.

    Parameters
    ----------
    posteriors : callable
        Given a displacement of all atoms and K, the posteriors of all images part by part, in the same order
        each time.
    directions, scales : Float64[Tensor, "directions atoms 3"], Float64[Tensor, "directions"]
        Along which the reference may be wrong, best the modes beyond those that are inferred; and in which
        proportions, best λ^-1/2, as by the elastic energy.
    resolution : int
        K of the last steps.
    seed : int
        Of all draws.

    Raises
    ------
    CryoANMError
        As of `reference_error`.
    """
    scales = unit_scales(scales, directions)
    at, steps, settled = torch.zeros(len(directions)).double(), [], False
    march = [step for step in MARCH if step < resolution]
    for number in range(len(march) + _STEPS):
        k = (march + [resolution] * _STEPS)[number]
        halves = _statistics(posteriors(_displacement(at, directions), k), directions, seed)
        error = reference_error(halves[0] + halves[1], at, scales)
        step, at = error.amplitudes - at, error.amplitudes
        steps.append(_displacement(step, directions).square().sum(1).mean().sqrt().item())
        deviation = error.covariance.diagonal().sum().sqrt()
        settled = bool(step.norm() <= _SETTLED * deviation)
        if settled and k == resolution:
            break
    return MovedReference(error, halves, tuple(steps), settled)


def unit_scales(
    scales: Float64[Tensor, "directions"], directions: Float64[Tensor, "directions atoms 3"]
) -> Float64[Tensor, "directions"]:
    """Deviations in the same proportions, of a displacement that is 1 Å root mean square over atoms.

    Examples
    --------
    >>> unit_scales(torch.tensor([2.0, 1.0]).double(), torch.eye(6).double().view(6, 2, 3)[:2])
    tensor([1.2649, 0.6325], dtype=torch.float64)
    """
    squares = scales.square() @ directions.square().sum(dim=(1, 2)) / directions.shape[1]
    return scales / squares.sqrt()


def _displacement(
    amplitudes: Float64[Tensor, "directions"], directions: Float64[Tensor, "directions atoms 3"]
) -> Float64[Tensor, "atoms 3"]:
    return torch.tensordot(amplitudes, directions, dims=1)


def _statistics(
    parts: Iterable[RefinedPosterior], directions: Float64[Tensor, "directions atoms 3"], seed: int
) -> tuple[ReferenceStatistics, ReferenceStatistics]:
    """Of every other image, and of those between."""
    nothing = ReferenceStatistics.nothing(len(directions))
    found = [nothing, nothing]
    for part, posterior in enumerate(parts):
        for half in (0, 1):
            if len(rows := torch.arange(half, len(posterior), 2)):
                generator = torch.Generator().manual_seed(1_000_003 * seed + 2 * part + half)
                found[half] = found[half] + reference_statistics(posterior[rows], directions, generator)
    return found[0], found[1]
