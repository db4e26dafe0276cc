"""Coloured noise against white, against its definition, and against spectra that are known."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate

from cryoanm_lib import Model, Prior, RadialNoise, WhiteNoise, log_likelihood
from cryoanm_lib.checks.residual_spectrum import residual_spectrum
from cryoanm_lib.errors import ForwardModelError
from cryoanm_lib.imaging.noise_spectrum import background_spectrum
from cryoanm_lib.numerics.fourier import half_plane_frequencies
from tests.all_the_way import adenylate_kinase, goes_all_the_way

torch.set_num_threads(1)
N, KEPT = 64, 1985  # coefficients that a box of 64 pixels keeps


def falling(box_size: int = N) -> torch.Tensor:
    """A spectrum that falls a hundredfold, with a bump, as ice has one."""
    k = torch.arange(box_size // 2 + 1, dtype=torch.float64) / box_size
    return 0.01 * (1 + 1 / (0.003 + (k / 0.15) ** 2).clamp(max=100.0) + (-(((k - 0.3) / 0.05) ** 2)).exp())


def draw(noise: RadialNoise, n: int, seed: int = 0) -> torch.Tensor:
    """Coefficients of so many images of noise alone."""
    empty = torch.zeros(n, KEPT, dtype=torch.complex128)
    return noise.sample(empty, torch.Generator().manual_seed(seed))


def coloured_pixels(n: int, seed: int) -> torch.Tensor:
    """Images of noise of that spectrum, by filtering white pixels in the whole Fourier space."""
    white = torch.randn(n, N, N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    line = torch.fft.fftfreq(N, 1 / N, dtype=torch.float64)
    radius = torch.hypot(line[:, None], line[None]).clamp(max=N // 2)
    power = np.interp(radius.numpy(), np.arange(N // 2 + 1), falling().numpy())
    return torch.fft.ifft2(torch.fft.fft2(white) * torch.from_numpy(power).sqrt()).real


def test_a_flat_spectrum_is_white_noise() -> None:
    coefficients = draw(RadialNoise(falling(), N), 3)[:, :481]
    flat, white = RadialNoise(torch.full((33,), 0.2**2, dtype=torch.float64), N), WhiteNoise(0.2, N)
    for k, kept in ((32, coefficients), (6, coefficients[:, :13])):
        torch.testing.assert_close(flat.whiten(kept, k), white.whiten(kept, k), rtol=1e-12, atol=0)
        torch.testing.assert_close(flat.log_normaliser(k), white.log_normaliser(k), rtol=1e-12, atol=0)
    torch.testing.assert_close(flat.flat(coefficients), coefficients, rtol=1e-12, atol=0)
    like = torch.zeros(2, dtype=torch.float64)
    torch.testing.assert_close(flat.summary(2, like), white.summary(2, like), rtol=1e-12, atol=0)


def test_noise_has_the_power_it_says_and_is_whitened() -> None:
    """Of 400 images; five standard errors, of thousands of values, are missed by one test in 500."""
    scale = torch.linspace(0.5, 2.0, 400)
    noise = RadialNoise(falling(), N, scale)
    coefficients = draw(noise, 400)
    power = (N * coefficients.abs() / scale[:, None]).square().mean(0)
    radius = half_plane_frequencies(N).norm(dim=-1)
    whole = (radius == radius.round()) & (radius > 0) & (radius <= 32)
    expected = falling()[radius[whole].long()]
    assert ((power[whole] / expected - 1).abs() < 5 / 400**0.5).all()
    white = noise.whiten(coefficients, N)
    assert ((white.square().mean(0) - 1).abs() < 5 * (2 / 400) ** 0.5).all()
    seen = noise.flat(coefficients)
    shared = (seen.abs() / scale[:, None]).square().mean(0)[1:]
    assert ((shared / shared.mean() - 1).abs() < 6 / 400**0.5).all()


def test_an_unknown_level_is_integrated_out() -> None:
    """The likelihood with a level of deviation s is the mean of that of images less a constant ~ N(0, s)."""
    coefficients = draw(RadialNoise(falling(), N), 1)[0, :481]
    coefficients[0] = 0.7
    plain, s = RadialNoise(falling(), N), 0.5
    levelled = RadialNoise(falling(), N, level=s)
    empty = torch.zeros_like(coefficients)
    at_zero = log_likelihood(coefficients, empty, plain, 32).item()

    def density(level: float) -> float:
        moved = coefficients.clone()
        moved[0] -= level
        prior = math.exp(-0.5 * (level / s) ** 2) / (s * math.sqrt(2 * math.pi))
        return math.exp(log_likelihood(moved, empty, plain, 32).item() - at_zero) * prior

    mean = integrate.quad(density, -4, 4, points=[0.7], limit=500)[0]
    assert log_likelihood(coefficients, empty, levelled, 32).item() == pytest.approx(
        at_zero + math.log(mean), abs=1e-6
    )


@pytest.mark.parametrize(
    ("power", "asked"),
    [
        (torch.ones(32), "32 shells .* which are 33"),
        (-torch.ones(33), "-1 in shell 0"),
        (torch.full((33,), math.nan), "nan in shell 0"),
        (torch.cat([torch.ones(32), torch.zeros(1)]), "0 in shell 32"),
    ],
)
def test_a_spectrum_that_is_none_is_refused(power: torch.Tensor, asked: str) -> None:
    with pytest.raises(ForwardModelError, match=asked):
        RadialNoise(power, N)


def test_the_background_tells_the_spectrum() -> None:
    """500 images of noise: no bias, and errors as large as they are said to be.

    The mean square of 32 errors is below 2 with a false alarm of 1e-3, neighbours scattering together; the
    smooth spectrum is within 5 % where its error is below 1.5 %.
    """
    found = background_spectrum(coloured_pixels(500, seed=4), radius=16)
    truth, smooth = falling(), found.smooth()
    for spectrum in (found, smooth):
        assert ((spectrum.power - truth) / spectrum.error)[1:].square().mean() < 2.0
    assert (smooth.error <= 1.01 * found.error)[1:].all()
    sure = smooth.error / smooth.power < 0.015
    assert sure.sum() > 15 and ((smooth.power / truth - 1)[sure].abs() < 0.05).all()


def test_residuals_tell_the_spectrum() -> None:
    """What nine latents take away is made up for; mean square of 15 errors within a false alarm of 1e-4."""
    noise = RadialNoise(falling(), N)
    model = Model(adenylate_kinase(pixel_size=1.3), Prior(shift_scale=1.0), noise)
    torch.manual_seed(3)
    images = model.simulate(300, 32)
    posterior = goes_all_the_way(model, images)
    found = residual_spectrum(model, images, posterior.mean(), 32)
    away = ((found.power - falling()) / found.error)[1:16]
    assert away.square().mean() < 2.6
    assert ((found.power / falling() - 1)[1:16].abs() < 0.1).all()
    assert found.power[23:].isnan().all() and found.power[:23].isfinite().all()


@pytest.mark.parametrize("wrong", [{"radius": 30.0}, {"radius": -1.0}, {"radius": math.nan}])
def test_a_ring_that_is_none_is_refused(wrong: dict) -> None:
    with pytest.raises(ForwardModelError, match="leaves no ring"):
        background_spectrum(torch.zeros(2, N, N), **wrong)


def test_images_that_are_not_finite_are_named() -> None:
    images = torch.zeros(3, N, N)
    images[1, 5, 5] = math.nan
    with pytest.raises(ForwardModelError, match=r"images \[1\]"):
        background_spectrum(images, 10.0)
