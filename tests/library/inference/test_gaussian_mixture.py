"""Mixtures of Gaussians on a cylinder: normalised, drawn by their density, and fitted to weighted draws."""

import math

import pytest
import torch

from cryoanm_lib.imaging.latents import AMPLITUDE, POSE
from cryoanm_lib.imaging.unknowns import Unknowns
from cryoanm_lib.inference.gaussian_mixture import GaussianMixture
from cryoanm_lib.numerics.per_image_rng import PerImageRNG


def mixture_of(weights, centres, deviations) -> GaussianMixture:
    centre = torch.tensor(centres, dtype=torch.float64)[None]
    scale = torch.diag_embed(torch.tensor(deviations, dtype=torch.float64))[None]
    log_weight = torch.tensor(weights, dtype=torch.float64).log()[None]
    return GaussianMixture(Unknowns((POSE, AMPLITUDE), 1), log_weight, centre, scale)


def one_stream() -> PerImageRNG:
    return PerImageRNG.of(1, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("deviation", [0.05, 1.0, math.pi / 3**0.5])
def test_density_adds_up_to_one_round_the_circle(deviation) -> None:
    mixture = mixture_of([0.7, 0.3], [[3.0, 1.0], [-0.5, -2.0]], [[deviation, 0.5], [0.2, 1.0]])
    pose = torch.linspace(-math.pi, math.pi, 1001, dtype=torch.float64)[:-1]
    amplitude = torch.linspace(-10, 10, 401, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(pose, amplitude, indexing="ij"), dim=-1).flatten(0, 1)
    density = mixture.log_density(grid[:, None]).exp()
    cell = (2 * math.pi / 1000) * (amplitude[1] - amplitude[0])
    assert (density.sum() * cell).item() == pytest.approx(1.0, abs=2e-3)


def test_draws_follow_the_density() -> None:
    """The mean of 1/q over draws from q within a box is the box's area: 50 000 draws, 5 standard errors."""
    mixture = mixture_of([0.6, 0.4], [[3.1, 0.0], [1.0, 1.0]], [[0.4, 0.5], [0.6, 0.8]])
    draws = mixture.sample(50_000, one_stream())
    assert draws[..., 0].abs().max() <= math.pi + 1e-9
    inside = ((draws - torch.tensor([2.5, 0.3])).abs() < 0.6).all(-1)
    terms = torch.where(inside, (-mixture.log_density(draws)).exp(), 0.0)
    assert terms.mean().item() == pytest.approx(1.44, abs=5 * terms.std().item() / 50_000**0.5)


def test_moments_of_weighted_draws_are_found() -> None:
    """From a wide first guess to the target's mean and covariance; 20 000 draws, within 5 %."""
    guess = mixture_of([1.0], [[3.0, 0.5]], [[0.6, 1.5]])
    target = mixture_of([1.0], [[-3.1, 0.0]], [[0.2, 0.6]])
    draws = guess.sample(20_000, one_stream())
    fitted = guess.refitted(draws, target.log_density(draws) - guess.log_density(draws))
    away = fitted.unknowns.offset(fitted.centre, target.centre)
    assert (away / torch.tensor([0.2, 0.6])).abs().max() < 0.05
    torch.testing.assert_close(fitted.covariance, target.covariance, rtol=0.1, atol=0.01)


def test_a_component_without_weight_stays_out() -> None:
    mixture = mixture_of([1.0, 0.0], [[0.0, 0.0], [2.0, 0.0]], [[0.1, 0.1], [0.1, 0.1]])
    draws = mixture.sample(1000, one_stream())
    assert (draws[..., 0].abs() < 1.0).all()
    fitted = mixture.refitted(draws, torch.zeros(1000, 1, dtype=torch.float64))
    assert fitted.log_weight[0, 1] == -math.inf and fitted.centre.isfinite().all()


def test_some_images_are_replaced_by_larger_mixtures() -> None:
    small = mixture_of([1.0], [[0.0, 0.0]], [[0.1, 0.1]])
    both = GaussianMixture(
        *(
            small.unknowns,
            small.log_weight.repeat(2, 1),
            small.centre.repeat(2, 1, 1),
            small.scale.repeat(2, 1, 1, 1),
        )
    )
    large = mixture_of([0.5, 0.5], [[1.0, 0.0], [2.0, 0.0]], [[0.1, 0.1], [0.1, 0.1]])
    joined = both.with_images(torch.tensor([1]), large)
    point = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]], dtype=torch.float64)
    expected = torch.cat([small.log_density(point[:, :1]), large.log_density(point[:, 1:])], dim=1)
    torch.testing.assert_close(joined.log_density(point), expected)


def test_widening_keeps_the_middle_and_fattens_the_tail() -> None:
    mixture = mixture_of([1.0], [[0.0, 0.0]], [[0.1, 0.1]])
    wide = mixture.widened(3.0, 0.1)
    far = torch.tensor([[[0.6, 0.0]]], dtype=torch.float64)
    assert wide.log_density(far) > mixture.log_density(far) + 5
    assert wide.log_weight.logsumexp(-1).item() == pytest.approx(0.0, abs=1e-12)
