"""Where particles come from: a model that simulates them, or a set that is kept."""

import functools
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from cryoanm_lib.particles.particles import Particles, Simulated


@runtime_checkable
class Source(Protocol):
    """What draws the images of a step of training, or all that there are to be inferred."""

    def __call__(self, resolution: int, step: int) -> Particles:
        """Images kept at resolution K or higher, after so many steps were done."""
        ...


@runtime_checkable
class Simulator(Protocol):
    """What a model offers."""

    def simulate(self, n_images: int, resolution: int) -> Simulated:
        """New images with their truth."""
        ...


@dataclass(frozen=True, eq=False)
class FreshImages:
    """New images each step."""

    simulator: Simulator
    batch_size: int

    def __call__(self, resolution: int, step: int) -> Simulated:
        """A batch that nobody has seen."""
        return self.simulator.simulate(self.batch_size, resolution)


@dataclass(frozen=True, eq=False)
class FixedSet:
    """A set seen whole in each epoch, shuffled by a seed that depends on the epoch alone."""

    particles: Particles
    batch_size: int
    seed: int

    def __call__(self, resolution: int, step: int) -> Particles:
        """The next batch of this epoch's order."""
        epoch, position = divmod(step, len(self.particles) // self.batch_size)
        order = _order(len(self.particles), self.seed * 1_000_003 + epoch, self.particles.device)
        return self.particles[order[position * self.batch_size :][: self.batch_size]]


# Made, and sent to a GPU, once an epoch.
@functools.lru_cache(maxsize=4)
def _order(count: int, seed: int, device: torch.device) -> Int[Tensor, "images"]:
    """All images in the order of an epoch."""
    shuffle = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=shuffle, device="cpu").to(device)
