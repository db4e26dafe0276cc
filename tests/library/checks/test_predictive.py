"""The predictive check: uniform when the model is right, and small when it is not."""

from dataclasses import replace

import pyro
import pytest
import torch

from cryoanm_lib.checks.calibration import uniformity
from cryoanm_lib.checks.predictive import (
    _compared,
    _matched,
    chi_square_rings,
    chi_square_tail,
    explained_p_value,
    predictive_p_value,
    standard_residual,
)
from cryoanm_lib.imaging.forward_model import ForwardModel
from cryoanm_lib.imaging.latents import Values
from cryoanm_lib.inference.exact_posterior import exact_posterior
from cryoanm_lib.particles.particles import Particles
from cryoanm_lib.program.prior import Prior
from cryoanm_lib.program.program import Model


def matched_p_value(model: Model, images: Particles, latents: Values, resolution: int) -> torch.Tensor:
    """How often noise alone leaves as little of the prediction in the image."""
    return _matched(model, latents, *_compared(model, images, latents, resolution))


def test_residual_at_the_truth_is_standard_normal(tiny_model) -> None:
    """225 values of 400 images: mean and variance within 5 standard errors."""
    model = tiny_model(noise=0.1)
    pyro.set_rng_seed(0)
    images = model.simulate(400, 32)
    residual = standard_residual(model, images, images.truth, 16)
    count = residual.numel()
    assert residual.mean().abs() < 5 / count**0.5
    assert (residual.var() - 1).abs() < 5 * (2 / count) ** 0.5


def test_p_values_of_posterior_draws_are_uniform(tiny_model) -> None:
    """300 simulations, in total and ring by ring; 10 tests at 1e-5 give a false alarm once in 10 000."""
    model = tiny_model(inferred=("pose", "amplitude"), noise=0.2)
    pyro.set_rng_seed(1)
    images = model.simulate(300, 16)
    generator = torch.Generator().manual_seed(1_000)
    drawn = exact_posterior(model, images, 16).sample(1, generator)
    draw = {name: value[0] for name, value in drawn.items()}
    assert uniformity(predictive_p_value(model, images, draw, 16)) > 1e-5
    for ring in chi_square_tail(*chi_square_rings(model, images, draw, 16)).unbind(-1):
        assert uniformity(ring) > 1e-5


def test_a_molecule_of_another_shape_raises_the_alarm(tiny_model, cluster) -> None:
    model = tiny_model(inferred=("pose", "amplitude"), noise=0.05)
    pyro.set_rng_seed(2)
    images = model.simulate(20, 32)
    other = ForwardModel(cluster.flip(-1).float(), model.forward_model.modes, box_size=32)
    foreign = replace(images, coefficients=images.noise.sample(other.coefficients(images.truth, 32)))
    drawn = exact_posterior(model, foreign, 24).sample(1, torch.Generator().manual_seed(1_000))
    draw = {name: value[0] for name, value in drawn.items()}
    assert (predictive_p_value(model, foreign, draw, 24) < 1e-6).all()


def test_the_matched_check_is_uniform_at_the_truth_and_sees_a_wrong_pose(tiny_model) -> None:
    """400 images with a signal-to-noise ratio so low that the squared residual sees nothing."""
    model = tiny_model(noise=1.0)
    pyro.set_rng_seed(5)
    images = model.simulate(400, 32)
    assert uniformity(matched_p_value(model, images, images.truth, 32)) > 1e-4
    wrong = {"pose": -images.truth["pose"]}
    by_match = (matched_p_value(model, images, wrong, 32) < 0.01).double().mean()
    by_residual = (predictive_p_value(model, images, wrong, 32) < 0.01).double().mean()
    assert by_match > 2 * by_residual


@pytest.mark.parametrize("mean", [1.0, -1.0, 2.0])
def test_the_matched_check_is_not_fooled_by_the_contrast(tiny_model, mean: float) -> None:
    """Uniform at the truth with the contrast inferred too; a wrong pose is seen though the contrast falls."""
    prior = Prior(contrast_mean=mean, contrast_scale=0.1)
    model = tiny_model(prior=prior, inferred=("pose", "contrast"), noise=0.3)
    pyro.set_rng_seed(7)
    images = model.simulate(400, 32)
    assert uniformity(matched_p_value(model, images, images.truth, 32)) > 1e-4
    wrong = {"pose": -images.truth["pose"], "contrast": 0.6 * images.truth["contrast"]}
    assert (matched_p_value(model, images, wrong, 32) < 0.01).double().mean() > 0.5


def test_either_check_can_raise_the_alarm(tiny_model) -> None:
    model = tiny_model(noise=0.3)
    pyro.set_rng_seed(6)
    images = model.simulate(50, 32)
    both = explained_p_value(model, images, images.truth, 32)
    each = [f(model, images, images.truth, 32) for f in (predictive_p_value, matched_p_value)]
    torch.testing.assert_close(both, (2 * torch.minimum(*each)).clamp(max=1.0))
