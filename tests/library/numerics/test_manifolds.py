"""Lines, circles and rotations: steps lead where they say, and means and distances follow from them."""

import math

import pytest
import torch
from torch import Tensor

from cryoanm_lib.numerics.manifolds import CIRCLE, LINE, ROTATIONS, Line

torch.set_num_threads(1)
COUNT = 200
every_manifold = pytest.mark.parametrize(
    "manifold", [LINE, CIRCLE, ROTATIONS], ids=lambda manifold: type(manifold).__name__
)


def anywhere(manifold: Line, seed: int = 0, count: int = COUNT) -> Tensor:
    """Values all over the manifold; of a line three numbers."""
    width = {CIRCLE: 2, ROTATIONS: 4}.get(manifold, 3)
    drawn = torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(drawn, dim=-1) if manifold.turns else drawn


def short_steps(manifold: Line, longest: float = 3.0) -> Tensor:
    """Shorter than half a turn; the first is none at all."""
    columns = manifold.n_columns(anywhere(manifold).shape[-1])
    drawn = torch.randn(COUNT, columns, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    steps = drawn * (longest / drawn.norm(dim=-1, keepdim=True)).clamp(max=1.0)
    steps[0] = 0.0
    return steps


def length(manifold: Line, steps: Tensor) -> Tensor:
    """What a distance is, by a step: that of a line is the mean over its numbers."""
    return steps.norm(dim=-1) if manifold.turns else steps.abs().mean(-1)


@every_manifold
def test_a_point_holds_a_value(manifold: Line) -> None:
    value = anywhere(manifold)
    point = manifold.point(value)
    assert point.shape == (COUNT, manifold.n_numbers(value.shape[-1]))
    torch.testing.assert_close(manifold.value(point), value, rtol=0, atol=1e-14)


@every_manifold
def test_moving_and_the_offset_are_inverse(manifold: Line) -> None:
    """A short step is found again, and the step to a point leads there."""
    values, others, steps = anywhere(manifold), anywhere(manifold, seed=1), short_steps(manifold)
    origin, target = manifold.point(values), manifold.point(others)
    found = manifold.offset(manifold.moved(origin, steps), origin)
    torch.testing.assert_close(found, steps, rtol=0, atol=1e-7)
    step = manifold.offset(target, origin)
    assert step.shape == steps.shape
    assert manifold.distance(manifold.value(manifold.moved(origin, step)), others).max() < 1e-7
    # By the shorter way round.
    torch.testing.assert_close(length(manifold, step), manifold.distance(values, others), rtol=0, atol=1e-7)


@every_manifold
def test_all_ways_end_at_the_same_point(manifold: Line) -> None:
    origin, steps = manifold.point(anywhere(manifold)), short_steps(manifold)
    end, ways = manifold.moved(origin, steps), manifold.ways(steps)
    assert len(ways) == (5 if manifold.turns else 1)
    for way in ways:
        there = manifold.moved(origin, way)
        assert manifold.distance(manifold.value(there), manifold.value(end)).max() < 1e-7
    turns = torch.stack([(way - steps).norm(dim=-1) / (2 * math.pi) for way in ways]).sort(dim=0).values
    whole = torch.tensor([0, 1, 1, 2, 2][: len(ways)], dtype=torch.float64)
    torch.testing.assert_close(turns, whole[:, None].expand_as(turns), rtol=0, atol=1e-9)


@every_manifold
def test_the_mean_lies_between(manifold: Line) -> None:
    """Of the ends of opposite steps it is where they start; and all the weight on one value makes it that."""
    values, steps = anywhere(manifold), short_steps(manifold, longest=1.0)
    point = manifold.point(values)
    ends = torch.stack([manifold.value(manifold.moved(point, way * steps)) for way in (1, -1)], dim=1)
    weights = torch.full((COUNT, 2), 0.5, dtype=torch.float64)
    assert manifold.distance(manifold.mean(ends, weights), values).max() < 1e-7
    weights = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(COUNT, 2)
    assert manifold.distance(manifold.mean(ends, weights), ends[:, 0]).max() < 1e-7


@every_manifold
def test_a_distance_is_that_of_the_step(manifold: Line) -> None:
    values, steps = anywhere(manifold), short_steps(manifold)
    moved = manifold.value(manifold.moved(manifold.point(values), steps))
    there, back = manifold.distance(values, moved), manifold.distance(moved, values)
    torch.testing.assert_close(there, length(manifold, steps), rtol=0, atol=1e-7)
    torch.testing.assert_close(there, back, rtol=0, atol=1e-12)
    if manifold is ROTATIONS:
        torch.testing.assert_close(manifold.distance(-values, moved), there, rtol=0, atol=1e-12)


@pytest.mark.parametrize("manifold", [CIRCLE, ROTATIONS])
def test_two_values_anywhere_are_as_far_apart_as_it_says(manifold: Line) -> None:
    """On average over 20 000 pairs, within 5 standard errors: false alarm below 1e-6."""
    distance = torch.rad2deg(manifold.distance(*(anywhere(manifold, seed, 20_000) for seed in (2, 3))))
    assert abs(distance.mean() - manifold.anywhere) < 5 * distance.std() / math.sqrt(len(distance))
