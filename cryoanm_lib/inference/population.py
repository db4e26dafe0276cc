"""The distribution of a latent over many particles, from what the image of each says of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64
from torch import Tensor

from cryoanm_lib.errors import CryoANMError

#: Parts of the images, each of which judges what was learned from the others.
FOLDS = 5
#: Widths of the kernel that are tried, in deviations of what images say.
WIDTHS = (0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6)
#: Another Gaussian is taken if images that it has not seen gain by so many standard errors.
BETTER = 2.0
#: Steps of expectation and maximisation of weights, and of Gaussians.
_STEPS, _GAUSSIAN_STEPS = 300, 400
#: Nats that a step gains of all images together, below which Gaussians have settled.
_SETTLED = 1e-3
#: Kernels on a grid are so many of their widths apart; and there are no more of them than this.
_APART, _MOST = 0.5, 4096
#: Images at a time, of which each has all kernels beside it.
_IMAGES = 10_000
#: Of what a latent may vary by, the least that an image may seem to say, and a Gaussian may be narrow.
_NOTHING, _NARROW = 1e-4, 1e-3


@dataclass(frozen=True, eq=False)
class Likelihoods:
    """What each image says of some numbers, apart from any prior: a Gaussian in them.

    Attributes
    ----------
    mean : Float64[Tensor, "images columns"]
        Where the likelihood is highest.
    covariance : Float64[Tensor, "images columns columns"]
        How precisely that is known.
    count : Float64[Tensor, "images"]
        For how many images it stands that say the same, or all but the same, as of `Tally`: 1 for each.
    """

    mean: Float64[Tensor, "images columns"]
    covariance: Float64[Tensor, "images columns columns"]
    count: Float64[Tensor, "images"]

    def __len__(self) -> int:
        return len(self.mean)

    def __getitem__(self, which: Tensor) -> "Likelihoods":
        return Likelihoods(self.mean[which], self.covariance[which], self.count[which])

    @classmethod
    def of_posteriors(
        cls,
        mean: Float64[Tensor, "images columns"],
        covariance: Float64[Tensor, "images columns columns"],
        prior: Float64[Tensor, "*images columns"],
        wider: Float64[Tensor, "images columns columns"] | None = None,
    ) -> "Likelihoods":
        """Posteriors less the prior N(0, diag(s²)) that they were computed with, s its deviations.

        With Σ the covariance of a posterior, S⁻¹ = Σ⁻¹ - diag(s⁻²) and m = S Σ⁻¹ μ. Where a posterior is as
        wide as the prior, or wider as one of several peaks may be, the image says nothing: m is 0, S wide.
        Where posteriors are `wider` for what the model has wrong, their means are where they were, and
        S + S Σ⁻¹ (Σ_wider - Σ) Σ⁻¹ S is how precisely m is known.
        """
        # in units of the prior's deviations, where it is N(0, 1)
        unit = prior[..., :, None] * prior[..., None, :]
        precision = torch.linalg.inv(covariance / unit)
        values, axes = torch.linalg.eigh(precision)
        left = (values - 1).clamp(min=_NOTHING)
        found = axes @ (axes.transpose(1, 2) / left[..., None])
        # S Σ⁻¹, of which nothing is left where nothing is said
        gain = axes @ ((values / left * (values - 1 > _NOTHING))[..., None] * axes.transpose(1, 2))
        at = (gain @ (mean / prior)[..., None])[..., 0]
        if wider is not None:
            found = found + gain @ ((wider - covariance) / unit) @ gain.transpose(1, 2)
        return cls(prior * at, unit * found, torch.ones(len(mean), dtype=torch.float64))


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
        return self.log_evidence(_exact(at)).exp()

    def free_energy(self, at: Float64[Tensor, "points columns"]) -> Float64[Tensor, "points"]:
        """-log p in kT, its lowest value among some points 0.

        It is one of the molecule if particles were frozen from equilibrium, faster than they change, at the
        temperature T, and were picked whatever their state; and as a function of these numbers, whose other
        ones are summed over.
        """
        energy = -self.log_evidence(_exact(at))
        return energy - energy.min()

    def log_evidence(self, seen: Likelihoods) -> Float64[Tensor, "images"]:
        """log ∫ N(m_i | α, S_i) p(α) dα of each image."""
        return (_log_normal(seen, self) + self.weight.log()).logsumexp(1)

    def posterior(
        self, seen: Likelihoods
    ) -> tuple[Float64[Tensor, "images columns"], Float64[Tensor, "images columns columns"]]:
        """Mean and covariance of each particle's numbers, with the population for a prior."""
        found = []
        for rows in torch.arange(len(seen)).split(_IMAGES):
            share, mean, covariance = _expected(seen[rows], self)
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


def gaussian_population(seen: Likelihoods, most: int = 5) -> Population:
    """A mixture of as many Gaussians as images that it was not learned from ask for.

    Expectation and maximisation with each image's own error (Bovy, Hogg and Roweis 2011). More Gaussians are
    taken if they make the images of each of five parts, learned from the others, more probable than fewer do
    by more than twice the standard error of that.

    Parameters
    ----------
    seen : Likelihoods
        Of all images.
    most : int
        Gaussians at most.

    Raises
    ------
    CryoANMError
        If there are fewer than ten images for each.
    """
    _require(seen, 10 * most)
    fold, chosen = _folds(seen), 1
    before = _held_out(seen, fold, 1)
    for number in range(2, most + 1):
        after = _held_out(seen, fold, number)
        share, gain = fold / fold.sum(), after - before
        mean = (share * gain).sum()
        error = ((share * (gain - mean).square()).sum() / fold.sum()).sqrt()
        if mean > BETTER * error:
            chosen, before = number, after
        elif number > chosen + 1:
            break  # and not at once: outliers may need one of their own before states are told
    return _gaussians(seen, chosen)


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
    _require(seen, 50)
    if seen.mean.shape[1] > 2:
        raise CryoANMError(
            f"a grid over {seen.mean.shape[1]} columns is too large: choose one or two, or "
            "gaussian_population"
        )
    fold, extent, held = _folds(seen), _extent(seen), []
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
        log_each = _log_normal(seen, kernels)
        learned = _weights(log_each, seen.count - fold)
        each = (log_each[None] + learned[:, None].log()).logsumexp(2)
        held.append((fold * each).sum().item())
    best = parts[max(range(len(parts)), key=held.__getitem__)]
    weight = _weights(_log_normal(seen, best), seen.count[None])[0]
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
    weight = _weights(_log_normal(seen, kernels), counts, more)
    density = weight @ _log_normal(_exact(at), kernels).exp().T
    ends = torch.tensor([0.5 - 0.5 * level, 0.5 + 0.5 * level], dtype=torch.float64)
    low, high = density.quantile(ends, dim=0)
    return low, high


def _exact(at: Float64[Tensor, "points columns"]) -> Likelihoods:
    """As if images had said these numbers without an error."""
    n, columns = at.shape
    return Likelihoods(at, at.new_zeros(1, columns, columns).expand(n, -1, -1), at.new_ones(n))


def _require(seen: Likelihoods, fewest: int) -> None:
    if (images := int(seen.count.sum())) < fewest:
        raise CryoANMError(f"{images} images tell of no population: give {fewest} or more")


def _folds(seen: Likelihoods) -> Float64[Tensor, "folds images"]:
    """How many of each are in which part, by chance, and always the same."""
    generator, left, found = torch.Generator().manual_seed(0), seen.count, []
    for number in range(FOLDS - 1):
        share = torch.full_like(left, 1 / (FOLDS - number))
        found.append(torch.binomial(left, share, generator=generator))
        left = left - found[-1]
    return torch.stack([*found, left])


def _log_normal(seen: Likelihoods, population: Population) -> Float64[Tensor, "images parts"]:
    """log N(m_i | μ_k, S_i + C_k)."""
    spread, away = seen.covariance[:, None] + population.covariance, seen.mean[:, None] - population.mean
    if away.shape[-1] == 1:  # ten times as fast as by factors of one number
        squared, volume = away.square() / spread[..., 0], spread[..., 0]
        return -0.5 * (squared + (2 * math.pi * volume).log())[..., 0]
    scale = torch.linalg.cholesky(spread)
    squared = torch.linalg.solve_triangular(scale, away[..., None], upper=False).square().sum((-1, -2))
    log_volume = scale.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return -0.5 * squared - log_volume - 0.5 * seen.mean.shape[1] * math.log(2 * math.pi)


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
    one = _gaussians(seen, 1)
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


def _held_out(
    seen: Likelihoods, fold: Float64[Tensor, "folds images"], number: int
) -> Float64[Tensor, "folds images"]:
    """Log-evidence of each image under so many Gaussians that were learned without each of the parts."""
    rest = [replace(seen, count=seen.count - part) for part in fold]
    return torch.stack([_gaussians(other, number).log_evidence(seen) for other in rest])


def _gaussians(seen: Likelihoods, count: int) -> Population:
    """The most likely mixture of so many Gaussians, begun along the line on which images differ most."""
    # those that know nothing may say anything
    error = seen.covariance.diagonal(dim1=1, dim2=2).sum(1)
    share = seen.count / (1 + error / error.median().clamp(min=torch.finfo(error.dtype).tiny))
    away = seen.mean - (share @ seen.mean) / share.sum()
    spread = away.T @ (share[:, None] * away) / share.sum()
    along = away @ torch.linalg.eigh(spread).eigenvectors[:, -1]
    order = along.argsort()
    # as many images in each
    upto = seen.count[order].cumsum(0) - 0.5 * seen.count[order]
    part = torch.empty_like(order)
    part[order] = (upto * count / seen.count.sum()).long().clamp(max=count - 1)
    weight = share[:, None] * torch.nn.functional.one_hot(part, count)
    mean = (weight.T @ seen.mean) / weight.sum(0)[:, None]
    even = torch.full((count,), 1 / count, dtype=torch.float64)
    narrow = _NARROW**2 * torch.diag(spread.diagonal())
    found = Population(even, mean, (spread / count**2 + narrow).expand(count, -1, -1))
    evidence = -math.inf
    for _ in range(_GAUSSIAN_STEPS):
        before, evidence = evidence, (seen.count @ found.log_evidence(seen)).item()
        if evidence - before < _SETTLED:
            break
        share, at, covariance = _expected(seen, found)
        share = seen.count[:, None] * share
        total = share.sum(0)
        mean = (share[..., None] * at).sum(0) / total[:, None]
        away = at - mean
        every = covariance + away[..., None] * away[..., None, :]
        wide = (share[..., None, None] * every).sum(0) / total[:, None, None] + narrow
        found = Population(total / seen.count.sum(), mean, wide)
    return found


def _expected(
    seen: Likelihoods, population: Population
) -> tuple[
    Float64[Tensor, "images parts"],
    Float64[Tensor, "images parts columns"],
    Float64[Tensor, "images parts columns columns"],
]:
    """Of which Gaussian a particle is, and if it is of it, the mean and covariance of its numbers."""
    share = (_log_normal(seen, population) + population.weight.log()).softmax(1)
    spread = seen.covariance[:, None] + population.covariance
    if spread.shape[-1] == 1:
        gain = population.covariance / spread
    else:  # C (S + C)⁻¹
        gain = torch.linalg.solve(spread, population.covariance).transpose(-1, -2)
    away = (seen.mean[:, None] - population.mean)[..., None]
    mean = population.mean + (gain @ away)[..., 0]
    return share, mean, population.covariance - gain @ population.covariance
