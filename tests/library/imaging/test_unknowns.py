"""Values of latents as points and steps: there and back, in the plane and in space."""

import math

import pytest
import torch

from cryoanm_lib.imaging.latents import AMPLITUDE, POSE, POSE_IN_SPACE, SHIFT
from cryoanm_lib.imaging.unknowns import Unknowns
from cryoanm_lib.numerics.rotation import quaternion_distance, quaternion_from_rotvec
from cryoanm_lib.program.prior import Prior

EVERYTHING = {"shift_scale": 0.5, "contrast_scale": 0.1}


@pytest.mark.parametrize("pose", ["plane", "space"])
@pytest.mark.parametrize(
    "names", [("pose",), ("amplitude", "defocus"), ("shift", "contrast"), Prior(**EVERYTHING).names]
)
def test_values_become_points_and_values_again(tiny_model, names, pose) -> None:
    model = tiny_model(inferred=names, prior=Prior(pose=pose, **EVERYTHING))
    unknowns, truth = model.unknowns, model.simulate(4, 16).truth
    points = unknowns.points(truth)
    assert points.shape == (4, unknowns.width)
    values = unknowns.values(points)
    assert (*values,) == unknowns.names == names
    for name, value in values.items():
        torch.testing.assert_close(value, truth[name])


@pytest.mark.parametrize("pose", ["plane", "space"])
def test_a_step_leads_there_and_offset_finds_it(tiny_model, pose) -> None:
    model = tiny_model(prior=Prior(pose=pose, **EVERYTHING)).double()
    unknowns = model.unknowns
    origin, target = (unknowns.points(model.simulate(50, 16).truth).double() for _ in range(2))
    step = unknowns.offset(target, origin)
    assert step.shape == (50, len(unknowns.columns))
    torch.testing.assert_close(
        unknowns.offset(target, unknowns.moved(origin, step)), torch.zeros_like(step), rtol=0, atol=1e-6
    )


def test_columns_follow_the_order_of_latents(tiny_model) -> None:
    assert tiny_model(inferred=("defocus", "pose")).unknowns.columns == ("pose", "defocus")
    in_space = Unknowns((POSE_IN_SPACE, SHIFT, AMPLITUDE), n_modes=3)
    assert in_space.columns == ("pose",) * 3 + ("shift",) * 2 + ("amplitude",) * 3 and in_space.width == 9
    assert Unknowns((AMPLITUDE, POSE), n_modes=2).columns == ("amplitude", "amplitude", "pose")
    assert in_space.of(lambda latent: latent.manifold.turns).tolist() == [True] * 3 + [False] * 5
    least = in_space.of_manifold("least_precision")
    assert (least[:3] == 3 / math.pi**2).all() and not least[3:].any()


def test_only_the_angle_goes_round() -> None:
    unknowns = Unknowns((POSE, AMPLITUDE), n_modes=1)
    moved = unknowns.moved(torch.zeros(2), torch.tensor([7.0, 7.0]))
    torch.testing.assert_close(moved, torch.tensor([7.0 - 2 * math.pi, 7.0]))


def test_all_ways_end_at_the_same_rotation() -> None:
    unknowns = Unknowns((POSE_IN_SPACE,), n_modes=1)
    step = torch.tensor([[0.3, -0.2, 0.9], [1e-3, 0.0, 0.0]], dtype=torch.float64)
    ends = quaternion_from_rotvec(step)
    ways = unknowns.ways(step)
    assert len(ways) == 5
    for way, _ in ways:
        assert quaternion_distance(quaternion_from_rotvec(way), ends).max() < 1e-9


def test_the_volume_of_steps_is_that_of_the_exponential_map() -> None:
    """Against the derivative of the rotation vector from the end, by central differences."""
    unknowns = Unknowns((POSE_IN_SPACE,), n_modes=1)
    at = torch.tensor([0.8, -0.5, 1.1], dtype=torch.float64)
    end, h = quaternion_from_rotvec(at), 1e-5
    columns = [
        (
            unknowns.offset(quaternion_from_rotvec(at + h * axis), end)
            - unknowns.offset(quaternion_from_rotvec(at - h * axis), end)
        )
        / (2 * h)
        for axis in torch.eye(3, dtype=torch.float64)
    ]
    expected = torch.linalg.det(torch.stack(columns)).abs().log()
    torch.testing.assert_close(unknowns.log_volume(at), expected, rtol=1e-7, atol=1e-8)
