"""What a view can tell: directions, poses, maps and rivals."""

import math

import pytest
import torch

from cryoanm_lib.book.views import (
    KINDS,
    Rivals,
    amplitude_limits,
    directions,
    find_rivals,
    globe,
    in_plane_share,
    pose_along,
    seen_along,
)
from cryoanm_lib.imaging.forward_model import ForwardModel
from cryoanm_lib.numerics.rotation import rotation_from_quaternion
from cryoanm_lib.program.prior import Prior
from cryoanm_lib.program.program import Model

EVERYTHING = ("pose", "shift", "amplitude", "defocus")
PRIOR = Prior(pose="space", shift_scale=0.8)


@pytest.fixture
def model(tiny_model) -> Model:
    return tiny_model(prior=PRIOR, inferred=EVERYTHING, noise=0.05)


def test_a_pose_along_a_direction_looks_along_it() -> None:
    seen = torch.cat([directions(50), torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]]).double()])
    turned = rotation_from_quaternion(pose_along(seen)) @ seen[..., None]
    expected = torch.tensor([0.0, 0.0, 1.0]).double().expand(52, 3)
    torch.testing.assert_close(turned[..., 0], expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(seen_along(pose_along(seen)), seen, rtol=0, atol=1e-9)


def test_directions_are_spread_evenly() -> None:
    found = directions(500)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(500).double())
    torch.testing.assert_close(found.T @ found / 500, torch.eye(3).double() / 3, rtol=0, atol=0.01)
    apart = (found @ found.T).fill_diagonal_(-1).amax(1).clamp(max=1).acos()
    assert apart.min() > 0.5 * (4 * math.pi / 500) ** 0.5


def test_a_globe_covers_the_sphere() -> None:
    longitude, latitude, cells = globe(18)
    assert len(cells) == len(longitude) * len(latitude)
    area = cells[:, :2].norm(dim=1)
    moment = (area[:, None, None] * cells[:, :, None] * cells[:, None]).sum(0) / area.sum()
    torch.testing.assert_close(moment, torch.eye(3).double() / 3, rtol=0, atol=0.01)


def test_motion_along_the_view_is_invisible(cluster) -> None:
    """A mode that moves every atom along z: seen along z it says nothing, from the side it is all there."""
    mode = torch.zeros(1, 12, 3, dtype=torch.float64)
    mode[0, :, 2] = torch.linspace(-1, 1, 12)
    forward = ForwardModel(cluster, mode / mode.norm(), box_size=32)
    prior = Prior(pose="space", shift_scale=0.8, amplitude_scale=2.0)
    model = Model(forward, prior, 0.02, ("amplitude",))
    seen = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]).double()
    torch.testing.assert_close(in_plane_share(forward, seen)[:, 0], torch.tensor([0.0, 1.0]).double())
    limit = amplitude_limits(model, seen, 32)[:, 0]
    assert limit[0].item() == pytest.approx(2.0, rel=1e-6)  # the prior's
    assert limit[1] < 0.1


def test_opposite_views_tell_as_much(model) -> None:
    """They are mirror images of each other; only the pixels can make a difference."""
    seen = directions(10)
    there, back = (amplitude_limits(model, way * seen, 32) for way in (1, -1))
    torch.testing.assert_close(there, back, rtol=0.1, atol=0)


def test_a_molecule_with_an_axis_has_rivals_by_half_a_turn(cluster) -> None:
    """A cluster doubled about z, seen along z: the half-turn leaves the image what it is."""
    both = torch.cat([cluster, cluster * torch.tensor([-1.0, -1.0, 1.0])])
    mode = torch.nn.functional.normalize(torch.ones(1, 24, 3).double(), dim=(1, 2))
    forward = ForwardModel(both.float(), mode.float(), box_size=32)
    model = Model(forward, Prior(pose="space"), 0.05, ("pose", "defocus"))
    rivals = find_rivals(model, torch.tensor([[0.0, 0.0, 1.0]]).double(), 16)
    assert rivals.kinds["half-turn"].all()
    assert rivals.loss.abs().max() < 1.0


def test_every_rival_is_of_one_kind() -> None:
    turns = torch.tensor([[0.0, 0.0, 3.1], [3.1, 0.0, 0.0], [2.2, 0.0, 2.2], [0.0, 1.0, 0.0]]).double()
    kinds = Rivals(directions(4), turns, torch.ones(4)).kinds
    assert list(kinds) == list(KINDS)
    assert torch.stack(list(kinds.values())).sum(0).eq(1).all()
    assert kinds["half-turn"][0] and kinds["from behind"][1] and kinds["other"][2:].all()


def test_rivals_are_below_the_truth(model) -> None:
    rivals = find_rivals(model, directions(20), 16)
    assert (rivals.loss > -0.1).all()
    assert (torch.rad2deg(rivals.turn.norm(dim=1)) >= 30).all()
