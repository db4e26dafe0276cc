"""Filtering pixels through their spectrum: by definition, as a map, and backward."""

import pytest
import torch

from cryoanm_lib.imaging.filtering import filtered
from cryoanm_lib.imaging.transfer import ctf
from cryoanm_lib.numerics.batching import WORKING_SET, pieces
from cryoanm_lib.numerics.fourier import (
    coefficients_to_image,
    half_plane_frequencies,
    image_to_coefficients,
    spectrum_frequencies,
)

BOXES = [8, 9]


def some(box_size: int, n_images: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Images, and numbers to multiply their spectra by that are the same at k and -k."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(n_images, box_size, box_size, generator=generator, dtype=torch.float64)
    frequencies = spectrum_frequencies(box_size)
    defocus = 20 + 5 * torch.randn(n_images, generator=generator, dtype=torch.float64)
    transfer = ctf(defocus, frequencies.double().flatten(0, 1) / box_size)
    return images, (0.3 + transfer).unflatten(-1, frequencies.shape[:2])


@pytest.mark.parametrize("box_size", BOXES)
def test_it_is_a_product_with_coefficients(box_size: int) -> None:
    images, transfer = some(box_size)
    frequencies = half_plane_frequencies(box_size).long()
    on_half_plane = transfer[:, frequencies[:, 1], frequencies[:, 0]]
    expected = coefficients_to_image(image_to_coefficients(images, box_size) * on_half_plane, box_size)
    torch.testing.assert_close(filtered(images, transfer), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("box_size", BOXES)
def test_kept_frequencies_are_those_of_the_crop(box_size: int) -> None:
    """Multiplying by 1 is the crop to the whole box, which drops Nyquist alone."""
    images, transfer = some(box_size)
    expected = coefficients_to_image(image_to_coefficients(images, box_size), box_size)
    found = filtered(images, torch.ones_like(transfer))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("box_size", BOXES)
@pytest.mark.parametrize("working_set", [1, 2**20])
def test_gradients(box_size: int, working_set: int, monkeypatch) -> None:
    monkeypatch.setitem(WORKING_SET, "cpu", working_set)
    images, transfer = some(box_size)
    assert torch.autograd.gradcheck(filtered, (images.requires_grad_(), transfer.requires_grad_()))


def test_pieces_hold_all_in_order(monkeypatch) -> None:
    monkeypatch.setitem(WORKING_SET, "cpu", 100)
    device = torch.device("cpu")
    for bytes_each in (1, 30, 1000):
        found = pieces(7, bytes_each, device)
        assert [i for piece in found for i in range(7)[piece]] == list(range(7))
        assert max(len(range(7)[piece]) for piece in found) == max(1, min(7, 100 // bytes_each))
    assert pieces(0, 1, device) == []
