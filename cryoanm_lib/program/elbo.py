"""What training minimises, in Pyro's interface for losses, beside the paper's `pyro.infer.Trace_ELBO`.

Like Pyro's own, these losses are sums over the images of a batch; scale model and guide by one over their
number for a mean.
"""

import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from cryoanm_lib.particles.particles import Simulated
from cryoanm_lib.program.distributions import StratifiedMixture


class StratifiedELBO(ELBO):
    """Evidence lower bound of a guide that draws from every component of a mixture.

    Choosing a component is not reparameterisable: `Trace_ELBO` falls back to the score-function gradient,
    as noisy as the log-likelihood is large. Here

        ELBO = Σ_c w_c E_{q_c}[log p(x, θ, …) - log q(θ, …)],    q(θ) = Σ_c w_c q_c(θ),

    is an exact sum over components, differentiable in the weights too (Roeder et al. 2017; Morningstar et al.
    2021).
    """

    def __init__(self) -> None:
        """One draw from every component; there are no further particles to ask for."""
        super().__init__(num_particles=1)

    def differentiable_loss(self, model, guide, *args, **kwargs) -> Tensor:
        """Minus the ELBO, by one draw from every component."""
        p, q = self._get_trace(model, guide, args, kwargs)
        log_ratio = _log_joint(p) - _log_joint(q)
        weights = [fn.strata_weights for _, fn in _stratified_sites(q)]
        if len(weights) > 1:
            names = [name for name, _ in _stratified_sites(q)]
            raise NotImplementedError(
                f"sites {names} are all stratified: one mixture in a guide can be summed over"
            )
        return -(weights[0] * log_ratio).sum() if weights else -log_ratio.sum()

    def _get_trace(self, model, guide, args, kwargs) -> tuple[poutine.Trace, poutine.Trace]:
        """Run the guide, then the model with the guide's draws."""
        q = poutine.trace(guide).get_trace(*args, **kwargs)
        return poutine.trace(poutine.replay(model, q)).get_trace(*args, **kwargs), q

    def loss_and_grads(self, model, guide, *args, **kwargs) -> float:
        """The loss, its gradients left with the parameters: what `pyro.infer.SVI` asks for."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return loss.item()

    def loss(self, model, guide, *args, **kwargs) -> float:
        """The loss, without gradients."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs).item()


class SampledELBO(StratifiedELBO):
    """`Trace_ELBO` of images in one plate, without the numbers that it reports on the way.

    What has no pathwise gradient has that of the score function,

        ∇ELBO = E_q[∇(log p - log q) + (log p - log q) ∇log q(θ)],

    the ratio being that of an image. Pyro's own asks for the value of each site, for which a GPU must wait.
    """

    def differentiable_loss(self, model, guide, *args, **kwargs) -> Tensor:
        """Minus the ELBO of one draw, with the gradient of Pyro's surrogate."""
        p, q = self._get_trace(model, guide, args, kwargs)
        q.compute_score_parts()
        parts = [site["score_parts"] for _, site in q.iter_stochastic_nodes()]
        log_ratio, zero = _log_joint(p) - _log_joint(q), torch.zeros(())
        entropy = sum((part.entropy_term for part in parts), zero)
        score = sum((part.score_function for part in parts), zero)
        surrogate = _log_joint(p) - entropy + log_ratio.detach() * score
        return -(log_ratio.detach() + surrogate - surrogate.detach()).sum()


class ForwardKL(StratifiedELBO):
    """Cross-entropy -log q(latents | image) of simulated images, whose latents are known.

    Averaged over simulations it is KL(p(latents | image) ‖ q) up to a constant. The guide is told the answer,
    so there is no likelihood to climb and no half-turn to get stuck in; but it learns from the model alone.
    """

    def differentiable_loss(self, model, guide, particles: Simulated, resolution: int) -> Tensor:
        """Minus the guide's log-density at the latents that made the images."""
        with poutine.condition(data=dict(particles.truth)):
            trace = poutine.trace(guide).get_trace(particles, resolution)
        return -_log_joint(trace).sum()


def _log_joint(trace: poutine.Trace) -> Tensor:
    """Sum of the scaled log-densities of all sample sites, one number for each draw."""
    trace.compute_log_prob()
    sites = (
        site for site in trace.nodes.values() if site["type"] == "sample" and not site_is_subsample(site)
    )
    return sum((site["log_prob"] for site in sites), torch.zeros(()))


def _stratified_sites(guide_trace: poutine.Trace) -> list[tuple[str, StratifiedMixture]]:
    """Latents that were drawn from every component of a mixture."""
    sites = ((name, site["fn"]) for name, site in guide_trace.iter_stochastic_nodes())
    return [(name, fn) for name, fn in sites if isinstance(fn, StratifiedMixture)]
