"""Noise: what is sampled is whitened to standard normal values, and densities are normalised to match."""

import math

import pyro
import pytest
import torch
from scipy import stats
from torch import Tensor

from cryoanm_lib.errors import ForwardModelError
from cryoanm_lib.imaging.likelihood import GaussianImage, log_likelihood
from cryoanm_lib.imaging.noise import AnyWhiteNoise, Noise, WhiteNoise, same_noise, white_noise
from cryoanm_lib.numerics.fourier import degrees_of_freedom

torch.set_num_threads(1)
BOX, K, IMAGES = 64, 16, 2000


def one_of_all() -> Noise:
    return WhiteNoise(0.1, BOX)


def one_of_each() -> Noise:
    """Deviations from 0.05 to 2, which no network and no template has seen."""
    return WhiteNoise(torch.linspace(0.05, 2.0, IMAGES, dtype=torch.float64), BOX)


#: A new noise keeps the same contract: add it here.
every_noise = pytest.mark.parametrize("make", [one_of_all, one_of_each])


def coefficients(seed: int = 0, resolution: int = K) -> Tensor:
    """Of images of a few times the noise."""
    kept = (degrees_of_freedom(resolution) + 1) // 2
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(IMAGES, kept, generator=generator, dtype=torch.complex128) / 100
    drawn[:, 0] = drawn[:, 0].real.to(drawn)
    return drawn


@every_noise
def test_whitened_noise_is_standard_normal(make) -> None:
    """What `sample` adds, whitened, are independent standard normal coordinates.

    The sum of 2000 × 225 squares lies within 5 standard deviations of its mean and each coordinate's own
    within 6, which fails by chance with a rate of 6e-7 + 225 × 2e-9 = 1e-6; and Kolmogorov and Smirnov's test
    of all of them together at 1e-6.
    """
    noise, clean = make(), coefficients()
    drawn = noise.sample(clean, torch.Generator().manual_seed(2)) - clean
    vectors = noise.whiten(drawn, K)
    degrees = vectors.numel()
    assert abs(vectors.square().sum().item() - degrees) < 5 * math.sqrt(2 * degrees)
    assert ((vectors.square().sum(dim=0) - IMAGES) / math.sqrt(2 * IMAGES)).abs().max() < 6
    assert stats.kstest(vectors.flatten().numpy(), stats.norm.cdf).pvalue > 1e-6
    assert drawn[:, 0].imag.abs().max() == 0


@every_noise
def test_the_density_of_a_single_value_integrates_to_one(make) -> None:
    """At K = 1 only the mean of the image is left: a sum over steps of a tenth of the deviation."""
    noise, predicted = make(), torch.full((IMAGES, 1), 0.3, dtype=torch.complex128)
    away = torch.arange(-100, 101, dtype=torch.float64)[:, None] / 10
    unit = 1 / noise.whiten(torch.ones_like(predicted), 1)[:, 0]  # the value that is one deviation
    observed = 0.3 + (away * unit)[..., None].to(predicted)
    density = log_likelihood(observed, predicted, noise, 1).exp()
    torch.testing.assert_close((density * 0.1 * unit).sum(0), torch.ones(IMAGES).double(), rtol=1e-9, atol=0)


@every_noise
@pytest.mark.parametrize("index", [slice(3, 9), torch.tensor([7, 1, 1]), torch.arange(IMAGES) < 5])
def test_the_noise_of_some_images_whitens_as_that_of_all(make, index) -> None:
    noise, images = make(), coefficients()
    some = noise[index]
    assert torch.equal(some.whiten(images[index], K), noise.whiten(images, K)[index])
    normaliser = noise.log_normaliser(K).expand(IMAGES)
    assert torch.equal(some.log_normaliser(K).expand_as(normaliser[index]), normaliser[index])
    told = noise.summary(IMAGES, images.real)
    assert torch.equal(some.summary(len(images[index]), images.real), told[index])
    assert told.shape == (IMAGES, noise.n_told)


@every_noise
def test_a_unit_and_a_factor_whiten_as_the_noise_itself(make) -> None:
    noise, images = make(), coefficients()
    unit, factor = noise.unit()
    expected = unit.whiten(images, K) / factor[..., None]
    torch.testing.assert_close(noise.whiten(images, K), expected, rtol=1e-12, atol=0)
    scaled = unit.log_normaliser(K) + degrees_of_freedom(K) * factor.log()
    torch.testing.assert_close(noise.log_normaliser(K), scaled, rtol=1e-12, atol=0)
    assert same_noise(unit, noise[:1].unit()[0])


@every_noise
def test_the_site_in_pyro_has_the_noise_s_density_and_draws(make) -> None:
    noise, images = make(), coefficients()
    site = GaussianImage(coefficients(1), noise, K)
    assert torch.equal(site.log_prob(images), log_likelihood(images, coefficients(1), noise, K))
    pyro.set_rng_seed(4)
    drawn = site.sample()
    pyro.set_rng_seed(4)
    assert torch.equal(drawn, noise.sample(coefficients(1)))


def test_noise_is_reproducible_and_can_be_absent() -> None:
    noise, clean = one_of_all(), coefficients()
    first, second, other = (noise.sample(clean, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert torch.equal(WhiteNoise(0.0, BOX).sample(clean), clean)


def test_noise_after_the_crop() -> None:
    assert WhiteNoise(0.1, 64).cropped(32).item() == pytest.approx(0.05)
    assert WhiteNoise(0.3, 45).cropped(15).item() == pytest.approx(0.1)


def test_new_images_have_a_noise_of_the_range_each() -> None:
    """Uniform in its logarithm: Kolmogorov and Smirnov at 1e-4, its rate of false alarms."""
    noise = white_noise((0.05, 2.0), BOX)
    pyro.set_rng_seed(0)
    drawn = noise.drawn(5000, torch.zeros(1))
    assert not isinstance(drawn, AnyWhiteNoise) and drawn.deviation.shape == (5000,)
    place = (drawn.deviation / 0.05).log() / math.log(2.0 / 0.05)
    assert stats.kstest(place.numpy(), stats.uniform.cdf).pvalue > 1e-4
    assert not same_noise(drawn, noise.drawn(5000, torch.zeros(1)))
    assert one_of_all().drawn(5, torch.zeros(1)).deviation.item() == 0.1


# Errors


@pytest.mark.parametrize("noise", [-0.1, math.nan])
def test_noise_that_is_no_standard_deviation(noise: float) -> None:
    for deviation in (noise, torch.tensor([0.1, noise])):
        with pytest.raises(
            ForwardModelError, match=f"noise = {noise:g} is no standard .* must be 0 or greater"
        ):
            WhiteNoise(deviation, BOX)


def test_no_noise_gives_no_likelihood() -> None:
    empty = torch.zeros(5, dtype=torch.complex64)
    message = "noise = 0 gives no likelihood: it must be greater than 0"
    with pytest.raises(ForwardModelError, match=message):
        log_likelihood(empty, empty, WhiteNoise(0.0, 8), 4)
    with pytest.raises(ForwardModelError, match=message):
        white_noise(0.0, 8)


@pytest.mark.parametrize("ends", [(0.2, 0.1), (0.1, 0.1), (0.0, 0.1), (-1.0, 0.1), (math.nan, 0.1)])
def test_an_empty_range_of_noise_is_refused(ends: tuple[float, float]) -> None:
    with pytest.raises(ForwardModelError, match="is no range: the first end must be the lower one"):
        white_noise(ends, BOX)


def test_images_without_noise_may_be_left_out() -> None:
    """What is asked of all deviations once is asked again of those that are left."""
    noise = WhiteNoise(torch.tensor([0.0, 0.1, 0.2]), box_size=32)
    with pytest.raises(ForwardModelError, match="gives no likelihood"):
        noise.cropped(16)
    assert noise[1:].cropped(16).tolist() == pytest.approx([0.05, 0.1])
