"""The wide search in space: templates of the molecule on a grid over SO(3), and on one of shifts."""

import math

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from cryoanm_lib.checks.predictive import explained_p_value
from cryoanm_lib.errors import CryoANMError
from cryoanm_lib.imaging.noise import Noise, same_noise
from cryoanm_lib.inference.peak_finding import Peaks, Starts
from cryoanm_lib.inference.so3_grid import count_for, so3_grid
from cryoanm_lib.numerics.batching import in_parts, many
from cryoanm_lib.numerics.fourier import crop_coefficients, half_plane_frequencies, resolution_of
from cryoanm_lib.numerics.point_groups import in_asymmetric_unit, point_group
from cryoanm_lib.numerics.rotation import quaternion_product
from cryoanm_lib.particles.particles import Particles, require_images
from cryoanm_lib.program.linearised import shift_grid
from cryoanm_lib.program.program import Model

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

    What is not given stays at its prior mean; so do bends, which change an image little at this resolution,
    unless further ones are named, for a molecule that bends further than that. Each image has the microscope
    that is given of it. Of shifts that are not given, the one that suits a rotation best is the one that
    counts; over a contrast, of either sign, it is integrated.

    Parameters
    ----------
    model : Model
        The model, whose pose in space is inferred.
    resolution : int
        K of the templates.
    spacing : float
        Degrees between neighbouring rotations.
    most : int
        Starts an image.
    bends : Float[Tensor, "bends modes"], optional
        Amplitudes of which templates are made, each at every rotation; default those at rest.
    symmetry : str
        Of the molecule however it bends, as of `point_group`: of equivalent rotations one is looked at. Give
        `refine` the group too, which starts at the edges of what is looked at may leave.

    Raises
    ------
    CryoANMError
        If the model infers no pose in space, or there is no such symmetry.
    """

    def __init__(
        self,
        model: Model,
        resolution: int = SEARCH_RESOLUTION,
        spacing: float = SPACING,
        most: int = MOST,
        bends: Float[Tensor, "bends modes"] | None = None,
        symmetry: str = "C1",
    ) -> None:
        if model.prior.pose != "space" or "pose" not in model.inferred:
            raise CryoANMError(
                f"an SO3Search finds poses in space, but the model infers {model.inferred}, with poses in "
                f"the {model.prior.pose}: use a LatticeSearch"
            )
        self.model, self.resolution = model, min(resolution, model.forward_model.box_size)
        self.spacing, self.most = spacing, most
        like = model.forward_model.reference.double()
        grid = so3_grid(count_for(spacing), model.device)
        self.group = point_group(symmetry).to(model.device)
        grid = grid[in_asymmetric_unit(grid, self.group)]
        bends = like.new_zeros(1, model.forward_model.n_modes) if bends is None else bends.to(like)
        self.poses = grid.repeat(len(bends), 1)
        self._bends = bends.repeat_interleave(len(grid), dim=0)
        self._templates = self._made()
        self._whitened: tuple[Noise, Tensor, Tensor] | None = None
        # Within reach of the prior, and no further apart than half a pixel of the crop.
        reach = _REACH * model.prior.shift_scale if "shift" in model.inferred else 0.0
        self.shifts = shift_grid(reach, 0.5 * model.forward_model.box_size / self.resolution, model.device)

    @torch.no_grad()
    def _made(self) -> Complex[Tensor, "rotations kept"]:
        """What the molecule looks like from everywhere, before the microscope."""
        forward, parts = self.model.forward_model, []
        poses, bends = self.poses.to(forward.reference), self._bends.to(forward.reference)
        for pose, bend in zip(poses.split(1024), bends.split(1024), strict=True):
            rest = self.model.prior.means(len(pose), forward.n_modes, pose)
            parts.append(forward.projections({**rest, "pose": pose, "amplitude": bend}, self.resolution))
        return torch.cat(parts)

    def _templates_in(
        self, unit: Noise
    ) -> tuple[Float[Tensor, "rotations dof"], Float[Tensor, "rotations dof"]]:
        """The templates whitened, and half their squares; those of the last call if they fit."""
        if self._whitened is None or not same_noise(unit, self._whitened[0]):
            templates = unit.whiten(self._templates, self.resolution)
            self._whitened = (unit, templates, 0.5 * templates.square())
        return self._whitened[1:]

    def _factors(self, particles: Particles) -> Float[Tensor, "images dof"]:
        """What the microscope makes of each value of a projection's crop, image by image."""
        model, like = self.model, self.model.forward_model.reference
        known = model.prior.means(len(particles), model.forward_model.n_modes, like)
        given = {name: v for name, v in particles.given.items() if name not in model.inferred}
        known |= {name: value.to(like) for name, value in given.items()}
        if "contrast" in model.inferred:
            known["contrast"] = torch.ones_like(known["contrast"])
        factor = model.forward_model.factor(known, self.resolution).expand(len(particles), -1)
        return torch.cat([factor[:, :1], factor[:, 1:].repeat_interleave(2, dim=1)], dim=1)

    @torch.no_grad()
    def starts(self, particles: Particles, seen: Peaks | None = None) -> Starts:
        """The most probable rotations that are not beside one another, each with its shift.

        Peaks that have been seen already stand in the order of the images and the highest of each first;
        images that this one explains are passed over.
        """
        require_images(particles, self.poses.device)
        image = torch.arange(len(particles), device=self.poses.device)
        if seen is not None:
            image = torch.nonzero(self._doubtful(particles, seen))[:, 0]
        if not len(image):
            return Starts(image, self.poses.new_zeros(0, self.model.unknowns.width))

        def of_part(rows: slice) -> Starts:
            return self._starts_of(particles[image[rows]], image[rows])

        parts = in_parts(of_part, len(image), many(_IMAGES, image.device))
        return Starts(torch.cat([p.image for p in parts]), torch.cat([p.points for p in parts]))

    def _doubtful(self, particles: Particles, seen: Peaks) -> Bool[Tensor, "images"]:
        """Where the highest peak leaves more than noise."""
        highest = seen.points[seen.first(len(particles))]
        best = self.model.unknowns.values(highest.to(self.model.forward_model.reference))
        resolution = min(resolution_of(particles.coefficients), self.model.forward_model.box_size)
        return explained_p_value(self.model, particles, best, resolution) < DOUBTFUL

    def scores(
        self, particles: Particles
    ) -> tuple[
        Float[Tensor, "images rotations"],
        Int[Tensor, "images rotations"],
        Float[Tensor, "images rotations"],
    ]:
        """Log-posterior of every rotation at its best shift, up to a constant; that shift's number, contrast.

        Where the contrast c is inferred, with a prior N(μ, s²), it is integrated over, as an image is linear
        in it: with m = y·t and q = |t|² of a whitened template t,

            log ∫ exp(c m - c² q / 2) N(c | μ, s²) dc
                = (s² m² + 2 μ m - μ² q) / 2(1 + s² q) - log(1 + s² q) / 2.
        """
        unit, level = particles.noise.unit()
        templates, halves = self._templates_in(unit)
        factor = self._factors(particles)
        level = level.to(factor).expand(len(particles))[:, None]
        squares = 2 * (factor.square() @ halves.T) / level**2
        mean, deviation = self._contrast(squares)
        narrowed = 1 + deviation**2 * squares
        observed = crop_coefficients(particles.coefficients, self.resolution)
        frequencies = half_plane_frequencies(self.resolution, observed.device)
        frequencies = frequencies / self.model.forward_model.box_size
        given = particles.given
        if "shift" in given and "shift" not in self.model.inferred:
            phase = 2 * math.pi * given["shift"].float() @ frequencies.T
            observed = observed * torch.polar(torch.ones_like(phase), phase)
        scale = max(self.model.prior.shift_scale, 1e-6)
        best, contrast = torch.full_like(squares, -math.inf), torch.empty_like(squares)
        which = torch.zeros_like(best, dtype=torch.int16)
        for number, shift in enumerate(self.shifts):
            # Moving the image back is moving the templates there.
            phase = 2 * math.pi * frequencies @ shift
            back = unit.whiten(observed * torch.polar(torch.ones_like(phase), phase), self.resolution)
            matched = (factor * back) @ templates.T / level**2
            gain = ((deviation * matched) ** 2 + mean * (2 * matched - mean * squares)) / (2 * narrowed)
            score = gain - 0.5 * (shift / scale).square().sum()
            higher = score > best
            best, which = torch.where(higher, score, best), which.masked_fill(higher, number)
            contrast = torch.where(higher, (mean + deviation**2 * matched) / narrowed, contrast)
        return best - 0.5 * narrowed.log(), which, contrast

    def _contrast(self, like: Float[Tensor, "..."]) -> tuple[float, float]:
        """Mean and deviation of a factor on the templates."""
        if "contrast" not in self.model.inferred:
            return 1.0, 0.0
        mean, deviation = self.model.prior.moments("contrast", self.model.forward_model.n_modes, like)
        return mean.item(), deviation.item()

    def _starts_of(self, particles: Particles, image: Int[Tensor, "images"]) -> Starts:
        """The most probable rotation, again and again, those beside it passed over."""
        score, which, contrast = self.scores(particles)
        rows, made = torch.arange(len(particles), device=score.device), []
        # The best ones of an image are many times as many as its starts, and all that can become one.
        top, cell = score.topk(min(64 * self.most, score.shape[1]), dim=1)
        poses = self.poses[cell]
        for _ in range(self.most):
            best = top.argmax(1)
            chosen = cell[rows, best]
            pose, shift = poses[rows, best], self.shifts[which[rows, chosen].long()]
            made.append(self._start(pose, shift, contrast[rows, chosen], self._bends[chosen]))
            alike = quaternion_product(pose[:, None], self.group.to(pose))
            half = (poses @ alike.mT).abs().amax(-1).clamp(max=1.0).acos()
            top = top.masked_fill(2 * half < _BESIDE * math.radians(self.spacing), -math.inf)
        values = torch.stack(made, dim=1)
        return Starts(image.repeat_interleave(self.most), values.flatten(0, 1).double())

    def _start(
        self,
        pose: Float[Tensor, "images 4"],
        shift: Float[Tensor, "images 2"],
        contrast: Float[Tensor, "images"],
        bend: Float[Tensor, "images modes"],
    ) -> Float[Tensor, "images width"]:
        """A point with everything else at the mean of its prior."""
        rest = self.model.prior.means(len(pose), self.model.forward_model.n_modes, pose)
        found = {"pose": pose, "shift": shift.double(), "contrast": contrast, "amplitude": bend}
        return self.model.unknowns.points(rest | found)
