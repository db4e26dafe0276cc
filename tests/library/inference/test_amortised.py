"""The guide as a posterior: its density is Pyro's, and its ELBO is below the evidence."""

import pyro
import pytest
import torch

from cryoanm_lib.inference.amortised import GuidePosterior, draw_from, elbo, log_density, propose
from cryoanm_lib.inference.exact_posterior import exact_posterior
from cryoanm_lib.program.log_joint import log_joint

BOTH = ("pose", "amplitude")


@pytest.mark.parametrize("stratified", [True, False])
@pytest.mark.parametrize("encoder", ["rings", pytest.param("pixels", marks=pytest.mark.thorough)])
def test_elbo_is_never_above_the_exact_evidence(tiny_guide, stratified, encoder) -> None:
    """An untrained guide with much noise, where the bound is not far off; 5 standard errors an image."""
    guide = tiny_guide(inferred=BOTH, noise=3.0, stratified=stratified, encoder=encoder)
    pyro.set_rng_seed(0)
    particles = guide.model.simulate(10, 16)
    bound, error = elbo(GuidePosterior(guide, particles, 16), count=200)
    evidence = exact_posterior(guide.model, particles, 16).log_evidence
    assert (bound < evidence + 5 * error + 0.02).all()


@pytest.mark.thorough
def test_importance_weights_of_the_guide_give_the_evidence(tiny_guide) -> None:
    """log E_q[p/q] with 4000 draws: densities that are wrong by a constant would show."""
    guide = tiny_guide(inferred=BOTH, noise=3.0)
    pyro.set_rng_seed(1)
    particles = guide.model.simulate(4, 16)
    posterior = GuidePosterior(guide, particles, 16)
    draws = posterior.sample(4000)
    weight = log_joint(guide.model, particles, draws, 16).detach() - posterior.log_density(draws)
    estimate = weight.logsumexp(0) - torch.tensor(4000.0).log()
    error = weight.softmax(0).std(0) * 4000**0.5
    evidence = exact_posterior(guide.model, particles, 16).log_evidence
    assert ((estimate - evidence).abs() < 5 * error + 0.02).all()


def test_a_generator_fixes_the_draws(tiny_guide) -> None:
    guide = tiny_guide(inferred=BOTH)
    posterior = GuidePosterior(guide, guide.model.simulate(3, 16), 16)
    first, second = (posterior.sample(2, torch.Generator().manual_seed(5)) for _ in range(2))
    assert all(first[name].equal(second[name]) for name in BOTH)
    assert first["pose"].shape == (2, 3, 2) and first["amplitude"].shape == (2, 3, 1)


@pytest.mark.parametrize("encoder", ["rings", "pixels", "shared"])
def test_networks_look_at_an_image_once_for_all_draws(tiny_guide, encoder) -> None:
    """And what they say is what they say when asked for each draw again."""
    guide = tiny_guide(inferred=BOTH, encoder=encoder)
    particles, looks = guide.model.simulate(3, 16), []
    reads = guide.encoders["image" if encoder == "shared" else "pose"]
    reads.register_forward_hook(lambda *_: looks.append(1))
    posterior = GuidePosterior(guide, particles, 16)
    draws = posterior.sample(4, torch.Generator().manual_seed(5))
    density = posterior.log_density(draws)
    assert len(looks) == 1

    torch.manual_seed(int(torch.randint(2**31, (), generator=torch.Generator().manual_seed(5))))
    for draw in range(4):
        alone = draw_from(guide, particles, 16)
        torch.testing.assert_close({name: draws[name][draw] for name in BOTH}, {n: alone[n] for n in BOTH})
        torch.testing.assert_close(density[draw], log_density(guide, particles, alone, 16))


def test_one_proposal_for_each_component(tiny_guide) -> None:
    guide = tiny_guide(inferred=("pose", "amplitude", "defocus"), components=3)
    proposed = propose(guide, guide.model.simulate(5, 16), 16)
    shapes = {name: tuple(value.shape) for name, value in proposed.items()}
    assert shapes == {"pose": (5, 3, 2), "amplitude": (5, 3, 1), "defocus": (5, 3)}
    alone = tiny_guide(inferred=("amplitude",))
    assert propose(alone, alone.model.simulate(5, 16), 16)["amplitude"].shape == (5, 1, 1)


@pytest.mark.parametrize("encoder", ["rings", "pixels"])
def test_density_is_that_of_a_guide_in_use(tiny_guide, encoder) -> None:
    """Whether the networks were set to be trained or not, and without a trace left in them."""
    guide = tiny_guide(inferred=BOTH, encoder=encoder)
    particles = guide.model.simulate(6, 16)
    before = {name: value.clone() for name, value in guide.state_dict().items()}
    densities = [log_density(guide.train(mode), particles, particles.truth, 16) for mode in (True, False)]
    torch.testing.assert_close(*densities)
    assert all(value.equal(before[name]) for name, value in guide.state_dict().items())
