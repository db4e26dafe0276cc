"""The convolutional networks: shapes, and what turning an image back does."""

import pytest
import torch

from cryoanm_lib.numerics.fourier import coefficients_to_image
from cryoanm_lib.numerics.rotation import angle_to_unit_vector
from cryoanm_lib.program.encoders import Pixels, turn_back

ANGLES = torch.tensor([0.3, 1.7, -2.9])


@pytest.fixture
def turned_and_upright(tiny_forward) -> tuple[dict, dict]:
    """Latents of three images of one molecule, and the same at pose zero."""
    tiny_forward.atom_width = 2.0
    turned = {
        "pose": angle_to_unit_vector(ANGLES),
        "amplitude": torch.full((3, 1), 2.0),
        "defocus": torch.full((3,), 50.0),
    }
    return turned, turned | {"pose": angle_to_unit_vector(torch.zeros(3))}


@pytest.mark.parametrize("fine", [64, 128])
def test_turning_back_an_image_undoes_its_pose(tiny_forward, turned_and_upright, fine) -> None:
    """The image of a molecule at θ, turned back by θ, is the one at 0, up to linear interpolation."""
    images, expected = (
        coefficients_to_image(tiny_forward.coefficients(x, 32), fine) for x in turned_and_upright
    )
    middle = slice(fine // 4, 3 * fine // 4)  # the corners turn out of the box
    error = (turn_back(images, turned_and_upright[0]["pose"], fine) - expected)[:, middle, middle]
    assert error.abs().max() < (0.01 if fine == 128 else 0.03) * expected.abs().max()


def test_pixels_turn_back_on_their_own_grid(tiny_forward, turned_and_upright) -> None:
    images, expected = (
        coefficients_to_image(tiny_forward.coefficients(x, 32), 32) for x in turned_and_upright
    )
    error = Pixels(32).turn_back(images, turned_and_upright[0]["pose"]) - expected
    assert error[:, 8:24, 8:24].abs().max() < 0.03 * expected.abs().max()


@pytest.mark.parametrize("batch", [(5,), (2, 5)])
def test_networks_keep_the_batch(batch) -> None:
    pixels = Pixels(16, channels=(2, 4))
    images = pixels(torch.randn(*batch, 16, 16))
    logits, vectors = pixels.pose_encoder(3).eval()(images)
    assert logits.shape == (*batch, 3) and vectors.shape == (*batch, 3, 2)
    assert pixels.encoder(4).eval()(images).shape == (*batch, 4)
