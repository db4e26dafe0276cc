"""A computation recorded once as a CUDA graph and replayed: one launch in place of one for each kernel."""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from cryoanm_lib.particles.particles import Particles

# Runs before the recording, in which libraries choose kernels, and constants reach the device.
_WARM_UP = 3


class Captured:
    """A computation whose tensors stay where they are, and whose random numbers are new at each replay.

    It must not ask the device for a value, nor send it one. What it draws before it is recorded is drawn
    again afterwards, so that a run which is resumed meets the same random numbers.

    Parameters
    ----------
    compute : callable
        Returns what is of interest, and may leave gradients, which each replay overwrites.
    parameters : sequence of Tensor
        Those that it leaves gradients with.
    """

    def __init__(self, compute: Callable[[], Float[Tensor, ""]], parameters: Sequence[Tensor]) -> None:
        state = torch.cuda.get_rng_state()
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UP):
                compute()
        torch.cuda.current_stream().wait_stream(aside)
        torch.cuda.set_rng_state(state)
        # Gradients that do not exist yet are recorded as written, others as added to.
        for parameter in parameters:
            parameter.grad = None
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.answer = compute()
        self.gradients = [parameter.grad for parameter in parameters]
        self.parameters = parameters

    def __call__(self) -> Float[Tensor, ""]:
        """Replay it; the answer is a copy, which the next replay leaves alone."""
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
        self.graph.replay()
        return self.answer.clone()


def overwrite(images: Particles, by: Particles) -> None:
    """Put other images in the place that a recording reads them from; their noise must be the same."""
    images.coefficients.copy_(by.coefficients)
    tables = zip(vars(images).values(), vars(by).values(), strict=True)
    for own, other in tables:
        if isinstance(own, Mapping):
            for name, value in own.items():
                value.copy_(other[name])
