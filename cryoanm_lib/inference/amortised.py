"""The trained guide as a posterior: draws and densities for each image, and its evidence lower bound."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from cryoanm_lib.particles.particles import Particles
from cryoanm_lib.program.guides import Seen
from cryoanm_lib.program.program import CryoProgram


@dataclass(frozen=True, eq=False)
class GuidePosterior:
    """What a program's guide says of a batch of images.

    Attributes
    ----------
    program, particles, resolution : CryoProgram, Particles, int
        Whose guide, of what images, at which K.
    """

    program: CryoProgram
    particles: Particles
    resolution: int

    def __len__(self) -> int:
        """Number of images."""
        return len(self.particles)

    @cached_property
    @torch.no_grad()
    def _seen(self) -> Seen:
        """The images as the networks see them: they look once, and not again for each draw."""
        with self.program.in_use():
            return self.program.see(self.particles, self.resolution)

    def sample(
        self, count: int, generator: torch.Generator | None = None
    ) -> dict[str, Float[Tensor, "draws images ..."]]:
        """Draws for each image; a generator stands for the seed of Pyro's draws, which have no other."""
        with torch.random.fork_rng(devices=[], enabled=generator is not None):
            if generator is not None:
                torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
            drawn = [
                self.program.sample_guide(self.particles, self.resolution, seen=self._seen)
                for _ in range(count)
            ]
        return {name: torch.stack([draw[name] for draw in drawn]) for name in self.program.inferred}

    @torch.no_grad()
    def log_density(self, latents: Mapping[str, Tensor]) -> Float[Tensor, "draws images"]:
        """log q(latents | image)."""
        draws = [
            {name: value[draw] for name, value in latents.items()}
            for draw in range(len(next(iter(latents.values()))))
        ]
        return torch.stack(
            [
                self.program.guide_log_density(self.particles, draw, self.resolution, self._seen)
                for draw in draws
            ]
        )


def elbo(
    posterior: GuidePosterior, count: int = 32, generator: torch.Generator | None = None
) -> tuple[Float[Tensor, "images"], Float[Tensor, "images"]]:
    """ELBO of each image, E_q[log p(image, latents) - log q(latents)], and its standard error.

    What it lacks to log p(image) is KL(q ‖ posterior).

    Parameters
    ----------
    posterior : GuidePosterior
        The guide.
    count : int
        Draws for the mean.
    generator : torch.Generator, optional
        Source of the draws.
    """
    draws = posterior.sample(count, generator)
    joint = posterior.program.log_joint(posterior.particles, draws, posterior.resolution)
    ratio = joint.detach() - posterior.log_density(draws)
    return ratio.mean(0), ratio.std(0) / count**0.5
