"""The guide as a posterior: its density is Pyro's, and its ELBO is below the evidence."""

import pyro
import pytest
import torch
from pyro import poutine

from cryoanm_lib.inference.amortised import GuidePosterior, draw_from, elbo, in_use, propose
from cryoanm_lib.inference.exact_posterior import exact_posterior
from cryoanm_lib.program.log_joint import log_joint

BOTH = ("pose", "amplitude")
WAYS = ("independent", "learned", "computed")


def density_by_pyro(guide, particles, latents) -> torch.Tensor:
    """log q(latents | image), of the program itself."""
    chosen = {name: latents[name] for name in guide.model.inferred}
    with in_use(guide), torch.no_grad(), poutine.condition(data=chosen):
        trace = poutine.trace(guide.guide).get_trace(particles, 16)
    trace.compute_log_prob()
    return sum(trace.nodes[name]["log_prob"] for name in chosen)


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


@pytest.mark.parametrize("stratified", [True, False])
@pytest.mark.parametrize("inferred", [BOTH, ("pose",), ("amplitude", "defocus"), (*BOTH, "defocus")], ids=str)
@pytest.mark.parametrize(
    ("encoder", "others"), [("rings", "computed"), ("pixels", "computed"), *[("shared", o) for o in WAYS]]
)
def test_density_is_that_of_the_program(tiny_guide, encoder, others, inferred, stratified) -> None:
    """Of draws that are worked on together, as Pyro has it for each alone; and networks look once."""
    guide = tiny_guide(inferred=inferred, encoder=encoder, others=others, stratified=stratified)
    particles, looks = guide.model.simulate(3, 16), []
    # what is of the molecule sees the image turned back by each pose, and so again
    once = [guide.encoders[name] for name in ("image", "pose") if name in guide.encoders][:1]
    for network in once:
        network.register_forward_hook(lambda *_: looks.append(1))
    posterior = GuidePosterior(guide, particles, 16)
    draws = posterior.sample(400)
    density = posterior.log_density(draws)
    assert len(looks) == len(once)
    for draw in (0, 166, 399):  # of several parts
        alone = {name: value[draw] for name, value in draws.items()}
        torch.testing.assert_close(density[draw], density_by_pyro(guide, particles, alone))
        assert not draws[inferred[-1]][draw].equal(draws[inferred[-1]][draw - 1])


@pytest.mark.parametrize("encoder", ["rings", "shared"])
def test_draws_are_of_the_density(tiny_guide, encoder) -> None:
    """E_q[r / q] = 1 for any density r, here q of another image: 5 standard errors, false alarm 6e-7."""
    guide = tiny_guide(inferred=(*BOTH, "defocus"), encoder=encoder, noise=3.0)
    pyro.set_rng_seed(4)
    particles = guide.model.simulate(2, 16)
    posterior = GuidePosterior(guide, particles, 16)
    draws = posterior.sample(4000)
    other = GuidePosterior(guide, particles[torch.tensor([1, 0])], 16).log_density(draws)
    ratio = (other - posterior.log_density(draws)).exp()
    assert ((ratio.mean(0) - 1).abs() < 5 * ratio.std(0) / 4000**0.5).all()


@pytest.mark.parametrize(("wrong", "stratified"), [("nan", True), ("inf", True), ("nan", False)])
def test_a_mixture_that_is_not_finite_is_refused(tiny_guide, wrong, stratified) -> None:
    """A component would be picked all the same."""
    guide = tiny_guide(encoder="pixels", stratified=stratified)
    with torch.no_grad():
        guide.encoders["pose"].head.bias[0] = float(wrong)
    with pytest.raises(ValueError, match="logits of the pose's mixture are not finite"):
        draw_from(guide, guide.model.simulate(3, 16), 16)


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
    truth = {name: value[None] for name, value in particles.truth.items()}
    densities = [
        GuidePosterior(guide.train(mode), particles, 16).log_density(truth) for mode in (True, False)
    ]
    torch.testing.assert_close(*densities)
    assert all(value.equal(before[name]) for name, value in guide.state_dict().items())
