"""The distribution of a latent over many particles: a mixture of Gaussians, seen through images' errors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from cryoanm_lib.errors import CryoANMError
from cryoanm_lib.inference.likelihoods import Likelihoods

#: Parts of the images, each of which judges what was learned from the others.
FOLDS = 5
#: Images at a time, of which each has all Gaussians beside it.
_IMAGES = 10_000


@dataclass(frozen=True, eq=False)
class Population:
    """A mixture of Gaussians from which the numbers of all particles come.

    Attributes
    ----------
    weight : Float64[Tensor, "parts"]
        Their sum is 1.
    mean : Float64[Tensor, "parts columns"]
        Of each Gaussian.
    covariance : Float64[Tensor, "parts columns columns"]
        Of each.
    """

    weight: Float64[Tensor, "parts"]
    mean: Float64[Tensor, "parts columns"]
    covariance: Float64[Tensor, "parts columns columns"]

    def density(self, at: Float64[Tensor, "points columns"]) -> Float64[Tensor, "points"]:
        """Probability density at some points."""
        return self.log_evidence(Likelihoods.exact(at)).exp()

    def free_energy(self, at: Float64[Tensor, "points columns"]) -> Float64[Tensor, "points"]:
        """-log p in kT, its lowest value among some points 0.

        It is one of the molecule if particles were frozen from equilibrium, faster than they change, at the
        temperature T, and were picked whatever their state; and as a function of these numbers, whose other
        ones are summed over.
        """
        energy = -self.log_evidence(Likelihoods.exact(at))
        return energy - energy.min()

    def log_evidence(self, seen: Likelihoods) -> Float64[Tensor, "images"]:
        """log ∫ N(m_i | α, S_i) p(α) dα of each image."""
        return (log_normal(seen, self) + self.weight.log()).logsumexp(1)

    def posterior(
        self, seen: Likelihoods
    ) -> tuple[Float64[Tensor, "images columns"], Float64[Tensor, "images columns columns"]]:
        """Mean and covariance of each particle's numbers, with the population for a prior."""
        found = []
        for rows in torch.arange(len(seen)).split(_IMAGES):
            share, mean, covariance = expected(seen[rows], self)
            together = (share[..., None] * mean).sum(1)
            away = mean - together[:, None]
            every = covariance + away[..., None] * away[..., None, :]
            found.append((together, (share[..., None, None] * every).sum(1)))
        means, covariances = zip(*found, strict=True)
        return torch.cat(means), torch.cat(covariances)

    def sample(
        self, count: int, generator: torch.Generator | None = None
    ) -> Float64[Tensor, "count columns"]:
        """Draws of the numbers of so many particles."""
        part = torch.multinomial(self.weight, count, replacement=True, generator=generator)
        scale = torch.linalg.cholesky(self.covariance)[part]
        normal = torch.randn(count, scale.shape[-1], 1, generator=generator, dtype=scale.dtype)
        return self.mean[part] + (scale @ normal)[..., 0]


def log_normal(seen: Likelihoods, population: Population) -> Float64[Tensor, "images parts"]:
    """log N(m_i | μ_k, S_i + C_k)."""
    away = seen.mean[:, None] - population.mean
    if away.shape[-1] <= 2:  # ten times as fast as by factors
        return _log_normal_of_few(seen, population, away.unbind(-1))
    spread = seen.covariance[:, None] + population.covariance
    scale = torch.linalg.cholesky(spread)
    squared = torch.linalg.solve_triangular(scale, away[..., None], upper=False).square().sum((-1, -2))
    log_volume = scale.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return -0.5 * squared - log_volume - 0.5 * seen.mean.shape[1] * math.log(2 * math.pi)


def _log_normal_of_few(
    seen: Likelihoods, population: Population, away: Sequence[Float64[Tensor, "images parts"]]
) -> Float64[Tensor, "images parts"]:
    """The same of one column or two, by the determinant."""

    def spread(i: int, j: int) -> Float64[Tensor, "images parts"]:
        return seen.covariance[:, None, i, j] + population.covariance[:, i, j]

    if len(away) == 1:
        volume = spread(0, 0)
        return -0.5 * (away[0].square() / volume + (2 * math.pi * volume).log())
    (x, y), (xx, xy, yy) = away, (spread(0, 0), spread(0, 1), spread(1, 1))
    volume = xx * yy - xy.square()
    squared = (yy * x.square() - 2 * xy * x * y + xx * y.square()) / volume
    return -0.5 * (squared + volume.log()) - math.log(2 * math.pi)


def expected(
    seen: Likelihoods, population: Population
) -> tuple[
    Float64[Tensor, "images parts"],
    Float64[Tensor, "images parts columns"],
    Float64[Tensor, "images parts columns columns"],
]:
    """Of which Gaussian a particle is, and if it is of it, the mean and covariance of its numbers."""
    share = (log_normal(seen, population) + population.weight.log()).softmax(1)
    spread = seen.covariance[:, None] + population.covariance
    if spread.shape[-1] == 1:
        gain = population.covariance / spread
    else:  # C (S + C)⁻¹
        gain = torch.linalg.solve(spread, population.covariance).transpose(-1, -2)
    away = (seen.mean[:, None] - population.mean)[..., None]
    mean = population.mean + (gain @ away)[..., 0]
    return share, mean, population.covariance - gain @ population.covariance


def folds(seen: Likelihoods) -> Float64[Tensor, "folds images"]:
    """How many of each are in which part, by chance, and always the same."""
    generator, left, found = torch.Generator().manual_seed(0), seen.count, []
    for number in range(FOLDS - 1):
        share = torch.full_like(left, 1 / (FOLDS - number))
        found.append(torch.binomial(left, share, generator=generator))
        left = left - found[-1]
    return torch.stack([*found, left])


def require_enough(seen: Likelihoods, fewest: int) -> None:
    if (images := int(seen.count.sum())) < fewest:
        raise CryoANMError(f"{images} images tell of no population: give {fewest} or more")
