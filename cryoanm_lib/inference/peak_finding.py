"""Climbing the peaks of many posteriors at once, at rising resolution."""

import math
from dataclasses import dataclass, fields
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoanm_lib.inference.fisher import prior_slopes
from cryoanm_lib.numerics.fourier import crop_coefficients, to_real
from cryoanm_lib.numerics.memory import in_parts
from cryoanm_lib.particles.particles import Particles, to_forward
from cryoanm_lib.program.program import CryoProgram
from cryoanm_lib.program.unknowns import Unknowns

#: Resolutions at which peaks are climbed before the last one.
MARCH = (16, 24, 32)

# A climb ends where Newton's step would gain less than this many nats; on the march, that many.
_GAIN, _NEARLY = 1e-3, 0.1
_STEPS = 25

#: A peak lower than the best one of its image by this many nats is given up.
HOPELESS = 40.0

# A climb may gain this many times what Newton's step promises.
_TRUST = 10.0

# Points at which images are predicted at a time: what they need should stay near the processor.
_CHUNK = 256


@dataclass(frozen=True, eq=False)
class Peaks:
    """Where the posterior of each image is high: one row a peak, any number of them an image.

    Attributes
    ----------
    image : Int[Tensor, "peaks"]
        The image that a peak belongs to.
    values : Float[Tensor, "peaks width"]
        Its top, a point of `Unknowns`.
    log_joint : Float[Tensor, "peaks"]
        Its height.
    precision : Float[Tensor, "peaks columns columns"]
        Its curvature by Gauss and Newton: Fisher information and prior.
    """

    image: Int[Tensor, "peaks"]
    values: Float[Tensor, "peaks width"]
    log_joint: Float[Tensor, "peaks"]
    precision: Float[Tensor, "peaks columns columns"]

    def __len__(self) -> int:
        """Number of peaks."""
        return len(self.image)

    def __getitem__(self, which: Tensor) -> "Peaks":
        return Peaks(self.image[which], self.values[which], self.log_joint[which], self.precision[which])

    def joined(self, others: "Peaks") -> "Peaks":
        """These and others."""
        pairs = ((getattr(self, f.name), getattr(others, f.name)) for f in fields(self))
        return Peaks(*(torch.cat(pair) for pair in pairs))

    @property
    def log_evidence(self) -> Float[Tensor, "peaks"]:
        """Each peak's share in log p(image), as of the Gaussian with its height and curvature (Laplace)."""
        columns = self.precision.shape[-1]
        volume = 0.5 * columns * math.log(2 * math.pi) - 0.5 * torch.logdet(self.precision)
        return self.log_joint + volume


@dataclass(frozen=True, eq=False)
class Starts:
    """Points to climb from, any number of them an image.

    Attributes
    ----------
    image : Int[Tensor, "starts"]
        The image that a start belongs to.
    values : Float[Tensor, "starts width"]
        Where it is, a point of `Unknowns`.
    """

    image: Int[Tensor, "starts"]
    values: Float[Tensor, "starts width"]

    @classmethod
    def of_each(cls, values: Float[Tensor, "images starts width"]) -> "Starts":
        """The same number for every image."""
        image = torch.arange(len(values)).repeat_interleave(values.shape[1])
        return cls(image, values.flatten(0, 1).double())

    def __getitem__(self, which: Tensor) -> "Starts":
        return Starts(self.image[which], self.values[which])

    def joined(self, others: "Starts") -> "Starts":
        """These and others."""
        return Starts(torch.cat([self.image, others.image]), torch.cat([self.values, others.values]))


@runtime_checkable
class Search(Protocol):
    """What looks for further points to climb from."""

    #: K that it looks at.
    resolution: int

    def starts(self, particles: Particles, seen: Peaks | None = None) -> Starts:
        """Points of some images, given what has been found already."""


class PeakFinder:
    """Damped Gauss-Newton (Levenberg-Marquardt) on the log-posterior of many images at once.

    With J the derivative of the crop in units of the noise, r what it leaves unexplained and p the prior, the
    step solves (JᵀJ + P + λ diag) δ = Jᵀr + ∇log p, and λ falls while steps succeed and rises when one fails.

    Parameters
    ----------
    program : CryoProgram
        Model, prior and noise.
    particles : Particles
        Images, and the latents that are given.
    resolution : int
        K.
    """

    def __init__(self, program: CryoProgram, particles: Particles, resolution: int) -> None:
        self.program, self.particles, self.resolution = program, particles, resolution
        self.unknowns = Unknowns.of(program)
        self._observed = to_real(crop_coefficients(particles.coefficients, resolution), resolution)
        self._sigma = program.sigma_of(particles.latents, resolution, self._observed).expand(len(particles))

    @torch.no_grad()
    def climb(self, starts: Starts, enough: float = _GAIN) -> Peaks:
        """The peaks that are reached from given points, to so many nats."""
        image, values = starts.image, starts.values.clone()
        height, slope, precision = self._around(image, values)
        damping = torch.full_like(height, 1e-3)
        climbing = torch.arange(len(image))
        for _ in range(_STEPS):
            h, g, lam = precision[climbing], slope[climbing], damping[climbing]
            damped = h + torch.diag_embed(lam[:, None] * h.diagonal(dim1=1, dim2=2))
            step = torch.linalg.solve(damped, g[..., None])[..., 0]
            gain = 0.5 * (g * step).sum(-1)
            best = height.new_full((len(self.particles),), -math.inf)
            best = best.scatter_reduce(0, image, height, reduce="amax")[image[climbing]]
            going = (gain > enough) & (height[climbing] + _TRUST * gain > best - HOPELESS)
            climbing, step = climbing[going], step[going]
            if not len(climbing):
                break
            there = self.unknowns.moved(values[climbing], step)
            new = self._around(image[climbing], there)
            up = new[0] > height[climbing]
            better = climbing[up]
            values[better] = there[up]
            for old, found in zip((height, slope, precision), new, strict=True):
                old[better] = found[up]
            damping[climbing] = torch.where(
                up, (0.1 * damping[climbing]).clamp(min=1e-6), (8 * damping[climbing]).clamp(min=1e-2)
            )
        # The last step gains too little to be looked at, but it is known.
        step = torch.linalg.solve(precision, slope[..., None])[..., 0]
        gain = 0.5 * (slope * step).sum(-1)
        near = gain < 2 * enough
        values = torch.where(near[:, None], self.unknowns.moved(values, step), values)
        # A pose is known at least as well as one that may be anywhere.
        own = precision.diagonal(dim1=1, dim2=2)
        missing = (self.unknowns.least_precision() - own).clamp(min=0.0)
        precision = precision + torch.diag_embed(missing)
        return Peaks(image, values, height + torch.where(near, gain, 0.0), precision)

    def height(self, at: Starts) -> Float[Tensor, "starts"]:
        """log p(image, latents) at given points."""
        latents = self.unknowns.latents(at.values.to(self.program.forward_model.reference))
        return self.program.log_joint(self.particles[at.image], latents, self.resolution)

    def _around(
        self, image: Int[Tensor, "points"], values: Float[Tensor, "points width"]
    ) -> tuple[
        Float[Tensor, "points"], Float[Tensor, "points columns"], Float[Tensor, "points columns columns"]
    ]:
        """log p(image, latents), its gradient, and the Gauss-Newton precision at one point an image."""
        parts = in_parts(lambda rows: self._of_chunk(image[rows], values[rows]), len(image), _CHUNK)
        return tuple(torch.cat(part) for part in zip(*parts, strict=True))

    def _of_chunk(self, image: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        program, model = self.program, self.program.forward_model
        chosen = self.unknowns.latents(values.to(model.reference))
        latents = {name: value[image] for name, value in self.particles.latents.items()} | chosen
        predicted, slopes = model.slopes(to_forward(latents), self.resolution, self.unknowns.directions)
        sigma = self._sigma[image]
        jacobian = to_real(slopes, self.resolution) / sigma[:, None, None]
        left = (self._observed[image] - to_real(predicted, self.resolution)) / sigma[:, None]
        constant = left.shape[-1] * (math.sqrt(2 * math.pi) * sigma.double()).log()
        height = (
            -0.5 * left.double().square().sum(-1)
            - constant
            + program.log_prior(self.unknowns.latents(values))
        )
        prior_slope, prior_precision = prior_slopes(program, self.unknowns.latents(values))
        slope = (jacobian @ left[..., None])[..., 0].double() + prior_slope
        precision = (jacobian @ jacobian.transpose(1, 2)).double() + torch.diag_embed(prior_precision)
        return height, slope, precision


@torch.no_grad()
def march(
    program: CryoProgram, particles: Particles, starts: Starts, resolution: int, lowest: int = 0
) -> Peaks:
    """Climb at rising resolution from given points; of peaks that meet, and hopeless ones, the best stays.

    Where there is little signal, a low resolution can lead away from a good start. Starts that are higher
    than all that the march has found for their image are climbed from once more, at the last resolution.

    Parameters
    ----------
    program : CryoProgram
        Model, prior and noise.
    particles : Particles
        Images, and the latents that are given.
    starts : Starts
        Points to start from.
    resolution : int
        K.
    lowest : int
        The march begins here.
    """
    unknowns, n_images = Unknowns.of(program), len(particles)
    steps = sorted({step for step in (lowest, *MARCH) if max(lowest, 1) <= step < resolution})
    at = starts
    for step in steps:
        peaks = distinct(PeakFinder(program, particles, step).climb(at, _NEARLY), unknowns, n_images)
        at = Starts(peaks.image, peaks.values)
    climber = PeakFinder(program, particles, resolution)
    if steps:
        found, before = climber.height(at), climber.height(starts)
        best = found.new_full((n_images,), -math.inf).scatter_reduce(0, at.image, found, reduce="amax")
        at = at.joined(starts[before > best[starts.image]])
    return distinct(climber.climb(at), unknowns, n_images)


def distinct(peaks: Peaks, unknowns: Unknowns, n_images: int) -> Peaks:
    """Of peaks of one image that share a top, the highest; and none that is hopeless beside the best.

    Two share a top where the squared distance in units of the lower one's own spread is below 1. The result
    is in the order of the images, the highest peak of each first.
    """
    order = peaks.log_joint.argsort(descending=True, stable=True)
    peaks = peaks[order[peaks.image[order].argsort(stable=True)]]
    rank = torch.arange(len(peaks)) - torch.searchsorted(peaks.image, peaks.image)
    best = torch.searchsorted(peaks.image, torch.arange(n_images))
    stays = peaks.log_joint > peaks.log_joint[best[peaks.image]] - HOPELESS
    for ahead in range(1, int(rank.max()) + 1):
        later = torch.nonzero(rank >= ahead)[:, 0]
        earlier = later - ahead
        away = unknowns.offset(peaks.values[later], peaks.values[earlier])
        distance = torch.einsum("pa,pab,pb->p", away, peaks.precision[later], away)
        stays[later] &= ~((distance < 1.0) & stays[earlier])
    return peaks[stays]
