"""The guide as a posterior: its draws and densities for each image, and its evidence lower bound."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro import poutine
from torch import Tensor
from torch.nn.functional import normalize

from cryoanm_lib.imaging.latents import Values
from cryoanm_lib.numerics.batching import in_parts
from cryoanm_lib.particles.particles import Particles
from cryoanm_lib.program.guides import Seen
from cryoanm_lib.program.log_joint import log_joint
from cryoanm_lib.program.program import Guide

# Images that the networks look at together.
_BATCH = 500


@contextmanager
def in_use(guide: Guide) -> Iterator[None]:
    """The networks set to be used and not trained, and afterwards as they were."""
    modes = {encoder: encoder.training for encoder in guide.encoders.values()}
    guide.encoders.eval()
    try:
        yield
    finally:
        for encoder, mode in modes.items():
            encoder.train(mode)


@torch.no_grad()
def draw_from(
    guide: Guide, particles: Particles, resolution: int, batch_size: int = _BATCH, seen: Seen | None = None
) -> dict[str, Float[Tensor, "images ..."]]:
    """One draw of every inferred latent for each image, and the pose's mixture, on the CPU.

    Where the networks have looked at the images before, `seen` is what `Guide.see` returned of them all.

    Returns the draws by the latent's name, and where the pose is inferred "pose_logits" (images, components)
    and "pose_concentrations" (images, components, 2 or 4).
    """
    batch_size = batch_size if seen is None else len(particles)
    return _in_batches(guide, partial(_one_draw, guide, seen=seen), particles, resolution, batch_size)


@torch.no_grad()
def propose(
    guide: Guide, particles: Particles, resolution: int
) -> dict[str, Float[Tensor, "images components ..."]]:
    """The middle of what the guide says of each inferred latent, for each component of its mixture."""
    return _in_batches(guide, partial(_middles, guide), particles, resolution, _BATCH)


def log_density(
    guide: Guide, particles: Particles, latents: Values, resolution: int, seen: Seen | None = None
) -> Float[Tensor, "images"]:
    """log q(latents | image) of one set of latents for each image."""
    chosen = {name: latents[name] for name in guide.model.inferred}
    with in_use(guide), poutine.condition(data=chosen):
        trace = poutine.trace(guide.guide).get_trace(particles, resolution, seen=seen)
    trace.compute_log_prob()
    sites: dict[str, Any] = dict(trace.nodes)
    return sum((sites[name]["log_prob"] for name in guide.model.inferred), torch.zeros(()))


def _in_batches(
    guide: Guide, answer: Callable, particles: Particles, resolution: int, batch_size: int
) -> dict[str, Float[Tensor, "images ..."]]:
    """What the guide answers, on the CPU."""
    with in_use(guide):
        chunks = in_parts(lambda rows: answer(particles[rows], resolution), len(particles), batch_size)
    return {name: torch.cat([chunk[name] for chunk in chunks]).cpu() for name in chunks[0]}


def _one_draw(
    guide: Guide, particles: Particles, resolution: int, seen: Seen | None = None
) -> dict[str, Tensor]:
    trace = poutine.trace(guide.guide).get_trace(particles, resolution, seen=seen)
    sites: dict[str, Any] = dict(trace.nodes)
    draws = {name: sites[name]["value"] for name in guide.model.inferred}
    if "pose" not in draws:
        return draws
    mixture = sites["pose"]["fn"]
    if guide.stratified:
        # One draw came from every component: keep the draws of a component picked by its weight.
        component = dist.Categorical(logits=mixture.logits).sample()
        index = (component, torch.arange(len(particles), device=component.device))
        shapes = {latent.name: latent.shape for latent in guide.model.unknowns.latents}
        draws = {k: v[index] if v.ndim == 2 + len(shapes[k]) else v for k, v in draws.items()}
    return draws | {"pose_logits": mixture.logits, "pose_concentrations": mixture.concentrations}


def _middles(guide: Guide, particles: Particles, resolution: int) -> dict[str, Tensor]:
    seen, inferred = guide.see(particles, resolution), guide.model.inferred
    if "pose" in inferred:
        poses = normalize(guide.pose_distribution(seen).concentrations, dim=-1)
    else:
        poses = particles.given["pose"][:, None]
    of_component = []
    for pose in poses.unbind(1):
        middle = {"pose": pose}
        if inferred != ("pose",):
            others = guide.others(seen, particles, pose, resolution)
            for name in inferred:
                if name != "pose":
                    middle[name] = others(name, middle).mean
        of_component.append(middle)
    return {name: torch.stack([m[name] for m in of_component], dim=1) for name in inferred}


@dataclass(frozen=True, eq=False)
class GuidePosterior:
    """What a guide says of a batch of images.

    Attributes
    ----------
    guide, particles, resolution : Guide, Particles, int
        Whose posterior, of what images, at which K.
    """

    guide: Guide
    particles: Particles
    resolution: int

    def __len__(self) -> int:
        """Number of images."""
        return len(self.particles)

    @cached_property
    @torch.no_grad()
    def _seen(self) -> Seen:
        """The images as the networks see them: they look once, and not again for each draw."""
        with in_use(self.guide):
            return self.guide.see(self.particles, self.resolution)

    def sample(
        self, count: int, generator: torch.Generator | None = None
    ) -> dict[str, Float[Tensor, "draws images ..."]]:
        """Draws for each image; a generator stands for the seed of Pyro's draws, which have no other."""
        with torch.random.fork_rng(devices=[], enabled=generator is not None):
            if generator is not None:
                torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
            drawn = [
                draw_from(self.guide, self.particles, self.resolution, seen=self._seen) for _ in range(count)
            ]
        return {name: torch.stack([draw[name] for draw in drawn]) for name in self.guide.model.inferred}

    @torch.no_grad()
    def log_density(self, latents: Values) -> Float[Tensor, "draws images"]:
        """log q(latents | image)."""
        n_draws = len(next(iter(latents.values())))
        draws = ({name: value[draw] for name, value in latents.items()} for draw in range(n_draws))
        about = (self.guide, self.particles)
        return torch.stack([log_density(*about, draw, self.resolution, self._seen) for draw in draws])


def elbo(
    posterior: GuidePosterior, count: int = 32, generator: torch.Generator | None = None
) -> tuple[Float[Tensor, "images"], Float[Tensor, "images"]]:
    """ELBO of each image, E_q[log p(image, latents) - log q(latents)], and its standard error.

    What it lacks to log p(image) is KL(q ‖ posterior). The mean is that of `count` draws.
    """
    draws = posterior.sample(count, generator)
    joint = log_joint(posterior.guide.model, posterior.particles, draws, posterior.resolution)
    ratio = joint.detach() - posterior.log_density(draws)
    return ratio.mean(0), ratio.std(0) / count**0.5
