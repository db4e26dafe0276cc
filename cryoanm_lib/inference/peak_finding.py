"""Finding the peaks of many posteriors at once, at rising resolution."""

import math
from dataclasses import dataclass, fields, replace
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoanm_lib.checks.predictive import explained_p_value
from cryoanm_lib.imaging.unknowns import Unknowns
from cryoanm_lib.numerics.batching import in_parts, many
from cryoanm_lib.numerics.fourier import crop_coefficients
from cryoanm_lib.numerics.point_groups import nearest_equivalent
from cryoanm_lib.numerics.segment_ops import segment_max
from cryoanm_lib.particles.particles import Particles
from cryoanm_lib.program.gauss_newton import GaussNewton, gauss_newton
from cryoanm_lib.program.log_joint import log_joint
from cryoanm_lib.program.program import Model

#: Resolutions at which peaks are looked for before the last one.
MARCH = (16, 24, 32)

# A climb ends where Newton's step would gain less than this many nats; on the march, that many.
_GAIN, _NEARLY = 1e-3, 0.1
_STEPS = 25

# K at which bends are reversed: below, a right one is no higher than what a tilt makes up for.
_REVERSED = 24

#: A peak lower than the best one of its image by this many nats is given up.
HOPELESS = 40.0

# A climb may gain this many times what Newton's step promises.
_TRUST = 10.0

# Points at which images are predicted at a time: what they need should stay near the processor.
_CHUNK = 256


_Rows = TypeVar("_Rows", bound="Starts")


@dataclass(frozen=True, eq=False)
class Starts:
    """Points to climb from, any number of them an image.

    Attributes
    ----------
    image : Int[Tensor, "starts"]
        The image that a start belongs to.
    points : Float[Tensor, "starts width"]
        Where it is, a point of `Unknowns`.
    """

    image: Int[Tensor, "starts"]
    points: Float[Tensor, "starts width"]

    @classmethod
    def of_each(cls, points: Float[Tensor, "images starts width"]) -> "Starts":
        """The same number for every image."""
        image = torch.arange(len(points), device=points.device).repeat_interleave(points.shape[1])
        return cls(image, points.flatten(0, 1).double())

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.image)

    def __getitem__(self: _Rows, which: Tensor) -> _Rows:
        return replace(self, **{f.name: getattr(self, f.name)[which] for f in fields(self)})

    @property
    def rank(self) -> Int[Tensor, "starts"]:
        """Which of its image each is, from 0, where they stand in the order of the images."""
        rows = torch.arange(len(self), device=self.image.device)
        return rows - torch.searchsorted(self.image, self.image)

    def first(self, n_images: int) -> Int[Tensor, "images"]:
        """The row of the first of each image, where they stand in the order of the images."""
        return torch.searchsorted(self.image, torch.arange(n_images, device=self.image.device))

    def to(self: _Rows, device: torch.device | str) -> _Rows:
        """The same on another device."""
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def joined(self: _Rows, others: _Rows) -> _Rows:
        """These and others."""
        pairs = {f.name: (getattr(self, f.name), getattr(others, f.name)) for f in fields(self)}
        return replace(self, **{name: torch.cat(pair) for name, pair in pairs.items()})


@dataclass(frozen=True, eq=False)
class Peaks(Starts):
    """Where the posterior of each image is high: points from which no climb leads further.

    Attributes
    ----------
    log_joint : Float[Tensor, "peaks"]
        Height.
    precision : Float[Tensor, "peaks columns columns"]
        Curvature by Gauss and Newton: Fisher information and prior.
    """

    log_joint: Float[Tensor, "peaks"]
    precision: Float[Tensor, "peaks columns columns"]

    @property
    def log_evidence(self) -> Float[Tensor, "peaks"]:
        """Each peak's share in log p(image), as of the Gaussian with its height and curvature (Laplace)."""
        columns = self.precision.shape[-1]
        volume = 0.5 * columns * math.log(2 * math.pi) - 0.5 * torch.logdet(self.precision)
        return self.log_joint + volume


@runtime_checkable
class Search(Protocol):
    """What looks for further points to climb from."""

    #: K that it looks at.
    resolution: int

    def starts(self, particles: Particles, seen: Peaks | None = None) -> Starts:
        """Points of some images, given what has been found already."""
        ...


class PeakFinder:
    """Damped Gauss-Newton (Levenberg-Marquardt) on the log-posterior of many images at once.

    With slope g and precision F of `gauss_newton`, the step solves (F + τ diag F) δ = g, and τ falls while
    steps succeed and rises when one fails.

    Parameters
    ----------
    model, particles, resolution : Model, Particles, int
        What made which images, with latents that are given of each, and K.
    """

    def __init__(self, model: Model, particles: Particles, resolution: int) -> None:
        self.model, self.resolution = model, resolution
        cropped = crop_coefficients(particles.coefficients, resolution)
        self.particles = replace(particles, coefficients=cropped)

    @torch.no_grad()
    def find(self, starts: Starts, enough: float = _GAIN) -> Peaks:
        """The peaks that are reached from given points, to so many nats."""
        image, points, unknowns = starts.image, starts.points.clone(), self.model.unknowns
        here = self._about(image, points)
        height, slope, precision = here.height, here.slope, here.precision
        damping = torch.full_like(height, 1e-3)
        climbing = torch.arange(len(image), device=image.device)
        for _ in range(_STEPS):
            f, g, tau = precision[climbing], slope[climbing], damping[climbing]
            damped = f + torch.diag_embed(tau[:, None] * f.diagonal(dim1=1, dim2=2))
            step = torch.linalg.solve(damped, g[..., None])[..., 0]
            gain = 0.5 * (g * step).sum(-1)
            best = segment_max(height, image, len(self.particles))[image[climbing]]
            going = (gain > enough) & (height[climbing] + _TRUST * gain > best - HOPELESS)
            climbing, step = climbing[going], step[going]
            if not len(climbing):
                break
            there = unknowns.moved(points[climbing], step)
            new = self._about(image[climbing], there)
            up = new.height > height[climbing]
            better = climbing[up]
            points[better], height[better] = there[up], new.height[up]
            slope[better], precision[better] = new.slope[up], new.precision[up]
            damping[climbing] = torch.where(
                up, (0.1 * damping[climbing]).clamp(min=1e-6), (8 * damping[climbing]).clamp(min=1e-2)
            )
        # The last step gains too little to be looked at, but it is known.
        step = torch.linalg.solve(precision, slope[..., None])[..., 0]
        gain = 0.5 * (slope * step).sum(-1)
        near = gain < 2 * enough
        points = torch.where(near[:, None], unknowns.moved(points, step), points)
        # A pose is known at least as well as one that may be anywhere.
        own = precision.diagonal(dim1=1, dim2=2)
        missing = (unknowns.of_manifold("least_precision", own.device) - own).clamp(min=0.0)
        precision = precision + torch.diag_embed(missing)
        return Peaks(image, points, height + torch.where(near, gain, 0.0), precision)

    def height(self, at: Starts) -> Float[Tensor, "starts"]:
        """log p(image, latents) at given points."""
        latents = self.model.unknowns.values(at.points.to(self.model.forward_model.reference))
        return log_joint(self.model, self.particles[at.image], latents, self.resolution)

    def _about(self, image: Int[Tensor, "points"], points: Float[Tensor, "points width"]) -> GaussNewton:
        """Height, slope and precision at points of images."""

        def of_part(rows: slice) -> GaussNewton:
            values = self.model.unknowns.values(points[rows])
            return gauss_newton(self.model, self.particles[image[rows]], values, self.resolution)

        parts = in_parts(of_part, len(image), many(_CHUNK, image.device))
        return GaussNewton(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(GaussNewton)))


@torch.no_grad()
def march(
    model: Model,
    particles: Particles,
    starts: Starts,
    resolution: int,
    lowest: int = 0,
    group: Float[Tensor, "turns 4"] | None = None,
) -> Peaks:
    """Peaks found at rising resolution from given points; of those that meet, and hopeless ones, the best.

    The march begins at the lowest K. Where there is little signal, a low resolution can lead away from a good
    start. Starts that are higher than all that the march has found for their image are tried once more, at
    the last resolution.
    """
    unknowns, n_images = model.unknowns, len(particles)
    steps = sorted({step for step in (lowest, *MARCH) if max(lowest, 1) <= step < resolution})
    at = starts
    for step in steps:
        peaks = distinct(PeakFinder(model, particles, step).find(at, _NEARLY), unknowns, n_images, group)
        at = Starts(peaks.image, peaks.points)
    finder = PeakFinder(model, particles, resolution)
    if steps:
        found, before = finder.height(at), finder.height(starts)
        best = segment_max(found, at.image, n_images)
        at = at.joined(starts[before > best[starts.image]])
    return distinct(finder.find(at), unknowns, n_images, group)


@torch.no_grad()
def with_reversed_bends(
    model: Model,
    particles: Particles,
    peaks: Peaks,
    resolution: int,
    group: Float[Tensor, "turns 4"] | None = None,
) -> Peaks:
    """Peaks, and those reached from the highest of each image with its bends reversed, α to -α.

    A tilt moves atoms along the image by their depth, and so does many a bend. A climb in both can end at a
    bend that is far off, at a pose some degrees off that makes up for most of it; seen from there the right
    bend is on the other side. Images are passed over of which less is left than noise leaves in half of all
    cases, or whose bends or poses in space are not asked for.
    """
    if model.prior.pose != "space" or not {"pose", "amplitude"} <= set(model.inferred):
        return peaks
    unknowns, highest = model.unknowns, peaks[peaks.first(len(particles))]
    values = unknowns.values(highest.points.to(model.forward_model.reference))
    doubtful = explained_p_value(model, particles, values, resolution) < 0.5
    if not doubtful.any():
        return peaks
    values["amplitude"] = -values["amplitude"]
    starts = Starts(highest.image, unknowns.points(values).double())
    # most end at the highest one beside them, or hopeless, before the last resolution
    both = starts[doubtful].joined(Starts(highest.image, highest.points)[doubtful])
    found = march(model, particles, both, resolution, _REVERSED, group)
    return distinct(peaks.joined(found), unknowns, len(particles), group)


def distinct(
    peaks: Peaks, unknowns: Unknowns, n_images: int, group: Float[Tensor, "turns 4"] | None = None
) -> Peaks:
    """Of peaks of one image that share a top, the highest; and none that is hopeless beside the best.

    Two share a top where the squared distance in units of the lower one's own spread is below 1. The result
    is in the order of the images, the highest peak of each first. Of a molecule that looks the same after the
    turns of a group, poses are those equivalents that are nearest to that of the highest peak.
    """
    order = peaks.log_joint.argsort(descending=True, stable=True)
    peaks = peaks[order[peaks.image[order].argsort(stable=True)]]
    rank, best = peaks.rank, peaks.first(n_images)
    if group is not None:
        values = unknowns.values(peaks.points)
        # a step from a pose turns the image, so that curvatures are those of every equivalent
        values["pose"] = nearest_equivalent(values["pose"], values["pose"][best[peaks.image]], group)
        peaks = replace(peaks, points=unknowns.points(values))
    stays = peaks.log_joint > peaks.log_joint[best[peaks.image]] - HOPELESS
    for ahead in range(1, int(rank.max()) + 1):
        later = torch.nonzero(rank >= ahead)[:, 0]
        earlier = later - ahead
        away = unknowns.offset(peaks.points[later], peaks.points[earlier])
        distance = torch.einsum("pa,pab,pb->p", away, peaks.precision[later], away)
        stays[later] &= ~((distance < 1.0) & stays[earlier])
    return peaks[stays]
