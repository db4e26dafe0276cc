"""What images can tell apart at all: how far states must be from each other, and how small one may be."""

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from cryoanm_lib.errors import CryoANMError
from cryoanm_lib.inference.gaussian_population import BETTER
from cryoanm_lib.inference.population import FOLDS

#: Nats that three more parameters cost of images that they were not learned from.
_COST = 1.5 * FOLDS / (FOLDS - 1)
#: Places of the quadrature; values that are tried first, and halvings between two of them.
_PLACES, _TRIED, _HALVINGS = 96, 60, 30


def gain(
    separation: float | Float64[Tensor, "*batch"],
    share: float | Float64[Tensor, "*batch"],
    deviation: float | Float64[Tensor, "*batch"],
) -> tuple[Float64[Tensor, "*batch"], Float64[Tensor, "*batch"]]:
    """Nats by which an image of two states says that they are not one: mean KL(two ‖ one), and mean square.

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
    >>> round(gain(4.0, 0.5, 1.0)[0].item(), 3)
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

    of_minor, of_major = log_ratio(places + minor), log_ratio(places + major)
    mean = share * of_minor + (1 - share) * of_major
    square = share * of_minor.square() + (1 - share) * of_major.square()
    return mean @ weight, square @ weight


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
        In the same unit. There every other data set tells them, by `gaussian_population`.

    Raises
    ------
    CryoANMError
        If errors, width, number or share are not usable.
    """
    deviation = _checked(error, width, particles, share)
    tried = deviation.amax() * torch.logspace(-3, 2, _TRIED, dtype=torch.float64)
    return _least(lambda separation: _told(separation, share, deviation, particles), tried)


def smallest_share(
    error: Float64[Tensor, "images"], width: float, particles: float, separation: float
) -> float:
    """How small a minor state may be for so many particles to tell it; as `smallest_separation`.

    Returns
    -------
    float
        Infinity where none is told. Uneven shares are told better than equal ones where states are near.
    """
    deviation = _checked(error, width, particles, 0.5)
    tried = 0.5 * torch.logspace(-9, 0, _TRIED, dtype=torch.float64)
    return _least(lambda share: _told(separation, share, deviation, particles), tried)


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


def _told(separation: float, share: float, deviation: Float64[Tensor, "images"], particles: float) -> bool:
    """Whether images gain, at their mean, as much by another Gaussian as `gaussian_population` asks for."""
    mean, square = (part.mean().item() for part in gain(separation, share, deviation))
    return particles * mean - _COST >= BETTER * (particles * (square - mean**2)) ** 0.5


def _least(told: Callable[[float], bool], tried: Float64[Tensor, "ascending"]) -> float:
    """From where on something is told, at last between two that were tried; infinity where none is."""
    low = 0.0
    for high in tried.tolist():
        if told(high):
            break
        low = high
    else:
        return math.inf
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if told(middle) else (middle, high)
    return high
