"""The ELBO with the pose's mixture components summed instead of sampled."""

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

    is an exact sum over components, differentiable in the weights too. It is reported per image.
    """

    def differentiable_loss(self, model, guide, *args, **kwargs) -> Tensor:
        """Minus the ELBO of an average image, by one draw from every component."""
        p, q = self._get_trace(model, guide, args, kwargs)
        log_ratio = _log_joint(p) - _log_joint(q)
        mixtures = [fn for _, site in q.iter_stochastic_nodes() if isinstance(fn := site["fn"], StratifiedMixture)]
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


def _log_joint(trace: poutine.Trace) -> Tensor:
    """Sum of the log-densities of all sample sites, one number for each draw."""
    sites = (site for site in trace.nodes.values() if site["type"] == "sample" and not _is_plate(site))
    return sum(site["fn"].log_prob(site["value"]) for site in sites)


def _is_plate(site: dict) -> bool:
    return type(site["fn"]).__name__ == "_Subsample"
