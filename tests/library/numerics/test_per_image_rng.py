"""PerImageRNG of random numbers: each image's goes on by itself."""

import torch

from cryoanm_lib.numerics.per_image_rng import PerImageRNG


def streams(n_images: int = 3) -> PerImageRNG:
    return PerImageRNG.of(n_images, torch.Generator().manual_seed(0))


def test_what_one_image_draws_is_nothing_to_the_others() -> None:
    left, used = streams(), streams()
    used[torch.tensor([True, False, False])].normal(100)
    expected, found = left.normal(5), used.normal(5)
    assert torch.equal(found[1:], expected[1:])
    assert not torch.isclose(found[0], expected[0]).any()


def test_images_have_different_numbers_of_the_right_kind() -> None:
    """Of 3 x 20 000 numbers: means within five standard errors, and no correlation between images."""
    uniform, normal = streams().uniform(20_000), streams().normal(20_000)
    assert (uniform >= 0).all() and (uniform < 1).all()
    assert ((uniform.mean(1) - 0.5).abs() < 5 / (12 * 20_000) ** 0.5).all()
    assert (normal.mean(1).abs() < 5 / 20_000**0.5).all()
    assert ((normal.var(1) - 1).abs() < 5 * (2 / 20_000) ** 0.5).all()
    assert (torch.corrcoef(normal) - torch.eye(3)).abs().max() < 5 / 20_000**0.5


def test_of_no_image_there_are_no_numbers() -> None:
    assert streams()[torch.tensor([False, False, False])].normal(4, 2).shape == (0, 4, 2)
    assert streams(0).uniform(4).shape == (0, 4)
