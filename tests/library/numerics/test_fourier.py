"""Fourier conventions: what the crop Π_K keeps, to rounding, and what it makes of noise, by Monte Carlo."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cryoanm_lib.errors import ForwardModelError
from cryoanm_lib.imaging.noise import WhiteNoise
from cryoanm_lib.numerics.fourier import (
    check_resolution,
    coefficients_to_image,
    crop,
    crop_coefficients,
    grid_to_coefficients,
    half_plane_frequencies,
    highest_frequency,
    image_to_coefficients,
    spectrum_frequencies,
    table_to_grid,
    to_real,
)

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


boxes = st.integers(1, 20)
#: (box, resolution) of any admitted size
sizes = boxes.flatmap(lambda box_size: st.tuples(st.just(box_size), st.integers(1, box_size)))
seeds = st.integers(0, 2**32 - 1)


# Definitions


@given(sizes, seeds)
def test_coefficients_are_the_sum_over_pixels(size: tuple[int, int], seed: int) -> None:
    """By the definition, also of images whose origin is their first pixel."""
    (box_size, resolution), frequencies = size, half_plane_frequencies(size[1]).double()
    images = random_images(box_size, seed=seed)
    for found, start in ((image_to_coefficients, box_size // 2), (grid_to_coefficients, 0)):
        place = (torch.arange(box_size, dtype=torch.float64) - start) / box_size
        along_x, along_y = torch.exp(-2j * math.pi * frequencies[..., None] * place).unbind(dim=1)
        expected = torch.einsum("nyx,kx,ky->nk", images.cdouble(), along_x, along_y) / box_size**2
        torch.testing.assert_close(found(images, resolution), expected, rtol=0, atol=1e-14)


@given(boxes, seeds)
def test_a_spectrum_is_the_sum_over_pixels_at_its_frequencies(box_size: int, seed: int) -> None:
    image, place = random_images(box_size, n=1, seed=seed)[0], torch.arange(box_size, dtype=torch.float64)
    phase = -2 * math.pi / box_size * spectrum_frequencies(box_size).double()[..., None] * place
    along_x, along_y = torch.exp(1j * phase).unbind(dim=2)
    expected = torch.einsum("yx,abx,aby->ab", image.cdouble(), along_x, along_y)
    torch.testing.assert_close(torch.fft.rfft2(image), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("resolution", [1, 2, 3, 4, 7, 8])
def test_the_half_plane_and_its_mirror_image_are_the_kept_plane(resolution: int) -> None:
    half = half_plane_frequencies(resolution)
    kept = [tuple(k) for k in half.tolist()] + [tuple(k) for k in (-half[1:]).tolist()]
    inside = [k for k in range(-resolution, resolution + 1) if abs(k) < resolution / 2]
    assert sorted(kept) == [(kx, ky) for kx in inside for ky in inside]


@given(sizes, st.integers(0, 20), seeds)
def test_coefficients_survive_a_grid_of_any_size(size: tuple[int, int], more: int, seed: int) -> None:
    """Any that holds their frequencies; an image that has no others survives too, as any on an odd box."""
    box_size, resolution = size
    kept = 2 * highest_frequency(resolution) + 1
    coefficients = image_to_coefficients(random_images(box_size, seed=seed), resolution)
    image = coefficients_to_image(coefficients, kept + more)
    again = image_to_coefficients(image, min(resolution, kept + more))
    torch.testing.assert_close(again, coefficients, rtol=0, atol=1e-14)
    torch.testing.assert_close(coefficients_to_image(again, kept + more), image, rtol=0, atol=1e-14)


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


@given(sizes, seeds)
def test_the_crop_is_the_interpolation_of_what_it_keeps(size: tuple[int, int], seed: int) -> None:
    """Without a transform: a pixel is Σ D(r/K - s/N) I(s), D(t) = N⁻¹ Σ cos 2πkt over the kept k."""
    box_size, resolution = size
    images, m = random_images(box_size, seed=seed), highest_frequency(resolution)
    (from_box, _), (_, to_crop) = pixel_grid(box_size), pixel_grid(resolution)
    phase = 2 * math.pi * (to_crop / resolution - from_box / box_size)
    kernel = sum(torch.cos(k * phase) for k in range(-m, m + 1)) / box_size
    torch.testing.assert_close(crop(images, resolution), kernel @ images @ kernel.T, rtol=0, atol=1e-13)


@given(sizes, st.data())
def test_a_crop_of_a_crop_is_a_crop(size: tuple[int, int], data: st.DataObject) -> None:
    box_size, first = size
    second = data.draw(st.integers(1, first))
    images = random_images(box_size, seed=data.draw(seeds))
    expected = crop(images, second)
    torch.testing.assert_close(crop(crop(images, first), second), expected, rtol=0, atol=1e-13)
    kept = crop_coefficients(image_to_coefficients(images, first), second)
    torch.testing.assert_close(kept, image_to_coefficients(images, second), rtol=0, atol=1e-15)


@given(sizes, seeds)
def test_to_crop_is_to_project(size: tuple[int, int], seed: int) -> None:
    """What is kept is orthogonal to what is dropped, so that no energy is gained; padding is the adjoint."""
    box_size, resolution = size
    images, others = random_images(box_size, seed=seed), random_images(resolution, seed=seed + 1)
    kept = coefficients_to_image(image_to_coefficients(images, resolution), box_size)
    padded = coefficients_to_image(image_to_coefficients(others, resolution), box_size)

    def mean_product(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).mean(dim=(-2, -1))

    cropped = crop(images, resolution)
    for a, b in (
        (mean_product(cropped, others), mean_product(images, padded)),
        (mean_product(kept, images - kept), torch.zeros(3, dtype=torch.float64)),
        (mean_product(cropped, cropped), mean_product(kept, kept)),
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)
    assert (mean_product(cropped, cropped) <= mean_product(images, images) + 1e-13).all()


@given(st.integers(1, 12), st.integers(0, 10), seeds)
def test_a_table_is_summed_as_a_real_series(kept: int, more: int, seed: int) -> None:
    """Twice the real part of each half; of c(0), which counts once, the imaginary part is left out."""
    m, box_size = kept - 1, 2 * kept - 1 + more
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(kept, 2 * m + 1, generator=generator, dtype=torch.complex128)
    place = torch.arange(box_size, dtype=torch.float64) / box_size
    kx, ky = torch.arange(kept).double()[:, None], torch.arange(-m, m + 1).double()[:, None]
    along_x, along_y = torch.exp(2j * math.pi * kx * place), torch.exp(2j * math.pi * ky * place)
    weights = torch.where(torch.arange(kept) > 0, 2.0, 1.0).cdouble()
    expected = torch.einsum("k,kl,kx,ly->yx", weights, table, along_x, along_y).real
    torch.testing.assert_close(table_to_grid(table, box_size), expected, rtol=0, atol=1e-11)


def test_cropping_coefficients_to_their_own_resolution_changes_nothing() -> None:
    coefficients = image_to_coefficients(random_images(16), 8)
    assert torch.equal(crop_coefficients(coefficients, 8), coefficients)
    assert torch.equal(crop_coefficients(coefficients, 7), coefficients)


# The orthonormal basis


@given(sizes, seeds)
def test_to_real_keeps_inner_products(size: tuple[int, int], seed: int) -> None:
    box_size, resolution = size
    a, b = random_images(box_size, seed=seed), random_images(box_size, seed=seed + 1)
    vectors = [to_real(image_to_coefficients(images, resolution), resolution) for images in (a, b)]
    assert vectors[0].shape == (3, kept_values(resolution))
    in_pixels = (crop(a, resolution) * crop(b, resolution)).sum(dim=(-2, -1))
    torch.testing.assert_close((vectors[0] * vectors[1]).sum(dim=-1), in_pixels, rtol=0, atol=1e-11)


def test_gradients_agree_with_finite_differences() -> None:
    images = random_images(6, n=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda i: to_real(image_to_coefficients(i, 4), 4), images)
    assert torch.autograd.gradcheck(lambda i: crop(i, 5), images)


# Noise: Gaussian by linearity, so that its covariance says everything


def cropped_pixel_noise(n: int, noise: float, box_size: int, resolution: int) -> Tensor:
    return image_to_coefficients(noise * random_images(box_size, n, seed=5), resolution)


def coefficient_noise(n: int, noise: float, box_size: int, resolution: int) -> Tensor:
    silence = torch.zeros(n, (kept_values(resolution) + 1) // 2, dtype=torch.complex128)
    return WhiteNoise(noise, box_size).sample(silence, torch.Generator().manual_seed(6))


SOURCES = pytest.mark.parametrize("source", [cropped_pixel_noise, coefficient_noise])


@SOURCES
@pytest.mark.parametrize(("box_size", "resolution"), SIZES[:6])
def test_noise_is_white_with_deviation_σK_over_N(source, box_size: int, resolution: int) -> None:
    """Second moments of the coordinates are σ_n² K²/N² times the identity, for pixel noise and `WhiteNoise`.

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


@pytest.mark.mistyped
def test_images_that_are_not_square_are_refused() -> None:
    with pytest.raises(ForwardModelError, match=r"\(2, 20, 16\) are not square"):
        image_to_coefficients(torch.zeros(2, 20, 16), 8)


def test_coefficients_of_another_resolution_are_refused() -> None:
    coefficients = image_to_coefficients(torch.zeros(32, 32), 32)
    with pytest.raises(ForwardModelError, match="481 coefficients are not those of K = 16, which keeps 113"):
        to_real(coefficients, 16)
