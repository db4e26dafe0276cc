"""Calibration against posteriors that are known to be honest, too sure of themselves, or too timid."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from cryoanm_lib.checks.calibration import (
    LEVELS,
    central_level,
    coverage,
    coverage_band,
    credible_level,
    ranks,
    uniformity,
)
from cryoanm_lib.numerics.rotation import angle_to_unit_vector

IMAGES, DRAWS = 2000, 100


class Normal:
    """Prior N(0, 1), noise N(0, 1): the posterior is N(y/2, 1/2), claimed `factor` times as wide."""

    def __init__(self, factor: float, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.truth = {"amplitude": torch.randn(IMAGES, 1, generator=generator)}
        observed = self.truth["amplitude"] + torch.randn(IMAGES, 1, generator=generator)
        self.claimed = torch.distributions.Normal(observed / 2, factor * 0.5**0.5)
        self.factor = factor

    def sample(self, count: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        away = torch.randn(count, IMAGES, 1, generator=generator)
        return {"amplitude": self.claimed.mean + self.claimed.stddev * away}

    def log_density(self, latents: Mapping[str, Tensor]) -> Tensor:
        return self.claimed.log_prob(latents["amplitude"]).sum(-1)


@pytest.mark.parametrize("factor", [1.0, 0.7, 1.4])
def test_only_the_honest_posterior_passes(factor) -> None:
    """Honest: p above 1e-4, a false alarm once in 10 000. Off by 1.4 either way: p below 1e-6."""
    posterior, generator = Normal(factor), torch.Generator().manual_seed(1)
    draws = posterior.sample(DRAWS, generator)
    rank = ranks(draws, posterior.truth)["amplitude"][:, 0]
    level = credible_level(posterior, draws, posterior.truth)
    for values in (rank, level):
        p = uniformity(values, DRAWS, generator)
        assert p > 1e-4 if factor == 1.0 else p < 1e-6


def test_coverage_of_a_posterior_that_is_too_sure() -> None:
    """Intervals 0.7 times as wide as they should be: 50, 80, 95 % become 36, 63, 83 %."""
    posterior, generator = Normal(0.7), torch.Generator().manual_seed(1)
    draws = posterior.sample(DRAWS, generator)
    joint = credible_level(posterior, draws, posterior.truth)
    central = central_level(ranks(draws, posterior.truth)["amplitude"][:, 0])
    normal = torch.distributions.Normal(0.0, 1.0)
    for level in LEVELS:
        half = 0.7 * normal.icdf(torch.tensor(0.5 + level / 2))
        expected = (2 * normal.cdf(half) - 1).item()
        assert coverage(joint, level, DRAWS) == pytest.approx(expected, abs=0.055)
        assert coverage(central, level, DRAWS) == pytest.approx(expected, abs=0.055)


@pytest.mark.parametrize("width", [0.01, 0.5, 100.0])
def test_circular_ranks_are_uniform_wherever_the_circle_is_cut(width) -> None:
    """Poses exchangeable with their draws, sharp, broad and flat, about a mean that is anywhere."""
    generator = torch.Generator().manual_seed(2)
    centre = 6.2832 * torch.rand(IMAGES, generator=generator)
    draws = centre + width * torch.randn(DRAWS, IMAGES, generator=generator)
    truth = centre + width * torch.randn(IMAGES, generator=generator)
    rank = ranks({"pose": angle_to_unit_vector(draws)}, {"pose": angle_to_unit_vector(truth)})["pose"][:, 0]
    assert uniformity(rank, DRAWS, generator) > 1e-4
    biased = ranks({"pose": angle_to_unit_vector(draws + width)}, {"pose": angle_to_unit_vector(truth)})
    if width < 1:
        assert uniformity(biased["pose"][:, 0], DRAWS, generator) < 1e-6


def test_the_band_holds_an_honest_coverage() -> None:
    """Of 400 honest experiments about 5 % leave a band of 95 %."""
    levels = torch.tensor([0.5, 0.8, 0.95], dtype=torch.float64)
    band = coverage_band(500, levels)
    draws = torch.rand(400, 500, generator=torch.Generator().manual_seed(3))
    for level, (low, high) in zip(levels, band, strict=True):
        found = (draws < level).double().mean(1)
        outside = ((found < low) | (found > high)).double().mean().item()
        assert outside < 0.05 + 5 * (0.05 * 0.95 / 400) ** 0.5
