"""Pyro's Adam with each number of a gradient kept within bounds, for all parameters together."""

# Operations on lists are torch's own optimisers' too, under names that it does not promise to keep.
# pyright: reportPrivateImportUsage=false

import itertools
import math
from collections.abc import Iterable

import torch
from pyro.optim.clipped_adam import ClippedAdam
from torch import Tensor


class TogetherClippedAdam(ClippedAdam):
    """`ClippedAdam` by torch's operations on lists: a dozen launches a step, however many parameters.

    The same formula, state and checkpoints as Pyro's, which takes its parameters one after the other:

        m ← β₁ m + (1 - β₁) g,    v ← β₂ v + (1 - β₂) g²,    w ← w - η √(1 - β₂ᵗ)/(1 - β₁ᵗ) m / (√v + ε).

    Weight decay and a centred variance are Pyro's alone.

    Parameters
    ----------
    parameters : iterable of Tensor
        What is moved.
    lr : float
        η, the learning rate.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float = 1e-3) -> None:
        super().__init__(parameters, lr)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Move all parameters that have a gradient."""
        for group in self.param_groups:
            group["lr"] *= group["lrd"]
            moved = [parameter for parameter in group["params"] if parameter.grad is not None]
            # Parameters that join later are at another step: each such set is a list of its own.
            for _, some in itertools.groupby(moved, key=self._steps_of):
                self._move(list(some), group)

    def _steps_of(self, parameter: Tensor) -> int:
        """Steps that a parameter has taken; at its first, moments of zero."""
        state = self.state[parameter]
        if not state:
            state |= {
                "step": 0,
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        return state["step"]

    def _move(self, parameters: list[Tensor], group: dict) -> None:
        """Those that have taken the same number of steps."""
        (beta1, beta2), states = group["betas"], [self.state[parameter] for parameter in parameters]
        for state in states:
            state["step"] += 1
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        means, squares = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
        torch._foreach_clamp_min_(gradients, -group["clip_norm"])
        torch._foreach_clamp_max_(gradients, group["clip_norm"])
        torch._foreach_mul_(means, beta1)
        torch._foreach_add_(means, gradients, alpha=1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - beta2)
        spreads = torch._foreach_sqrt(squares)
        torch._foreach_add_(spreads, group["eps"])
        step = states[0]["step"]
        length = group["lr"] * math.sqrt(1 - beta2**step) / (1 - beta1**step)
        torch._foreach_addcdiv_(parameters, means, spreads, value=-length)
