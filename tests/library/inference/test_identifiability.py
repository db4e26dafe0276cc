"""What images can tell apart: against closed forms, and against what is found when it is tried."""

import math

import pytest
import torch

from cryoanm_lib.errors import CryoANMError
from cryoanm_lib.inference.gaussian_population import gaussian_population
from cryoanm_lib.inference.identifiability import (
    gain,
    smallest_separation,
    smallest_share,
)
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
    ratio = torch.where(two > 0, (two / one).log(), 0.0)
    square = (two * ratio.square()).sum() * (LINE[1] - LINE[0])
    found = [part.item() for part in gain(separation, share, deviation)]
    assert found == pytest.approx([expected.item(), square.item()], rel=1e-6)


def test_near_states_differ_by_their_third_and_fourth_cumulants() -> None:
    """KL = κ₃²/12 + κ₄²/48 of the standardised density to leading order, and the mean square twice that."""
    d, share = 0.3, 0.2
    p = share * (1 - share)
    third, fourth = p * (1 - 2 * share) * d**3, p * (1 - 6 * p) * d**4
    expected = third**2 / 12 + fourth**2 / 48
    found = [part.item() for part in gain(d, share, 1.0)]
    assert found == pytest.approx([expected, 2 * expected], rel=0.15)


def test_what_is_least_depends_on_what_it_should() -> None:
    """In closed form on the unit; and more particles, better images and even shares tell more."""
    error = torch.linspace(0.5, 1.5, 40, dtype=torch.float64)
    separation = smallest_separation(error, 1.0, 2000, share=0.3)
    assert smallest_separation(7 * error, 7.0, 2000, share=0.3) == pytest.approx(7 * separation)
    one = smallest_separation(torch.ones(1).double(), 0.0, 2000)
    assert smallest_separation(torch.tensor([0.75]).double(), 1.0, 2000) == pytest.approx(1.25 * one)
    assert smallest_separation(error, 1.0, 20_000) < smallest_separation(error, 1.0, 2000)
    further = smallest_separation(error, 1.0, 2000, share=0.02)
    assert smallest_share(error, 1.0, 2000, further) == pytest.approx(0.02, rel=1e-4)
    assert smallest_share(error, 1.0, 2000, 0.5 * separation) == math.inf


def test_a_state_takes_a_few_particles() -> None:
    """However far it is: what none of them says cannot be learned, and n say so to √n."""
    assert 4 < 1e5 * smallest_share(ERROR, 1.0, 1e5, 30.0) < 8


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
