"""Poses on the circle: densities by quadrature, samples against densities, gradients that stay finite."""

import math

import mpmath
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy import integrate, stats
from torch import Tensor

from cryoanm_lib.numerics.rotation import angle_to_unit_vector, unit_vector_to_angle, wrap_angle
from cryoanm_lib.program.distributions import (
    ProjectedNormal,
    ProjectedNormalMixture,
    StratifiedMixture,
    log_ray_integral,
)

torch.set_num_threads(1)
CONCENTRATIONS = [0.0, 1e-3, 0.5, 1.0, 3.0, 10.0, 100.0, 1e3, 1e4]
WEIGHTS = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
LOGITS = WEIGHTS.log()
MEANS = torch.tensor([[2.0, 0.5], [-1.5, 1.0], [0.3, -4.0]], dtype=torch.float64)
CIRCLE = torch.linspace(-math.pi, math.pi, 2001, dtype=torch.float64)[:-1]


def mean_vector(concentration: float, direction: float = 0.7) -> Tensor:
    return concentration * angle_to_unit_vector(torch.tensor(direction, dtype=torch.float64))


def quadrature(concentration: float, direction: float = 0.7, n: int = 400) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the whole circle, dense within 1/|μ| of the mean: Gauss–Legendre in asinh."""
    width = 1 / max(concentration, 1.0)
    end = math.asinh(math.pi / width)
    nodes, weights = (torch.from_numpy(values) for values in np.polynomial.legendre.leggauss(n))
    return direction + width * (end * nodes).sinh(), end * weights * width * (end * nodes).cosh()


def kolmogorov_smirnov(angles: Tensor, distribution: pyro.distributions.TorchDistribution) -> float:
    """√n times the largest gap between the samples' and the density's cumulative function, from -π."""
    grid = torch.linspace(-math.pi, math.pi, 20_001, dtype=torch.float64)
    density = distribution.log_prob(angle_to_unit_vector(grid)).exp()
    cumulative = integrate.cumulative_trapezoid(density.numpy(), grid.numpy(), initial=0.0)
    result = stats.ks_1samp(angles.numpy(), lambda x: np.interp(x, grid.numpy(), cumulative))
    return math.sqrt(len(angles)) * result.statistic


# The ray integral


@pytest.mark.parametrize("t", [-4.0, -1.0, -0.5, 0.0, 0.7, 3.0, 8.0])
def test_the_ray_integral_is_the_integral(t: float) -> None:
    expected, _ = integrate.quad(lambda r: r * math.exp(-((r - t) ** 2) / 2), 0, max(t, 0) + 12, epsabs=1e-15)
    ours = log_ray_integral(torch.tensor(t, dtype=torch.float64)).exp().item()
    assert ours == pytest.approx(expected, rel=1e-10)


def ray_integral_and_slope(t: float) -> tuple[float, float]:
    """log J and its derivative √(2π) Φ / J with 120 digits, enough for what cancels at t = -1e4."""
    with mpmath.workdps(120):
        t = mpmath.mpf(t)
        ramp = mpmath.sqrt(mpmath.pi / 2) * mpmath.erfc(-t / mpmath.sqrt(2))
        integral = mpmath.exp(-(t**2) / 2) + t * ramp
        return float(mpmath.log(integral)), float(ramp / integral)


@pytest.mark.parametrize(
    ("dtype", "rtol", "slope_rtol"), [(torch.float64, 2e-15, 1e-12), (torch.float32, 1e-6, 5e-4)]
)
def test_the_ray_integral_is_accurate_everywhere(dtype: torch.dtype, rtol: float, slope_rtol: float) -> None:
    """Relative to the larger of 1 and its size; at the seams of its three branches, too."""
    far = torch.logspace(-6, 4, 60, dtype=torch.float64)
    seams = torch.tensor([-30.0, -1.0], dtype=torch.float64)
    close = torch.linspace(-40.0, 6.0, 93, dtype=torch.float64)
    t = torch.cat([-far, far, close, seams, seams + 1e-5, seams - 1e-5, torch.zeros(1)]).to(dtype)
    expected, slopes = torch.tensor([ray_integral_and_slope(x) for x in t.tolist()], dtype=torch.float64).T
    ours = log_ray_integral(t.requires_grad_())
    (our_slopes,) = torch.autograd.grad(ours.sum(), t)
    assert ((ours - expected).abs() / expected.abs().clamp(min=1.0)).max() < rtol
    assert ((our_slopes - slopes).abs() / slopes).max() < slope_rtol


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ray_integral_is_finite_and_rises(dtype: torch.dtype) -> None:
    t = torch.cat([-torch.logspace(6, -3, 500), torch.logspace(-3, 6, 500)]).to(dtype).requires_grad_()
    values = log_ray_integral(t)
    (slopes,) = torch.autograd.grad(values.sum(), t)
    assert values.isfinite().all() and slopes.isfinite().all()
    assert (slopes > 0).all() and (values.diff() > 0).all()


# Projected normal


@pytest.mark.parametrize("concentration", CONCENTRATIONS)
def test_the_density_integrates_to_one(concentration: float) -> None:
    angles, weights = quadrature(concentration)
    density = ProjectedNormal(mean_vector(concentration)).log_prob(angle_to_unit_vector(angles)).exp()
    assert (weights * density).sum().item() == pytest.approx(1.0, abs=1e-10)


def test_no_concentration_is_uniform() -> None:
    density = ProjectedNormal(torch.zeros(2).double()).log_prob(angle_to_unit_vector(CIRCLE)).exp()
    torch.testing.assert_close(density, torch.full_like(CIRCLE, 1 / (2 * math.pi)), rtol=1e-14, atol=0)


def test_the_density_is_that_of_a_planar_gaussians_direction() -> None:
    """The definition: the Gaussian integrated along each ray, by adaptive quadrature."""
    mean = mean_vector(2.5)
    for angle in (-2.4, -1.0, 0.0, 0.7, 2.0):
        v = angle_to_unit_vector(torch.tensor(angle, dtype=torch.float64))

        def along_ray(r: float, v: Tensor = v) -> float:
            return r * math.exp(-(r * v - mean).square().sum().item() / 2) / (2 * math.pi)

        expected, _ = integrate.quad(along_ray, 0, 15)
        assert ProjectedNormal(mean).log_prob(v).exp().item() == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("concentration", [0.0, 0.3, 1.0, 3.0, 6.0])
def test_the_density_agrees_with_pyro_where_pyro_resolves_it(concentration: float) -> None:
    """Pyro's sum cancels behind the mean; above a t of -2.5 it keeps 12 digits."""
    mean, v = mean_vector(concentration), angle_to_unit_vector(CIRCLE)
    v = v[(v @ mean) > -2.5]
    theirs = dist.ProjectedNormal(mean).log_prob(v)
    torch.testing.assert_close(ProjectedNormal(mean).log_prob(v), theirs, rtol=0, atol=1e-11)


def test_the_density_turns_with_its_mean() -> None:
    reference = ProjectedNormal(mean_vector(4.0, 0.0)).log_prob(angle_to_unit_vector(CIRCLE))
    turned = ProjectedNormal(mean_vector(4.0, 2.0)).log_prob(angle_to_unit_vector(CIRCLE + 2.0))
    torch.testing.assert_close(turned, reference, rtol=0, atol=1e-12)


@pytest.mark.parametrize("concentration", [1e2, 1e4])
def test_a_sharp_density_is_normal_near_its_mean(concentration: float) -> None:
    """For μ·v > 10 the lower limit of the ray does not matter: p = (μ·v) exp(-|μ×v|²/2) / √(2π)."""
    offset = torch.linspace(-5, 5, 41, dtype=torch.float64) / concentration
    ours = ProjectedNormal(mean_vector(concentration)).log_prob(angle_to_unit_vector(0.7 + offset))
    expected = (concentration * offset.cos()).log() - 0.5 * (concentration * offset.sin()).square()
    torch.testing.assert_close(ours, expected - 0.5 * math.log(2 * math.pi), rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("concentration", [0.0, 1.0, 1e3, 1e4])
def test_gradients_are_finite_all_around_the_circle(concentration: float, dtype: torch.dtype) -> None:
    """On the far side they point towards the value: the mean is pulled with a force of about |μ|."""
    mean = mean_vector(concentration).to(dtype).expand(len(CIRCLE), 2).clone().requires_grad_()
    value = angle_to_unit_vector(CIRCLE).to(dtype).requires_grad_()
    log_prob = ProjectedNormal(mean).log_prob(value)
    pulls, slopes = torch.autograd.grad(log_prob.sum(), (mean, value))
    assert log_prob.isfinite().all() and pulls.isfinite().all() and slopes.isfinite().all()
    behind = (mean * value).sum(dim=-1) < -10
    assert ((pulls * value).sum(dim=-1)[behind] > 0.9 * -(mean * value).sum(dim=-1)[behind]).all()


def test_the_gradient_agrees_with_finite_differences() -> None:
    means = torch.cat([mean_vector(c, 0.7)[None] for c in (0.5, 3.0, 20.0, 100.0)]).requires_grad_()
    for angle in (0.7, 2.0, 0.7 + math.pi):
        v = angle_to_unit_vector(torch.tensor(angle, dtype=torch.float64)).expand(4, 2)
        assert torch.autograd.gradcheck(lambda m, v: ProjectedNormal(m).log_prob(v), (means, v))


@pytest.mark.parametrize("concentration", [0.0, 0.5, 2.0, 20.0])
def test_samples_follow_the_density(concentration: float) -> None:
    """Kolmogorov–Smirnov on 20 000 angles: 2.23 is passed by chance with probability 1e-4 a case."""
    torch.manual_seed(0)
    distribution = ProjectedNormal(mean_vector(concentration))
    vectors = distribution.sample((20_000,))
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(20_000).double(), rtol=0, atol=1e-12)
    assert kolmogorov_smirnov(unit_vector_to_angle(vectors), distribution) < 2.23


# Mixtures


@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
def test_a_mixture_density_is_the_weighted_sum(scale: float) -> None:
    """It integrates to one because its components do; far from all of them it stays finite."""
    mixture, v = ProjectedNormalMixture(LOGITS, scale * MEANS), angle_to_unit_vector(CIRCLE)
    parts = [w * ProjectedNormal(scale * m).log_prob(v).exp() for w, m in zip(WEIGHTS, MEANS, strict=True)]
    torch.testing.assert_close(mixture.log_prob(v).exp(), sum(parts), rtol=1e-9, atol=0)
    torch.testing.assert_close(mixture.weights, WEIGHTS, rtol=0, atol=1e-15)
    assert ProjectedNormalMixture(LOGITS, 1e3 * MEANS).log_prob(v).isfinite().all()


@pytest.mark.parametrize("scale", [0.0, 1.0, 10.0])
def test_a_mixture_density_integrates_to_one(scale: float) -> None:
    """By the trapezoidal rule, which converges geometrically for a periodic function."""
    mixture = ProjectedNormalMixture(LOGITS, scale * MEANS)
    total = mixture.log_prob(angle_to_unit_vector(CIRCLE)).exp().mean().item() * 2 * math.pi
    assert total == pytest.approx(1.0, abs=1e-12)


def test_a_mixture_of_one_is_its_component() -> None:
    v, logit = angle_to_unit_vector(CIRCLE), torch.tensor([-3.0], dtype=torch.float64)
    one = ProjectedNormalMixture(logit, MEANS[:1])
    torch.testing.assert_close(one.log_prob(v), ProjectedNormal(MEANS[0]).log_prob(v), rtol=0, atol=1e-14)


def test_a_common_constant_in_the_logits_does_not_matter() -> None:
    v = angle_to_unit_vector(CIRCLE)
    first, second = (ProjectedNormalMixture(LOGITS + shift, MEANS).log_prob(v) for shift in (0.0, 100.0))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-12)


def test_samples_come_from_each_component_as_often_as_its_weight_says() -> None:
    """χ² on 20 000 counts of components that do not overlap; 18.4 is exceeded with probability 1e-4."""
    torch.manual_seed(1)
    samples = ProjectedNormalMixture(LOGITS, 20 * MEANS).sample((20_000,))
    nearest = (samples @ torch.nn.functional.normalize(MEANS, dim=-1).T).argmax(dim=-1)
    expected = 20_000 * WEIGHTS
    assert ((nearest.bincount(minlength=3) - expected).square() / expected).sum() < 18.4


def test_samples_follow_the_mixture_density() -> None:
    """Kolmogorov–Smirnov on 20 000 angles: 2.23 is passed by chance with probability 1e-4."""
    torch.manual_seed(2)
    mixture = ProjectedNormalMixture(LOGITS, MEANS)
    samples = mixture.sample((20_000,))
    assert not samples.requires_grad
    assert kolmogorov_smirnov(unit_vector_to_angle(samples), mixture) < 2.23


def test_a_batch_of_mixtures_keeps_them_apart() -> None:
    """Each of 2 × 3 mixtures lies within 1 radian of its own direction, ten deviations of its components."""
    torch.manual_seed(3)
    directions = torch.linspace(-2, 2, 6, dtype=torch.float64).unflatten(0, (2, 3))
    means = 20 * angle_to_unit_vector(directions[..., None] + torch.tensor([-0.5, 0.5], dtype=torch.float64))
    mixture = ProjectedNormalMixture(torch.zeros(2, 3, 2).double(), means)
    assert (mixture.batch_shape, mixture.event_shape) == ((2, 3), (2,))
    assert mixture.sample().shape == (2, 3, 2)
    samples = mixture.sample((50,))
    assert samples.shape == (50, 2, 3, 2) and mixture.log_prob(samples).shape == (50, 2, 3)
    assert wrap_angle(unit_vector_to_angle(samples) - directions).abs().max() < 1.0


# One draw from every component


def expectation(logits: Tensor, means: Tensor) -> Tensor:
    """E[f] under the mixture by quadrature, differentiable in its parameters."""
    v = angle_to_unit_vector(CIRCLE)
    density = ProjectedNormalMixture(logits, means).log_prob(v).exp()
    return (density * an_observable(v)).mean() * 2 * math.pi


def an_observable(v: Tensor) -> Tensor:
    return v[..., 0] ** 3 - 0.5 * v[..., 1] + (2 * v[..., 0] * v[..., 1]).exp()


def stratified_average(logits: Tensor, means: Tensor, n: int) -> Tensor:
    mixture = StratifiedMixture(logits, means)
    return (mixture.strata_weights * an_observable(mixture.rsample((n,)))).sum(dim=1).mean(dim=0)


def test_weighted_strata_average_to_the_mixtures_expectation() -> None:
    """Over 200 blocks of 1000 draws; 5.5 standard errors are passed with probability 1e-7 (Student's t)."""
    torch.manual_seed(4)
    blocks = stratified_average(LOGITS.expand(200, 3), MEANS.expand(200, 3, 2), 1000)
    standard_error = blocks.std() / math.sqrt(200)
    assert (blocks.mean() - expectation(LOGITS, MEANS)).abs() < 5.5 * standard_error < 0.01


def test_pathwise_gradients_average_to_the_expectations_derivative() -> None:
    """In the weights and the means, by 200 blocks of 1000 draws: 1e-7 for each of nine numbers, as above.

    The shortest mean is 4.5: a draw at a distance r from the origin of the plane has a gradient of 1/r, which
    has no variance where such draws are common.
    """
    torch.manual_seed(5)
    logits, means = LOGITS.clone().requires_grad_(), (2.5 * MEANS).requires_grad_()
    exact = torch.autograd.grad(expectation(logits, means), (logits, means))
    logits, means = (parameter.detach().repeat(200, *[1] * parameter.ndim) for parameter in (logits, means))
    inputs = logits.requires_grad_(), means.requires_grad_()
    drawn = torch.autograd.grad(stratified_average(*inputs, 1000).sum(), inputs)
    for blocks, derivative in zip(drawn, exact, strict=True):
        standard_error = blocks.std(dim=0) / math.sqrt(200)
        assert ((blocks.mean(dim=0) - derivative).abs() < 5.5 * standard_error).all()
        assert standard_error.max() < 0.01 * derivative.abs().max()


def test_strata_come_first_and_share_the_mixtures_density() -> None:
    logits, means = LOGITS.expand(4, 5, 3), MEANS.expand(4, 5, 3, 2)
    strata, mixture = StratifiedMixture(logits, means), ProjectedNormalMixture(logits, means)
    assert (strata.batch_shape, strata.event_shape) == ((3, 4, 5), (2,))
    draws = strata.rsample((7,))
    assert draws.shape == strata.sample((7,)).shape == (7, 3, 4, 5, 2)
    torch.testing.assert_close(strata.log_prob(draws), mixture.log_prob(draws), rtol=0, atol=0)
    assert strata.strata_weights.shape == (3, 4, 5)
    torch.testing.assert_close(strata.strata_weights[:, 1, 2], LOGITS.exp(), rtol=0, atol=1e-15)


def test_each_stratum_draws_from_its_own_component() -> None:
    torch.manual_seed(6)
    draws = StratifiedMixture(LOGITS, 20 * MEANS).rsample((100,))
    nearest = (draws @ torch.nn.functional.normalize(MEANS, dim=-1).T).argmax(dim=-1)
    assert torch.equal(nearest, torch.arange(3).expand(100, 3))


# In Pyro


EVERY = {
    "normal": lambda *batch: ProjectedNormal(MEANS[0].expand(*batch, 2)),
    "mixture": lambda *batch: ProjectedNormalMixture(LOGITS.expand(*batch, 3), MEANS.expand(*batch, 3, 2)),
    "strata": lambda *batch: StratifiedMixture(LOGITS.expand(*batch, 3), MEANS.expand(*batch, 3, 2)),
}


@pytest.mark.parametrize("kind", EVERY)
def test_expanding_is_the_same_as_making_it_larger(kind: str) -> None:
    small, large = EVERY[kind](1), EVERY[kind](4)
    expanded = small.expand(large.batch_shape)
    assert type(expanded) is type(large)
    assert (expanded.batch_shape, expanded.event_shape) == (large.batch_shape, (2,))
    torch.manual_seed(7)
    draws = expanded()
    torch.manual_seed(7)
    assert torch.equal(draws, large())
    assert torch.equal(expanded.log_prob(draws), large.log_prob(draws))


@pytest.mark.parametrize("kind", EVERY)
def test_a_plate_gives_each_image_its_own_draw(kind: str) -> None:
    def model() -> None:
        with pyro.plate("images", 4):
            pyro.sample("pose", EVERY[kind](1))

    trace = poutine.trace(model).get_trace()
    trace.compute_log_prob()
    site = trace.nodes["pose"]
    expected = (3, 4) if kind == "strata" else (4,)
    assert site["value"].shape == (*expected, 2) and site["log_prob"].shape == expected
    assert len(site["value"].flatten(end_dim=-2).unique(dim=0)) == math.prod(expected)


@pytest.mark.parametrize("kind", EVERY)
def test_samples_keep_the_precision_of_the_parameters(kind: str) -> None:
    assert EVERY[kind](4)().dtype == torch.float64
    single = ProjectedNormalMixture(LOGITS.float(), MEANS.float())
    assert single.sample().dtype == single.log_prob(single.sample()).dtype == torch.float32
