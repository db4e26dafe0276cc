"""Adam for all parameters together, against Pyro's, which takes one after the other."""

import pytest
import torch
from pyro.optim.clipped_adam import ClippedAdam
from torch import Tensor

from cryoanm_lib.inference.clipped_adam import TogetherClippedAdam


def some_parameters(dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(3,), (4, 5), (), (2, 3, 7)]
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_step_is_pyros_to_the_last_bit(dtype) -> None:
    """Gradients beyond what is allowed, a parameter that joins late, one that never learns, another rate."""
    ours, theirs = some_parameters(dtype), some_parameters(dtype)
    optimisers = TogetherClippedAdam(ours, lr=1e-2), ClippedAdam(theirs, lr=1e-2)
    generator = torch.Generator().manual_seed(1)
    for step in range(20):
        for number, (own, other) in enumerate(zip(ours, theirs, strict=True)):
            gradient = 20 * torch.randn(own.shape, generator=generator, dtype=dtype)
            absent = number == 3 or (number == 1 and step < 5)
            own.grad, other.grad = (None, None) if absent else (gradient.clone(), gradient.clone())
        for optimiser in optimisers:
            optimiser.param_groups[0]["lr"] = 1e-2 / (1 + step)
            optimiser.step()
        for own, other in zip(ours, theirs, strict=True):
            assert torch.equal(own, other)
    states = [optimiser.state_dict() for optimiser in optimisers]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    for number, moments in states[1]["state"].items():
        assert all(
            torch.equal(torch.as_tensor(v), torch.as_tensor(states[0]["state"][number][k]))
            for k, v in moments.items()
        )
