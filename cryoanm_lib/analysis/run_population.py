"""The population of a run: how each amplitude is distributed over all particles."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float64
from torch import Tensor

from cryoanm_lib.analysis.answers import Answers
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
    """

    particles: int
    smooth: tuple[Population, ...]
    gaussians: tuple[Population, ...]
    at: tuple[Float64[Tensor, "points"], ...]
    low: tuple[Float64[Tensor, "points"], ...]
    high: tuple[Float64[Tensor, "points"], ...]

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
        for answers in shards:
            explained = torch.nonzero(answers.explained())[:, 0]
            columns = range(answers.prior.shape[1])
            here = [Tally.of(answers.likelihoods(column)[explained]) for column in columns]
            tallies = [a + b for a, b in zip(tallies, here, strict=True)] if tallies else here
        particles = int(tallies[0].count.sum()) if tallies else 0
        if particles < FEWEST:
            return None
        found = [_of_one(tally.likelihoods(), seed) for tally in tallies]
        return cls(particles, *zip(*found, strict=True))

    def posterior(
        self, answers: Answers
    ) -> tuple[Float64[Tensor, "images modes"], Float64[Tensor, "images modes"]]:
        """Means and deviations of each particle's amplitudes, with this for a prior of each alone."""
        each = [
            population.posterior(answers.likelihoods(column)) for column, population in enumerate(self.smooth)
        ]
        mean, covariance = zip(*each, strict=True)
        return torch.cat(mean, dim=1), torch.cat(covariance, dim=1)[..., 0].sqrt()

    def save(self, path: Path) -> None:
        """Keep it in a file."""
        groups: dict[str, dict[str, Tensor]] = {}
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
        )


def _of_one(seen: Likelihoods, seed: int) -> tuple[Population, Population, Tensor, Tensor, Tensor]:
    smooth, generator = smooth_population(seen), torch.Generator().manual_seed(seed)
    ends = smooth.mean.amin().item(), smooth.mean.amax().item()
    at = torch.linspace(*ends, _POINTS, dtype=torch.float64)
    low, high = density_band(smooth, seen, at[:, None], _BOOTSTRAPS, generator=generator)
    return smooth, gaussian_population(seen), at, low, high


def _tensors(population: Population) -> dict[str, Tensor]:
    return {name: getattr(population, name) for name in ("weight", "mean", "covariance")}
