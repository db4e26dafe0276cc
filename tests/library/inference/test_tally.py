"""Counted likelihoods: the same however images are divided, as few for very many, and as good."""

import pytest
import torch

from cryoanm_lib.inference.smooth_population import smooth_population
from cryoanm_lib.inference.tally import Tally
from tests.library.inference.test_population import LINE, likelihoods, two_states

torch.set_num_threads(1)


def test_any_division_gives_the_same_sum() -> None:
    """To the bit, in whatever order parts are added."""
    _, seen = two_states(3000, 0.9, seed=0)
    whole = Tally.of(seen)
    assert whole.count.sum() == 3000
    parts = [Tally.of(seen[part]) for part in torch.randperm(3000).tensor_split(7)]
    added = parts[3]
    for part in [*parts[:3], *parts[4:]]:
        added = part + added
    assert torch.equal(added.cell, whole.cell) and torch.equal(added.count, whole.count)


def test_images_are_where_they_were_to_within_a_step() -> None:
    """Of one image each, so that each is its own cell: a step is a small part of its error."""
    _, seen = two_states(200, 0.9, seed=1)
    for number in range(0, 200, 20):
        one = seen[torch.tensor([number])]
        counted = Tally.of(one).likelihoods()
        assert (counted.mean - one.mean).abs() <= 0.051 * counted.covariance[0].sqrt()
        assert (counted.covariance / one.covariance).log().abs().item() <= 0.05 + 1e-9


def test_the_population_is_that_of_the_images_themselves() -> None:
    """The density differs by less than its own band is wide by far: a hundredth of its peak."""
    _, seen = two_states(1000, 0.9, seed=2)
    ours = smooth_population(Tally.of(seen).likelihoods(), widths=(0.15,))
    exact = smooth_population(seen, widths=(0.15,))
    difference = (ours.density(LINE[:, None]) - exact.density(LINE[:, None])).abs().max()
    assert difference < 0.02 * exact.density(LINE[:, None]).max()


def test_a_million_are_no_more_than_a_few() -> None:
    _, seen = two_states(1_000_000, 0.9, seed=3)
    cells = len(Tally.of(seen).cell)
    assert cells < 20_000


def test_what_says_nothing_is_counted_too() -> None:
    seen = likelihoods(torch.tensor([[3e9]]).double(), torch.tensor([[[1e12]]]).double())
    counted = Tally.of(seen).likelihoods()
    assert counted.covariance.item() == pytest.approx(1e12, rel=0.06)
    assert counted.mean.item() == pytest.approx(3e9, abs=1e5)
