"""Images that a run learns from and is tested on."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from cryoanm_lib.experiments.profile import Profile
from cryoanm_lib.particles.particles import Particles
from cryoanm_lib.program.program import CryoProgram

# Images that experiments must share are drawn from seeds of their own, whatever else a run draws.
TEST_SEED, TRAINING_SEED = 1_000_000_007, 2_000_000_011


def draw_test_images(settings: Profile, name: str, noise: float | None = None) -> Particles:
    """The images that the residuals of an experiment are for; the same each time.

    Where a noise is given, it is that of every image, in place of the experiment's.
    """
    seed, box_size = settings.seed_of(name) + TEST_SEED, settings.model_of(name).box_size
    with torch.random.fork_rng(devices=[]):  # a new program draws its networks
        drawn = _drawn_apart(settings.program(name, noise), settings.test_images, box_size, seed)
    if noise is None:
        return drawn
    return Particles(drawn.coefficients, {**drawn.latents, "noise": torch.full((len(drawn),), noise)})


def training_images(
    settings: Profile, name: str, program: CryoProgram, device: torch.device
) -> Callable[[int, int], Particles]:
    """What an experiment learns from, given K and the number of steps done: new images, or a fixed set."""
    section = settings.experiment(name)
    if section.training_images is None:
        return partial(_fresh_batch, program, section.batch_size)
    seed, box_size = settings.seed_of(name), settings.model_of(name).box_size
    fixed = _drawn_apart(program, section.training_images, box_size, seed + TRAINING_SEED).to(device)
    return FixedSet(fixed, section.batch_size, seed)


@dataclass(frozen=True, eq=False)
class FixedSet:
    """A training set seen whole in each epoch, shuffled by a seed that depends on the epoch alone."""

    particles: Particles
    batch_size: int
    seed: int

    def __call__(self, resolution: int, step: int) -> Particles:
        epoch, position = divmod(step, len(self.particles) // self.batch_size)
        shuffle = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.particles), generator=shuffle)
        chosen = order[position * self.batch_size :][: self.batch_size]
        return self.particles[chosen.to(self.particles.coefficients.device)]


def _fresh_batch(program: CryoProgram, batch_size: int, resolution: int, step: int) -> Particles:
    """New images each step."""
    return program.simulate(batch_size, resolution)


def _drawn_apart(program: CryoProgram, n_images: int, resolution: int, seed: int) -> Particles:
    """Images from a seed of their own, which leave the random state of the run as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return program.simulate(n_images, resolution)
