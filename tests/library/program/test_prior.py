"""What is known of an image before it is seen."""

import math

import pyro
import pytest
import torch

from cryoanm_lib import Model
from cryoanm_lib.errors import ConfigurationError
from cryoanm_lib.imaging.latents import LATENTS
from cryoanm_lib.numerics.rotation import rotvec_between
from cryoanm_lib.program.prior import GIVEN_POSE, OpticsPrior, Prior
from tests.library.rotations import uniform_rotations


def test_what_the_paper_has_not_is_absent_by_default() -> None:
    assert Prior().names == ("pose", "amplitude", "defocus")
    optics = {"astigmatism_scale": 300.0, "phase_shift_scale": 0.1, "b_factor_scale": 20.0}
    assert OpticsPrior(shift_scale=1.0, contrast_scale=0.1, **optics).names == (*LATENTS,)
    assert OpticsPrior().names == Prior().names


def test_every_latent_is_drawn_with_its_mean_and_deviation() -> None:
    """Of 20 000 draws, each within five standard errors: false alarm below 1e-5."""
    prior = Prior(shift_scale=2.0, amplitude_scale=(3.0, 1.0), defocus_mean=40.0, contrast_scale=0.1)
    n, like = 20_000, torch.zeros(1)
    pyro.set_rng_seed(0)
    for latent in prior.latents[1:]:
        name = latent.name
        drawn = prior.distribution(name, 2, like).sample((n,))
        assert drawn.shape == (n, *latent.shape_for(2))
        mean, scale = prior.moments(name, 2, like)
        rows = latent.rows(drawn)
        assert ((rows.mean(0) - mean).abs() < 5 * scale / n**0.5).all()
        assert ((rows.std(0) - scale).abs() < 5 * scale / (2 * n) ** 0.5).all()


def test_a_pose_in_space_is_uniform() -> None:
    prior = Prior(pose="space")
    pyro.set_rng_seed(1)
    drawn = prior.distribution("pose", 1, torch.zeros(1)).sample((10_000,))
    # The mean of q qᵀ of uniform rotations is a quarter of the identity; entries deviate by less than 0.3.
    moment = drawn.T @ drawn / len(drawn)
    assert (moment - 0.25 * torch.eye(4)).abs().max() < 5 * 0.3 / 100
    density = prior.distribution("pose", 1, torch.zeros(1)).log_prob(drawn)
    assert density.std() < 1e-5 and density[0].item() == pytest.approx(-math.log(8 * math.pi**2), abs=1e-5)


def test_a_pose_is_about_the_one_that_is_given() -> None:
    """Of 20 000 images, each about its own: deviations of every axis within five standard errors."""
    torch.manual_seed(2)
    given = {GIVEN_POSE: uniform_rotations(20_000, torch.Generator().manual_seed(2)).double()}
    prior = OpticsPrior(pose="space", pose_width=3.0)
    assert prior.about({}) is prior
    own = prior.about(given).distribution("pose", 1, torch.zeros(1).double())
    away = torch.rad2deg(rotvec_between(given[GIVEN_POSE], own.sample()))
    assert ((away.std(0) - 3.0).abs() < 5 * 3.0 / 40_000**0.5).all()
    assert (away.mean(0).abs() < 5 * 3.0 / 20_000**0.5).all()
    assert prior.about(given).about({}) is not None and prior._centre is None


def test_a_model_draws_and_scores_poses_about_those_given(tiny_model) -> None:
    model: Model = tiny_model(
        prior=OpticsPrior(pose="space", pose_width=2.0, defocus_mean=50.0, defocus_scale=3.0)
    )
    torch.manual_seed(3)
    given = {GIVEN_POSE: uniform_rotations(500, torch.Generator().manual_seed(4))}
    images = model.simulate(500, 16, given)
    away = torch.rad2deg(rotvec_between(given[GIVEN_POSE], images.truth["pose"]))
    # 1500 numbers of 2°: their root mean square is off by 5 standard errors once in 10⁶ times
    assert away.square().mean().sqrt().item() == pytest.approx(2.0, abs=5 * 2.0 / 3000**0.5)
    near = model.log_prior(images.truth, images.given)
    far = model.log_prior(
        {**images.truth, "pose": uniform_rotations(500, torch.Generator().manual_seed(5))}, images.given
    )
    assert (near > far).double().mean() > 0.99


def test_deviations_for_another_number_of_modes_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="is for 2 modes, but the model has 3"):
        Prior(amplitude_scale=(3.0, 1.0)).amplitude_scales(3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pose": "space", "pose_concentration": (1.0, 0.0)}, "one in space is uniform"),
        ({"contrast_scale": -0.3}, "greater than or equal to 0"),
        ({"contrast_mean": -1.0}, "give contrast_scale too"),
        ({"shift_scale": -1.0}, "greater than or equal to 0"),
        ({"amplitude_scale": ()}, "at least 1"),
    ],
)
def test_an_impossible_prior_is_refused(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        Prior(**settings)
