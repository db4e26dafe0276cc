"""The population of a run: how amplitudes are distributed over all particles, each alone and two together."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from cryoanm_lib.analysis.answers import Answers
from cryoanm_lib.errors import CryoANMError
from cryoanm_lib.inference.gaussian_population import gaussian_population
from cryoanm_lib.inference.likelihoods import Likelihoods
from cryoanm_lib.inference.population import Population
from cryoanm_lib.inference.smooth_population import density_band, smooth_population
from cryoanm_lib.inference.tally import Tally
from cryoanm_lib.io.storage import flat, grouped, load_tensors, save_tensors

#: Explained images from which on there is a population to speak of.
FEWEST = 50
#: Points at which densities are kept; and bootstraps of their bands.
_POINTS, _BOOTSTRAPS = 241, 200
#: Images of which two amplitudes are looked at together: those that come first by row times 2⁶⁴ / φ, as a
#: signed number of 64 bits, which spreads them evenly over all, in whatever shards.
_TOGETHER, _GOLDEN = 2000, 0x9E3779B97F4A7C15 - 2**64


@dataclass(frozen=True, eq=False)
class RunPopulation:
    """Over all explained particles of a run.

    Attributes
    ----------
    particles : int
        How many.
    smooth, gaussians : tuple of Population
        Of each amplitude alone: a smooth density of no form, and as few Gaussians as images ask for.
    at, low, high : tuple of Float64[Tensor, "points"]
        Where, in Å, and between what each density is with 95 % confidence.
    pair : Population or None
        Of the first two amplitudes together, if there are two: a smooth density, by 2000 images at most.
    """

    particles: int
    smooth: tuple[Population, ...]
    gaussians: tuple[Population, ...]
    at: tuple[Float64[Tensor, "points"], ...]
    low: tuple[Float64[Tensor, "points"], ...]
    high: tuple[Float64[Tensor, "points"], ...]
    pair: Population | None

    @classmethod
    def of(cls, shards: Iterable[Answers], seed: int = 0) -> "RunPopulation | None":
        """Of the answers of some shards, which are looked at once, and held one at a time.

        Parameters
        ----------
        shards : iterable of Answers
            In any division, which does not matter.
        seed : int
            Of the bootstrap.

        Returns
        -------
        RunPopulation or None
            None where fewer than `FEWEST` images are explained.
        """
        tallies: list[Tally] = []
        some: tuple[Int64[Tensor, "some"], Likelihoods] | None = None
        for answers in shards:
            explained = torch.nonzero(answers.explained())[:, 0]
            columns = range(answers.prior.shape[1])
            here = [Tally.of(answers.likelihoods(column)[explained]) for column in columns]
            tallies = [a + b for a, b in zip(tallies, here, strict=True)] if tallies else here
            if len(columns) > 1:
                some = _first(some, answers.row[explained], answers.likelihoods(0, 1)[explained])
        particles = int(tallies[0].count.sum()) if tallies else 0
        if particles < FEWEST:
            return None
        found = [_of_one(tally.likelihoods(), seed) for tally in tallies]
        pair = None if some is None else _of_two(some[1])
        return cls(particles, *zip(*found, strict=True), pair=pair)

    def posterior(
        self, answers: Answers
    ) -> tuple[Float64[Tensor, "images modes"], Float64[Tensor, "images modes"]]:
        """Means and deviations of each particle's amplitudes, with this for a prior of each alone."""
        each = [
            population.posterior(answers.likelihoods(column)) for column, population in enumerate(self.smooth)
        ]
        mean, covariance = zip(*each, strict=True)
        return torch.cat(mean, dim=1), torch.cat(covariance, dim=1)[..., 0].sqrt()

    def grid_of_pair(self, points: int = 61) -> Float64[Tensor, "points² 2"]:
        """Where the first two amplitudes may be, the second running fastest; nowhere if there are not two."""
        if self.pair is None:
            return torch.zeros(0, 2, dtype=torch.float64)
        ends = zip(self.pair.mean.amin(0).tolist(), self.pair.mean.amax(0).tolist(), strict=True)
        return torch.cartesian_prod(*(torch.linspace(*end, points, dtype=torch.float64) for end in ends))

    def save(self, path: Path) -> None:
        """Keep it in a file."""
        groups: dict[str, dict[str, Tensor]] = {} if self.pair is None else {"pair": _tensors(self.pair)}
        for number, (smooth, gaussians) in enumerate(zip(self.smooth, self.gaussians, strict=True)):
            groups |= {f"smooth{number}": _tensors(smooth), f"gaussians{number}": _tensors(gaussians)}
            groups[f"band{number}"] = {name: getattr(self, name)[number] for name in ("at", "low", "high")}
        save_tensors(path, flat(groups), particles=str(self.particles))

    @classmethod
    def load(cls, path: Path) -> "RunPopulation":
        """Of a file.

        Raises
        ------
        ArtifactError
            If it is missing or damaged.
        """
        tensors, told = load_tensors(path)
        groups = grouped(tensors)
        numbers = range(sum(name.startswith("band") for name in groups))
        bands = {name: tuple(groups[f"band{n}"][name] for n in numbers) for name in ("at", "low", "high")}
        return cls(
            int(told["particles"]),
            smooth=tuple(Population(**groups[f"smooth{n}"]) for n in numbers),
            gaussians=tuple(Population(**groups[f"gaussians{n}"]) for n in numbers),
            **bands,
            pair=Population(**groups["pair"]) if "pair" in groups else None,
        )


def _first(
    before: tuple[Int64[Tensor, "some"], Likelihoods] | None,
    row: Int64[Tensor, "images"],
    seen: Likelihoods,
) -> tuple[Int64[Tensor, "some"], Likelihoods]:
    """The images that come first of those before and these."""
    if before is not None:
        row, seen = torch.cat([before[0], row]), Likelihoods.together([before[1], seen])
    order = (row * _GOLDEN).argsort()[:_TOGETHER]
    return row[order], seen[order]


def _of_one(seen: Likelihoods, seed: int) -> tuple[Population, Population, Tensor, Tensor, Tensor]:
    smooth, generator = smooth_population(seen), torch.Generator().manual_seed(seed)
    ends = smooth.mean.amin().item(), smooth.mean.amax().item()
    at = torch.linspace(*ends, _POINTS, dtype=torch.float64)
    low, high = density_band(smooth, seen, at[:, None], _BOOTSTRAPS, generator=generator)
    return smooth, gaussian_population(seen), at, low, high


def _of_two(seen: Likelihoods) -> Population | None:
    try:
        return smooth_population(seen)
    except CryoANMError as error:
        warnings.warn(f"amplitudes 1 and 2 are not known together: {error}", stacklevel=3)
        return None


def _tensors(population: Population) -> dict[str, Tensor]:
    return {name: getattr(population, name) for name in ("weight", "mean", "covariance")}
