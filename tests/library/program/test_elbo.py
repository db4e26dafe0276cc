"""The two losses of our own, against Pyro's and against quadrature."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import SGD

from cryoanm_lib.program.distributions import StratifiedMixture
from cryoanm_lib.program.elbo import ForwardKL, SampledELBO, StratifiedELBO
from cryoanm_lib.program.program import Guide


@pytest.fixture
def mixture() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and mean vectors of a lopsided two-component mixture for three images."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 2, generator=generator), 2 * torch.randn(3, 2, 2, generator=generator)


@pytest.mark.thorough
def test_stratified_elbo_equals_quadrature(mixture) -> None:
    """For p(v) ∝ exp(κ v_x) the ELBO is an integral over the circle. False alarm below 1e-4 (5 σ)."""
    logits, concentrations = (x.double() for x in mixture)
    target = dist.VonMises(torch.tensor(0.0).double(), torch.tensor(1.5).double())

    def model(n: int) -> None:
        with pyro.plate("images", n):
            v = pyro.sample("pose", dist.ProjectedNormal(torch.zeros(2).double()))
            angle = torch.atan2(v[..., 1], v[..., 0])
            pyro.factor("target", target.log_prob(angle) + math.log(2 * math.pi))

    def guide(n: int) -> None:
        with pyro.plate("images", n):
            pyro.sample("pose", StratifiedMixture(logits, concentrations))

    angles = torch.arange(4096).double() * (2 * math.pi / 4096) - math.pi
    circle = torch.stack([angles.cos(), angles.sin()], -1)[:, None]
    q = StratifiedMixture(logits, concentrations).log_prob(circle)
    exact = (q.exp() * (target.log_prob(angles)[:, None] - q)).sum() * (2 * math.pi / 4096)

    pyro.set_rng_seed(0)
    draws = torch.tensor([-StratifiedELBO().loss(model, guide, 3) for _ in range(2000)])
    assert abs(draws.mean() - exact) < 5 * draws.std() / math.sqrt(len(draws))


def test_stratified_elbo_without_a_mixture_is_the_ordinary_elbo(tiny_guide) -> None:
    """With the pose given nothing is left to stratify: the loss is `Trace_ELBO`'s, draw for draw."""
    guide: Guide = tiny_guide(inferred=("amplitude", "defocus")).eval()
    pyro.set_rng_seed(1)
    particles = guide.model.simulate(6, 16)
    losses = []
    for objective in (StratifiedELBO(), Trace_ELBO()):
        pyro.set_rng_seed(2)
        losses.append(objective.loss(guide.model.model, guide.guide, particles, 16))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_stratified_gradient_is_far_less_noisy_than_the_score_function(tiny_guide) -> None:
    """The reason for the class: where the components lie apart, the gradient of their weights varies less.

    (Where they coincide there is nothing to choose, and the score function has the lower noise.)
    """
    pyro.set_rng_seed(3)
    guides = [tiny_guide("pixels", stratified=flag).eval() for flag in (True, False)]
    with torch.no_grad():
        guides[0].encoders["pose"].head.bias.copy_(torch.tensor([0.0, 0.0, 10.0, 0.0, -10.0, 0.0]))
    guides[1].load_state_dict(guides[0].state_dict())
    particles = guides[0].model.simulate(8, 16)
    spread = []
    for guide, objective in zip(guides, (StratifiedELBO(), Trace_ELBO()), strict=True):
        weight = guide.encoders["pose"].head.bias
        gradients = []
        for _ in range(30):
            loss = objective.differentiable_loss(guide.model.model, guide.guide, particles, 16)
            (gradient,) = torch.autograd.grad(loss, weight)
            gradients.append(gradient[: guide.components])
        spread.append(torch.stack(gradients).std(0).mean())
    assert spread[0] < 0.5 * spread[1]


def test_forward_kl_is_the_density_of_the_truth(tiny_guide) -> None:
    guide: Guide = tiny_guide(inferred=("pose", "amplitude")).eval()
    pyro.set_rng_seed(4)
    images = guide.model.simulate(5, 16)
    seen = guide.see(images, 16)
    pose = guide.pose_distribution(seen).log_prob(images.truth["pose"])
    upright = guide.family.representation.turn_back(seen.features, images.truth["pose"])
    mean, log_scale = guide.encoders["amplitude"](upright).chunk(2, dim=-1)
    normal = torch.distributions.Normal(3 * mean, 3 * log_scale.exp())
    amplitude = normal.log_prob(images.truth["amplitude"]).sum(-1)
    expected = -(pose + amplitude).sum().item()
    found = ForwardKL().loss(guide.model.model, guide.guide, images, 16)
    assert found == pytest.approx(expected, rel=1e-5)


def test_losses_follow_the_scale_of_model_and_guide(tiny_guide) -> None:
    """As Pyro's do: a hundredth of every log-density is a hundredth of the loss."""
    own: Guide = tiny_guide().eval()
    pyro.set_rng_seed(5)
    particles = own.model.simulate(5, 16)
    losses = []
    for factor in (1.0, 0.01):
        pyro.set_rng_seed(6)
        model, guide = (poutine.scale(f, scale=factor) for f in (own.model.model, own.guide))
        losses.append(StratifiedELBO().loss(model, guide, particles, 16))
    assert losses[1] == pytest.approx(0.01 * losses[0], rel=1e-5)


@pytest.mark.parametrize(("loss", "rate"), [(StratifiedELBO, 1e-7), (ForwardKL, 1e-4)])
def test_pyro_s_own_loop_takes_them(tiny_guide, loss, rate) -> None:
    """A step of `SVI` moves every network by the gradient of the loss, and says what the loss was."""
    guide = tiny_guide(inferred=("pose", "amplitude"))
    pyro.clear_param_store()

    def with_networks(particles, resolution: int) -> None:
        pyro.module("networks", guide.encoders)
        guide.guide(particles, resolution)

    pyro.set_rng_seed(3)
    images, before = guide.model.simulate(4, 12), [p.clone() for p in guide.encoders.parameters()]
    svi = SVI(guide.model.model, with_networks, SGD({"lr": rate}), loss())
    pyro.set_rng_seed(4)
    said = svi.step(images, 12)
    after = [p.clone() for p in guide.encoders.parameters()]
    assert math.isfinite(said) and all((a != b).any() for a, b in zip(before, after, strict=True))
    pyro.set_rng_seed(4)
    assert svi.evaluate_loss(images, 12) < said


def test_two_mixtures_are_refused(mixture) -> None:
    def guide() -> None:
        for name in ("one", "two"):
            pyro.sample(name, StratifiedMixture(*mixture))

    with pytest.raises(NotImplementedError, match="'one', 'two'"):
        StratifiedELBO().loss(guide, guide)


@pytest.mark.parametrize("inferred", [("pose",), ("pose", "amplitude"), ("amplitude",)])
def test_the_sampled_elbo_is_pyro_s(tiny_guide, inferred) -> None:
    """The same draws give the value and the gradient of `Trace_ELBO`."""
    guide = tiny_guide("pixels", inferred=inferred, stratified=False, upright=False)
    pyro.set_rng_seed(7)
    images, found = guide.model.simulate(6, 16), []
    for loss in (Trace_ELBO(), SampledELBO()):
        pyro.set_rng_seed(8)
        guide.zero_grad()
        model, own = (poutine.scale(f, scale=0.1) for f in (guide.model.model, guide.guide))
        value = loss.differentiable_loss(model, own, images, 16)
        value.backward()
        found.append((value.item(), torch.cat([p.grad.flatten() for p in guide.encoders.parameters()])))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    assert torch.allclose(found[1][1], found[0][1], rtol=1e-3, atol=1e-5 * found[0][1].abs().max().item())
