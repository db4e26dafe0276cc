"""What the model says once the pose is given: exact where it is linear, honest where it nearly is."""

import math

import pyro
import pytest
import torch
from scipy import stats

from cryoanm_lib.numerics.fourier import to_real
from cryoanm_lib.particles.particles import to_forward
from cryoanm_lib.program.gaussian_chain import GaussianChain
from cryoanm_lib.program.linearised import linearised_posterior, shift_grid
from cryoanm_lib.program.prior import Prior
from cryoanm_lib.program.unknowns import Unknowns

# A dozen atoms, so that a bend of 1 Å over all of them moves each as far as one of 3 Å those of a protein.
PRIOR = Prior(pose="space", shift_scale=1.5, contrast_scale=0.1, amplitude_scale=1.0)
OTHERS = ("shift", "amplitude", "defocus", "contrast")


def at_truth(program, particles, names=OTHERS):
    latents = {k: v for k, v in particles.latents.items() if k == "pose" or k not in names}
    noise = torch.full((len(particles),), program.noise)
    return linearised_posterior(
        program.forward_model, program.prior, names, particles.coefficients, latents, noise, 32
    )


def test_the_truth_is_where_it_says(tiny_program) -> None:
    """Squared distance of 1000 truths in its own covariance is χ² with five degrees of freedom.

    Kolmogorov and Smirnov at 1e-4, the false alarm of an exact posterior.
    """
    program = tiny_program("shared", prior=PRIOR, noise=0.2)
    pyro.set_rng_seed(0)
    particles = program.simulate(1000, 32)
    mean, scale = at_truth(program, particles)
    unknowns = Unknowns(OTHERS, n_modes=1)
    away = unknowns.values(particles.latents) - mean
    standard = torch.linalg.solve_triangular(scale, away[..., None], upper=False)[..., 0]
    found = standard.square().sum(-1).double().numpy()
    assert stats.kstest(found, stats.chi2(df=5).cdf).pvalue > 1e-4


def test_the_contrast_alone_has_the_posterior_of_linear_regression(tiny_program) -> None:
    """The image is linear in it: mean and deviation in closed form."""
    program = tiny_program("shared", prior=PRIOR, noise=0.3)
    pyro.set_rng_seed(1)
    particles = program.simulate(20, 32)
    mean, scale = at_truth(program, particles, ("contrast",))
    unit = {**particles.latents, "contrast": torch.ones(20)}
    template = to_real(program.forward_model.coefficients(to_forward(unit), 32), 32)
    observed = to_real(particles.coefficients, 32)
    precision = template.square().sum(1) / 0.3**2 + 1 / 0.1**2
    expected = ((template * observed).sum(1) / 0.3**2 + 1 / 0.1**2) / precision
    torch.testing.assert_close(mean[:, 0], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scale[:, 0, 0], precision**-0.5, rtol=1e-3, atol=1e-5)


def test_poses_may_have_draws_in_front(tiny_program) -> None:
    program = tiny_program("shared", prior=PRIOR, noise=0.1)
    particles = program.simulate(3, 32)
    one = at_truth(program, particles)
    several = linearised_posterior(
        program.forward_model,
        PRIOR,
        OTHERS,
        particles.coefficients,
        {"pose": particles.latents["pose"].expand(2, 3, 4)},
        torch.full((3,), 0.1),
        32,
    )
    for alone, stacked in zip(one, several, strict=True):
        torch.testing.assert_close(stacked, alone.expand_as(stacked), rtol=1e-3, atol=1e-4)


def test_a_wrong_pose_leaves_finite_numbers(tiny_program) -> None:
    program = tiny_program("shared", prior=PRIOR, noise=0.001)
    particles = program.simulate(50, 32)
    wrong = {"pose": particles.latents["pose"].roll(1, 0)}
    mean, scale = linearised_posterior(
        program.forward_model, PRIOR, OTHERS, particles.coefficients, wrong, torch.full((50,), 0.001), 32
    )
    assert mean.isfinite().all() and scale.isfinite().all()


def test_the_guide_draws_what_is_computed(tiny_program) -> None:
    """The chain of its sites has the density of the Gaussian, at the truth and without networks."""
    program = tiny_program("shared", prior=PRIOR, inferred=("pose", *OTHERS), noise=0.1)
    particles = program.simulate(6, 32)
    whole = program.guide_log_density(particles, particles.latents, 16)
    seen = program.eval().see(particles, 16)
    pose = program.pose_distribution(seen).log_prob(particles.latents["pose"])
    chain = GaussianChain(
        *program._computed(particles, 16)(particles.latents["pose"]),
        {name: PRIOR.shape(name, 1) for name in OTHERS},
    )
    links = sum(chain.conditional(n, particles.latents).log_prob(particles.latents[n]) for n in OTHERS)
    torch.testing.assert_close(whole, pose + links, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("reach", "step"), [(0.0, 1.0), (2.0, 1.0), (5.0, 1.6)])
def test_the_grid_of_shifts_fills_its_circle(reach: float, step: float) -> None:
    grid = shift_grid(reach, step)
    assert grid.norm(dim=1).max() <= reach + 1e-6
    assert abs(len(grid) - math.pi * (reach / step) ** 2) <= 4 * (1 + reach / step)


def test_a_program_in_double_precision_has_a_guide_too(tiny_program) -> None:
    program = tiny_program("shared", prior=PRIOR, inferred=("pose", *OTHERS), noise=0.1).double()
    drawn = program.sample_guide(program.simulate(3, 32), 16)
    assert all(value.isfinite().all() for value in drawn.values())
