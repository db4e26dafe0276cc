"""The noise's power spectrum, from what surrounds the particles on their images."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cryoanm_lib.errors import ForwardModelError
from cryoanm_lib.imaging.radial_noise import shell_hats
from cryoanm_lib.numerics.fourier import half_plane_frequencies, image_to_coefficients
from cryoanm_lib.numerics.smoothing import smoothed

#: Pixels over which the mask's edge rises, so that it spreads no frequency far.
_EDGE = 6.0


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Power of noise in each shell |k| = 0 … N//2, in variances of a pixel.

    Attributes
    ----------
    power : Float[Tensor, "shells"]
        The estimate S(|k|).
    error : Float[Tensor, "shells"]
        Its standard error.
    """

    power: Float[Tensor, "shells"]
    error: Float[Tensor, "shells"]

    def smooth(self) -> "Spectrum":
        """Regression of log S on log |k| by a Gaussian process, to which the errors are the noise.

        How smooth is chosen by marginal likelihood. Shells that were not measured are given the power of the
        nearest one; |k| = 0, to which an image's level belongs, stays as it is.

        Raises
        ------
        ForwardModelError
            If the power found in a shell is not positive.
        """
        shells = 1 + torch.nonzero(self.error[1:] > 0)[:, 0]  # measured: no NaN is greater than 0
        if wrong := [shell for shell in shells.tolist() if not self.power[shell] > 0]:
            raise ForwardModelError(
                f"the power found in shell {wrong[0]} is {self.power[wrong[0]].item():g} ± "
                f"{self.error[wrong[0]].item():g}: it needs more images, or a wider ring around the particle"
            )
        every = torch.arange(1, len(self.power)).clamp(shells.min(), shells.max())
        mean, deviation = smoothed(
            *(np.log(shells.numpy()), self.power[shells].log().numpy()),
            (self.error / self.power)[shells].numpy(),
            *(np.log(every.numpy()), (0.05, 10.0)),
        )
        power = torch.from_numpy(np.exp(mean))
        error = power * torch.from_numpy(deviation)
        return Spectrum(torch.cat([self.power[:1], power]), torch.cat([self.error[:1], error]))


def background_spectrum(images: Float[Tensor, "images box box"], radius: float) -> Spectrum:
    """The spectrum of what lies outside a circle about the centre, and inside the box's inscribed one.

    Each image less its mean there is multiplied by a mask m(r) with soft edges. That mixes neighbouring
    frequencies: from noise of a power S(k'), which hats over the shells make up, comes at k

        E|ĉ(k)|² = N⁻² Σ_k' S(k') |m̂(k - k') - m̂(k) m̂(-k') / m̂(0)|²,

    which is solved for S, as for the spectrum of the sky behind the galaxy (Hivon et al. 2002). The mean is
    lost: the shell |k| = 0 is given the power of the next. What a microscope far out of focus spreads beyond
    the circle is counted as noise: compare with `residual_spectrum`.

    Parameters
    ----------
    images : Float[Tensor, "images box box"]
        Two or more, of one optics group.
    radius : float
        Of the particle, in pixels.

    Raises
    ------
    ForwardModelError
        If the ring is narrower than its edges, an image is not finite, or there is but one.
    """
    box_size = images.shape[-1]
    widest = box_size / 2 - 2 * _EDGE
    if len(images) < 2:
        raise ForwardModelError(f"{len(images)} images tell no error: give two or more")
    if wrong := torch.nonzero(~images.flatten(1).isfinite().all(1))[:, 0].tolist():
        raise ForwardModelError(f"images {wrong[:5]} hold NaN or infinite values: leave them out")
    if not 0 <= radius <= widest:
        raise ForwardModelError(
            f"radius = {radius:g} pixels leaves no ring in a box of {box_size} pixels: at most {widest:g} "
            "does; use a larger box"
        )
    line = torch.arange(box_size, dtype=torch.float64) - box_size // 2
    away = torch.hypot(line[:, None], line[None])
    mask = _rise(away - radius) * _rise(box_size / 2 - away)
    images = images.double()
    level = (mask * images).sum((1, 2), keepdim=True) / mask.sum()
    power = image_to_coefficients(mask * (images - level), box_size).abs().square() * box_size**2
    hats = shell_hats(box_size, box_size // 2 + 1)
    # Without k = 0, where nothing is left.
    found = solved(power @ hats[:, 1:], hats[:, 1:], _mixed(mask)[:, 1:])
    return Spectrum(*(torch.cat([part[:1], part]) for part in (found.power, found.error)))


def _rise(distance: Float[Tensor, "box box"]) -> Float[Tensor, "box box"]:
    """From 0 to 1 along half a cosine."""
    return 0.5 - 0.5 * (torch.pi * (distance / _EDGE).clamp(0.0, 1.0)).cos()


def _mixed(mask: Float[Tensor, "box box"]) -> Float[Tensor, "kept shells"]:
    """The power that noise of each hat leaves at each frequency behind a mask, its mean taken away."""
    box_size = len(mask)
    line = torch.fft.fftfreq(box_size, 1 / box_size, dtype=torch.float64)
    radius = torch.hypot(line[:, None], line[None]).clamp(max=box_size // 2)
    spectrum = torch.fft.fft2(torch.fft.ifftshift(mask)) / box_size**2  # m̂, real and even as the mask is
    lost = spectrum.conj() / spectrum[0, 0]  # m̂(-k') / m̂(0)

    def spread(what: Tensor, by: Tensor) -> Tensor:
        """Convolution on the grid of frequencies."""
        return torch.fft.ifft2(torch.fft.fft2(what) * torch.fft.fft2(by))

    columns = []
    for shell in range(box_size // 2 + 1):
        hat = (1 - (radius - shell).abs()).clamp(min=0.0)
        direct = spread(hat.to(spectrum), spectrum.abs().square().to(spectrum)).real
        crossed = (spectrum.conj() * spread(hat * lost.conj(), spectrum)).real
        columns.append(direct - 2 * crossed + spectrum.abs().square() * (hat * lost.abs().square()).sum())
    kx, ky = half_plane_frequencies(box_size).long().T
    return torch.stack(columns, dim=-1)[ky % box_size, kx % box_size]


def solved(
    seen: Float[Tensor, "images shells"],
    hats: Float[Tensor, "kept shells"],
    expected: Float[Tensor, "kept shells"],
) -> Spectrum:
    """The spectrum from each image's power, summed by the weights of hats, and its error from their scatter.

    `expected` is the power at each frequency where the spectrum is one hat.
    """
    each = torch.linalg.solve(hats.T @ expected, seen.T).T
    return Spectrum(each.mean(0), each.std(0) / len(each) ** 0.5)
