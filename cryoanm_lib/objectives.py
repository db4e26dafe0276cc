"""What training minimises, in Pyro's interface for losses; each is reported per image.

`pyro.infer.Trace_ELBO` is the paper's. The two here share its call, `loss(model, guide, particles, K)`.
"""

import torch
from pyro import poutine
from pyro.infer import ELBO
from torch import Tensor

from cryoanm_lib.distributions import StratifiedMixture


class StratifiedELBO(ELBO):
    """Evidence lower bound of a guide that draws from every component of a mixture.

    Choosing a component is not reparameterisable: `Trace_ELBO` falls back to the score-function gradient,
    whose noise is what stops the paper's pose network. Here

        ELBO = Σ_c w_c E_{q_c}[log p(x, θ, …) - log q(θ, …)],    q(θ) = Σ_c w_c q_c(θ),

    is an exact sum over components, differentiable in the weights too.
    """

    def differentiable_loss(self, model, guide, *args, **kwargs) -> Tensor:
        """Minus the ELBO of an average image, by one draw from every component."""
        p, q = self._get_trace(model, guide, args, kwargs)
        log_ratio = _log_joint(p) - _log_joint(q)
        mixtures = [
            fn for _, site in q.iter_stochastic_nodes() if isinstance(fn := site["fn"], StratifiedMixture)
        ]
        if mixtures:
            log_ratio = (mixtures[0].strata_weights * log_ratio).sum(0)
        return -log_ratio.mean()

    def _get_trace(self, model, guide, args, kwargs) -> tuple[poutine.Trace, poutine.Trace]:
        """Run the guide, then the model with the guide's draws."""
        q = poutine.trace(guide).get_trace(*args, **kwargs)
        return poutine.trace(poutine.replay(model, q)).get_trace(*args, **kwargs), q

    def loss(self, model, guide, *args, **kwargs) -> float:
        """Minus the ELBO of an average image."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def loss_and_grads(self, model, guide, *args, **kwargs) -> float:
        """The loss, with gradients added to every parameter of the guide."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return loss.item()


class ForwardKL(StratifiedELBO):
    """Cross-entropy -log q(latents | image) of simulated images, whose latents are known.

    Averaged over simulations it is KL(p(latents | image) ‖ q) up to a constant. The guide is told the answer,
    so there is no likelihood to climb and no half-turn to get stuck in; but it learns from the model alone.
    """

    def differentiable_loss(self, model, guide, particles, resolution: int) -> Tensor:
        """Minus the guide's log-density at the latents that made an average image."""
        with poutine.condition(data=particles.latents):
            trace = poutine.trace(guide).get_trace(particles, resolution)
        return -_log_joint(trace).mean()


def _log_joint(trace: poutine.Trace) -> Tensor:
    """Sum of the log-densities of all sample sites, one number for each draw."""
    densities = [
        site["fn"].log_prob(site["value"])
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and name != "images"  # the plate is no latent
    ]
    return sum(densities)
