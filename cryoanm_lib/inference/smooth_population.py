"""The population as a smooth density of no form, with a band in which it is."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from cryoanm_lib.errors import CryoANMError
from cryoanm_lib.inference.gaussian_population import gaussians
from cryoanm_lib.inference.likelihoods import Likelihoods
from cryoanm_lib.inference.population import Population, folds, log_normal, require_enough

#: Widths of the kernel that are tried, in deviations of what images say.
WIDTHS = (0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6)
#: Steps of expectation and maximisation of weights.
_STEPS = 300
#: Kernels on a grid are so many of their widths apart; and there are no more of them than this.
_APART, _MOST = 0.5, 4096


def smooth_population(seen: Likelihoods, widths: Sequence[float] = WIDTHS) -> Population:
    """A smooth density of no form: Gaussian kernels on a grid, their width chosen by images left out.

    The weights are the most likely ones, and what the kernel does not resolve is not asked for.

    Parameters
    ----------
    seen : Likelihoods
        Of one column or two.
    widths : sequence of float
        Of the kernel, among which is chosen, in deviations of what images say that know it well.

    Raises
    ------
    CryoANMError
        If there are fewer than fifty images, or more than two columns.
    """
    require_enough(seen, 50)
    if seen.mean.shape[1] > 2:
        raise CryoANMError(
            f"a grid over {seen.mean.shape[1]} columns is too large: choose one or two, or "
            "gaussian_population"
        )
    fold, extent, held = folds(seen), _extent(seen), []
    # a band, of one column, takes kernels half as wide
    finest = 0.5 if len(extent[2]) == 1 else 1.0
    parts = [
        kernels
        for width in widths
        if _kernels(extent, finest * width) is not None and (kernels := _kernels(extent, width)) is not None
    ]
    if not parts:
        raise CryoANMError(
            f"amplitudes from {extent[0].tolist()} to {extent[1].tolist()} are too many widths of "
            f"{min(widths):g} to {max(widths):g} deviations apart: leave out images that are not explained"
        )
    for kernels in parts:
        log_each = log_normal(seen, kernels)
        learned = _weights(log_each, seen.count - fold)
        each = (log_each[None] + learned[:, None].log()).logsumexp(2)
        held.append((fold * each).sum().item())
    best = parts[max(range(len(parts)), key=held.__getitem__)]
    weight = _weights(log_normal(seen, best), seen.count[None])[0]
    return Population(weight, best.mean, best.covariance)


def density_band(
    population: Population,
    seen: Likelihoods,
    at: Float64[Tensor, "points columns"],
    count: int = 200,
    level: float = 0.95,
    generator: torch.Generator | None = None,
) -> tuple[Float64[Tensor, "points"], Float64[Tensor, "points"]]:
    """Between what the density at each point is, with so much confidence: a bootstrap over particles.

    Kernels are half as wide as those of the estimate, whose own smoothing is then small beside its spread. In
    each bootstrap there is one particle more, that may be anywhere, and counts as much as an exponential draw
    says: where no particle was seen some may be nevertheless.

    It is of how particles happened to fall, point by point. Where images err by more than states are wide,
    the estimate itself fills the valleys between them, and a barrier is at least as high as it seems.

    Parameters
    ----------
    population, seen : Population, Likelihoods
        Of `smooth_population`, and from which.
    at : Float64[Tensor, "points columns"]
        Where.
    count, level, generator : int, float, torch.Generator
        How many bootstraps, the share of them within, and what draws.

    Raises
    ------
    CryoANMError
        If half as wide kernels are too many, or the population is no smooth one, whose parts are alike.
    """
    alike = population.covariance[:1].expand_as(population.covariance)
    if len(population.weight) == 1 or not torch.equal(population.covariance, alike):
        raise CryoANMError("a band is of kernels, and these are other Gaussians: give a smooth_population")
    extent = _extent(seen)
    width = (population.covariance[0].diagonal().sqrt() / extent[2]).mean().item()
    kernels = _kernels(extent, 0.5 * width)
    if kernels is None:
        raise CryoANMError(
            f"kernels of {0.5 * width:.2g} deviations are too many for a band: choose one column"
        )
    # how often each particle comes in a bootstrap is Poisson's, where there are many
    counts = torch.poisson(seen.count.expand(count, -1), generator=generator)
    more = -torch.rand(count, 1, generator=generator, dtype=torch.float64).log()
    weight = _weights(log_normal(seen, kernels), counts, more)
    density = weight @ log_normal(Likelihoods.exact(at), kernels).exp().T
    ends = torch.tensor([0.5 - 0.5 * level, 0.5 + 0.5 * level], dtype=torch.float64)
    low, high = density.quantile(ends, dim=0)
    return low, high


def _weights(
    log_each: Float64[Tensor, "images parts"],
    counted: Float64[Tensor, "times images"],
    more: Float64[Tensor, "times one"] | float = 0.0,
) -> Float64[Tensor, "times parts"]:
    """The most likely weights, by expectation and maximisation, for each of some ways to count images.

    More images may be counted, which say nothing.
    """
    likelihood = (log_each - log_each.amax(1, keepdim=True)).exp()
    even = 1 / log_each.shape[1]
    total = counted.sum(1, keepdim=True) + more
    weight = torch.full((len(counted), log_each.shape[1]), even, dtype=torch.float64)
    for _ in range(_STEPS):
        weight = (weight * ((counted / (weight @ likelihood.T)) @ likelihood) + even * more) / total
    return weight


def _extent(seen: Likelihoods) -> tuple[Tensor, Tensor, Tensor]:
    """Between what particles may be, and by how much images differ that know it well, in each column."""
    one = gaussians(seen, 1)
    precision = (seen.count[:, None] / seen.covariance.diagonal(dim1=1, dim2=2)).sum(0)
    error = seen.count.sum() / precision
    scale = (one.covariance[0].diagonal() + error).sqrt()
    # drawn together, since what an image says that knows nothing may be anywhere
    at = one.posterior(seen)[0]
    return at.amin(0) - scale, at.amax(0) + scale, scale


def _kernels(extent: tuple[Tensor, Tensor, Tensor], width: float) -> Population | None:
    """Equal Gaussians on a grid over all that particles may be; none where there were too many."""
    lines = [
        torch.arange(a, b + 0.5 * _APART * width * s, _APART * width * s, dtype=torch.float64)
        for a, b, s in zip(*(part.tolist() for part in extent), strict=True)
    ]
    if math.prod(map(len, lines)) > _MOST:
        return None
    places = torch.cartesian_prod(*lines).reshape(-1, len(lines))
    covariance = torch.diag((width * extent[2]).square()).expand(len(places), -1, -1)
    return Population(torch.full((len(places),), 1 / len(places), dtype=torch.float64), places, covariance)
