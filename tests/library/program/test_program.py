"""Model and guide as Pyro programs: sites, shapes, what is given and what is inferred."""

import itertools
import math
from dataclasses import replace

import pyro
import pytest
import torch
from pyro import poutine

from cryoanm_lib.errors import ConfigurationError, ForwardModelError
from cryoanm_lib.imaging.likelihood import log_likelihood
from cryoanm_lib.inference.amortised import draw_from, propose
from cryoanm_lib.numerics.fourier import crop_coefficients
from cryoanm_lib.particles.particles import Simulated
from cryoanm_lib.program.log_joint import log_joint
from cryoanm_lib.program.prior import Prior

PLANE = Prior(shift_scale=0.5, contrast_scale=0.1)
SUBSETS = [c for r in (1, 2, 5) for c in itertools.combinations(PLANE.names, r)]
SPACE = Prior(pose="space", shift_scale=0.5, contrast_scale=0.1)
KINDS = [("rings", PLANE), ("pixels", PLANE), ("shared", PLANE), ("shared", SPACE)]
GIVEN_IN_SPACE = ("shift", "amplitude", "defocus", "contrast")


@pytest.mark.parametrize("inferred", SUBSETS, ids="-".join)
@pytest.mark.parametrize("stratified", [True, False])
@pytest.mark.parametrize(("encoder", "prior"), KINDS)
def test_model_and_guide_agree_on_what_is_inferred(tiny_guide, inferred, stratified, encoder, prior) -> None:
    guide = tiny_guide(inferred=inferred, stratified=stratified, encoder=encoder, prior=prior).eval()
    images = guide.model.simulate(4, 16)
    drawn = poutine.trace(guide.guide).get_trace(images, 16)
    scored = poutine.trace(poutine.replay(guide.model.model, drawn)).get_trace(images, 16)
    assert set(drawn.stochastic_nodes) - {"images"} == set(inferred)
    assert set(scored.stochastic_nodes) - {"images"} == set(inferred)
    assert "image" in scored.observation_nodes
    assert set(images.given) == set(prior.names) - set(inferred)
    for name in images.given:
        torch.testing.assert_close(scored.nodes[name]["value"], images.truth[name])


@pytest.mark.parametrize("resolution", [12, 16, 32])
def test_model_scores_an_image_by_the_likelihood(tiny_model, resolution) -> None:
    model = tiny_model()
    images = model.simulate(3, 32)
    trace = poutine.trace(poutine.condition(model.model, images.truth)).get_trace(images, resolution)
    trace.compute_log_prob()
    predicted = model.forward_model.coefficients(images.truth, resolution)
    observed = crop_coefficients(images.coefficients, resolution)
    expected = log_likelihood(observed, predicted, model.noise, resolution)
    torch.testing.assert_close(trace.nodes["image"]["log_prob"], expected, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("inferred", SUBSETS, ids="-".join)
@pytest.mark.parametrize("pose", ["plane", "space"])
@pytest.mark.parametrize("noise", [0.1, (0.05, 1.0)])
def test_log_joint_is_that_of_the_pyro_model(tiny_model, inferred, pose, noise) -> None:
    """Image by image, at two draws that differ from what made the images."""
    concentration = (2.0, 1.0) if pose == "plane" else (0.0, 0.0)
    prior = Prior(pose=pose, pose_concentration=concentration, shift_scale=0.5, contrast_scale=0.1)
    model = tiny_model(inferred=inferred, prior=prior, noise=noise).double()
    images, draws = model.simulate(3, 16), [model.simulate(3, 16).truth for _ in range(2)]
    stacked = {name: torch.stack([draw[name] for draw in draws]) for name in inferred}
    found = log_joint(model, images, stacked, 12)
    for row, draw in zip(found, draws, strict=True):
        chosen = {name: draw[name] for name in inferred}
        trace = poutine.trace(poutine.condition(model.model, chosen)).get_trace(images, 12)
        trace.compute_log_prob()
        expected = sum(trace.nodes[site]["log_prob"] for site in (*inferred, "image"))
        torch.testing.assert_close(row, expected, rtol=0, atol=1e-6)


def test_prior_is_what_it_says(tiny_model) -> None:
    """Means and deviations of 20 000 draws, each within 5 standard errors (false alarm below 1e-5)."""
    prior = Prior(amplitude_scale=2.0, defocus_mean=40.0, defocus_scale=1.5)
    model = tiny_model(prior=prior, inferred=("defocus",))
    pyro.set_rng_seed(0)
    with torch.no_grad(), pyro.plate("images", 20_000):
        latents = model.draw()
    n = 20_000**0.5
    assert abs(latents["amplitude"].mean()) < 5 * 2.0 / n
    assert abs(latents["amplitude"].std() - 2.0) < 5 * 2.0 / (2**0.5 * n)
    assert abs(latents["defocus"].mean() - 40.0) < 5 * 1.5 / n
    assert latents["pose"].mean(0).norm() < 5 / n
    torch.testing.assert_close(latents["pose"].norm(dim=-1), torch.ones(20_000))


def test_a_given_defocus_is_that_of_the_microscope(tiny_model) -> None:
    images = tiny_model(prior=Prior(defocus_mean=40.0)).simulate(5, 16)
    torch.testing.assert_close(images.given["defocus"], torch.full((5,), 40.0))
    torch.testing.assert_close(images.truth["defocus"], images.given["defocus"])


def test_pose_prior_can_point_somewhere(tiny_model) -> None:
    model = tiny_model(prior=Prior(pose_concentration=(0.0, 5.0)))
    pyro.set_rng_seed(0)
    assert model.simulate(500, 16).truth["pose"][:, 1].mean() > 0.9


def test_samples_of_a_stratified_guide_follow_the_mixture(tiny_guide) -> None:
    """Which component a draw comes from follows the weights: 5 σ of a binomial, false alarm below 1e-5."""
    guide = tiny_guide(components=2, encoder="pixels")
    head = guide.encoders["pose"].head
    with torch.no_grad():
        head.weight.zero_()
        # two logits, then the mean vectors (10, 0) and (-10, 0)
        head.bias.copy_(torch.tensor([math.log(0.8), math.log(0.2), 10.0, 0.0, -10.0, 0.0]))
    pyro.set_rng_seed(5)
    draws = draw_from(guide, guide.model.simulate(2000, 16), 16)
    right = (draws["pose"][:, 0] > 0).double().mean()
    assert abs(right - 0.8) < 5 * (0.16 / 2000) ** 0.5


def test_an_untrained_guide_is_nearly_the_prior(tiny_guide) -> None:
    guide = tiny_guide(inferred=("amplitude", "defocus")).eval()
    pyro.set_rng_seed(6)
    draws = draw_from(guide, guide.model.simulate(400, 16), 16)
    assert draws["amplitude"].std() == pytest.approx(3.0, rel=0.3)
    assert draws["defocus"].mean() == pytest.approx(50.0, abs=1.5)


@pytest.mark.parametrize("noise", [0.1, (0.05, 1.0)])
def test_images_are_indexed_together(tiny_model, noise) -> None:
    images = tiny_model(noise=noise).simulate(7, 16)
    part = images[torch.tensor([1, 5])]
    assert isinstance(part, Simulated) and len(part) == 2
    torch.testing.assert_close(part.truth["pose"][1], images.truth["pose"][5])
    torch.testing.assert_close(part.given["amplitude"][1], images.given["amplitude"][5])
    torch.testing.assert_close(part.noise.deviation.expand(2)[1], images.noise.deviation.expand(7)[5])


def test_the_same_images_serve_a_model_that_infers_other_latents(tiny_model) -> None:
    images, other = tiny_model().simulate(3, 16), tiny_model(inferred=("amplitude", "defocus"))
    giving = images.giving(other.given)
    assert set(images.given) == {"amplitude", "defocus"} and set(giving.given) == {"pose"}
    assert giving.truth is images.truth and torch.equal(giving.given["pose"], images.truth["pose"])
    assert log_joint(other, giving, images.truth, 16).shape == (3,)


@pytest.mark.parametrize("inferred", [(), ("angle",), ("pose", "zoom")])
def test_unknown_latents_are_refused(tiny_model, inferred) -> None:
    with pytest.raises(ConfigurationError, match="name one or more of"):
        tiny_model(inferred=inferred)


def test_a_guide_of_nothing_is_refused(tiny_guide) -> None:
    with pytest.raises(ConfigurationError, match="components = 0 is not usable"):
        tiny_guide(components=0)
    with pytest.raises(ConfigurationError, match="give a SharedEncoder for a pose in space"):
        tiny_guide("rings", prior=SPACE)


@pytest.mark.parametrize("encoder", ["rings", "pixels"])
def test_separate_networks_do_not_care_for_the_sign_of_a_given_pose(tiny_guide, encoder) -> None:
    guide = tiny_guide(encoder, inferred=GIVEN_IN_SPACE, prior=SPACE)
    images = guide.model.simulate(3, 16)
    opposite = replace(images, given={"pose": -images.given["pose"]})
    one, other = (propose(guide, some, 16) for some in (images, opposite))
    for name in GIVEN_IN_SPACE:
        torch.testing.assert_close(one[name], other[name])


def test_what_is_known_counts_in_the_model_as_in_the_posterior(tiny_model) -> None:
    """A shift and a contrast that the prior does not have, but the particles do."""
    model = tiny_model(inferred=("pose",)).double()
    images = model.simulate(2, 16)
    pose, known = images.truth["pose"], {"shift": torch.ones(2, 2).double(), "contrast": torch.ones(2) * 0.5}
    particles = replace(images, given={**images.given, **known})
    trace = poutine.trace(poutine.condition(model.model, {"pose": pose})).get_trace(particles, 12)
    trace.compute_log_prob()
    found = log_joint(model, particles, {"pose": pose}, 12)
    expected = trace.nodes["image"]["log_prob"] + trace.nodes["pose"]["log_prob"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert ((found - log_joint(model, images, {"pose": pose}, 12)).abs() > 1).all()


def test_a_molecule_must_fit_where_it_is_shifted(tiny_model) -> None:
    with pytest.raises(ForwardModelError, match="beyond half a box of 32 pixels"):
        tiny_model(prior=Prior(shift_scale=8.0))
