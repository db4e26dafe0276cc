"""The microscope of particles, as a table has it, and what programs do to images on its account."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from cryoanm_lib.errors import ForwardModelError, ParticleError
from cryoanm_lib.imaging.contrast_transfer import GIVEN_CTF, ContrastTransfer, given_ctf

#: Å, beyond which a pixel size is none.
_PIXEL_RANGE = (0.05, 200.0)
#: Of a transfer below this an image that was multiplied by it holds too little to be divided again: a
#: hundredth of the power, beside what a transfer that is not quite the one of then would magnify.
_LOST = 0.1


@dataclass(frozen=True)
class OpticsGroup:
    """What images taken under the same conditions share.

    Attributes
    ----------
    name : str
        As its file has it.
    voltage, spherical_aberration, amplitude_contrast : float
        In kV, mm, and as a share.
    pixel_size : float
        Å of the images as they are, not as they were taken.
    box_size : int or None
        Pixels along an edge, where the file says so.
    ctf_premultiplied, phase_flipped : bool
        Whether the images in its stacks have been multiplied by their transfer, or by its sign.
    sign : int
        1 where the molecule is said to be bright, -1 where it is said to be dark.
    """

    name: str
    voltage: float
    spherical_aberration: float
    amplitude_contrast: float
    pixel_size: float
    box_size: int | None = None
    ctf_premultiplied: bool = False
    phase_flipped: bool = False
    sign: int = 1

    def transfer(self, **options: Any) -> ContrastTransfer:
        """The microscope, with the other options of `ContrastTransfer`."""
        optics = (self.voltage, self.spherical_aberration, self.amplitude_contrast)
        return ContrastTransfer(self.pixel_size, *optics, sign=self.sign, **options)

    @property
    def was_corrected(self) -> bool:
        """Whether a program has done something to the images on account of their transfer."""
        return self.ctf_premultiplied or self.phase_flipped

    def corrected(
        self, pixels: Float[Tensor, "images y x"], ctf: Float[Tensor, "images 5"]
    ) -> Float[Tensor, "images y x"]:
        """Images as they were taken, multiplied by what those in the stacks are multiplied by."""
        return _filtered(pixels, self._correction(ctf, pixels.shape[-1]))

    def as_taken(
        self, pixels: Float[Tensor, "images y x"], ctf: Float[Tensor, "images 5"]
    ) -> Float[Tensor, "images y x"]:
        """Images of the stacks before they were corrected: their noise is then that of the detector again.

        What was multiplied by H is divided by it. Where |H| < 0.1, for some 6 % of the frequencies, it is
        divided by ± 0.1 instead: signal and noise are then smaller than they were, and the signal was too
        weak there to tell anything. It is exact where images are in the box, and the table has the defocus,
        with which they were multiplied; a defocus that was refined since, or a box cut out of a larger one,
        leaves an error near the zeros of H that is magnified up to ten times, and is taken for noise.
        """
        done = self._correction(ctf, pixels.shape[-1])
        return _filtered(pixels, torch.where(done < 0, -1.0, 1.0) / done.abs().clamp(min=_LOST))

    def _correction(self, ctf: Float[Tensor, "images 5"], box_size: int) -> Float[Tensor, "images y half"]:
        """H of a bright molecule, or its sign, at the frequencies of `torch.fft.rfft2`."""
        y, x = torch.fft.fftfreq(box_size), torch.fft.rfftfreq(box_size)
        frequencies = torch.stack([x.expand(box_size, -1), y[:, None].expand(-1, len(x))], dim=-1)
        own = replace(self, sign=1).transfer(varies=())
        h = own.values({GIVEN_CTF: ctf}, frequencies.reshape(-1, 2).double())
        h = h.reshape(len(ctf), box_size, -1)
        return torch.where(h < 0, -1.0, 1.0) if self.phase_flipped else h


def _filtered(
    pixels: Float[Tensor, "images y x"], by: Float[Tensor, "images y half"]
) -> Float[Tensor, "images y x"]:
    """Images whose transforms are multiplied."""
    return torch.fft.irfft2(torch.fft.rfft2(pixels) * by.to(pixels), s=pixels.shape[-2:])


def require_usable(group: OpticsGroup, source: Path) -> None:
    """Refuse a group whose numbers are none in their units, or whose images were corrected in two ways.

    Raises
    ------
    ParticleError
        Naming the file and the group.
    """
    where = f"{str(source)!r}, optics group {group.name!r}"
    low, high = _PIXEL_RANGE
    if not low <= group.pixel_size <= high:
        raise ParticleError(f"{where}, has a pixel size of {group.pixel_size:g}: it must be in Å")
    if group.box_size is not None and group.box_size < 1:
        raise ParticleError(f"{where}, has images of {group.box_size} pixels: it must be 1 or more")
    if group.ctf_premultiplied and group.phase_flipped:
        raise ParticleError(
            f"{where}, is said to be multiplied by its CTF and phase-flipped, which is the former alone: "
            "say so by override={'rlnCtfDataArePhaseFlipped': 0}"
        )
    try:
        group.transfer()
    except ForwardModelError as error:
        raise ParticleError(f"{where}: {error}") from error


def ctf_of(source: Path, *columns: Float64[np.ndarray, "particles"]) -> Float64[Tensor, "particles 5"]:
    """`given_ctf` of columns of a file.

    Raises
    ------
    ParticleError
        Naming the file, for a number that is none in its unit.
    """
    try:
        return given_ctf(*(torch.from_numpy(np.ascontiguousarray(column)) for column in columns))
    except ForwardModelError as error:
        raise ParticleError(f"{str(source)!r}: {error}") from error
