"""Refinement on the product of SO(3) and the rest: evidence, honesty, and the limit."""

import math
from dataclasses import replace

import pyro
import pytest
import torch
from scipy import stats

from cryoanm_lib.checks.calibration import credible_level, ranks, uniformity
from cryoanm_lib.checks.residuals import pose_distance, residuals
from cryoanm_lib.imaging.latents import POSE_IN_SPACE
from cryoanm_lib.imaging.noise import WhiteNoise
from cryoanm_lib.imaging.unknowns import Unknowns
from cryoanm_lib.inference.fisher import information_limit, mean_length
from cryoanm_lib.inference.gaussian_mixture import GaussianMixture
from cryoanm_lib.inference.peak_finding import Starts, march
from cryoanm_lib.inference.refinement import ess_fraction, refine
from cryoanm_lib.inference.so3_search import SO3Search
from cryoanm_lib.numerics.per_image_rng import PerImageRNG
from cryoanm_lib.program.log_joint import log_joint
from cryoanm_lib.program.prior import Prior
from tests.library.rotations import uniform_rotations

PRIOR = Prior(pose="space", shift_scale=0.8, amplitude_scale=1.0, contrast_scale=0.1)


def setting(tiny_model, noise, count, inferred=PRIOR.names, seed=0):
    model = tiny_model(prior=PRIOR, inferred=inferred, noise=noise)
    pyro.set_rng_seed(seed)
    return model, model.simulate(count, 32)


def at_truth(model, particles) -> Starts:
    return Starts.of_each(model.unknowns.points(particles.truth)[:, None])


@pytest.mark.thorough
@pytest.mark.parametrize("noise", [2.0, 100.0])
def test_evidence_is_that_of_the_prior_averaged(tiny_model, noise) -> None:
    """Against 40 000 draws from the prior, where the image says so little that a mean over them converges.

    What is refined estimates the evidence, not its logarithm, without bias: five times, and their mean is
    within five standard errors.
    """
    model, particles = setting(tiny_model, noise, 6, ("pose", "shift"))
    pyro.set_rng_seed(1)
    drawn = model.simulate(40_000, 4).truth
    latents = {name: drawn[name][:, None].expand(-1, 6, -1) for name in ("pose", "shift")}
    parts = [
        log_joint(model, particles, {n: v[part] for n, v in latents.items()}, 16)
        - model.log_prior({n: v[part] for n, v in latents.items()})
        for part in torch.arange(40_000).split(4000)
    ]
    log_weight = torch.cat(parts)
    expected = log_weight.logsumexp(0) - math.log(len(log_weight))
    search = SO3Search(model, resolution=16, spacing=25.0, most=20)
    starts, generator = search.starts(particles), torch.Generator().manual_seed(2)
    refined = torch.stack(
        [refine(model, particles, 16, starts, search, generator).log_evidence for _ in range(5)]
    )
    # Twenty starts leave small rivals out, which are seldom drawn then, and weigh much when they are.
    assert (refined[0] - expected).abs().median() < 0.25
    ratio = (refined - expected).exp()
    of_prior = (1 / ess_fraction(log_weight) - 1) / len(log_weight)
    error = (ratio.var(0) / len(ratio) + of_prior).sum().sqrt() / len(particles)
    assert ratio.mean().item() == pytest.approx(1.0, abs=5 * error.item())


def test_posteriors_from_the_truth_are_honest(tiny_model) -> None:
    """Ranks about all axes and levels of all unknowns: eleven tests at 1e-5, a false alarm in 9000."""
    model, particles = setting(tiny_model, 0.1, 200, seed=3)
    generator = torch.Generator().manual_seed(1_000)
    posterior = refine(model, particles, 32, at_truth(model, particles), generator=generator)
    draws = posterior.sample(99, generator)
    for rank in ranks(draws, particles.truth).values():
        for column in rank.unbind(-1):
            assert uniformity(column, 99, generator) > 1e-5
    level = credible_level(posterior, draws, particles.truth)
    assert uniformity(level, 99, generator) > 1e-5


def test_draws_are_as_far_as_the_limit_says(tiny_model) -> None:
    """All five latents of 200 images; each ratio is uncertain by 3 %."""
    model, particles = setting(tiny_model, 0.02, 200, seed=4)
    generator = torch.Generator().manual_seed(1_000)
    draws = refine(model, particles, 32, at_truth(model, particles), generator=generator).sample(
        50, generator
    )
    limit = information_limit(model, particles, 32)
    for name, value in residuals(draws, particles.truth).items():
        assert value.mean() / limit[name].mean() == pytest.approx(1.0, abs=0.15)


def test_standardised_errors_are_normal(tiny_model) -> None:
    """Kolmogorov and Smirnov for each of eight columns at 1e-5."""
    model, particles = setting(tiny_model, 0.02, 300, seed=5)
    posterior = refine(model, particles, 32, at_truth(model, particles))
    for column in posterior.standardised(particles.truth).unbind(-1):
        assert stats.kstest(column.numpy(), "norm").pvalue > 1e-5


def test_a_climb_from_nearby_ends_where_one_from_the_truth_does(tiny_model) -> None:
    model, particles = setting(tiny_model, 0.02, 40, seed=6)
    unknowns, truth = model.unknowns, at_truth(model, particles)
    away = 0.1 * torch.randn(40, len(unknowns.columns), generator=torch.Generator().manual_seed(7)).double()
    nearby = Starts(truth.image, unknowns.moved(truth.points, away))
    one, other = (march(model, particles, starts, 32, lowest=16) for starts in (truth, nearby))
    first, second = (p.points[torch.searchsorted(p.image, torch.arange(40))] for p in (one, other))
    assert (pose_distance(first[:, :4], second[:, :4]) < 1e-3).double().mean() > 0.9


def test_noise_of_each_image_counts(tiny_model) -> None:
    """Images in pairs, the second of which is ten times as noisy: its posterior is ten times as wide."""
    model, particles = setting(tiny_model, (0.01, 0.2), 10, seed=8)
    for factor in (1.0, 10.0):
        noise = WhiteNoise(torch.full((10,), 0.01 * factor), model.forward_model.box_size)
        posterior = refine(model, replace(particles, noise=noise), 32, at_truth(model, particles))
        width = posterior.mixture.covariance[:, 0].diagonal(dim1=1, dim2=2)[:, :3].sqrt().median()
        if factor == 1.0:
            narrow = width
    assert (width / narrow).item() == pytest.approx(10.0, rel=0.3)


@pytest.mark.parametrize("deviation", [0.3, 2.0])
def test_a_mixture_in_space_is_normalised(deviation) -> None:
    """The mean of its density over uniform rotations is 1/8π², also of one wider than the group."""
    unknowns = Unknowns((POSE_IN_SPACE,), n_modes=1)
    centre = uniform_rotations(2, torch.Generator().manual_seed(0)).double()[None]
    centre = centre / centre.norm(dim=-1, keepdim=True)
    scale = deviation * torch.eye(3).double().expand(1, 2, 3, 3)
    mixture = GaussianMixture(unknowns, torch.tensor([[0.3, 0.7]]).double().log(), centre, scale)
    poses = uniform_rotations(200_000, torch.Generator().manual_seed(1)).double()
    density = mixture.log_density(poses[:, None]).exp() * 8 * math.pi**2
    assert density.mean().item() == pytest.approx(1.0, abs=5 * density.std().item() / 200_000**0.5 + 5e-3)


def test_draws_of_a_mixture_in_space_have_its_density() -> None:
    """The mean of 1/p over draws is the volume of the group, 8π², where the mixture is broad."""
    unknowns = Unknowns((POSE_IN_SPACE,), n_modes=1)
    centre = torch.tensor([[[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]]).double()
    scale = 1.5 * torch.eye(3).double().expand(1, 2, 3, 3)
    mixture = GaussianMixture(unknowns, torch.tensor([[0.5, 0.5]]).double().log(), centre, scale)
    draws = mixture.sample(50_000, PerImageRNG.of(1, torch.Generator().manual_seed(2)))
    volume = (-mixture.log_density(draws)).exp()
    error = volume.std().item() / 50_000**0.5
    assert volume.mean().item() == pytest.approx(8 * math.pi**2, abs=5 * error + 0.5)


@pytest.mark.parametrize("spread", [(1.0, 1.0, 1.0), (4.0, 1.0, 0.01), (1e-6, 1e-6, 2e-6)])
def test_the_mean_length_is_that_of_draws(spread) -> None:
    covariance = torch.diag(torch.tensor(spread, dtype=torch.float64))
    draws = (
        torch.randn(200_000, 3, generator=torch.Generator().manual_seed(3)).double()
        * covariance.diagonal().sqrt()
    )
    length = draws.norm(dim=1)
    assert mean_length(covariance).item() == pytest.approx(
        length.mean().item(), abs=5 * length.std().item() / 447
    )


def test_the_density_of_a_mixture_is_smooth_at_its_centre() -> None:
    """No turn has many axes, and counts once."""
    unknowns = Unknowns((POSE_IN_SPACE,), n_modes=1)
    centre = torch.tensor([[[1.0, 0.0, 0.0, 0.0]]]).double()
    scale = 0.1 * torch.eye(3).double().expand(1, 1, 3, 3)
    mixture = GaussianMixture(unknowns, torch.zeros(1, 1).double(), centre, scale)
    steps = torch.tensor([[0.0, 0.0, 0.0], [1e-14, 0.0, 0.0], [1e-9, 0.0, 0.0], [1e-4, 0.0, 0.0]]).double()
    density = mixture.log_density(unknowns.moved(centre[:, 0], steps)[:, None])
    torch.testing.assert_close(density, density[3:].expand_as(density), rtol=0, atol=1e-5)


@pytest.mark.thorough
def test_what_the_search_finds_is_weighed_honestly(tiny_model) -> None:
    """From templates alone, with the contrast inferred, where poses have rivals: ranks at 1e-5 each."""
    model, particles = setting(tiny_model, 0.5, 150, seed=9)
    search = SO3Search(model, resolution=16, spacing=20.0, most=16)
    generator = torch.Generator().manual_seed(1_000)
    posterior = refine(model, particles, 32, search.starts(particles), search, generator)
    draws = posterior.sample(99, generator)
    for rank in ranks(draws, particles.truth).values():
        for column in rank.unbind(-1):
            assert uniformity(column, 99, generator) > 1e-5
