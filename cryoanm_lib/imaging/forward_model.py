"""The forward model (Algorithm 1): latents in, images or Fourier coefficients out."""

import copy
import math
from collections.abc import Hashable, Sequence

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from cryoanm_lib.errors import ForwardModelError
from cryoanm_lib.imaging.filtering import filtered
from cryoanm_lib.imaging.fourier_projection import fourier_slopes
from cryoanm_lib.imaging.gridded_projection import gridded_image
from cryoanm_lib.imaging.latents import (
    AMPLITUDE,
    LATENTS,
    POSE,
    POSE_IN_SPACE,
    SHIFT,
    Latent,
    Values,
    check_batches,
    pose_to_rotation,
)
from cryoanm_lib.imaging.projection import PROJECTORS
from cryoanm_lib.imaging.scattering import Scattering
from cryoanm_lib.imaging.transfer import SineTransfer, Transfer
from cryoanm_lib.molecule.helices import Helices
from cryoanm_lib.numerics.fourier import (
    check_resolution,
    coefficients_to_image,
    half_plane_frequencies,
    spectrum_frequencies,
)


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
    transfer : Transfer
        The microscope; default the paper's.
    scattering : Scattering, optional
        What each atom scatters, in place of the same Gaussian for all; then neither their width nor the
        projector counts.
    blocks : sequence, optional
        The block of each atom, if the modes are those of rigid blocks that are to move on `Helices` and not
        on straight lines.
    luzzati : Float[Tensor, "shells"], optional
        D at |k| = 0 … N//2 in cycles per box, by which predictions are multiplied: what images hold of the
        coefficients of a molecule that is not quite right (Luzzati 1952, Read 1986); `luzzati_factor`
        estimates it. Default 1.

    Raises
    ------
    ForwardModelError
        If the molecule does not fit the box when turned in the plane of the detector, modes and reference
        differ in shape or are not finite, the projector does not exist, a size is not positive, or D is not
        a finite number of each shell.

    Examples
    --------
    >>> from cryoanm_lib.imaging.latents import in_plane
    >>> from cryoanm_lib.molecule.anm import normal_modes
    >>> from cryoanm_lib.molecule.structure import load_structure
    >>> reference = load_structure("adk_open").coordinates
    >>> forward_model = ForwardModel(reference, normal_modes(reference).vectors)
    >>> pose, defocus = torch.tensor([0.5, 50.0], dtype=torch.float64)
    >>> latents = in_plane(pose, amplitude=pose.new_tensor([1.5]), defocus=defocus)
    >>> forward_model.images(latents).shape, forward_model.coefficients(latents, resolution=32).shape
    (torch.Size([64, 64]), torch.Size([481]))
    """

    reference: Float[Tensor, "atoms 3"]
    modes: Float[Tensor, "modes atoms 3"]
    luzzati: Float[Tensor, "shells"] | None

    def __init__(
        self,
        reference: Float[Tensor, "atoms 3"],
        modes: Float[Tensor, "modes atoms 3"],
        box_size: int = 64,
        pixel_size: float = 1.0,
        atom_width: float = 0.8,
        projector: str = "auto",
        transfer: Transfer | None = None,
        scattering: Scattering | None = None,
        blocks: Sequence[Hashable] | None = None,
        luzzati: Float[Tensor, "shells"] | None = None,
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
        if scattering is not None and len(scattering) != len(reference):
            raise ForwardModelError(
                f"scattering is of {len(scattering)} atoms and the reference has {len(reference)}: give one "
                "form factor for each"
            )
        self.box_size, self.pixel_size, self.atom_width = box_size, pixel_size, atom_width
        self.scattering = scattering
        if transfer is not None and transfer.pixel_size not in (None, pixel_size):
            raise ForwardModelError(
                f"the microscope has pixels of {transfer.pixel_size:g} Å and the image of {pixel_size:g} Å: "
                "give both the same pixel_size"
            )
        self.projector = projector
        self.transfer = SineTransfer() if transfer is None else transfer
        self.register_buffer("reference", reference)
        self.register_buffer("modes", modes)
        self.register_buffer("luzzati", None if luzzati is None else luzzati.to(reference))
        self.helices = None if blocks is None else Helices(reference, modes, blocks)
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
        if self.luzzati is not None:
            self._check_luzzati(self.luzzati)

    def _check_luzzati(self, luzzati: Float[Tensor, "shells"]) -> None:
        """Refuse a D that is not a number of each shell."""
        n_shells = self.box_size // 2 + 1
        if luzzati.shape != (n_shells,):
            raise ForwardModelError(
                f"D has shape {tuple(luzzati.shape)}: give a number for each of the {n_shells} shells "
                f"|k| = 0 … {self.box_size // 2}"
            )
        if wrong := torch.nonzero(~luzzati.isfinite())[:, 0].tolist():
            raise ForwardModelError(
                f"D is {luzzati[wrong[0]].item():g} in shell {wrong[0]}: `smooth()` of an estimate fills "
                "shells that were not measured"
            )

    def with_luzzati(self, luzzati: Float[Tensor, "shells"]) -> "ForwardModel":
        """The same molecule and microscope with this D."""
        changed = copy.copy(self)
        changed._buffers = {**self._buffers, "luzzati": luzzati.to(self.reference)}
        changed._check_sizes()
        return changed

    def check_fit(self, dimensions: int = 2, margin: float = 0.0) -> None:
        """Refuse a molecule that leaves the box when it turns.

        It turns in 2 dimensions, those of the detector, or in 3, and may be shifted by a margin in pixels.

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
        """Coordinates in Å bent along the modes, x = x̄ + Σ_m α_m u_m, or on helices that start so.

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
        if self.helices is not None:
            return self.helices(amplitudes)
        return self.reference + torch.tensordot(amplitudes, self.modes, dims=1)

    @property
    def latents(self) -> tuple[Latent, ...]:
        """All that an image depends on: what moves atoms, the microscope's own, and what scales the image."""
        known = LATENTS.values()
        moving, scaling = ([one for one in known if one.acts_on == what] for what in ("atoms", "scale"))
        return (*moving, *self.transfer.latents, *scaling)

    def positions(
        self, latents: Values, rotations: Float[Tensor, "*batch 3 3"] | None = None
    ) -> Float[Tensor, "*batch atoms 2"]:
        """Where the atoms fall on the detector, in pixels: bent, rotated, z dropped, shifted."""
        rotations = pose_to_rotation(latents["pose"]) if rotations is None else rotations
        flat = self._turned(latents, rotations[..., :2, :])
        return flat + latents["shift"][..., None, :] if "shift" in latents else flat

    def _turned(
        self, latents: Values, rotations: Float[Tensor, "*batch rows 3"]
    ) -> Float[Tensor, "*batch atoms rows"]:
        """Atoms bent and rotated, in pixels: x and y of the detector, and with three rows z."""
        return self.deform(latents["amplitude"]) @ rotations.transpose(-2, -1) / self.pixel_size

    def coefficients(self, latents: Values, resolution: int) -> Complex[Tensor, "*batch kept"]:
        """Noise-free Fourier coefficients of the image at resolution K, contrast transfer included.

        Parameters
        ----------
        latents : mapping of str to Tensor
            Of one image or a batch: "pose" and "amplitude", what the microscope depends on, and where images
            have them "shift" and "contrast".
        resolution : int
            K, even and at most N, or N itself; the coefficients stand in the order of
            `half_plane_frequencies`.

        Raises
        ------
        ForwardModelError
            If K is not usable with the box, a latent is missing, batch shapes do not agree, or there is not
            one amplitude for each mode.
        """
        self._require(latents)
        return self.factor(latents, resolution) * self.projections(latents, resolution)

    def _require(self, latents: Values) -> None:
        """Refuse values that lack what every image depends on, or that do not belong together."""
        needed = ("pose", "amplitude", *(latent.name for latent in self.transfer.latents))
        if missing := [name for name in needed if name not in latents]:
            raise ForwardModelError(
                f"{', '.join(missing)} is missing beside {', '.join(latents)}: infer it, or give it as well"
            )
        check_batches(latents, self.latents)

    def factor(self, latents: Values, resolution: int) -> Float[Tensor, "*batch kept"]:
        """What becomes of every coefficient of a projection: the microscope, and D."""
        return self._factor_at(latents, self.frequencies(resolution))

    def microscope(self, latents: Values, resolution: int) -> Float[Tensor, "*batch kept"]:
        """What becomes of every coefficient of whatever is there: the transfer, times the contrast."""
        return self._microscope_at(latents, self.frequencies(resolution))

    def _damped(
        self, transfer: Float[Tensor, "*batch kept"], frequencies: Float[Tensor, "kept 2"]
    ) -> Float[Tensor, "*batch kept"]:
        """Times D, between whole |k|; beyond the last shell it stays."""
        if self.luzzati is None:
            return transfer
        last = len(self.luzzati) - 1
        radius = (frequencies.norm(dim=-1) * self.box_size).clamp(max=last)
        low = radius.floor().long().clamp(max=last - 1)
        return transfer * torch.lerp(self.luzzati[low], self.luzzati[low + 1], radius - low)

    def _factor_at(
        self, latents: Values, frequencies: Float[Tensor, "kept 2"]
    ) -> Float[Tensor, "*batch kept"]:
        """The same at any frequencies, in cycles per pixel."""
        return self._damped(self._microscope_at(latents, frequencies), frequencies)

    def _microscope_at(
        self, latents: Values, frequencies: Float[Tensor, "kept 2"]
    ) -> Float[Tensor, "*batch kept"]:
        """The transfer, times the contrast."""
        transfer = self.transfer.values(latents, frequencies)
        return latents["contrast"][..., None] * transfer if "contrast" in latents else transfer

    def projections(self, latents: Values, resolution: int) -> Complex[Tensor, "*batch kept"]:
        """Coefficients as they are before the microscope, which need only what acts on atoms."""
        return self.projected(self.positions(latents), resolution)

    def projected(
        self, positions: Float[Tensor, "*batch atoms 2"], resolution: int
    ) -> Complex[Tensor, "*batch kept"]:
        """The same of atoms at any positions, in pixels."""
        if self.scattering is not None:
            return self.scattering.coefficients(positions, self.box_size, self.pixel_size, resolution)
        return PROJECTORS[self.projector](positions, self.box_size, self.atom_width, resolution)

    def projected_slopes(
        self,
        positions: Float[Tensor, "*batch atoms 2"],
        velocities: Float[Tensor, "*batch columns atoms 2"],
        resolution: int,
    ) -> tuple[Complex[Tensor, "*batch kept"], Complex[Tensor, "*batch columns kept"]]:
        """The same, and how they change as atoms move, in pixels a step."""
        if self.scattering is not None:
            sizes = (self.box_size, self.pixel_size, resolution)
            return self.scattering.slopes(positions, velocities, *sizes)
        return fourier_slopes(positions, velocities, self.box_size, self.atom_width, resolution)

    def slopes(
        self, latents: Values, resolution: int, along: Sequence[Latent]
    ) -> tuple[Complex[Tensor, "*batch kept"], Complex[Tensor, "*batch columns kept"]]:
        """Coefficients, and their derivatives by the steps of some latents, straight from the coordinates.

        Parameters
        ----------
        latents, resolution
            As for `coefficients`.
        along : sequence of Latent
            Of `latents`; the columns are those of `Unknowns` of the same latents in the same order.

        Raises
        ------
        ForwardModelError
            If K is not usable with the box, a latent is none of this model's, batch shapes do not agree, or
            there is not one amplitude for each mode.
        """
        known = [latent.name for latent in self.latents]
        if unknown := [latent.name for latent in along if latent.name not in known]:
            raise ForwardModelError(f"no derivative along {unknown}: choose from {', '.join(known)}")
        self._require(latents)
        rotations = pose_to_rotation(latents["pose"])
        velocities = self._velocities(latents, rotations, along)
        positions = self.positions(latents, rotations)
        projection, moved = self.projected_slopes(positions, velocities, resolution)
        frequencies = self.frequencies(resolution)
        transfer = self._damped(self.transfer.values(latents, frequencies), frequencies)
        of_transfer = self.transfer.slopes(latents, frequencies)
        contrast = latents["contrast"][..., None, None] if "contrast" in latents else None
        factor = transfer if contrast is None else contrast[..., 0] * transfer
        on_atoms = [latent for latent in along if latent.acts_on == "atoms"]
        columns = [latent.manifold.n_columns(latent.width_for(self.n_modes)) for latent in on_atoms]
        moving = iter((factor[..., None, :] * moved).split(columns, dim=-2))
        slopes = []
        for latent in along:
            if latent.acts_on == "atoms":
                slopes.append(next(moving))
            elif latent.acts_on == "transfer":
                slope = self._damped(of_transfer[latent.name], frequencies) * projection[..., None, :]
                slopes.append(slope if contrast is None else contrast * slope)
            else:
                slopes.append((transfer * projection)[..., None, :])
        return factor * projection, torch.cat(slopes, dim=-2)

    def _velocities(
        self, latents: Values, rotations: Float[Tensor, "*batch 3 3"], along: Sequence[Latent]
    ) -> Float[Tensor, "*batch columns atoms 2"]:
        """Pixels that each atom moves on the detector for a unit step along latents that move atoms."""
        x, y, z = self._turned(latents, rotations).unbind(-1)
        none, one = torch.zeros_like(x), torch.ones_like(x)
        about_x, about_y, about_z = (none, -z), (z, none), (-y, x)
        moves = {
            POSE: [about_z],
            POSE_IN_SPACE: [about_x, about_y, about_z],
            SHIFT: [(one, none), (none, one)],
        }
        velocities = [x.new_zeros(*x.shape[:-1], 0, x.shape[-1], 2)]
        for latent in along:
            if latent in moves:
                velocities.append(torch.stack([torch.stack(move, dim=-1) for move in moves[latent]], dim=-3))
            elif latent == AMPLITUDE:
                on_detector = rotations[..., None, :2, :].transpose(-2, -1)
                amplitudes = latents["amplitude"]
                bending = self.modes if self.helices is None else self.helices.tangents(amplitudes)
                bends = bending @ on_detector / self.pixel_size
                velocities.append(bends.expand(*x.shape[:-1], *bends.shape[-3:]))
        return torch.cat(velocities, dim=-3)

    def images(self, latents: Values, resolution: int | None = None) -> Float[Tensor, "*batch K K"]:
        """Noise-free images, K × K pixels (the whole box by default), contrast transfer included."""
        resolution = self.box_size if resolution is None else resolution
        check_resolution(resolution, self.box_size)
        on_pixels = self.scattering is None and self.projector in ("auto", "gridded")
        if resolution == self.box_size and on_pixels:
            return self._images_by_patches(latents)
        return coefficients_to_image(self.coefficients(latents, resolution), resolution)

    def _images_by_patches(self, latents: Values) -> Float[Tensor, "*batch N N"]:
        """The whole box from atoms on its pixels, which takes no detour by a vector of coefficients."""
        self._require(latents)
        frequencies = spectrum_frequencies(self.box_size, self.reference.device).to(self.reference.dtype)
        transfer = self._factor_at(latents, frequencies.flatten(0, 1) / self.box_size)
        transfer = transfer.unflatten(-1, frequencies.shape[:2])
        projected = gridded_image(self.positions(latents), self.box_size, self.atom_width).to(transfer.dtype)
        batch = torch.broadcast_shapes(projected.shape[:-2], transfer.shape[:-2])
        images, transfer = (
            x.expand(*batch, *x.shape[-2:])[None].flatten(end_dim=-3) for x in (projected, transfer)
        )
        return filtered(images, transfer).view(*batch, self.box_size, self.box_size)
