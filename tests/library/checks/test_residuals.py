"""Residuals and weights by hand, and what is seen of a turned molecule."""

import pytest
import torch

from cryoanm_lib.checks.residuals import opposite_weight, residuals, turning_error
from cryoanm_lib.numerics.rotation import angle_to_unit_vector


def test_residuals_by_hand() -> None:
    sampled = {
        "pose": angle_to_unit_vector(torch.deg2rad(torch.tensor([179.0, 10.0]))),
        "amplitude": torch.tensor([[1.0, 3.0], [0.0, 0.0]]),
        "defocus": torch.tensor([51.0, 50.0]),
    }
    truth = {
        "pose": angle_to_unit_vector(torch.deg2rad(torch.tensor([-179.0, -170.0]))),
        "amplitude": torch.tensor([[0.0, 1.0], [0.0, 0.0]]),
        "defocus": torch.tensor([49.5, 50.0]),
    }
    found = residuals(sampled, truth)
    torch.testing.assert_close(found["pose"], torch.tensor([2.0, 180.0]), rtol=0, atol=1e-4)
    torch.testing.assert_close(found["amplitude"], torch.tensor([1.5, 0.0]))
    torch.testing.assert_close(found["defocus"], torch.tensor([1.5, 0.0]))


@pytest.mark.parametrize("resolution", [8, 16, 32])
def test_quarter_turns_are_exact_on_rings(tiny_guide, resolution) -> None:
    """The square crop maps onto itself; in between it does not, and less so the less it holds."""
    guide = tiny_guide()
    assert turning_error(guide, resolution, 90.0) < 1e-5
    assert turning_error(guide, resolution, 180.0) < 1e-5
    assert turning_error(guide, resolution, 45.0) > 1e-3


def test_what_is_seen_turns_where_the_spectrum_has_faded(tiny_guide) -> None:
    """With atoms of 3 px nothing is left at the edge of the crop, so that its shape does not matter."""
    guide = tiny_guide()
    guide.model.forward_model.atom_width = 3.0
    guide.model.forward_model.reference *= 0.4
    assert turning_error(guide, 32, 45.0) < 0.01


def test_opposite_weight_by_hand() -> None:
    """Two components: opposite, side by side, and opposite with the heavier one second."""
    answer = {
        "pose_logits": torch.tensor([[0.7, 0.3], [0.7, 0.3], [0.1, 0.9]]).log(),
        "pose_concentrations": torch.tensor(
            [[[3.0, 0.0], [-9.0, 0.5]], [[3.0, 0.0], [2.0, 1.0]], [[0.0, 1.0], [0.0, -1.0]]]
        ),
    }
    torch.testing.assert_close(opposite_weight(answer), torch.tensor([0.3, 0.0, 0.1]))


def test_residuals_of_some_latents_only() -> None:
    assert set(residuals({"defocus": torch.zeros(2)}, {"defocus": torch.ones(2)})) == {"defocus"}


def test_the_weight_of_opposite_poses_in_space_does_not_know_signs() -> None:
    here, half_turn = torch.tensor([5.0, 0.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 0.0, 5.0])
    answer = {"pose_logits": torch.zeros(2, 2)}
    answer["pose_concentrations"] = torch.stack([torch.stack([here, -here]), torch.stack([here, half_turn])])
    torch.testing.assert_close(opposite_weight(answer), torch.tensor([0.0, 0.5]))
