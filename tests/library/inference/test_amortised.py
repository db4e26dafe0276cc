"""The guide as a posterior: its density is Pyro's, and its ELBO is below the evidence."""

import pyro
import pytest
import torch

from cryoanm_lib.inference.amortised import GuidePosterior, elbo
from cryoanm_lib.inference.exact_posterior import exact_posterior

BOTH = ("pose", "amplitude")


@pytest.mark.parametrize("stratified", [True, False])
@pytest.mark.parametrize("encoder", ["rings", pytest.param("pixels", marks=pytest.mark.thorough)])
def test_elbo_is_never_above_the_exact_evidence(tiny_program, stratified, encoder) -> None:
    """An untrained guide with much noise, where the bound is not far off; 5 standard errors an image."""
    program = tiny_program(inferred=BOTH, noise=3.0, stratified=stratified, encoder=encoder)
    pyro.set_rng_seed(0)
    particles = program.simulate(10, 16)
    bound, error = elbo(GuidePosterior(program, particles, 16), count=200)
    evidence = exact_posterior(program, particles, 16).log_evidence
    assert (bound < evidence + 5 * error + 0.02).all()


@pytest.mark.thorough
def test_importance_weights_of_the_guide_give_the_evidence(tiny_program) -> None:
    """log E_q[p/q] with 4000 draws: densities that are wrong by a constant would show."""
    program = tiny_program(inferred=BOTH, noise=3.0)
    pyro.set_rng_seed(1)
    particles = program.simulate(4, 16)
    guide = GuidePosterior(program, particles, 16)
    draws = guide.sample(4000)
    weight = program.log_joint(particles, draws, 16).detach() - guide.log_density(draws)
    estimate = weight.logsumexp(0) - torch.tensor(4000.0).log()
    error = weight.softmax(0).std(0) * 4000**0.5
    evidence = exact_posterior(program, particles, 16).log_evidence
    assert ((estimate - evidence).abs() < 5 * error + 0.02).all()


def test_a_generator_fixes_the_draws(tiny_program) -> None:
    program = tiny_program(inferred=BOTH)
    guide = GuidePosterior(program, program.simulate(3, 16), 16)
    first, second = (guide.sample(2, torch.Generator().manual_seed(5)) for _ in range(2))
    assert all(first[name].equal(second[name]) for name in BOTH)
    assert first["pose"].shape == (2, 3, 2) and first["amplitude"].shape == (2, 3, 1)


@pytest.mark.parametrize("encoder", ["rings", "pixels", "shared"])
def test_networks_look_at_an_image_once_for_all_draws(tiny_program, encoder) -> None:
    """And what they say is what they say when asked for each draw again."""
    program = tiny_program(inferred=BOTH, encoder=encoder)
    particles, looks = program.simulate(3, 16), []
    reads = program.encoders["image" if encoder == "shared" else "pose"]
    reads.register_forward_hook(lambda *_: looks.append(1))
    guide = GuidePosterior(program, particles, 16)
    draws = guide.sample(4, torch.Generator().manual_seed(5))
    density = guide.log_density(draws)
    assert len(looks) == 1

    torch.manual_seed(int(torch.randint(2**31, (), generator=torch.Generator().manual_seed(5))))
    for draw in range(4):
        alone = program.sample_guide(particles, 16)
        torch.testing.assert_close({name: draws[name][draw] for name in BOTH}, {n: alone[n] for n in BOTH})
        torch.testing.assert_close(density[draw], program.guide_log_density(particles, alone, 16))


def test_one_proposal_for_each_component(tiny_program) -> None:
    program = tiny_program(inferred=("pose", "amplitude", "defocus"), components=3)
    proposed = program.propose(program.simulate(5, 16), 16)
    shapes = {name: tuple(value.shape) for name, value in proposed.items()}
    assert shapes == {"pose": (5, 3, 2), "amplitude": (5, 3, 1), "defocus": (5, 3)}
    alone = tiny_program(inferred=("amplitude",))
    assert alone.propose(alone.simulate(5, 16), 16)["amplitude"].shape == (5, 1, 1)


@pytest.mark.parametrize("encoder", ["rings", "pixels"])
def test_density_is_that_of_a_guide_in_use(tiny_program, encoder) -> None:
    """Whether the networks were set to be trained or not, and without a trace left in them."""
    program = tiny_program(inferred=BOTH, encoder=encoder)
    particles = program.simulate(6, 16)
    before = {name: value.clone() for name, value in program.state_dict().items()}
    densities = [
        program.train(mode).guide_log_density(particles, particles.latents, 16) for mode in (True, False)
    ]
    torch.testing.assert_close(*densities)
    assert all(value.equal(before[name]) for name, value in program.state_dict().items())
