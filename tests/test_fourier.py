"""Fourier conventions: what the crop Π_K keeps, to rounding, and what it makes of noise, by Monte Carlo."""

import math

import pytest
import torch
from torch import Tensor

from cryoanm_lib.errors import ForwardModelError
from cryoanm_lib.fourier import (
    check_resolution,
    coefficients_to_image,
    crop,
    crop_coefficients,
    half_plane_frequencies,
    highest_frequency,
    image_to_coefficients,
    to_real,
)
from cryoanm_lib.noise import add_noise

torch.set_num_threads(1)
#: (box, resolution): every combination of odd and even, and the whole box
SIZES = [(16, 8), (16, 7), (15, 8), (15, 7), (16, 16), (15, 15), (9, 1), (10, 2)]


def random_images(box_size: int, n: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, box_size, box_size, generator=generator, dtype=torch.float64)


def pixel_grid(box_size: int) -> tuple[Tensor, Tensor]:
    """x and y of every pixel, whose row is y and column x, with the origin at pixel (N//2, N//2)."""
    steps = torch.arange(box_size, dtype=torch.float64) - box_size // 2
    return steps[None, :], steps[:, None]


def wave(kx: int, ky: int, box_size: int, phase: float = 0.3) -> Tensor:
    x, y = pixel_grid(box_size)
    return torch.cos(2 * math.pi * (kx * x + ky * y) / box_size + phase)


def kept_values(resolution: int) -> int:
    """D = K'², the number of independent values of a crop."""
    return (2 * highest_frequency(resolution) + 1) ** 2


# Definitions


@pytest.mark.parametrize(("box_size", "resolution"), SIZES)
def test_coefficients_are_the_sum_over_pixels(box_size: int, resolution: int) -> None:
    images, (x, y) = random_images(box_size), pixel_grid(box_size)
    frequencies = half_plane_frequencies(resolution).double()
    coefficients = image_to_coefficients(images, resolution)
    assert coefficients.shape == (3, (kept_values(resolution) + 1) // 2) == (3, len(frequencies))
    for index, (kx, ky) in enumerate(frequencies.tolist()):
        kernel = torch.exp(-2j * math.pi * (kx * x + ky * y) / box_size) / box_size**2
        expected = (images * kernel).sum(dim=(-2, -1))
        torch.testing.assert_close(coefficients[:, index], expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("resolution", [1, 2, 3, 4, 7, 8])
def test_the_half_plane_and_its_mirror_image_are_the_kept_plane(resolution: int) -> None:
    half = half_plane_frequencies(resolution)
    kept = [tuple(k) for k in half.tolist()] + [tuple(k) for k in (-half[1:]).tolist()]
    inside = [k for k in range(-resolution, resolution + 1) if abs(k) < resolution / 2]
    assert sorted(kept) == [(kx, ky) for kx in inside for ky in inside]


@pytest.mark.parametrize(("box_size", "resolution"), SIZES)
@pytest.mark.parametrize("grid", [16, 17, 32])
def test_coefficients_survive_a_grid_of_any_size(box_size: int, resolution: int, grid: int) -> None:
    coefficients = image_to_coefficients(random_images(box_size), resolution)
    again = image_to_coefficients(coefficients_to_image(coefficients, grid), resolution)
    torch.testing.assert_close(again, coefficients, rtol=0, atol=1e-15)


def test_an_image_on_an_odd_box_survives() -> None:
    images = random_images(15)
    torch.testing.assert_close(crop(images, 15), images, rtol=0, atol=1e-14)


def test_batch_dimensions_come_first() -> None:
    images = random_images(16, n=6)
    batched = image_to_coefficients(images.unflatten(0, (2, 3)), 8)
    assert torch.equal(batched.flatten(0, 1), image_to_coefficients(images, 8))
    assert torch.equal(image_to_coefficients(images[4], 8), batched[1, 1])
    assert crop(images.unflatten(0, (2, 3)), 8).shape == (2, 3, 8, 8)


# The crop


@pytest.mark.parametrize(("box_size", "resolution"), SIZES)
def test_the_crop_keeps_the_mean_and_a_constant(box_size: int, resolution: int) -> None:
    images = random_images(box_size)
    cropped = crop(images, resolution)
    torch.testing.assert_close(cropped.mean(dim=(-2, -1)), images.mean(dim=(-2, -1)), rtol=0, atol=1e-15)
    constant = torch.full((box_size, box_size), 2.5, dtype=torch.float64)
    torch.testing.assert_close(
        crop(constant, resolution), constant[:resolution, :resolution], rtol=0, atol=1e-14
    )


@pytest.mark.parametrize(("box_size", "resolution"), SIZES[:6])
@pytest.mark.parametrize("frequency", [(0, 1), (2, 0), (3, -2), (-1, 3)])
def test_the_crop_resamples_a_wave_about_the_origin(
    box_size: int, resolution: int, frequency: tuple[int, int]
) -> None:
    torch.testing.assert_close(
        crop(wave(*frequency, box_size), resolution), wave(*frequency, resolution), rtol=0, atol=1e-14
    )


@pytest.mark.parametrize(("box_size", "resolution"), SIZES[:4])
def test_the_crop_removes_frequencies_from_half_the_resolution(box_size: int, resolution: int) -> None:
    for k in range(math.ceil(resolution / 2), box_size // 2):
        assert crop(wave(k, 1, box_size) + wave(0, k, box_size), resolution).abs().max() < 1e-14


@pytest.mark.parametrize("first", [16, 12, 11])
@pytest.mark.parametrize("second", [8, 7])
def test_a_crop_of_a_crop_is_a_crop(first: int, second: int) -> None:
    images = random_images(17)
    torch.testing.assert_close(crop(crop(images, first), second), crop(images, second), rtol=0, atol=1e-14)
    coefficients = crop_coefficients(image_to_coefficients(images, first), second)
    torch.testing.assert_close(coefficients, image_to_coefficients(images, second), rtol=0, atol=1e-16)


def test_cropping_coefficients_to_their_own_resolution_changes_nothing() -> None:
    coefficients = image_to_coefficients(random_images(16), 8)
    assert torch.equal(crop_coefficients(coefficients, 8), coefficients)
    assert torch.equal(crop_coefficients(coefficients, 7), coefficients)


# The orthonormal basis


@pytest.mark.parametrize(("box_size", "resolution"), SIZES)
def test_to_real_keeps_inner_products(box_size: int, resolution: int) -> None:
    a, b = random_images(box_size, seed=1), random_images(box_size, seed=2)
    vectors = [to_real(image_to_coefficients(images, resolution), resolution) for images in (a, b)]
    assert vectors[0].shape == (3, kept_values(resolution))
    in_pixels = (crop(a, resolution) * crop(b, resolution)).sum(dim=(-2, -1))
    torch.testing.assert_close((vectors[0] * vectors[1]).sum(dim=-1), in_pixels, rtol=0, atol=1e-12)


def test_gradients_agree_with_finite_differences() -> None:
    images = random_images(6, n=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda i: to_real(image_to_coefficients(i, 4), 4), images)
    assert torch.autograd.gradcheck(lambda i: crop(i, 5), images)


# Noise: Gaussian by linearity, so that its covariance says everything


def cropped_pixel_noise(n: int, noise: float, box_size: int, resolution: int) -> Tensor:
    return image_to_coefficients(noise * random_images(box_size, n, seed=5), resolution)


def coefficient_noise(n: int, noise: float, box_size: int, resolution: int) -> Tensor:
    silence = torch.zeros(n, (kept_values(resolution) + 1) // 2, dtype=torch.complex128)
    return add_noise(silence, noise, box_size, torch.Generator().manual_seed(6))


SOURCES = pytest.mark.parametrize("source", [cropped_pixel_noise, coefficient_noise])


@SOURCES
@pytest.mark.parametrize(("box_size", "resolution"), SIZES[:6])
def test_noise_is_white_with_deviation_σK_over_N(source, box_size: int, resolution: int) -> None:
    """Second moments of the coordinates are σ_n² K²/N² times the identity, for pixel noise and `add_noise`.

    No standardised entry of the sampled matrix exceeds 6: with at most 225² / 2 entries, 2e-9 each, the
    false-alarm rate is 5e-5 a case.
    """
    n, noise = 4000, 0.3
    vectors = to_real(source(n, noise, box_size, resolution), resolution) / (noise * resolution / box_size)
    unit = torch.eye(vectors.shape[1], dtype=torch.float64)
    standard_error = ((1 + unit) / n).sqrt()
    assert ((vectors.T @ vectors / n - unit) / standard_error).abs().max() < 6
    assert (vectors.mean(dim=0) * math.sqrt(n)).abs().max() < 6


@SOURCES
@pytest.mark.parametrize(("box_size", "resolution"), SIZES[:6])
def test_a_pixel_of_the_crop_deviates_by_the_kept_fraction(source, box_size: int, resolution: int) -> None:
    """A pixel has variance σ_n² K'²/N²: K²/N² where K is odd, (K-1)²/N² where the Nyquist is dropped.

    The sum of squares of all n images over σ_n² K²/N² has a χ² distribution with n K'² degrees of freedom;
    and each pixel's, over its own variance, one with n. Limits at 5 and 6 standard deviations, where the
    normal approximation gives 6e-7 a case and 2e-9 a pixel: a false-alarm rate of 2e-6 a case.
    """
    n, noise = 4000, 0.3
    images = coefficients_to_image(source(n, noise, box_size, resolution), resolution)
    degrees = n * kept_values(resolution)
    chi_squared = images.square().sum().item() / (noise * resolution / box_size) ** 2
    assert abs(chi_squared - degrees) < 5 * math.sqrt(2 * degrees)
    kept = resolution - 1 if resolution % 2 == 0 else resolution
    each = images.square().sum(dim=0) / (noise * kept / box_size) ** 2
    assert ((each - n) / math.sqrt(2 * n)).abs().max() < 6


# Errors


@pytest.mark.parametrize("resolution", [0, 17, -4])
def test_images_cannot_be_cropped_beyond_their_box(resolution: int) -> None:
    with pytest.raises(ForwardModelError, match=f"16 pixels to {resolution}: choose K from 1 to 16"):
        crop(random_images(16), resolution)


def test_a_grid_must_hold_the_frequencies() -> None:
    coefficients = image_to_coefficients(random_images(16), 8)
    assert coefficients_to_image(coefficients, 7).shape == (3, 7, 7)
    with pytest.raises(ForwardModelError, match="cannot hold frequencies up to 3: use at least 7 pixels"):
        coefficients_to_image(coefficients, 6)


def test_coefficients_cannot_be_cropped_to_more_than_they_hold() -> None:
    coefficients = image_to_coefficients(random_images(16), 8)
    with pytest.raises(
        ForwardModelError, match=r"K = 9 needs frequencies up to 4, .* end at 3: .* at most 8"
    ):
        crop_coefficients(coefficients, 9)


@pytest.mark.parametrize(("resolution", "box_size"), [(7, 16), (2, 16), (18, 16), (17, 16), (0, 16), (3, 3)])
def test_a_resolution_is_even_and_fits_the_box(resolution: int, box_size: int) -> None:
    with pytest.raises(ForwardModelError, match=rf"K = {resolution} .* N = {box_size} .* even K from 4"):
        check_resolution(resolution, box_size)


@pytest.mark.parametrize(("resolution", "box_size"), [(4, 16), (16, 16), (14, 15), (15, 15)])
def test_a_usable_resolution_passes(resolution: int, box_size: int) -> None:
    check_resolution(resolution, box_size)


def test_images_that_are_not_square_are_refused() -> None:
    with pytest.raises(ForwardModelError, match=r"\(2, 20, 16\) are not square"):
        image_to_coefficients(torch.zeros(2, 20, 16), 8)


def test_coefficients_of_another_resolution_are_refused() -> None:
    coefficients = image_to_coefficients(torch.zeros(32, 32), 32)
    with pytest.raises(ForwardModelError, match="481 coefficients are not those of K = 16, which keeps 113"):
        to_real(coefficients, 16)
