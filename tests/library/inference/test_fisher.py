"""The information limit against posteriors on a grid, and against the spread of best fits."""

import math

import pyro
import pytest
import torch

from cryoanm_lib.imaging.latents import in_plane
from cryoanm_lib.imaging.likelihood import log_likelihood
from cryoanm_lib.inference.fisher import fisher_information, information_limit, signal_to_noise
from cryoanm_lib.inference.peak_finding import PeakFinder, Starts
from cryoanm_lib.numerics.rotation import angle_to_unit_vector, unit_vector_to_angle
from cryoanm_lib.particles.particles import Simulated
from cryoanm_lib.program.prior import Prior
from cryoanm_lib.program.program import Model


def latents_of(pose: torch.Tensor, amplitude: torch.Tensor, defocus: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"pose": angle_to_unit_vector(pose), "amplitude": amplitude, "defocus": defocus}


def images_of(model: Model, truth: dict[str, torch.Tensor], resolution: int) -> Simulated:
    coefficients = model.noise.sample(model.forward_model.coefficients(truth, resolution))
    return Simulated(coefficients, {name: truth[name] for name in model.given}, model.noise, truth)


def limit_of(model: Model, truth: dict[str, torch.Tensor], resolution: int) -> dict[str, torch.Tensor]:
    return information_limit(model, images_of(model, truth, resolution), resolution)


def test_limit_is_the_spread_of_the_grid_posterior(tiny_model) -> None:
    """Pose alone: 2/√π times the deviation of the posterior on a fine grid, averaged over 60 images, to 5 %.

    The two differ by the noise in each image's own curvature, about 1 % here after averaging.
    """
    pyro.set_rng_seed(0)
    n, resolution, noise = 60, 24, 0.02
    model = tiny_model(noise=noise)
    pose = torch.rand(n) * 2 * math.pi - math.pi
    amplitude, defocus = 3 * torch.randn(n, 1), 50 + 3 * torch.randn(n)
    truth = latents_of(pose, amplitude, defocus)
    images = images_of(model, truth, resolution)
    limit = information_limit(model, images, resolution)["pose"]

    width = torch.deg2rad(limit.mean())
    offsets = torch.linspace(-8, 8, 401)[:, None] * width
    angles = unit_vector_to_angle(truth["pose"]) + offsets
    grid = in_plane(angles, amplitude.expand(401, n, 1), defocus=defocus.expand(401, n))
    predicted = model.forward_model.coefficients(grid, resolution)
    weights = log_likelihood(images.coefficients, predicted, images.noise, resolution).softmax(0)
    mean = (weights * offsets).sum(0)
    deviation = (weights * (offsets - mean) ** 2).sum(0).sqrt()
    expected = torch.rad2deg(2 * deviation / math.sqrt(math.pi)).mean()
    assert abs(limit.mean() / expected - 1) < 0.05


def test_best_fits_spread_as_the_information_says(tiny_model) -> None:
    """400 noisy images of one molecule, the prior too wide to matter: covariance of best fits against F⁻¹.

    The deviation of each latent has a relative standard error of 1/√800 = 3.5 %; five of them, 18 %.
    """
    n, resolution = 400, 32
    prior = Prior(amplitude_scale=1e3, defocus_scale=1e3)
    model = tiny_model(inferred=("pose", "amplitude", "defocus"), noise=0.02, prior=prior).double()
    pyro.set_rng_seed(1)
    one = torch.ones(n, dtype=torch.float64)
    truth = latents_of(0.3 * one, 1.5 * one[:, None], 51.0 * one)
    images = images_of(model, truth, resolution)
    start = model.unknowns.points(truth)
    peaks = PeakFinder(model, images, resolution).find(Starts(torch.arange(n), start))
    spread = (peaks.points - start).std(0)
    expected = torch.linalg.inv(fisher_information(model, images, truth, resolution)[0]).diagonal().sqrt()
    torch.testing.assert_close(spread, expected, rtol=5 / math.sqrt(2 * n), atol=0)


def test_more_unknowns_and_fewer_frequencies_never_help(tiny_model) -> None:
    truth = latents_of(
        torch.linspace(-3, 3, 20), torch.linspace(-4, 4, 20)[:, None], torch.linspace(45, 55, 20)
    )
    alone = limit_of(tiny_model(), truth, 24)
    together = limit_of(tiny_model(inferred=("pose", "amplitude", "defocus")), truth, 24)
    coarse = limit_of(tiny_model(), truth, 12)
    assert (together["pose"] >= alone["pose"] * (1 - 1e-5)).all()
    assert (coarse["pose"] >= alone["pose"] * (1 - 1e-5)).all()


def test_without_information_the_limit_is_the_prior(tiny_model) -> None:
    truth = latents_of(torch.zeros(3), torch.zeros(3, 1), torch.full((3,), 50.0))
    limit = limit_of(tiny_model(inferred=("amplitude", "defocus"), noise=1e4), truth, 16)
    torch.testing.assert_close(limit["amplitude"], torch.full((3,), 2 * 3.0 / math.sqrt(math.pi)).double())
    torch.testing.assert_close(limit["defocus"], torch.full((3,), 2 * 3.0 / math.sqrt(math.pi)).double())


def test_an_informative_prior_of_the_pose_counts(tiny_model) -> None:
    """A concentrated prior bounds the limit by its own width."""
    angle, concentration = 0.4, 200.0
    truth = latents_of(torch.full((4,), angle), torch.zeros(4, 1), torch.full((4,), 50.0))
    direction = (concentration * math.cos(angle), concentration * math.sin(angle))
    model = tiny_model(prior=Prior(pose_concentration=direction), noise=1e6)
    expected = math.degrees(2 / concentration / math.sqrt(math.pi))
    limit = limit_of(model, truth, 16)["pose"]
    torch.testing.assert_close(limit, torch.full((4,), expected).double(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("concentration", [(0.0, 0.0), (4.0, 3.0)])
def test_slopes_of_the_prior_are_its_differences(tiny_model, concentration) -> None:
    model = tiny_model(
        inferred=("pose", "amplitude", "defocus"), prior=Prior(pose_concentration=concentration)
    ).double()
    unknowns = model.unknowns
    values = torch.tensor([[0.5, 2.0, 47.0], [0.9, -1.0, 55.0]], dtype=torch.float64)
    parts = [model.prior.slopes(latent, unknowns.values(values), 1) for latent in unknowns.latents]
    slope, precision = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
    for column in range(3):
        step = torch.zeros(3, dtype=torch.float64)
        step[column] = 1e-4
        low, here, high = (model.log_prior(unknowns.values(values + k * step)) for k in (-1, 0, 1))
        torch.testing.assert_close(slope[:, column], (high - low) / 2e-4, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(
            precision[:, column], -(high - 2 * here + low) / 1e-8, rtol=1e-4, atol=1e-5
        )


def test_signal_to_noise_falls_with_the_square_of_the_noise(tiny_model) -> None:
    truth = latents_of(torch.zeros(2), torch.zeros(2, 1), torch.full((2,), 50.0))
    models = (tiny_model(noise=noise) for noise in (0.1, 0.3))
    quiet, loud = (signal_to_noise(model, images_of(model, truth, 16)) for model in models)
    torch.testing.assert_close(quiet, 9 * loud)
