"""What images can tell apart: against closed forms, and against what is found when it is tried."""

import math

import pytest
import torch

from cryoanm_lib.errors import CryoANMError
from cryoanm_lib.inference.identifiability import (
    ENOUGH,
    divergence,
    smallest_separation,
    smallest_share,
)
from cryoanm_lib.inference.population import gaussian_population
from tests.library.inference.test_population import likelihoods

torch.set_num_threads(1)
LINE = torch.linspace(-30, 30, 60_001, dtype=torch.float64)
ERROR = torch.tensor([0.9], dtype=torch.float64)


@pytest.mark.parametrize(("separation", "share", "deviation"), [(4.0, 0.5, 1.0), (3.0, 0.1, 1.4)])
def test_divergence_is_the_integral(separation: float, share: float, deviation: float) -> None:
    def normal(mean: float, variance: float) -> torch.Tensor:
        return (-0.5 * (LINE - mean).square() / variance).exp() / math.sqrt(2 * math.pi * variance)

    minor, major = (1 - share) * separation, -share * separation
    two = share * normal(minor, deviation**2) + (1 - share) * normal(major, deviation**2)
    one = normal(0.0, deviation**2 + share * (1 - share) * separation**2)
    expected = (torch.xlogy(two, two) - torch.xlogy(two, one)).sum() * (LINE[1] - LINE[0])
    assert divergence(separation, share, deviation).item() == pytest.approx(expected.item(), rel=1e-6)


def test_near_states_differ_by_their_third_and_fourth_cumulants() -> None:
    """KL = κ₃²/12 + κ₄²/48 of the standardised density, to leading order."""
    d, share = 0.3, 0.2
    p = share * (1 - share)
    third, fourth = p * (1 - 2 * share) * d**3, p * (1 - 6 * p) * d**4
    expected = third**2 / 12 + fourth**2 / 48
    assert divergence(d, share, 1.0).item() == pytest.approx(expected, rel=0.1)


def test_what_is_least_is_just_enough() -> None:
    error = torch.linspace(0.5, 1.5, 40, dtype=torch.float64)
    deviation = (error.square() + 1).sqrt()
    separation = smallest_separation(error, 1.0, 2000, share=0.3)
    assert 2000 * divergence(separation, 0.3, deviation).mean().item() == pytest.approx(ENOUGH)
    share = smallest_share(error, 1.0, 2000, 1.3 * separation)
    assert 2000 * divergence(1.3 * separation, share, deviation).mean().item() == pytest.approx(ENOUGH)
    assert share < 0.3
    assert smallest_share(error, 1.0, 2000, 0.5 * separation) == math.inf
    assert smallest_separation(error, 1.0, 20_000) < smallest_separation(error, 1.0, 2000)


@pytest.mark.parametrize("runs", [8, pytest.param(60, marks=pytest.mark.slow)])
def test_states_are_told_where_it_says_so(runs: int) -> None:
    """At three quarters of the separation next to never, at half as much again next to always.

    Of eight, six or more are found by chance once in 10⁴ times where a tenth would be, and the reverse.
    """
    found = dict.fromkeys((0.75, 1.0, 1.5), 0)
    least = smallest_separation(ERROR, 1.0, 300)
    for times in found:
        for seed in range(runs):
            generator = torch.Generator().manual_seed(seed)
            apart = torch.where(torch.rand(300, generator=generator) < 0.5, times * least, 0.0).double()
            normal = torch.randn(2, 300, generator=generator, dtype=torch.float64)
            mean = (apart + normal[0] + 0.9 * normal[1])[:, None]
            seen = likelihoods(mean, torch.full((300, 1, 1), 0.81, dtype=torch.float64))
            found[times] += len(gaussian_population(seen, most=2).weight) == 2
    assert found[0.75] < 0.7 * runs and found[1.5] > 0.3 * runs
    if runs > 8:  # every other one: 0.2 to 0.8 is five standard errors of 60
        assert 0.2 < found[1.0] / runs < 0.8


def test_what_is_not_usable_is_said() -> None:
    with pytest.raises(CryoANMError, match=r"particles = 0 and share = 0\.5 are not usable"):
        smallest_separation(ERROR, 1.0, 0)
    with pytest.raises(CryoANMError, match="errors and a width of 0 are not usable"):
        smallest_share(0 * ERROR, 0.0, 10, 1.0)
