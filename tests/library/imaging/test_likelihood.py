"""The likelihood: equal to that of the cropped pixels, and best at the truth on average."""

import math

import pytest
import torch
from torch.distributions import Normal

from cryoanm_lib.imaging.forward_model import ForwardModel
from cryoanm_lib.imaging.latents import POSE
from cryoanm_lib.imaging.likelihood import log_likelihood
from cryoanm_lib.imaging.noise import WhiteNoise
from cryoanm_lib.numerics.fourier import crop, highest_frequency, image_to_coefficients
from tests.library.two_modes import TRUTH, latents_of, two_modes

torch.set_num_threads(1)
NOISE = 0.1
WHITE = WhiteNoise(NOISE, box_size=64)


@pytest.fixture(scope="module")
def forward() -> ForwardModel:
    return two_modes()


# Against pixels


@pytest.mark.parametrize(("box_size", "resolution"), [(32, 16), (32, 15), (31, 16), (31, 15), (32, 32)])
def test_it_is_the_density_of_the_cropped_pixels(box_size: int, resolution: int) -> None:
    """Exactly where K is odd. Where K is even the Nyquist row and column of the crop are zero.

    Then D = (K-1)² of its K² pixels are independent, and a sum over all pixels counts the normalisation
    log √(2π) σ a further K² - D = 2K - 1 times.
    """
    generator = torch.Generator().manual_seed(0)
    observed, predicted = torch.randn(2, 3, box_size, box_size, generator=generator, dtype=torch.float64)
    sigma = NOISE * resolution / box_size
    pixels = Normal(crop(predicted, resolution), sigma).log_prob(crop(observed, resolution)).sum(dim=(-2, -1))
    redundant = 0 if resolution % 2 else 2 * resolution - 1
    assert redundant == resolution**2 - (2 * highest_frequency(resolution) + 1) ** 2
    ours = log_likelihood(
        image_to_coefficients(observed, resolution),
        image_to_coefficients(predicted, resolution),
        WhiteNoise(NOISE, box_size),
        resolution,
    )
    constant = redundant * math.log(math.sqrt(2 * math.pi) * sigma)
    torch.testing.assert_close(ours, pixels + constant, rtol=1e-12, atol=0)


def test_at_the_whole_odd_box_it_is_the_density_of_the_pixels() -> None:
    generator = torch.Generator().manual_seed(1)
    observed, predicted = torch.randn(2, 15, 15, generator=generator, dtype=torch.float64)
    pixels = Normal(predicted, NOISE).log_prob(observed).sum()
    coefficients = (image_to_coefficients(image, 15) for image in (observed, predicted))
    ours = log_likelihood(*coefficients, WhiteNoise(NOISE, 15), 15)
    torch.testing.assert_close(ours, pixels, rtol=1e-13, atol=0)


def test_batches_are_broadcast(forward: ForwardModel) -> None:
    truth = forward.coefficients(latents_of(TRUTH), 32)
    observed = WHITE.sample(truth.expand(4, -1), torch.Generator().manual_seed(1))
    table = log_likelihood(observed[:, None], observed[None], WHITE, 32)
    assert table.shape == (4, 4)
    alone = log_likelihood(observed[1], observed[2], WHITE, 32)
    torch.testing.assert_close(table[1, 2], alone, rtol=1e-13, atol=0)
    assert (table.diagonal() > table - 1e-9).all()


# On average


@pytest.mark.parametrize("resolution", [8, 16, 32])
def test_the_truth_scores_best_in_expectation(forward: ForwardModel, resolution: int) -> None:
    """Other latents lose |Δŷ|² / 2σ², their divergence from the truth, on average over images.

    The loss of one image is normal with variance |Δŷ|² / σ²; the mean over 500 stays within 5 standard
    errors, which fails by chance with a rate of 6e-7 for each of the six latents.
    """
    n, sigma = 500, WHITE.cropped(resolution).item()
    at_truth = forward.coefficients(latents_of(TRUTH), resolution)
    observed = WHITE.sample(at_truth.expand(n, -1), torch.Generator().manual_seed(2))
    best = log_likelihood(observed, at_truth, WHITE, resolution)
    for name, step in dict.fromkeys(TRUTH, 0.2).items():
        elsewhere = forward.coefficients(latents_of(TRUTH | {name: TRUTH[name] + step}), resolution)
        difference = (elsewhere - at_truth).abs().square()
        # The kept half plane counts twice, but for k = 0.
        squared = resolution**2 * (2 * difference.sum() - difference[0]).item() / sigma**2
        loss = (best - log_likelihood(observed, elsewhere, WHITE, resolution)).mean().item()
        assert squared > 0
        assert abs(loss - squared / 2) < 5 * math.sqrt(squared / n)


def test_the_likelihood_of_the_truth_is_what_noise_alone_allows(forward: ForwardModel) -> None:
    """Twice the gap to the highest possible value has a χ² distribution with D = 15² degrees of freedom.

    The sum over 1000 images stays within 5 standard deviations, a false-alarm rate of 6e-7.
    """
    n, resolution = 1000, 16
    at_truth = forward.coefficients(latents_of(TRUTH), resolution)
    observed = WHITE.sample(at_truth.expand(n, -1), torch.Generator().manual_seed(3))
    highest = log_likelihood(observed, observed, WHITE, resolution)
    chi_squared = 2 * (highest - log_likelihood(observed, at_truth, WHITE, resolution)).sum().item()
    assert abs(chi_squared - n * 225) < 5 * math.sqrt(2 * n * 225)


def test_a_noise_free_image_has_no_slope_at_the_truth(forward: ForwardModel) -> None:
    pose = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    turned = POSE.manifold.value(pose[None])
    predicted = forward.coefficients(latents_of(TRUTH) | {"pose": turned}, 32)
    likelihood = log_likelihood(predicted.detach(), predicted, WHITE, 32)
    (slope,) = torch.autograd.grad(likelihood, pose)
    assert slope.abs() < 1e-9
