"""Poses in space: the density by quadrature and by definition, samples, gradients, and both signs alike."""

import math

import numpy as np
import pyro
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from cryoanm_lib.numerics.rotation import quaternion_product, turned_by
from cryoanm_lib.program.antipodal import AntipodalProjectedNormal, log_line_integral
from cryoanm_lib.program.distributions import ProjectedNormalMixture, StratifiedMixture
from tests.library.rotations import uniform_rotations

CONCENTRATIONS = [0.0, 1e-3, 0.5, 1.0, 3.0, 10.0, 100.0, 1e3, 1e4]


def mean_vector(concentration: float) -> Tensor:
    direction = torch.tensor([0.1, -0.7, 0.5, 0.4], dtype=torch.float64)
    return concentration * direction / direction.norm()


def around(mean: Tensor, angle: Tensor) -> Tensor:
    """Quaternions at an angle in four dimensions from a mean."""
    axis = torch.nn.functional.normalize(mean_vector(1.0) if mean.norm() == 0 else mean, dim=0)
    across = torch.tensor([0.7, 0.1, -0.4, 0.5], dtype=torch.float64)
    across = torch.nn.functional.normalize(across - (across @ axis) * axis, dim=0)
    return angle.cos()[:, None] * axis + angle.sin()[:, None] * across


@pytest.mark.parametrize("concentration", CONCENTRATIONS)
def test_the_density_integrates_to_one(concentration: float) -> None:
    """It depends on the angle χ from the mean alone: ∫ p 8 · 4π sin²χ dχ from 0 to π/2, dense near 0."""
    nodes, weights = (torch.from_numpy(values) for values in np.polynomial.legendre.leggauss(400))
    width = 1 / max(concentration, 1.0)
    end = math.asinh(math.pi / 2 / width)
    place = 0.5 * end * (nodes + 1)
    angle, weight = width * place.sinh(), 0.5 * end * weights * width * place.cosh()
    mean = mean_vector(concentration)
    density = AntipodalProjectedNormal(mean).log_prob(around(mean, angle)).exp()
    total = (weight * density * 32 * math.pi * angle.sin().square()).sum().item()
    assert total == pytest.approx(1.0, abs=1e-10)


def test_the_density_is_that_of_both_directions_of_a_gaussian() -> None:
    """The definition: the Gaussian integrated along each ray of q and of -q, by adaptive quadrature."""
    mean = mean_vector(2.5)
    for q in uniform_rotations(5, torch.Generator().manual_seed(0)).double():
        q = q / q.norm()

        def along_line(r: float, q: Tensor = q) -> float:
            return abs(r) ** 3 * math.exp(-(r * q - mean).square().sum().item() / 2) / (2 * math.pi) ** 2

        expected, _ = integrate.quad(along_line, -15, 15)
        found = AntipodalProjectedNormal(mean).log_prob(q).exp().item()
        assert found == pytest.approx(expected / 8, rel=1e-7)


def test_no_concentration_is_uniform() -> None:
    poses = uniform_rotations(50, torch.Generator().manual_seed(0)).double()
    density = AntipodalProjectedNormal(torch.zeros(4).double()).log_prob(poses)
    torch.testing.assert_close(
        density, torch.full((50,), -math.log(8 * math.pi**2)).double(), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("concentration", [0.5, 5.0, 1e3])
def test_neither_sign_matters(concentration: float) -> None:
    mean, poses = mean_vector(concentration), uniform_rotations(20, torch.Generator().manual_seed(1)).double()
    reference = AntipodalProjectedNormal(mean).log_prob(poses)
    torch.testing.assert_close(AntipodalProjectedNormal(mean).log_prob(-poses), reference)
    torch.testing.assert_close(AntipodalProjectedNormal(-mean).log_prob(poses), reference)


def test_the_density_turns_with_its_mean() -> None:
    mean, poses = mean_vector(4.0), uniform_rotations(20, torch.Generator().manual_seed(2)).double()
    turn = poses[0] / poses[0].norm()
    turned = AntipodalProjectedNormal(quaternion_product(turn, mean)).log_prob(
        quaternion_product(turn, poses)
    )
    torch.testing.assert_close(turned, AntipodalProjectedNormal(mean).log_prob(poses))


@pytest.mark.parametrize("concentration", [0.0, 0.5, 3.0, 30.0])
def test_samples_follow_the_density(concentration: float) -> None:
    """The angle of 20 000 samples from the mean, by Kolmogorov and Smirnov: false alarm 1e-4."""
    mean = mean_vector(concentration)
    pyro.set_rng_seed(3)
    samples = AntipodalProjectedNormal(mean).sample((20_000,))
    torch.testing.assert_close(samples.norm(dim=-1), torch.ones(20_000).double())
    axis = mean_vector(1.0)
    angle = (samples @ axis).abs().clamp(max=1.0).acos()
    grid = torch.linspace(0, math.pi / 2, 20_001, dtype=torch.float64)
    density = AntipodalProjectedNormal(mean).log_prob(around(mean, grid)).exp() * grid.sin().square()
    cumulative = integrate.cumulative_trapezoid(density.numpy(), grid.numpy(), initial=0.0)
    cumulative /= cumulative[-1]
    found = stats.ks_1samp(angle.numpy(), lambda x: np.interp(x, grid.numpy(), cumulative))
    assert found.pvalue > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("concentration", [0.0, 1.0, 1e3, 1e4])
def test_gradients_are_finite_everywhere(concentration: float, dtype: torch.dtype) -> None:
    mean = mean_vector(concentration).to(dtype).requires_grad_()
    poses = uniform_rotations(200, torch.Generator().manual_seed(4)).to(dtype)
    density = AntipodalProjectedNormal(mean).log_prob(poses)
    (slope,) = torch.autograd.grad(density.sum(), mean)
    assert density.isfinite().all() and slope.isfinite().all()


def test_gradients_are_those_of_finite_differences() -> None:
    poses = uniform_rotations(5, torch.Generator().manual_seed(5)).double()
    for concentration in (0.3, 3.0, 40.0):
        mean = mean_vector(concentration).requires_grad_()
        assert torch.autograd.gradcheck(lambda m: AntipodalProjectedNormal(m).log_prob(poses), mean)


@pytest.mark.parametrize("t", [-6.0, -0.5, 0.0, 0.7, 3.0, 8.0])
def test_the_line_integral_is_the_integral(t: float) -> None:
    expected, _ = integrate.quad(lambda r: abs(r) ** 3 * math.exp(-((r - t) ** 2) / 2), -20, 20, epsabs=1e-13)
    ours = log_line_integral(torch.tensor(t, dtype=torch.float64)).exp().item()
    assert ours == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("kind", [ProjectedNormalMixture, StratifiedMixture])
def test_a_mixture_in_space_has_the_density_of_its_parts(kind) -> None:
    generator = torch.Generator().manual_seed(6)
    logits, means = torch.randn(5, 3, generator=generator), 3 * torch.randn(5, 3, 4, generator=generator)
    poses, weights = uniform_rotations(5, generator), logits.softmax(-1)
    parts = torch.stack([AntipodalProjectedNormal(means[:, c]).log_prob(poses).exp() for c in range(3)], -1)
    density = kind(logits, means).log_prob(poses).exp()
    torch.testing.assert_close(density, (weights * parts).sum(-1))


def test_samples_of_a_mixture_in_space_come_from_all_its_parts() -> None:
    """Weights of 0.2 and 0.8, 4000 draws: five deviations of a binomial, false alarm below 1e-6."""
    means = torch.stack([mean_vector(50.0), around(mean_vector(50.0), torch.tensor([1.5]).double())[0] * 50])
    pyro.set_rng_seed(7)
    mixture = ProjectedNormalMixture(torch.tensor([0.2, 0.8]).double().log(), means)
    first = (mixture.sample((4000,)) @ mean_vector(1.0)).abs() > 0.7
    assert abs(first.double().mean().item() - 0.2) < 5 * (0.16 / 4000) ** 0.5


@pytest.mark.parametrize("concentration", [0.0, 0.5, 3.0, 40.0])
def test_slopes_are_differences_by_rotation_vectors(concentration: float) -> None:
    """At rotations near the mean, far from it and opposite to it in sign."""
    mean, drawn = mean_vector(concentration), uniform_rotations(8, torch.Generator().manual_seed(0))
    rotations = torch.nn.functional.normalize(drawn.double(), dim=1)
    rotations[0], rotations[1] = mean_vector(1.0), -mean_vector(1.0)
    density, size = AntipodalProjectedNormal(mean), 1e-4
    slope, bend = density.slopes(rotations)
    for axis in range(3):
        step = torch.zeros(3, dtype=torch.float64)
        step[axis] = size
        low, here, high = (density.log_prob(turned_by(rotations, k * step)) for k in (-1, 0, 1))
        scale = 1 + concentration**2
        torch.testing.assert_close(slope[:, axis], (high - low) / (2 * size), rtol=1e-5, atol=1e-7 * scale)
        torch.testing.assert_close(
            bend[:, axis], (high - 2 * here + low) / size**2, rtol=1e-4, atol=1e-5 * scale
        )
