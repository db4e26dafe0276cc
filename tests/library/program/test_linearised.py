"""What the model says once the pose is given: exact where it is linear, honest where it nearly is."""

import math

import pyro
import pytest
import torch
from scipy import stats
from torch import Tensor

from cryoanm_lib.inference.amortised import GuidePosterior, draw_from
from cryoanm_lib.numerics.fourier import to_real
from cryoanm_lib.particles.particles import Simulated
from cryoanm_lib.program.gaussian_chain import GaussianChain
from cryoanm_lib.program.linearised import ComputedOthers, shift_grid
from cryoanm_lib.program.prior import Prior
from cryoanm_lib.program.program import Model

# A dozen atoms, so that a bend of 1 Å over all of them moves each as far as one of 3 Å those of a protein.
PRIOR = Prior(pose="space", shift_scale=1.5, contrast_scale=0.1, amplitude_scale=1.0)
OTHERS = ("shift", "amplitude", "defocus", "contrast")


def at_truth(model: Model, images: Simulated) -> tuple[Tensor, Tensor]:
    return ComputedOthers(model, images, 32)(images.truth["pose"])


def test_the_truth_is_where_it_says(tiny_model) -> None:
    """Squared distance of 1000 truths in its own covariance is χ² with five degrees of freedom.

    Kolmogorov and Smirnov at 1e-4, the false alarm of an exact posterior.
    """
    model = tiny_model(prior=PRIOR, inferred=OTHERS, noise=0.2)
    pyro.set_rng_seed(0)
    images = model.simulate(1000, 32)
    mean, scale = at_truth(model, images)
    away = model.unknowns.points(images.truth) - mean
    standard = torch.linalg.solve_triangular(scale, away[..., None], upper=False)[..., 0]
    found = standard.square().sum(-1).double().numpy()
    assert stats.kstest(found, stats.chi2(df=5).cdf).pvalue > 1e-4


def test_the_contrast_alone_has_the_posterior_of_linear_regression(tiny_model) -> None:
    """The image is linear in it: mean and deviation in closed form."""
    model = tiny_model(prior=PRIOR, inferred=("contrast",), noise=0.3)
    pyro.set_rng_seed(1)
    images = model.simulate(20, 32)
    mean, scale = at_truth(model, images)
    unit = {**images.truth, "contrast": torch.ones(20)}
    template = to_real(model.forward_model.coefficients(unit, 32), 32)
    observed = to_real(images.coefficients, 32)
    precision = template.square().sum(1) / 0.3**2 + 1 / 0.1**2
    expected = ((template * observed).sum(1) / 0.3**2 + 1 / 0.1**2) / precision
    torch.testing.assert_close(mean[:, 0], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scale[:, 0, 0], precision**-0.5, rtol=1e-3, atol=1e-5)


def test_poses_may_have_draws_in_front(tiny_model) -> None:
    model = tiny_model(prior=PRIOR, inferred=OTHERS, noise=0.1)
    images = model.simulate(3, 32)
    several = ComputedOthers(model, images, 32)(images.truth["pose"].expand(2, 3, 4))
    for alone, stacked in zip(at_truth(model, images), several, strict=True):
        torch.testing.assert_close(stacked, alone.expand_as(stacked), rtol=1e-3, atol=1e-4)


def test_a_wrong_pose_leaves_finite_numbers(tiny_model) -> None:
    model = tiny_model(prior=PRIOR, inferred=OTHERS, noise=0.001)
    images = model.simulate(50, 32)
    mean, scale = ComputedOthers(model, images, 32)(images.truth["pose"].roll(1, 0))
    assert mean.isfinite().all() and scale.isfinite().all()


def test_the_guide_draws_what_is_computed(tiny_guide) -> None:
    """The chain of its sites has the density of the Gaussian, at the truth and without networks."""
    guide = tiny_guide("shared", prior=PRIOR, inferred=("pose", *OTHERS), noise=0.1)
    images = guide.model.simulate(6, 32)
    truth = {name: value[None] for name, value in images.truth.items()}
    whole = GuidePosterior(guide, images, 16).log_density(truth)[0]
    seen = guide.eval().see(images, 16)
    pose = guide.pose_distribution(seen).log_prob(images.truth["pose"])
    computed = ComputedOthers(guide.model, images, 16)
    shapes = {latent.name: latent.shape_for(1) for latent in computed.unknowns.latents}
    assert (*shapes,) == OTHERS
    chain = GaussianChain(*computed(images.truth["pose"]), shapes)
    links = sum(chain.conditional(n, images.truth).log_prob(images.truth[n]) for n in OTHERS)
    torch.testing.assert_close(whole, pose + links, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("reach", "step"), [(0.0, 1.0), (2.0, 1.0), (5.0, 1.6)])
def test_the_grid_of_shifts_fills_its_circle(reach: float, step: float) -> None:
    grid = shift_grid(reach, step)
    assert grid.norm(dim=1).max() <= reach + 1e-6
    assert abs(len(grid) - math.pi * (reach / step) ** 2) <= 4 * (1 + reach / step)


def test_a_guide_in_double_precision_draws_too(tiny_guide) -> None:
    guide = tiny_guide("shared", prior=PRIOR, inferred=("pose", *OTHERS), noise=0.1).double()
    drawn = draw_from(guide, guide.model.simulate(3, 32), 16)
    assert all(value.isfinite().all() for value in drawn.values())
