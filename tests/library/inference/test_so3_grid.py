"""Rotations spread over SO(3): evenly, and without holes."""

import math

import pytest
import torch

from cryoanm_lib.inference.so3_grid import count_for, so3_grid
from cryoanm_lib.numerics.rotation import quaternion_distance
from tests.library.rotations import uniform_rotations


@pytest.mark.parametrize("count", [500, 4000])
def test_no_rotation_is_far_from_the_grid(count: int) -> None:
    """The worst of 2000 uniform ones is within 1.2 spacings of the nearest, and the mean within 0.6."""
    spacing = (8 * math.pi**2 / count) ** (1 / 3)
    anywhere = uniform_rotations(2000, torch.Generator().manual_seed(0)).double()
    nearest = quaternion_distance(anywhere[:, None], so3_grid(count)).amin(1)
    assert nearest.max() < 1.2 * spacing
    assert nearest.mean() < 0.6 * spacing


def test_no_two_rotations_of_the_grid_are_close() -> None:
    grid = so3_grid(1000)
    distance = quaternion_distance(grid[:, None], grid)
    distance.fill_diagonal_(math.inf)
    assert distance.min() > 0.4 * (8 * math.pi**2 / 1000) ** (1 / 3)


def test_the_mean_over_the_grid_is_that_over_all_rotations() -> None:
    """The second moment of q is a quarter of the identity."""
    grid = so3_grid(5000)
    moment = grid.T @ grid / len(grid)
    torch.testing.assert_close(moment, 0.25 * torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-3)


def test_a_spacing_gives_a_count() -> None:
    assert count_for(10.0) == pytest.approx(8 * count_for(20.0), rel=1e-3)
