"""What images can tell apart at all: how far states must be from each other, and how small one may be."""

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from cryoanm_lib.errors import CryoANMError
from cryoanm_lib.inference.population import BETTER, FOLDS

#: Nats that three more parameters cost of images that they were not learned from.
_COST = 1.5 * FOLDS / (FOLDS - 1)
#: Nats of all images together, N KL, from which on two states are told from one in every other data set.
#: `gaussian_population` takes another Gaussian if images gain by more than `BETTER` standard errors, and
#: where states are near the variance of what each gains is twice the mean: N KL - cost = BETTER √(2 N KL).
ENOUGH = (BETTER / 2**0.5 + (BETTER**2 / 2 + _COST) ** 0.5) ** 2
#: Places of the quadrature, and halvings of an interval.
_PLACES, _HALVINGS = 96, 60


def divergence(
    separation: float | Float64[Tensor, "*batch"],
    share: float | Float64[Tensor, "*batch"],
    deviation: float | Float64[Tensor, "*batch"],
) -> Float64[Tensor, "*batch"]:
    """Nats by which an image of two states says on average that they are not one: KL(two ‖ one).

    Two normal densities of one deviation against the one with the mean and variance of both, by Gauss-Hermite
    quadrature. The deviation is √(w² + s²), of states w wide and images that tell amplitudes to s.

    Parameters
    ----------
    separation, deviation : float or Float64[Tensor, "*batch"]
        Of the states from each other, and of either, errors and all, in the same unit.
    share : float or Float64[Tensor, "*batch"]
        Of the minor state, between 0 and 1.

    Examples
    --------
    >>> round(divergence(4.0, 0.5, 1.0).item(), 3)
    0.172
    """
    separation, share, deviation = (
        torch.as_tensor(part, dtype=torch.float64)[..., None] for part in (separation, share, deviation)
    )
    d = separation / deviation
    places, weight = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(_PLACES))
    weight = weight / math.sqrt(2 * math.pi)
    minor, major = (1 - share) * d, -share * d
    variance = 1 + share * (1 - share) * d.square()

    def log_ratio(x: Tensor) -> Tensor:
        two = torch.logaddexp(
            share.log() - 0.5 * (x - minor).square(), (1 - share).log() - 0.5 * (x - major).square()
        )
        return two + 0.5 * x.square() / variance + 0.5 * variance.log()

    each = share * log_ratio(places + minor) + (1 - share) * log_ratio(places + major)
    return (each @ weight).clamp(min=0.0)


def smallest_separation(
    error: Float64[Tensor, "images"], width: float, particles: float, share: float = 0.5
) -> float:
    """How far apart two states must be for so many particles to tell them from one.

    Parameters
    ----------
    error : Float64[Tensor, "images"]
        Deviations to which images tell the amplitude, of which those of all particles are like; as of
        `fisher_information`, or one by one for a map over views.
    width : float
        Deviation of either state, in the same unit.
    particles : float
        How many there are.
    share : float
        Of the minor state.

    Returns
    -------
    float
        In the same unit: the separation at which N KL is `ENOUGH`.

    Raises
    ------
    CryoANMError
        If errors, width, number or share are not usable.
    """
    deviation = _checked(error, width, particles, share)
    top = 100 * deviation.amax().item()

    def told(separation: float) -> bool:
        return particles * divergence(separation, share, deviation).mean().item() >= ENOUGH

    return _least(told, 0.0, top)


def smallest_share(
    error: Float64[Tensor, "images"], width: float, particles: float, separation: float
) -> float:
    """How small a minor state may be for so many particles to tell it; as `smallest_separation`.

    Returns
    -------
    float
        Share at which N KL is `ENOUGH`; infinity where not even two equal states are told.
    """
    deviation = _checked(error, width, particles, 0.5)

    def told(share: float) -> bool:
        return particles * divergence(separation, share, deviation).mean().item() >= ENOUGH

    return _least(told, 0.0, 0.5)


def _checked(
    error: Float64[Tensor, "images"], width: float, particles: float, share: float
) -> Float64[Tensor, "images"]:
    """Deviations of a state as images see it."""
    deviation = (error.double().square() + width**2).sqrt()
    if not (len(error) and (deviation > 0).all() and deviation.isfinite().all()):
        raise CryoANMError(f"errors and a width of {width:g} are not usable: give finite ones, not all 0")
    if not particles > 0 or not 0 < share < 1:
        raise CryoANMError(
            f"particles = {particles:g} and share = {share:g} are not usable: above 0, and between 0 and 1"
        )
    return deviation


def _least(told: Callable[[float], bool], low: float, high: float) -> float:
    """Where something begins to be told; infinity where it is not even at the end."""
    if not told(high):
        return math.inf
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if told(middle) else (middle, high)
    return high
