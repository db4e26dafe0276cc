"""The referees themselves, and all three posteriors before them."""

import pyro
import pytest
import torch

from cryoanm_lib.checks.referees import c2st_accuracy, nuts_draws
from cryoanm_lib.inference.exact_posterior import exact_posterior
from cryoanm_lib.inference.lattice_search import LatticeSearch
from cryoanm_lib.inference.refinement import refine


def test_like_samples_cannot_be_told_apart_and_unlike_ones_can() -> None:
    """1000 points each: the standard error of the accuracy is about 0.011."""
    generator = torch.Generator().manual_seed(1_000)
    first, second = torch.randn(2, 1000, 2, generator=generator)
    assert c2st_accuracy(first, second) == pytest.approx(0.5, abs=0.06)
    assert c2st_accuracy(first, second + 1.0) > 0.65
    turned = second @ torch.tensor([[1.0, 0.95], [0.0, 0.3]])  # the same margins, but correlated
    assert c2st_accuracy(first, turned) > 0.65


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.05, 0.3])
def test_three_ways_to_the_posterior_agree(tiny_model, noise) -> None:
    """NUTS, lattice and refinement, three images, 500 draws each: no pair is told apart, 0.5 ± 0.1.

    By chance an accuracy deviates from 0.5 by 0.016; six of those deviations are allowed.
    """
    model = tiny_model(inferred=("pose", "amplitude", "defocus"), noise=noise).double()
    pyro.set_rng_seed(0)
    images, unknowns = model.simulate(3, 32), model.unknowns
    generator = torch.Generator().manual_seed(1_000)
    refined = refine(model, images, 32, LatticeSearch(model).starts(images), generator=generator)
    exact = exact_posterior(model, images, 32)
    by_refined, by_exact = (unknowns.points(p.sample(500, generator)) for p in (refined, exact))
    for image in range(3):
        one = images[image : image + 1]
        start = {name: value[image : image + 1] for name, value in refined.mean().items()}
        by_nuts = unknowns.points(nuts_draws(model, one, 32, start))[:, 0]
        origin = unknowns.points(start)[0]
        points = (by_nuts, by_refined[:, image], by_exact[:, image])
        drawn = [unknowns.offset(point, origin) for point in points]
        for first, second in ((0, 1), (0, 2), (1, 2)):
            assert c2st_accuracy(drawn[first], drawn[second]) == pytest.approx(0.5, abs=0.1)


def test_nuts_agrees_with_the_lattice_on_one_latent(tiny_model) -> None:
    """Amplitude alone: mean and deviation of 300 draws, worth a hundred or more, to 4 standard errors."""
    model = tiny_model(inferred=("amplitude",), noise=0.1).double()
    pyro.set_rng_seed(1)
    images = model.simulate(1, 32)
    exact = exact_posterior(model, images, 16)
    draws = exact.sample(5000, torch.Generator().manual_seed(1_000))["amplitude"][:, 0, 0]
    chain = nuts_draws(model, images, 16, exact.mean(), count=300, warmup=100)["amplitude"][:, 0, 0]
    assert abs(chain.mean() - draws.mean()) < 4 * draws.std() / 100**0.5
    assert chain.std().item() == pytest.approx(draws.std().item(), rel=4 / 200**0.5)
