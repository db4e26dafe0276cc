"""The distribution over particles: no wider than it is, with as many states as there are, and error bars."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import wasserstein_distance

from cryoanm_lib.errors import CryoANMError
from cryoanm_lib.inference.gaussian_population import gaussian_population
from cryoanm_lib.inference.likelihoods import Likelihoods
from cryoanm_lib.inference.population import Population, log_normal
from cryoanm_lib.inference.smooth_population import density_band, smooth_population

torch.set_num_threads(1)
LINE = torch.linspace(-14, 14, 1401, dtype=torch.float64)


def likelihoods(mean: torch.Tensor, covariance: torch.Tensor) -> Likelihoods:
    return Likelihoods(mean, covariance, torch.ones(len(mean), dtype=torch.float64))


def two_states(n: int, noise: float, seed: int, share: float = 0.6) -> tuple[torch.Tensor, Likelihoods]:
    """Amplitudes about ± 4 Å, each within 1 Å, and images that tell them to some Å, not all alike."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(3, n, generator=generator, dtype=torch.float64)
    closed = torch.rand(n, generator=generator) < share
    true = torch.where(closed, 4.0, -4.0).double() + normal[0]
    error = noise * (0.2 * normal[1]).exp()
    return true, likelihoods((true + error * normal[2])[:, None], error.square()[:, None, None])


def truth_at(line: torch.Tensor, share: float = 0.6) -> torch.Tensor:
    each = [(-0.5 * (line - middle).square()).exp() / math.sqrt(2 * math.pi) for middle in (4.0, -4.0)]
    return share * each[0] + (1 - share) * each[1]


def distance(density: torch.Tensor) -> float:
    """Wasserstein's, to the truth."""
    return float(wasserstein_distance(LINE, LINE, density.numpy(), truth_at(LINE).numpy()))


def test_posteriors_less_their_prior_are_what_images_say() -> None:
    """Of Gaussians, to rounding; of a posterior as wide as the prior next to nothing."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(50, 2, 2, generator=generator, dtype=torch.float64)
    said, at = root @ root.mT + 0.1 * torch.eye(2), torch.randn(50, 2, generator=generator).double()
    prior = torch.tensor([3.0, 0.5], dtype=torch.float64)
    covariance = torch.linalg.inv(torch.linalg.inv(said) + torch.diag(prior**-2))
    mean = (covariance @ torch.linalg.solve(said, at[..., None]))[..., 0]
    found = Likelihoods.of_posteriors(mean, covariance, prior)
    torch.testing.assert_close(found.mean, at)
    torch.testing.assert_close(found.covariance, said)
    wider = Likelihoods.of_posteriors(mean, covariance, prior, covariance + 0.1 * torch.eye(2))
    torch.testing.assert_close(wider.mean, at)
    gain = torch.linalg.solve(covariance, said)  # by which an error of a mean becomes one of what is said
    torch.testing.assert_close(wider.covariance, said + 0.1 * gain.mT @ gain)
    nothing = Likelihoods.of_posteriors(torch.ones(1, 2).double(), torch.diag(prior.square())[None], prior)
    assert (nothing.covariance[0].diagonal() > 1e3 * prior.square()).all()
    assert not nothing.mean.any()


def test_one_gaussian_is_what_is_left_of_the_variance() -> None:
    """Where all errors are alike the most likely width is in closed form."""
    values = torch.randn(400, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2.5
    seen = likelihoods(values, torch.full((400, 1, 1), 1.5**2, dtype=torch.float64))
    found = gaussian_population(seen, most=1)
    assert found.mean.item() == pytest.approx(values.mean().item(), abs=1e-3)
    assert found.covariance.item() == pytest.approx(values.var(correction=0).item() - 1.5**2, rel=5e-3)


@pytest.mark.parametrize("noise", [0.9, 1.5])
def test_it_is_nearly_as_good_as_the_amplitudes_themselves(noise: float) -> None:
    """The estimate of 2000 particles, three times, beside the histogram of what nobody knows."""
    smooth, gaussian, exact = [], [], []
    for seed in range(3):
        true, seen = two_states(2000, noise, seed)
        smooth.append(distance(smooth_population(seen).density(LINE[:, None])))
        found = gaussian_population(seen)
        assert len(found.weight) == 2
        gaussian.append(distance(found.density(LINE[:, None])))
        exact.append(float(wasserstein_distance(true, LINE, None, truth_at(LINE).numpy())))
    assert np.mean(smooth) < 1.6 * np.mean(exact)
    assert np.mean(gaussian) < 1.6 * np.mean(exact)


def test_a_pile_of_posteriors_is_smeared() -> None:
    """They are as wide as their error bars beside what they are of, and drawn to the prior."""
    _, seen = two_states(2000, 0.9, seed=0)
    prior = Population(
        torch.ones(1).double(), torch.zeros(1, 1).double(), torch.full((1, 1, 1), 17.0).double()
    )
    mean, covariance = prior.posterior(seen)
    pile = Population(torch.full((2000,), 1 / 2000).double(), mean, covariance)
    assert distance(pile.density(LINE[:, None])) > 2 * distance(
        smooth_population(seen).density(LINE[:, None])
    )


@pytest.mark.parametrize("runs", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_one_state_is_one(runs: int) -> None:
    """In 95 of 100 runs at least."""
    counts = [
        len(gaussian_population(two_states(500, 0.9, seed, share=1.0)[1]).weight) for seed in range(runs)
    ]
    assert counts.count(1) >= 0.95 * runs


def test_outliers_do_not_hide_two_states() -> None:
    """Five images at a wrong pose take a Gaussian of their own."""
    _, seen = two_states(1500, 0.9, seed=0)
    mean = seen.mean.clone()
    mean[:5] = 40.0
    found = gaussian_population(likelihoods(mean, seen.covariance))
    assert len(found.weight) == 3
    for middle in (-4.0, 4.0):
        assert (found.mean - middle).abs().min() < 0.3


def test_one_image_far_off_stops_nothing() -> None:
    """Kernels are as wide as such a grid allows, and a band's half as wide."""
    _, seen = two_states(1000, 0.05, seed=1)
    mean = 0.05 * seen.mean
    mean[0] = 40.0
    seen = likelihoods(mean, torch.full((1000, 1, 1), 0.0025).double())
    low, high = density_band(smooth_population(seen), seen, torch.zeros(1, 1).double(), 5)
    assert 0 <= low <= high


def test_posteriors_of_many_are_those_of_each() -> None:
    _, seen = two_states(12_000, 0.9, seed=1)
    population = gaussian_population(seen[torch.arange(500)])
    mean, covariance = population.posterior(seen)
    for number in (0, 9_999, 10_000, 11_999):
        one = population.posterior(seen[torch.tensor([number])])
        torch.testing.assert_close((mean[number], covariance[number]), (one[0][0], one[1][0]))


def test_particles_under_the_population_are_as_by_quadrature() -> None:
    _, seen = two_states(40, 1.5, seed=3)
    population = gaussian_population(two_states(500, 0.9, seed=4)[1])
    mean, covariance = population.posterior(seen)
    error = seen.covariance[:, 0]
    likelihood = (-0.5 * (seen.mean - LINE).square() / error).exp() / (2 * math.pi * error).sqrt()
    joint = likelihood * population.density(LINE[:, None])
    step = LINE[1] - LINE[0]
    torch.testing.assert_close((joint.sum(1) * step).log(), population.log_evidence(seen), atol=1e-6, rtol=0)
    share = joint / joint.sum(1, keepdim=True)
    torch.testing.assert_close(mean[:, 0], share @ LINE, atol=1e-6, rtol=0)
    spread = (share * (LINE - mean).square()).sum(1)
    torch.testing.assert_close(covariance[:, 0, 0], spread, atol=1e-5, rtol=0)


def test_draws_are_of_the_density() -> None:
    population = gaussian_population(two_states(500, 0.9, seed=4)[1])
    assert population.density(LINE[:, None]).sum().item() * (LINE[1] - LINE[0]).item() == pytest.approx(1.0)
    drawn = population.sample(20_000, torch.Generator().manual_seed(0))[:, 0]
    above = population.weight[population.mean[:, 0] > 0].sum().item()
    # five standard errors of a share
    assert (drawn > 0).double().mean().item() == pytest.approx(above, abs=5 * 0.5 / 20_000**0.5)


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_densities_are_those_of_torch(columns: int) -> None:
    generator = torch.Generator().manual_seed(7)
    factor = torch.randn(9, columns, columns, generator=generator, dtype=torch.float64)
    spread = factor @ factor.transpose(1, 2) + 0.1 * torch.eye(columns).double()
    middle = torch.randn(9, columns, generator=generator, dtype=torch.float64)
    seen, parts = likelihoods(middle[:5], spread[:5]), Population(torch.ones(4) / 4, middle[5:], spread[5:])
    expected = dist.MultivariateNormal(middle[5:], spread[:5, None] + spread[5:]).log_prob(middle[:5, None])
    torch.testing.assert_close(log_normal(seen, parts), expected)


def test_two_columns_are_seen_together() -> None:
    """Two states that neither column alone tells apart, and errors that go together."""
    generator = torch.Generator().manual_seed(2)
    sign = torch.where(torch.rand(800, generator=generator) < 0.7, 1.0, -1.0).double()
    along = 2.5 * torch.randn(800, generator=generator, dtype=torch.float64)
    true = torch.stack([along + 1.2 * sign, along - 1.2 * sign], dim=1)
    scale = torch.tensor([[0.6, 0.0], [0.3, 0.4]], dtype=torch.float64)
    noise = torch.randn(800, 2, generator=generator, dtype=torch.float64) @ scale.T
    seen = likelihoods(true + noise, (scale @ scale.T).expand(800, 2, 2))
    found = smooth_population(seen)
    drawn = found.sample(20_000, generator)
    difference = drawn[:, 0] - drawn[:, 1]
    assert (difference > 0).double().mean().item() == pytest.approx(0.7, abs=0.07)
    assert difference.abs().mean().item() == pytest.approx(2.4, abs=0.2)
    with pytest.raises(CryoANMError, match="3 columns is too large"):
        smooth_population(likelihoods(torch.randn(60, 3).double(), torch.eye(3).double().expand(60, 3, 3)))


@pytest.mark.parametrize("ensembles", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_bands_hold_the_density(ensembles: int) -> None:
    """Those of 95 % in 90 to 99 % of points and ensembles; with 20 of these, to chance.

    Points of one ensemble are not independent: its share varies by some 0.09, and the mean of 20 by 0.02.
    """
    at = torch.linspace(-6, 6, 25, dtype=torch.float64)
    inside = []
    for seed in range(ensembles):
        _, seen = two_states(500, 0.5, seed)
        generator = torch.Generator().manual_seed(seed)
        low, high = density_band(smooth_population(seen), seen, at[:, None], 100, generator=generator)
        inside.append(((truth_at(at) >= low) & (truth_at(at) <= high)).double().mean().item())
    slack = 0.06 if ensembles < 200 else 0.0
    assert 0.9 - slack < np.mean(inside) < 0.99 + slack / 6


def test_a_band_is_of_a_smooth_population() -> None:
    """The width of some Gaussian of a mixture would be none of a kernel."""
    for share in (0.6, 1.0):
        _, seen = two_states(300, 0.9, seed=0, share=share)
        with pytest.raises(CryoANMError, match="give a smooth_population"):
            density_band(gaussian_population(seen), seen, LINE[:5, None])


def test_pyro_finds_the_same_population() -> None:
    """By the gradient of the same likelihood, with parameters of a program instead of a formula."""
    _, seen = two_states(600, 0.9, seed=5)
    ours = gaussian_population(seen, most=2)
    pyro.clear_param_store()
    error = seen.covariance[:, 0, 0]

    def model() -> None:
        simplex = dist.constraints.simplex
        weight = pyro.param("weight", torch.full((2,), 0.5).double(), constraint=simplex)
        mean = pyro.param("mean", torch.tensor([-2.0, 2.0]).double())
        width = pyro.param("width", torch.full((2,), 2.0).double(), constraint=dist.constraints.positive)
        every = dist.Normal(mean, (width.square() + error[:, None]).sqrt())
        with pyro.plate("images", 600):
            mixture = dist.MixtureSameFamily(dist.Categorical(weight), every)
            pyro.sample("seen", mixture, obs=seen.mean[:, 0])

    inference = pyro.infer.SVI(model, lambda: None, pyro.optim.Adam({"lr": 0.03}), pyro.infer.Trace_ELBO())
    for _ in range(1500):
        inference.step()
    for name, own in (("weight", ours.weight), ("mean", ours.mean[:, 0])):
        torch.testing.assert_close(pyro.param(name).detach(), own, atol=0.01, rtol=0)
    torch.testing.assert_close(
        pyro.param("width").detach(), ours.covariance[:, 0, 0].sqrt(), atol=0.01, rtol=0
    )


def test_few_images_are_no_population() -> None:
    _, seen = two_states(30, 0.9, seed=0)
    for work in (gaussian_population, smooth_population):
        with pytest.raises(CryoANMError, match="30 images tell of no population: give 50 or more"):
            work(seen)
