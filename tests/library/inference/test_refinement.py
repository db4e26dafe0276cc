"""The refined posterior against the exact one: where it is sharp, where it is not, and from a wrong start."""

import math
from dataclasses import replace
from functools import partial

import pyro
import pytest
import torch

from cryoanm_lib.checks.calibration import credible_level, ranks, uniformity
from cryoanm_lib.checks.residuals import residuals
from cryoanm_lib.errors import CryoANMError
from cryoanm_lib.inference.exact_posterior import exact_posterior
from cryoanm_lib.inference.fisher import information_limit
from cryoanm_lib.inference.lattice_search import LatticeSearch
from cryoanm_lib.inference.peak_finding import Starts
from cryoanm_lib.inference.refinement import SUSPICIOUS, ess_fraction, refine

BOTH = ("pose", "amplitude")


def setting(tiny_model, noise, count, seed=0, inferred=BOTH):
    model = tiny_model(inferred=inferred, noise=noise)
    pyro.set_rng_seed(seed)
    return model, model.simulate(count, 32)


@pytest.mark.parametrize("noise", [0.02, 0.2, 0.6, 100.0])
def test_evidence_is_that_of_the_exact_posterior(tiny_model, noise) -> None:
    """The median over images within 0.05 nats, the mean within 0.1: the check lets small misfits pass."""
    model, particles = setting(tiny_model, noise, 40)
    search = LatticeSearch(model, 32)
    generator = torch.Generator().manual_seed(1_000)
    refined = refine(model, particles, 32, search.starts(particles), search, generator)
    difference = refined.log_evidence - exact_posterior(model, particles, 32).log_evidence
    assert difference.abs().median() < 0.05
    assert difference.abs().mean() < 0.1


def test_draws_are_as_far_from_the_truth_as_the_limit_says(tiny_model) -> None:
    """The ratio of two means over 400 images; its standard error is about 2.5 %."""
    model, particles = setting(tiny_model, 0.02, 400, inferred=("pose", "amplitude", "defocus"))
    starts = LatticeSearch(model, 32).starts(particles)
    generator = torch.Generator().manual_seed(1_000)
    draws = refine(model, particles, 32, starts, generator=generator).sample(50, generator)
    limit = information_limit(model, particles, 32)
    for name, value in residuals(draws, particles.truth).items():
        assert value.mean() / limit[name].mean() == pytest.approx(1.0, abs=0.12)


@pytest.mark.thorough
@pytest.mark.parametrize(("noise", "count"), [(0.05, 300), (0.6, 300), (2.0, 100)])
def test_ranks_and_levels_of_the_truth_are_uniform(tiny_model, noise, count) -> None:
    """Simulations from sharp to nearly flat; three tests at p of 1e-4: a false alarm once in 3000 runs."""
    model, particles = setting(tiny_model, noise, count, seed=3)
    search, generator = LatticeSearch(model, 32), torch.Generator().manual_seed(1_000)
    posterior = refine(model, particles, 32, search.starts(particles), search, generator)
    draws = posterior.sample(100, generator)
    for rank in ranks(draws, particles.truth).values():
        assert uniformity(rank[:, 0], 100, generator) > 1e-4
    assert uniformity(credible_level(posterior, draws, particles.truth), 100, generator) > 1e-4


def turned(model, particles, turn: float) -> Starts:
    """Starts at the truth, turned away from it."""
    values = model.unknowns.points(particles.truth).double()
    return Starts.of_each((values + torch.tensor([turn, 0.0]))[:, None])


def test_a_start_from_the_wrong_half_turn_is_not_sure_of_itself(tiny_model) -> None:
    """Without a search it stays there and says so; a right start leaves nothing to be surprised at."""
    model, particles = setting(tiny_model, 0.05, 30)
    wrong = refine(model, particles, 32, turned(model, particles, math.pi))
    away = residuals(wrong.mean(), particles.truth)["pose"]
    lost = away > 10
    assert lost.float().mean() > 0.5
    assert (wrong.surprise[lost] < SUSPICIOUS).all() and not wrong.explained[lost].any()
    right = refine(model, particles, 32, turned(model, particles, 0.0))
    assert (right.surprise > SUSPICIOUS).all()


def test_a_wide_search_brings_the_wrong_half_turn_home(tiny_model) -> None:
    model, particles = setting(tiny_model, 0.05, 30)
    found = refine(model, particles, 32, turned(model, particles, math.pi), LatticeSearch(model, 32))
    limit = information_limit(model, particles, 32)["pose"]
    away = residuals(found.mean(), particles.truth)["pose"]
    assert (away < 6 * limit).all()
    assert (found.surprise > SUSPICIOUS).all()


@pytest.mark.thorough
def test_where_a_gaussian_does_not_do_draws_are_weighed(tiny_model) -> None:
    """With noise that hides most of the molecule the curvature at the top is a poor summary."""
    model, particles = setting(tiny_model, 2.0, 60)
    generator = torch.Generator().manual_seed(1_000)
    starts = LatticeSearch(model, 32).starts(particles)
    posterior = refine(model, particles, 32, starts, generator=generator)
    assert posterior.weighed.any()
    draws = posterior.sample(200, generator)
    exact = exact_posterior(model, particles, 32)
    assert (posterior.ess_fraction[posterior.weighed] > 0).all()
    means = [value["amplitude"].double().mean(0) for value in (draws, exact.sample(200, generator))]
    assert (means[0] - means[1]).abs().mean() < 0.5  # against a prior of 3; the standard error is 0.2


def test_what_one_image_needs_changes_no_draw_of_another(tiny_model) -> None:
    """The first of the images is one that has to be adapted and weighed, and then one that has not."""
    model, particles = setting(tiny_model, 0.2, 40)
    search = LatticeSearch(model, 32)
    posterior = refine(
        model, particles, 32, search.starts(particles), generator=torch.Generator().manual_seed(1_000)
    )
    hard, *rest, easy = posterior.ess_fraction.argsort().tolist()
    assert posterior.weighed[rest].any() and not posterior.weighed[rest].all()
    found = []
    for first in (hard, easy):
        images, generator = particles[torch.tensor([first, *rest])], torch.Generator().manual_seed(1_000)
        posterior = refine(model, images, 32, search.starts(images), generator=generator)
        draws = posterior.sample(20, generator)
        assert posterior.weighed[0] == (first == hard)
        found.append({"next": torch.rand(3, generator=generator), "evidence": posterior.log_evidence[1:]})
        found[-1] |= {name: value[:, 1:] for name, value in draws.items()}
    torch.testing.assert_close(*found)


def test_moments_are_those_of_the_draws(tiny_model) -> None:
    model, particles = setting(tiny_model, 0.05, 5)
    posterior = refine(model, particles, 32, LatticeSearch(model, 32).starts(particles))
    drawn = posterior.sample(4000, torch.Generator().manual_seed(1_000))["amplitude"][..., 0].double()
    deviation = posterior.covariance()[:, 1, 1].sqrt()
    torch.testing.assert_close(drawn.std(0), deviation, rtol=0.08, atol=0)
    assert ((drawn.mean(0) - posterior.mean()["amplitude"][:, 0]) / deviation).abs().max() < 0.1


def test_effective_share_of_equal_and_of_one_weight() -> None:
    weights = torch.tensor([[0.0, 0.0], [0.0, -1e9], [0.0, -1e9], [0.0, -1e9]])
    torch.testing.assert_close(ess_fraction(weights), torch.tensor([1.0, 0.25]))


def test_images_without_a_posterior_are_refused(tiny_model) -> None:
    model, particles = setting(tiny_model, 0.1, 3)
    damaged = replace(particles, coefficients=particles.coefficients.clone())
    damaged.coefficients[1, 5] = math.nan
    search = LatticeSearch(model, 16)
    for images, message in [(particles[:0], "there are 0 images"), (damaged, r"images \[1\] hold NaN")]:
        for compute in (search.starts, partial(exact_posterior, model, resolution=16)):
            with pytest.raises(CryoANMError, match=message):
                compute(particles=images)
        with pytest.raises(CryoANMError, match=message):
            refine(model, images, 16, search.starts(particles))
