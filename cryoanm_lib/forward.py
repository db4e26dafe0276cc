"""The forward model (Algorithm 1): latents in, images or Fourier coefficients out."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from cryoanm_lib.ctf import ctf
from cryoanm_lib.errors import ForwardModelError
from cryoanm_lib.fourier import check_resolution, coefficients_to_image, half_plane_frequencies
from cryoanm_lib.projection import PROJECTORS
from cryoanm_lib.rotation import rotation_z


@dataclass(frozen=True)
class Latents:
    """What one image depends on, batch first.

    Attributes:
        amplitudes: α of each mode; the structure moves by an RMSD of α/√n Å.
        rotations: active rotation matrices.
        defocus: z in natural units (px²).
        shifts: displacement of the projection in pixels, (x, y).
    """

    amplitudes: Float[Tensor, "*batch modes"]
    rotations: Float[Tensor, "*batch 3 3"]
    defocus: Float[Tensor, "*batch"]
    shifts: Float[Tensor, "*batch 2"]

    @classmethod
    def in_plane(
        cls,
        pose: Float[Tensor, "*batch"],
        amplitude: Float[Tensor, "*batch modes"],
        defocus: Float[Tensor, "*batch"],
        shift: Float[Tensor, "*batch 2"] | None = None,
    ) -> "Latents":
        """The paper's case: rotation by an angle about the viewing direction, centred unless shifted."""
        if shift is None:
            shift = torch.zeros(*pose.shape, 2, dtype=pose.dtype, device=pose.device)
        return cls(amplitude, rotation_z(pose), defocus, shift)


class ForwardModel(nn.Module):
    """A reference structure, its modes and a microscope: the program that draws an image from latents."""

    reference: Float[Tensor, "atoms 3"]
    modes: Float[Tensor, "modes atoms 3"]

    def __init__(
        self,
        reference: Float[Tensor, "atoms 3"],
        modes: Float[Tensor, "modes atoms 3"],
        box_size: int = 64,
        pixel_size: float = 1.0,
        atom_width: float = 0.8,
        projector: str = "fourier",
    ) -> None:
        """Fix everything that all images share.

        Args:
            reference: coordinates in Å, centred at the origin.
            modes: mode vectors, each of unit norm over all its 3n components.
            box_size: N, pixels along an edge of the image.
            pixel_size: Å per pixel.
            atom_width: σ_a in pixels, the standard deviation of a pseudo-atom's Gaussian.
            projector: one of `PROJECTORS`: "fourier", "separable" or "sparse".

        Raises:
            ForwardModelError: for a molecule that does not fit the box, or any impossible size.
        """
        super().__init__()
        if projector not in PROJECTORS:
            raise ForwardModelError(f"projector {projector!r} does not exist: choose from {sorted(PROJECTORS)}")
        if modes.shape[1:] != reference.shape:
            raise ForwardModelError(
                f"modes of shape {tuple(modes.shape)} do not belong to a reference of shape "
                f"{tuple(reference.shape)}: expected (modes, {len(reference)}, 3)"
            )
        for name, value in [("box_size", box_size), ("pixel_size", pixel_size), ("atom_width", atom_width)]:
            if not value > 0:
                raise ForwardModelError(f"{name} = {value} is not usable: it must be greater than 0")
        self.box_size, self.pixel_size, self.atom_width = box_size, pixel_size, atom_width
        self.projector = projector
        self.register_buffer("reference", reference)
        self.register_buffer("modes", modes)
        self._check_fit()

    def _check_fit(self) -> None:
        """Refuse a molecule that leaves the box when it turns in the plane of the detector."""
        radius = self.reference[:, :2].norm(dim=-1).max().item() / self.pixel_size + self.atom_width
        if radius > self.box_size / 2:
            raise ForwardModelError(
                f"the molecule reaches {radius:.1f} pixels from its centre, beyond half a box of "
                f"{self.box_size} pixels: use a box of at least {2 * math.ceil(radius)} pixels, or a pixel "
                f"size of at least {2 * radius / self.box_size * self.pixel_size:.2f} Å"
            )

    @property
    def n_modes(self) -> int:
        """Number of modes M along which the structure bends."""
        return len(self.modes)

    def frequencies(self, resolution: int) -> Float[Tensor, "kept 2"]:
        """Frequencies of the half plane kept at resolution K, in cycles per pixel."""
        check_resolution(resolution, self.box_size)
        kept = half_plane_frequencies(resolution, self.reference.device)
        return kept.to(self.reference.dtype) / self.box_size

    def deform(self, amplitudes: Float[Tensor, "*batch modes"]) -> Float[Tensor, "*batch atoms 3"]:
        """Coordinates bent along the modes, x = x̄ + Σ_m α_m u_m, in Å."""
        if amplitudes.shape[-1] != self.n_modes:
            raise ForwardModelError(
                f"got amplitudes for {amplitudes.shape[-1]} modes (shape {tuple(amplitudes.shape)}), but the "
                f"model has {self.n_modes}: the last dimension must be {self.n_modes}"
            )
        return self.reference + torch.tensordot(amplitudes, self.modes, dims=1)

    def positions(self, latents: Latents) -> Float[Tensor, "*batch atoms 2"]:
        """Where the atoms fall on the detector, in pixels from the origin: bent, rotated, z dropped, shifted."""
        coordinates = self.deform(latents.amplitudes)
        on_detector = coordinates @ latents.rotations[..., :2, :].transpose(-2, -1)
        return on_detector / self.pixel_size + latents.shifts[..., None, :]

    def coefficients(self, latents: Latents, resolution: int) -> Complex[Tensor, "*batch kept"]:
        """Noise-free Fourier coefficients of the image at resolution K, contrast transfer included."""
        frequencies = self.frequencies(resolution)
        project = PROJECTORS[self.projector]
        projection = project(self.positions(latents), self.box_size, self.atom_width, resolution)
        return ctf(latents.defocus, frequencies) * projection

    def images(self, latents: Latents, resolution: int | None = None) -> Float[Tensor, "*batch K K"]:
        """Noise-free images, K × K pixels (the whole box by default), contrast transfer included."""
        resolution = self.box_size if resolution is None else resolution
        return coefficients_to_image(self.coefficients(latents, resolution), resolution)

    def simulate(
        self, latents: Latents, noise: float, resolution: int, generator: torch.Generator | None = None
    ) -> Complex[Tensor, "*batch kept"]:
        """Draw an image with white noise of deviation σ_n a pixel, as Fourier coefficients at resolution K."""
        return add_noise(self.coefficients(latents, resolution), noise, self.box_size, generator)


def add_noise(
    coefficients: Complex[Tensor, "*batch kept"],
    noise: float,
    box_size: int,
    generator: torch.Generator | None = None,
) -> Complex[Tensor, "*batch kept"]:
    """Add the coefficients of white noise of deviation σ_n on N × N pixels.

    Each coefficient gains a complex Gaussian with E|ε|² = σ_n²/N², real at k = 0.
    """
    if not noise >= 0:
        raise ForwardModelError(f"noise = {noise} is not a standard deviation: it must be 0 or greater")
    draw = torch.randn(
        coefficients.shape, dtype=coefficients.dtype, device=coefficients.device, generator=generator
    )
    # randn's complex draws have E|ε|² = 1, half of it in each part; the coefficient at k = 0 is all real.
    draw[..., 0] = draw[..., 0].real * 2**0.5
    return coefficients + noise / box_size * draw
