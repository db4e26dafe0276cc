"""Model and guide as Pyro programs: sites, shapes, what is given and what is inferred."""

import itertools
import math

import pyro
import pytest
import torch
from pyro import poutine

from cryoanm_lib.errors import ConfigurationError, ForwardModelError
from cryoanm_lib.imaging.likelihood import log_likelihood
from cryoanm_lib.numerics.fourier import crop_coefficients
from cryoanm_lib.particles.particles import Particles, to_forward
from cryoanm_lib.program.prior import LATENTS, Prior

SUBSETS = [c for r in (1, 2, 5) for c in itertools.combinations(LATENTS, r)]
PLANE = Prior(shift_scale=0.5, contrast_scale=0.1)
SPACE = Prior(pose="space", shift_scale=0.5, contrast_scale=0.1)
KINDS = [("rings", PLANE), ("pixels", PLANE), ("shared", PLANE), ("shared", SPACE)]
GIVEN_IN_SPACE = ("shift", "amplitude", "defocus", "contrast")


@pytest.mark.parametrize("inferred", SUBSETS, ids="-".join)
@pytest.mark.parametrize("stratified", [True, False])
@pytest.mark.parametrize(("encoder", "prior"), KINDS)
def test_model_and_guide_agree_on_what_is_inferred(
    tiny_program, inferred, stratified, encoder, prior
) -> None:
    program = tiny_program(inferred=inferred, stratified=stratified, encoder=encoder, prior=prior).eval()
    particles = program.simulate(4, 16)
    guide = poutine.trace(program.guide).get_trace(particles, 16)
    model = poutine.trace(poutine.replay(program.model, guide)).get_trace(particles, 16)
    assert set(guide.stochastic_nodes) - {"images"} == set(inferred)
    assert set(model.stochastic_nodes) - {"images"} == set(inferred)
    assert "image" in model.observation_nodes
    for name in set(LATENTS) - set(inferred):
        torch.testing.assert_close(model.nodes[name]["value"], particles.latents[name])


@pytest.mark.parametrize("resolution", [12, 16, 32])
def test_model_scores_an_image_by_the_likelihood(tiny_program, resolution) -> None:
    program = tiny_program()
    particles = program.simulate(3, 32)
    trace = poutine.trace(poutine.condition(program.model, particles.latents)).get_trace(
        particles, resolution
    )
    trace.compute_log_prob()
    forward = program.forward_model
    predicted = forward.coefficients(to_forward(particles.latents), resolution)
    observed = crop_coefficients(particles.coefficients, resolution)
    expected = log_likelihood(observed, predicted, program.noise, resolution, forward.box_size)
    torch.testing.assert_close(trace.nodes["image"]["log_prob"], expected, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("inferred", SUBSETS, ids="-".join)
@pytest.mark.parametrize("pose", ["plane", "space"])
@pytest.mark.parametrize("noise", [0.1, (0.05, 1.0)])
def test_log_joint_is_that_of_the_pyro_model(tiny_program, inferred, pose, noise) -> None:
    """Image by image, at two draws that differ from what made the images."""
    concentration = (2.0, 1.0) if pose == "plane" else (0.0, 0.0)
    prior = Prior(pose=pose, pose_concentration=concentration, shift_scale=0.5, contrast_scale=0.1)
    program = tiny_program("shared", inferred=inferred, prior=prior, noise=noise).double()
    particles, draws = program.simulate(3, 16), [program.simulate(3, 16).latents for _ in range(2)]
    stacked = {name: torch.stack([draw[name] for draw in draws]) for name in inferred}
    found = program.log_joint(particles, stacked, 12)
    for row, draw in zip(found, draws, strict=True):
        chosen = {name: draw[name] for name in inferred}
        trace = poutine.trace(poutine.condition(program.model, chosen)).get_trace(particles, 12)
        trace.compute_log_prob()
        expected = sum(trace.nodes[site]["log_prob"] for site in (*inferred, "image"))
        torch.testing.assert_close(row, expected, rtol=0, atol=1e-6)


def test_prior_is_what_it_says(tiny_program) -> None:
    """Means and deviations of 20 000 draws, each within 5 standard errors (false alarm below 1e-5)."""
    prior = Prior(amplitude_scale=2.0, defocus_mean=40.0, defocus_scale=1.5)
    program = tiny_program(prior=prior, inferred=("defocus",))
    pyro.set_rng_seed(0)
    with torch.no_grad(), pyro.plate("images", 20_000):
        latents = program.draw_latents()
    n = 20_000**0.5
    assert abs(latents["amplitude"].mean()) < 5 * 2.0 / n
    assert abs(latents["amplitude"].std() - 2.0) < 5 * 2.0 / (2**0.5 * n)
    assert abs(latents["defocus"].mean() - 40.0) < 5 * 1.5 / n
    assert latents["pose"].mean(0).norm() < 5 / n
    torch.testing.assert_close(latents["pose"].norm(dim=-1), torch.ones(20_000))


def test_a_given_defocus_is_that_of_the_microscope(tiny_program) -> None:
    particles = tiny_program(prior=Prior(defocus_mean=40.0)).simulate(5, 16)
    torch.testing.assert_close(particles.latents["defocus"], torch.full((5,), 40.0))


def test_pose_prior_can_point_somewhere(tiny_program) -> None:
    program = tiny_program(prior=Prior(pose_concentration=(0.0, 5.0)))
    pyro.set_rng_seed(0)
    particles = program.simulate(500, 16)
    assert particles.latents["pose"][:, 1].mean() > 0.9


def test_samples_of_a_stratified_guide_follow_the_mixture(tiny_program) -> None:
    """Which component a draw comes from follows the weights: 5 σ of a binomial, false alarm below 1e-5."""
    program = tiny_program(components=2, encoder="pixels")
    head = program.encoders["pose"].head
    with torch.no_grad():
        head.weight.zero_()
        # two logits, then the mean vectors (10, 0) and (-10, 0)
        head.bias.copy_(torch.tensor([math.log(0.8), math.log(0.2), 10.0, 0.0, -10.0, 0.0]))
    pyro.set_rng_seed(5)
    draws = program.sample_guide(program.simulate(2000, 16), 16, batch_size=300)
    right = (draws["pose"][:, 0] > 0).double().mean()
    assert abs(right - 0.8) < 5 * (0.16 / 2000) ** 0.5


def test_an_untrained_guide_is_nearly_the_prior(tiny_program) -> None:
    program = tiny_program(inferred=("amplitude", "defocus")).eval()
    pyro.set_rng_seed(6)
    draws = program.sample_guide(program.simulate(400, 16), 16)
    assert draws["amplitude"].std() == pytest.approx(3.0, rel=0.3)
    assert draws["defocus"].mean() == pytest.approx(50.0, abs=1.5)


def test_particles_are_indexed_together(tiny_program) -> None:
    particles = tiny_program().simulate(7, 16)
    part = particles[torch.tensor([1, 5])]
    assert isinstance(part, Particles) and len(part) == 2
    torch.testing.assert_close(part.latents["pose"][1], particles.latents["pose"][5])


@pytest.mark.parametrize("inferred", [(), ("angle",), ("pose", "zoom")])
def test_unknown_latents_are_refused(tiny_program, inferred) -> None:
    with pytest.raises(ConfigurationError, match="name one or more of"):
        tiny_program(inferred=inferred)


@pytest.mark.parametrize("encoder", ["rings", "pixels"])
def test_separate_networks_do_not_care_for_the_sign_of_a_given_pose(tiny_program, encoder) -> None:
    program = tiny_program(encoder, inferred=GIVEN_IN_SPACE, prior=SPACE)
    particles = program.simulate(3, 16)
    opposite = Particles(particles.coefficients, {**particles.latents, "pose": -particles.latents["pose"]})
    one, other = (program.propose(images, 16) for images in (particles, opposite))
    for name in GIVEN_IN_SPACE:
        torch.testing.assert_close(one[name], other[name])


def test_what_is_known_counts_in_the_model_as_in_the_posterior(tiny_program) -> None:
    """A shift and a contrast that the prior does not have, but the particles do."""
    program = tiny_program(inferred=("pose",)).double()
    particles = program.simulate(2, 16)
    latents = dict(particles.latents) | {"shift": torch.ones(2, 2).double(), "contrast": torch.ones(2) * 0.5}
    particles = Particles(particles.coefficients, latents)
    trace = poutine.trace(poutine.condition(program.model, {"pose": latents["pose"]})).get_trace(
        particles, 12
    )
    trace.compute_log_prob()
    found = program.log_joint(particles, {"pose": latents["pose"]}, 12)
    expected = trace.nodes["image"]["log_prob"] + trace.nodes["pose"]["log_prob"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_a_molecule_must_fit_where_it_is_shifted(tiny_program) -> None:
    with pytest.raises(ForwardModelError, match="beyond half a box of 32 pixels"):
        tiny_program(prior=Prior(shift_scale=8.0))
