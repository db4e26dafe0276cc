"""The forward model (Algorithm 1): latents in, images or Fourier coefficients out."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from cryoanm_lib.errors import ForwardModelError
from cryoanm_lib.imaging.filtering import filtered
from cryoanm_lib.imaging.fourier_projection import fourier_slopes
from cryoanm_lib.imaging.gridded_projection import gridded_image
from cryoanm_lib.imaging.latents import Latents
from cryoanm_lib.imaging.noise import add_noise
from cryoanm_lib.imaging.projection import PROJECTORS
from cryoanm_lib.imaging.transfer import ctf
from cryoanm_lib.numerics.fourier import (
    check_resolution,
    coefficients_to_image,
    half_plane_frequencies,
    spectrum_frequencies,
)

#: Directions along which images have derivatives, in the order in which `ForwardModel.slopes` returns them,
#: with what a unit of each is.
DIRECTIONS = {
    "pose": "a turn about z in radians",
    "rotation": "turns about x, y and z of the detector in radians",
    "shift": "pixels along x and y",
    "amplitude": "one for each mode, in Å over all atoms",
    "defocus": "px²",
    "contrast": "a factor",
}


class ForwardModel(nn.Module):
    """A reference structure, its modes and a microscope: the program that draws an image from latents.

    Parameters
    ----------
    reference : Float[Tensor, "atoms 3"]
        Coordinates in Å, centred at the origin; their dtype and device are the model's.
    modes : Float[Tensor, "modes atoms 3"]
        Mode vectors, each of unit norm over all its 3n components.
    box_size : int
        N, pixels along an edge of the image.
    pixel_size : float
        Å per pixel.
    atom_width : float
        σ_a in pixels, the standard deviation of a pseudo-atom's Gaussian.
    projector : str
        One of `PROJECTORS`; "auto" takes the fastest. Images of the whole box are made from patches on their
        pixels, by "auto" and "gridded", to the rounding of their type.

    Raises
    ------
    ForwardModelError
        If the molecule does not fit the box when turned in the plane of the detector, modes and reference
        differ in shape or are not finite, the projector does not exist, or a size is not positive.

    Examples
    --------
    >>> from cryoanm_lib.molecule.anm import normal_modes
    >>> from cryoanm_lib.molecule.structure import load_structure
    >>> reference = load_structure("adk_open").coordinates
    >>> forward_model = ForwardModel(reference, normal_modes(reference).vectors)
    >>> pose, defocus = torch.tensor([0.5, 50.0], dtype=torch.float64)
    >>> latents = Latents.in_plane(pose, amplitude=pose.new_tensor([1.5]), defocus=defocus)
    >>> forward_model.images(latents).shape, forward_model.coefficients(latents, resolution=32).shape
    (torch.Size([64, 64]), torch.Size([481]))
    """

    reference: Float[Tensor, "atoms 3"]
    modes: Float[Tensor, "modes atoms 3"]

    def __init__(
        self,
        reference: Float[Tensor, "atoms 3"],
        modes: Float[Tensor, "modes atoms 3"],
        box_size: int = 64,
        pixel_size: float = 1.0,
        atom_width: float = 0.8,
        projector: str = "auto",
    ) -> None:
        super().__init__()
        if projector not in PROJECTORS:
            known = ", ".join(PROJECTORS)
            raise ForwardModelError(f"projector {projector!r} does not exist: choose from {known}")
        if modes.shape[1:] != reference.shape:
            raise ForwardModelError(
                f"modes of shape {tuple(modes.shape)} do not belong to a reference of shape "
                f"{tuple(reference.shape)}: expected (modes, {len(reference)}, 3)"
            )
        self.box_size, self.pixel_size, self.atom_width = box_size, pixel_size, atom_width
        self.projector = projector
        self.register_buffer("reference", reference)
        self.register_buffer("modes", modes)
        self._check_sizes()
        self.check_fit()

    def _check_sizes(self) -> None:
        """Refuse sizes and coordinates that no image can be made from."""
        for name in ("box_size", "pixel_size", "atom_width"):
            value = getattr(self, name)
            if not value > 0:
                raise ForwardModelError(f"{name} = {value} is not usable: it must be greater than 0")
        if self.box_size != int(self.box_size):
            raise ForwardModelError(
                f"box_size = {self.box_size} is not usable: it must be a whole number of pixels"
            )
        for name in ("reference", "modes"):
            if not getattr(self, name).isfinite().all():
                raise ForwardModelError(
                    f"{name} holds NaN or infinite coordinates: repair the structure first"
                )

    def check_fit(self, dimensions: int = 2, margin: float = 0.0) -> None:
        """Refuse a molecule that leaves the box when it turns.

        Parameters
        ----------
        dimensions : int
            2 if it turns in the plane of the detector alone, 3 if in every way.
        margin : float
            Pixels that it may be shifted by.

        Raises
        ------
        ForwardModelError
            Naming the box and the pixel that would do.
        """
        reach = self.reference[:, :dimensions].norm(dim=-1).max().item()
        radius = reach / self.pixel_size + self.atom_width + margin
        if radius > self.box_size / 2:
            pixel_size = reach / max(1.0, self.box_size / 2 - self.atom_width - margin)
            raise ForwardModelError(
                f"the molecule reaches {radius:.1f} pixels from its centre, beyond half a box of "
                f"{self.box_size} pixels: use a box of at least {2 * math.ceil(radius)} pixels, or a pixel "
                f"size of at least {pixel_size + 0.005:.2f} Å"
            )

    @property
    def n_modes(self) -> int:
        """Number of modes M along which the structure bends."""
        return len(self.modes)

    def frequencies(self, resolution: int) -> Float[Tensor, "kept 2"]:
        """Frequencies of the half plane kept at resolution K, in cycles per pixel of the uncropped box.

        Raises
        ------
        ForwardModelError
            If K is odd and not the box, below 4, or larger than the box.
        """
        check_resolution(resolution, self.box_size)
        kept = half_plane_frequencies(resolution, self.reference.device)
        return kept.to(self.reference.dtype) / self.box_size

    def deform(self, amplitudes: Float[Tensor, "*batch modes"]) -> Float[Tensor, "*batch atoms 3"]:
        """Coordinates in Å bent along the modes, x = x̄ + Σ_m α_m u_m.

        Raises
        ------
        ForwardModelError
            If there is not one amplitude for each mode.
        """
        if amplitudes.shape[-1:] != (self.n_modes,):
            raise ForwardModelError(
                f"got amplitudes of shape {tuple(amplitudes.shape)} for a model of {self.n_modes} modes: the "
                f"last dimension must be {self.n_modes}"
            )
        return self.reference + torch.tensordot(amplitudes, self.modes, dims=1)

    def positions(self, latents: Latents) -> Float[Tensor, "*batch atoms 2"]:
        """Where the atoms fall on the detector, in pixels: bent, rotated, z dropped, shifted."""
        return self._turned(latents, rows=2) + latents.shifts[..., None, :]

    def _turned(self, latents: Latents, rows: int) -> Float[Tensor, "*batch atoms rows"]:
        """Atoms bent and rotated, in pixels: x and y of the detector, and with three rows z."""
        turned = self.deform(latents.amplitudes) @ latents.rotations[..., :rows, :].transpose(-2, -1)
        return turned / self.pixel_size

    def coefficients(self, latents: Latents, resolution: int) -> Complex[Tensor, "*batch kept"]:
        """Noise-free Fourier coefficients of the image at resolution K, contrast transfer included.

        Parameters
        ----------
        latents : Latents
            Of one image or a batch.
        resolution : int
            K, even and at most N, or N itself; the coefficients stand in the order of
            `half_plane_frequencies`.

        Raises
        ------
        ForwardModelError
            If K is not usable with the box, or there is not one amplitude for each mode.
        """
        transfer, projections = self.transfer(latents, resolution), self.projections(latents, resolution)
        # Part by part: a complex number times a real one would take a complex copy of the real one.
        return torch.view_as_complex(transfer[..., None] * torch.view_as_real(projections))

    def transfer(self, latents: Latents, resolution: int) -> Float[Tensor, "*batch kept"]:
        """What the microscope makes of every coefficient: the contrast transfer, times the contrast."""
        return self._transfer_at(latents, self.frequencies(resolution))

    @staticmethod
    def _transfer_at(latents: Latents, frequencies: Float[Tensor, "kept 2"]) -> Float[Tensor, "*batch kept"]:
        """The same at any frequencies, in cycles per pixel."""
        return latents.contrast[..., None] * ctf(latents.defocus, frequencies)

    def projections(self, latents: Latents, resolution: int) -> Complex[Tensor, "*batch kept"]:
        """Coefficients as they are before the microscope's transfer: the defocus plays no part."""
        project = PROJECTORS[self.projector]
        return project(self.positions(latents), self.box_size, self.atom_width, resolution)

    def slopes(
        self, latents: Latents, resolution: int, along: Sequence[str]
    ) -> tuple[Complex[Tensor, "*batch kept"], Complex[Tensor, "*batch directions kept"]]:
        """Coefficients, and their derivatives by some of the latents, straight from the coordinates.

        Parameters
        ----------
        latents : Latents
            Of one image or a batch.
        resolution : int
            K, as for `coefficients`.
        along : sequence of str
            Some of `DIRECTIONS`; the answer is in their order.

        Raises
        ------
        ForwardModelError
            If K is not usable with the box, a direction is unknown, or there is not one amplitude for each
            mode.
        """
        unknown = [name for name in along if name not in DIRECTIONS]
        if unknown:
            raise ForwardModelError(f"no derivative along {unknown}: choose from {', '.join(DIRECTIONS)}")
        frequencies, velocities = self.frequencies(resolution), self._velocities(latents, along)
        projection, moved = fourier_slopes(
            self.positions(latents), velocities, self.box_size, self.atom_width, resolution
        )
        transfer = self.transfer(latents, resolution)
        slopes = [transfer[..., None, :] * moved]
        if "defocus" in along:
            squared = frequencies.square().sum(-1)
            blurred = -squared * (latents.defocus[..., None] * squared).cos() * projection
            slopes.append((latents.contrast[..., None] * blurred)[..., None, :])
        if "contrast" in along:
            slopes.append((ctf(latents.defocus, frequencies) * projection)[..., None, :])
        return transfer * projection, torch.cat(slopes, dim=-2)

    def _velocities(
        self, latents: Latents, along: Sequence[str]
    ) -> Float[Tensor, "*batch directions atoms 2"]:
        """Pixels that each atom moves on the detector along the directions that move atoms."""
        x, y, z = self._turned(latents, rows=3).unbind(-1)
        none, one = torch.zeros_like(x), torch.ones_like(x)
        about_x, about_y, about_z = (none, -z), (z, none), (-y, x)
        moves = {
            "pose": [about_z],
            "rotation": [about_x, about_y, about_z],
            "shift": [(one, none), (none, one)],
        }
        velocities = [torch.stack(move, dim=-1) for name in along for move in moves.get(name, ())]
        directions = [velocity[..., None, :, :] for velocity in velocities]
        if "amplitude" in along:
            on_detector = latents.rotations[..., None, :2, :].transpose(-2, -1)
            bends = self.modes @ on_detector / self.pixel_size
            directions.append(bends.expand(*x.shape[:-1], *bends.shape[-3:]))
        return torch.cat(directions, dim=-3) if directions else x.new_zeros(*x.shape[:-1], 0, x.shape[-1], 2)

    def images(self, latents: Latents, resolution: int | None = None) -> Float[Tensor, "*batch K K"]:
        """Noise-free images, K × K pixels (the whole box by default), contrast transfer included."""
        resolution = self.box_size if resolution is None else resolution
        check_resolution(resolution, self.box_size)
        if resolution == self.box_size and self.projector in ("auto", "gridded"):
            return self._images_by_patches(latents)
        return coefficients_to_image(self.coefficients(latents, resolution), resolution)

    def _images_by_patches(self, latents: Latents) -> Float[Tensor, "*batch N N"]:
        """The whole box from atoms on its pixels, which takes no detour by a vector of coefficients."""
        frequencies = spectrum_frequencies(self.box_size, self.reference.device).to(self.reference.dtype)
        transfer = self._transfer_at(latents, frequencies.flatten(0, 1) / self.box_size)
        transfer = transfer.unflatten(-1, frequencies.shape[:2])
        projected = gridded_image(self.positions(latents), self.box_size, self.atom_width).to(transfer.dtype)
        batch = torch.broadcast_shapes(projected.shape[:-2], transfer.shape[:-2])
        images, transfer = (
            x.expand(*batch, *x.shape[-2:])[None].flatten(end_dim=-3) for x in (projected, transfer)
        )
        return filtered(images, transfer).view(*batch, self.box_size, self.box_size)

    def simulate(
        self,
        latents: Latents,
        noise: float | Float[Tensor, "*batch"],
        resolution: int,
        generator: torch.Generator | None = None,
    ) -> Complex[Tensor, "*batch kept"]:
        """Draw an image with white noise, as Fourier coefficients at resolution K.

        Parameters
        ----------
        latents : Latents
            Of one image or a batch.
        noise : float or Float[Tensor, "*batch"]
            σ_n, the standard deviation of a pixel of the uncropped image, of all images or of each.
        resolution : int
            K, as for `coefficients`.
        generator : torch.Generator, optional
            Source of the noise; by default torch's global one.

        Raises
        ------
        ForwardModelError
            If the noise is negative, K is not usable, or there is not one amplitude for each mode.
        """
        return add_noise(self.coefficients(latents, resolution), noise, self.box_size, generator)
