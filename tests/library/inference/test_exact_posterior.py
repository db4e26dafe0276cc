"""The exact posterior against closed forms and brute force, where it is sharp, flat, and two-sided."""

import math

import pyro
import pytest
import torch

from cryoanm_lib.book.landscapes import landscape
from cryoanm_lib.checks.calibration import ranks, uniformity
from cryoanm_lib.checks.residuals import residuals
from cryoanm_lib.experiments.profile import load_profile
from cryoanm_lib.inference.exact_posterior import exact_posterior
from cryoanm_lib.inference.fisher import information_limit
from cryoanm_lib.inference.lattice_search import LatticeSearch
from cryoanm_lib.inference.refinement import refine
from cryoanm_lib.numerics.fourier import crop_coefficients, to_real
from cryoanm_lib.numerics.rotation import unit_vector_to_angle
from cryoanm_lib.program.prior import Prior


def test_a_linear_gaussian_case_has_its_closed_form(tiny_model) -> None:
    """An amplitude so small that the image is linear in it: y = μ + αj + noise, α ~ N(0, s)."""
    scale, resolution = 0.002, 16
    model = tiny_model(inferred=("amplitude",), prior=Prior(amplitude_scale=scale), noise=0.001).double()
    pyro.set_rng_seed(1)
    particles = model.simulate(5, 32)
    sigma = model.noise.cropped(resolution)

    def image(amplitude: float) -> torch.Tensor:
        latents = particles.truth | {"amplitude": torch.full((5, 1), amplitude, dtype=torch.float64)}
        return to_real(model.forward_model.coefficients(latents, resolution), resolution)

    slope = (image(1e-4) - image(-1e-4)) / 2e-4
    observed = to_real(crop_coefficients(particles.coefficients, resolution), resolution)
    away = observed - image(0.0)
    precision = slope.square().sum(-1) / sigma**2 + scale**-2
    mean = (slope * away).sum(-1) / sigma**2 / precision
    dof = observed.shape[-1]
    evidence = (
        -0.5 * (away.square().sum(-1) / sigma**2 - precision * mean**2)
        - 0.5 * (precision * scale**2).log()
        - 0.5 * dof * math.log(2 * math.pi * sigma**2)
    )
    posterior = exact_posterior(model, particles, resolution, tolerance=1e-3)
    torch.testing.assert_close(posterior.log_evidence, evidence, rtol=0, atol=2e-3)
    deviation = precision.rsqrt()
    assert ((posterior.mean()["amplitude"][:, 0] - mean) / deviation).abs().max() < 0.01


@pytest.mark.parametrize(
    ("noise", "resolution"),
    [(0.05, 8), (0.3, 8), *(pytest.param(noise, 16, marks=pytest.mark.thorough) for noise in (0.3, 1.0))],
)
def test_evidence_is_that_of_a_fine_grid(tiny_model, noise, resolution) -> None:
    """Pose and amplitude by brute force: one peak, several, and hardly any."""
    model = tiny_model(inferred=("pose", "amplitude"), noise=noise)
    pyro.set_rng_seed(2)
    particles = model.simulate(3, 32)
    posterior = exact_posterior(model, particles, resolution)
    poses = (torch.arange(720) + 0.5) * (2 * math.pi / 720) - math.pi
    amplitudes = torch.linspace(-18, 18, 241)
    normal = torch.distributions.Normal(0.0, 3.0).log_prob(amplitudes)
    cell = (2 * math.pi / 720) * (amplitudes[1] - amplitudes[0])
    for image in range(3):
        table = landscape(
            model.forward_model,
            particles[image : image + 1],
            at={"defocus": 50.0},
            along={"pose": poses, "amplitude": amplitudes},
            resolution=resolution,
        ).double()
        joint = table + normal - math.log(2 * math.pi)
        expected = joint.flatten().logsumexp(0) + cell.log()
        assert posterior.log_evidence[image] == pytest.approx(expected.item(), abs=0.02)
        weight = joint.flatten().softmax(0).view_as(joint)
        mean = (weight.sum(0) * amplitudes).sum()
        assert posterior.mean()["amplitude"][image, 0] == pytest.approx(mean.item(), abs=0.05)


def test_with_no_information_the_posterior_is_the_prior(tiny_model) -> None:
    """Noise of a hundred peaks. Deviation of 2000 amplitudes: 5 standard errors, false alarm below 1e-5."""
    model = tiny_model(inferred=("pose", "amplitude", "defocus"), noise=100.0)
    pyro.set_rng_seed(3)
    posterior = exact_posterior(model, model.simulate(1, 16), 8)
    draws = posterior.sample(2000, torch.Generator().manual_seed(1_000))
    amplitudes, defocus, poses = draws["amplitude"][:, 0, 0], draws["defocus"][:, 0], draws["pose"][:, 0]
    assert amplitudes.std() == pytest.approx(3.0, abs=5 * 3.0 / math.sqrt(4000))
    assert defocus.std() == pytest.approx(3.0, abs=5 * 3.0 / math.sqrt(4000))
    assert defocus.mean() == pytest.approx(50.0, abs=5 * 3.0 / math.sqrt(2000))
    assert poses.mean(0).norm() < 5 / math.sqrt(2000)


@pytest.mark.thorough
@pytest.mark.parametrize("inferred", [("pose",), ("amplitude", "defocus"), ("pose", "amplitude", "defocus")])
def test_draws_are_as_far_from_the_truth_as_the_limit_says(tiny_model, inferred) -> None:
    """Mean residual over 40 images × 50 draws by the limit; its relative error is about 0.1 an image set."""
    model = tiny_model(inferred=inferred, noise=0.02)
    pyro.set_rng_seed(4)
    particles = model.simulate(40, 32)
    posterior = exact_posterior(model, particles, 32)
    found = residuals(posterior.sample(50, torch.Generator().manual_seed(1_000)), particles.truth)
    limit = information_limit(model, particles, 32)
    for name in inferred:
        # Posterior mean and truth deviate by one draw each image: |normal| has a relative spread of 0.76.
        assert (found[name].mean(0) / limit[name]).mean() == pytest.approx(1.0, abs=5 * 0.5 / math.sqrt(40))


@pytest.mark.thorough
@pytest.mark.parametrize("noise", [0.05, 0.6])
def test_ranks_of_the_truth_among_draws_are_uniform(tiny_model, noise) -> None:
    """Simulation-based calibration with 300 images: each p above 1e-4, a false alarm once in 3000 runs."""
    model = tiny_model(inferred=("pose", "amplitude", "defocus"), noise=noise)
    pyro.set_rng_seed(6)
    particles = model.simulate(300, 16)
    generator = torch.Generator().manual_seed(1_000)
    draws = exact_posterior(model, particles, 16).sample(100, generator)
    for rank in ranks(draws, particles.truth).values():
        assert uniformity(rank[:, 0], 100, generator) > 1e-4


def test_draws_have_the_shape_of_the_density(tiny_model) -> None:
    """Cells as wide as the posterior itself must not blur it: deviation of 20 000 draws of a Gaussian.

    Its standard error is 0.5 %; uniform draws within cells of one deviation would be 4 % too wide.
    """
    model = tiny_model(inferred=("amplitude",), noise=0.02)
    pyro.set_rng_seed(7)
    particles = model.simulate(1, 32)
    posterior = exact_posterior(model, particles, 32)
    drawn = posterior.sample(20_000, torch.Generator().manual_seed(1_000))["amplitude"][:, 0, 0].double()
    fine = drawn.mean() + torch.linspace(-8, 8, 4001, dtype=torch.float64) * drawn.std()
    density = posterior.log_density({"amplitude": fine[:, None, None].float()})[:, 0].exp()
    mass = density / density.sum()
    mean = (mass * fine).sum()
    expected = (mass * (fine - mean) ** 2).sum().sqrt()
    assert drawn.std().item() == pytest.approx(expected.item(), rel=0.025)
    assert (density.sum() * (fine[1] - fine[0])).item() == pytest.approx(1.0, abs=0.02)


def test_given_latents_that_differ_are_used_image_by_image(tiny_model) -> None:
    """The pose alone, amplitudes given: one image at a time gives what all together give."""
    model = tiny_model(inferred=("pose",), noise=0.1)
    pyro.set_rng_seed(5)
    particles = model.simulate(4, 16)
    together = exact_posterior(model, particles, 16)
    alone = torch.cat([exact_posterior(model, particles[i : i + 1], 16).log_evidence for i in range(4)])
    torch.testing.assert_close(together.log_evidence, alone, rtol=0, atol=1e-2)
    best = unit_vector_to_angle(together.mean()["pose"]) - unit_vector_to_angle(particles.truth["pose"])
    assert torch.rad2deg(best).abs().remainder(360).sub(180).abs().sub(180).abs().max() < 10


def test_masses_add_up_for_each_image(tiny_model) -> None:
    model = tiny_model(inferred=("pose", "amplitude"))
    posterior = exact_posterior(model, model.simulate(3, 16), 16)
    total = torch.zeros(3, dtype=torch.float64).index_add(0, posterior.image, posterior.log_mass.exp())
    torch.testing.assert_close(total, torch.ones(3, dtype=torch.float64))
    assert len(posterior) == 3


def test_it_is_right_where_it_is_a_twentieth_of_a_degree_wide() -> None:
    """Adenylate kinase at K = 32: deviations by the curvature at the truth, and evidence by refinement.

    Curvature at the truth and the posterior's own differ by the noise in the image, some per cent.
    """
    model = load_profile("smoke").run("pose_amplitude").model()
    pyro.set_rng_seed(8)
    particles = model.simulate(4, 32)
    exact, generator = exact_posterior(model, particles, 32), torch.Generator().manual_seed(1_000)
    limit = information_limit(model, particles, 32)
    away = residuals(exact.sample(4000, generator), exact.mean())
    for name in ("pose", "amplitude"):
        # E|x| of a Gaussian of deviation s is √(2/π) s; the limit is √(4/π) s.
        ratio = 2**0.5 * away[name].mean(0) / limit[name]
        assert ((ratio - 1).abs() < 0.15).all()
    assert (limit["pose"] < 0.08).all()
    search = LatticeSearch(model)
    refined = refine(model, particles, 32, search.starts(particles), search, generator)
    torch.testing.assert_close(refined.log_evidence, exact.log_evidence, rtol=0, atol=0.1)
