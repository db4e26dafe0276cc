"""The guide as a posterior: its draws and densities for each image, and its evidence lower bound."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from cryoanm_lib.imaging.latents import Values
from cryoanm_lib.numerics.batching import in_parts
from cryoanm_lib.particles.particles import Particles
from cryoanm_lib.program.distributions import ProjectedNormalMixture
from cryoanm_lib.program.guides import Others, Seen
from cryoanm_lib.program.log_joint import log_joint
from cryoanm_lib.program.program import Guide

_Answer = TypeVar("_Answer")

# Pixels, of all images together, that networks look at in one piece on a CPU: what convolutions make of more
# is far from the processor, and of 500 images of 64 × 64 it fills gigabytes. On other devices, images.
_PIXELS, _IMAGES = 2**18, 500


def together(guide: Guide, device: torch.device) -> int:
    """How many images, or draws of images, the networks look at together."""
    return max(1, _PIXELS // guide.family.size**2) if device.type == "cpu" else _IMAGES


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
def draw_from(guide: Guide, particles: Particles, resolution: int) -> dict[str, Float[Tensor, "images ..."]]:
    """One draw of every inferred latent for each image, and the pose's mixture, on the CPU.

    Returns the draws by the latent's name, and where the pose is inferred "pose_logits" (images, components)
    and "pose_concentrations" (images, components, 2 or 4).
    """
    return _in_batches(guide, _one_draw, particles, resolution)


@torch.no_grad()
def propose(
    guide: Guide, particles: Particles, resolution: int
) -> dict[str, Float[Tensor, "images components ..."]]:
    """The middle of what the guide says of each inferred latent, for each component of its mixture."""
    return _in_batches(guide, _middles, particles, resolution)


def _in_batches(
    guide: Guide,
    answer: Callable[[Guide, Particles, int], dict[str, Tensor]],
    particles: Particles,
    resolution: int,
) -> dict[str, Float[Tensor, "images ..."]]:
    """What the guide answers, on the CPU."""
    with in_use(guide):
        chunks = in_parts(
            lambda rows: answer(guide, particles[rows], resolution),
            len(particles),
            together(guide, particles.device),
        )
    return {name: torch.cat([chunk[name] for chunk in chunks]).cpu() for name in chunks[0]}


def _one_draw(guide: Guide, particles: Particles, resolution: int) -> dict[str, Tensor]:
    posterior = GuidePosterior(guide, particles, resolution)
    draws = {name: value[0] for name, value in posterior.sample(1).items()}
    if (mixture := posterior.pose) is None:
        return draws
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
    def _seen(self) -> Seen:
        """The images as the networks see them: they look once, and not again for each draw."""
        return self.guide.see(self.particles, self.resolution)

    @cached_property
    @torch.no_grad()
    def pose(self) -> ProjectedNormalMixture | None:
        """The pose's mixture for each image, if the pose is inferred.

        Raises
        ------
        ValueError
            If what the networks say is not finite.
        """
        if "pose" not in self.guide.model.inferred:
            return None
        with in_use(self.guide):
            mixture = self.guide.pose_distribution(self._seen)
        for name in ("logits", "concentrations"):
            if not getattr(mixture, name).isfinite().all():
                raise ValueError(f"{name} of the pose's mixture are not finite")
        return ProjectedNormalMixture(mixture.logits, mixture.concentrations)

    @torch.no_grad()
    def sample(
        self, count: int, generator: torch.Generator | None = None
    ) -> dict[str, Float[Tensor, "draws images ..."]]:
        """Draws for each image, on the CPU; a generator gives the seed of torch's own stream."""
        with torch.random.fork_rng(devices=[], enabled=generator is not None):
            if generator is not None:
                torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
            parts = self._in_parts(lambda draws: self._drawn(draws.stop - draws.start), count)
        return {name: torch.cat([part[name] for part in parts]).cpu() for name in self.guide.model.inferred}

    @torch.no_grad()
    def log_density(self, latents: Values) -> Float[Tensor, "draws images"]:
        """log q(latents | image)."""
        count = len(next(iter(latents.values())))
        some = self._in_parts(lambda draws: self._density({n: v[draws] for n, v in latents.items()}), count)
        return torch.cat(some)

    def _in_parts(self, work: Callable[[slice], _Answer], count: int) -> list[_Answer]:
        """So many draws at a time that the networks look at a batch."""
        with in_use(self.guide):
            return in_parts(work, count, max(1, together(self.guide, self.particles.device) // len(self)))

    def _drawn(self, count: int) -> dict[str, Float[Tensor, "draws images ..."]]:
        """The pose, whose component is picked by its weight, and at that pose the others one by one."""
        pose = self._given_pose(count) if self.pose is None else self.pose.sample((count,))
        drawn = {"pose": pose}
        for name, of in self._others(pose).items():
            drawn[name] = of(name, drawn).expand(pose.shape[:-1]).sample()
        return drawn

    def _density(self, latents: Values) -> Float[Tensor, "draws images"]:
        count = len(next(iter(latents.values())))
        pose = self._given_pose(count) if self.pose is None else latents["pose"]
        density = pose.new_zeros(pose.shape[:-1]) if self.pose is None else self.pose.log_prob(pose)
        for name, of in self._others(pose).items():
            density = density + of(name, latents).log_prob(latents[name])
        return density

    def _given_pose(self, count: int) -> Float[Tensor, "draws images dim"]:
        return self.particles.given["pose"].expand(count, -1, -1)

    def _others(self, pose: Float[Tensor, "draws images dim"]) -> dict[str, Others]:
        """What gives the distribution of each latent beside the pose."""
        names = [name for name in self.guide.model.inferred if name != "pose"]
        if not names:
            return {}
        return dict.fromkeys(names, self.guide.others(self._seen, self.particles, pose, self.resolution))


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
