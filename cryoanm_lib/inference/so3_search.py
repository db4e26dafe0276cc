"""The wide search in space: templates of the molecule at rest on a grid over SO(3), and on one of shifts."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cryoanm_lib.checks.predictive import explained_p_value
from cryoanm_lib.errors import CryoANMError
from cryoanm_lib.inference.peak_finding import Peaks, Starts
from cryoanm_lib.inference.so3_grid import count_for, so3_grid
from cryoanm_lib.numerics.fourier import crop_coefficients, half_plane_frequencies, to_real
from cryoanm_lib.numerics.rotation import quaternion_distance
from cryoanm_lib.particles.particles import Particles, require_images, to_forward
from cryoanm_lib.program.linearised import shift_grid
from cryoanm_lib.program.program import CryoProgram
from cryoanm_lib.program.unknowns import Unknowns

#: K of the templates: lower ones lose the molecule in the noise, higher ones ask for a finer grid.
SEARCH_RESOLUTION = 20

#: Degrees between neighbouring rotations of the grid.
SPACING = 10.0

#: Starts an image.
MOST = 12

#: An image is searched for where noise alone leaves so much unexplained less often than this.
DOUBTFUL = 0.01

# Deviations of the prior that shifts reach, rotations within so many spacings of a start that are passed
# over, and images at a time.
_REACH, _BESIDE, _IMAGES = 2.5, 1.5, 32


class SO3Search:
    """Finds poses in space and shifts to climb from, whatever a guide may say.

    Bends and defocus stay at their prior means, also where they are given: at this resolution they change an
    image little. A given shift or contrast is taken into account; of shifts that are not given, the one that
    suits a rotation best is the one that counts.

    Parameters
    ----------
    program : CryoProgram
        The model, whose pose in space is inferred; the guide plays no part.
    resolution : int
        K of the templates.
    spacing : float
        Degrees between neighbouring rotations.
    most : int
        Starts an image.

    Raises
    ------
    CryoANMError
        If the program infers no pose in space.
    """

    def __init__(
        self,
        program: CryoProgram,
        resolution: int = SEARCH_RESOLUTION,
        spacing: float = SPACING,
        most: int = MOST,
    ) -> None:
        if program.prior.pose != "space" or "pose" not in program.inferred:
            raise CryoANMError(
                f"an SO3Search finds poses in space, but the program infers {program.inferred}, with "
                f"poses in the {program.prior.pose}: use a LatticeSearch"
            )
        self.program, self.resolution = program, min(resolution, program.forward_model.box_size)
        self.spacing, self.most = spacing, most
        self.poses = so3_grid(count_for(spacing))
        self._templates = self._made()
        self._norms = 0.5 * self._templates.square().sum(1)
        self.shifts = self._shift_grid()

    @torch.no_grad()
    def _made(self) -> Float[Tensor, "rotations dof"]:
        """What the molecule at rest looks like from everywhere."""
        model, prior = self.program.forward_model, self.program.prior
        parts = []
        for poses in self.poses.to(model.reference).split(1024):
            rest = prior.means(len(poses), model.n_modes, poses) | {"pose": poses}
            parts.append(to_real(model.coefficients(to_forward(rest), self.resolution), self.resolution))
        return torch.cat(parts)

    def _shift_grid(self) -> Float[Tensor, "shifts 2"]:
        """Shifts within reach of the prior, no further apart than half a pixel of the crop."""
        reach = _REACH * self.program.prior.shift_scale if "shift" in self.program.inferred else 0.0
        return shift_grid(reach, 0.5 * self.program.forward_model.box_size / self.resolution)

    @torch.no_grad()
    def starts(self, particles: Particles, seen: Peaks | None = None) -> Starts:
        """The most probable rotations that are not beside one another, each with its shift.

        Parameters
        ----------
        particles : Particles
            Images, and the latents that are given.
        seen : Peaks, optional
            What has been found already, in the order of the images and the highest of each first. Images that
            this one explains are passed over.
        """
        require_images(particles)
        image = torch.arange(len(particles))
        if seen is not None:
            image = torch.nonzero(self._doubtful(particles, seen))[:, 0]
        if not len(image):
            return Starts(image, torch.empty(0, Unknowns.of(self.program).width, dtype=torch.float64))
        parts = [self._starts_of(particles[which], which) for which in image.split(_IMAGES)]
        return Starts(torch.cat([p.image for p in parts]), torch.cat([p.values for p in parts]))

    def _doubtful(self, particles: Particles, seen: Peaks) -> Bool[Tensor, "images"]:
        """Where the highest peak leaves more than noise."""
        first = torch.searchsorted(seen.image, torch.arange(len(particles)))
        unknowns = Unknowns.of(self.program)
        best = unknowns.latents(seen.values[first].to(self.program.forward_model.reference))
        resolution = min(_resolution_of(particles), self.program.forward_model.box_size)
        return explained_p_value(self.program, particles, best, resolution) < DOUBTFUL

    def scores(
        self, particles: Particles
    ) -> tuple[Float[Tensor, "images rotations"], Int[Tensor, "images rotations"]]:
        """Log-posterior of every rotation at its best shift, up to a constant, and that shift's number."""
        model, prior = self.program.forward_model, self.program.prior
        sigma = self.program.sigma_of(particles.latents, self.resolution, self._norms)
        sigma = sigma.expand(len(particles))[:, None]
        observed = crop_coefficients(particles.coefficients, self.resolution)
        frequencies = half_plane_frequencies(self.resolution) / model.box_size
        given = {n: v for n, v in particles.latents.items() if n not in self.program.inferred}
        if "shift" in given:
            phase = 2 * math.pi * given["shift"].float() @ frequencies.T
            observed = observed * torch.polar(torch.ones_like(phase), phase)
        contrast = given.get("contrast", torch.ones(len(particles)))[:, None].to(self._norms)
        scale = max(prior.shift_scale, 1e-6)
        best, which = None, None
        for number, shift in enumerate(self.shifts):
            # Moving the image back is moving the templates there.
            phase = 2 * math.pi * frequencies @ shift
            back = to_real(observed * torch.polar(torch.ones_like(phase), phase), self.resolution)
            matched = contrast * (back @ self._templates.T) - contrast**2 * self._norms
            score = matched / sigma**2 - 0.5 * (shift / scale).square().sum()
            if best is None:
                best, which = score, torch.zeros(score.shape, dtype=torch.int16)
                continue
            higher = score > best
            best, which = torch.where(higher, score, best), which.masked_fill(higher, number)
        return best, which

    def _starts_of(self, particles: Particles, image: Int[Tensor, "images"]) -> Starts:
        """The most probable rotation, again and again, those beside it passed over."""
        score, which = self.scores(particles)
        rows, made = torch.arange(len(particles)), []
        # The best ones of an image are many times as many as its starts, and all that can become one.
        top, cell = score.topk(min(64 * self.most, score.shape[1]), dim=1)
        poses = self.poses[cell]
        for _ in range(self.most):
            best = top.argmax(1)
            pose, shift = poses[rows, best], self.shifts[which[rows, cell[rows, best]].long()]
            made.append(self._start(pose, shift))
            beside = quaternion_distance(pose[:, None], poses) < _BESIDE * math.radians(self.spacing)
            top = top.masked_fill(beside, -math.inf)
        values = torch.stack(made, dim=1)
        return Starts(image.repeat_interleave(self.most), values.flatten(0, 1).double())

    def _start(
        self, pose: Float[Tensor, "images 4"], shift: Float[Tensor, "images 2"]
    ) -> Float[Tensor, "images width"]:
        """A point with everything else at the mean of its prior."""
        rest = self.program.prior.means(len(pose), self.program.forward_model.n_modes, pose)
        return Unknowns.of(self.program).values(rest | {"pose": pose, "shift": shift.double()})


def _resolution_of(particles: Particles) -> int:
    """The even K that the images are kept at."""
    return math.isqrt(2 * particles.coefficients.shape[-1] - 1) + 1
