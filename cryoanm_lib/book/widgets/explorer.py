"""Sliders for amplitude, pose, defocus, noise and resolution, and what an image makes of them."""

from dataclasses import dataclass

import torch
from matplotlib.figure import Figure

from cryoanm_lib.book.widgets.frame import Slider, moving_figure, rounded
from cryoanm_lib.imaging.forward_model import ForwardModel
from cryoanm_lib.imaging.latents import Latent
from cryoanm_lib.numerics.fourier import half_plane_frequencies, highest_frequency
from cryoanm_lib.particles.particles import Particles
from cryoanm_lib.program.prior import Prior


@dataclass(frozen=True, eq=False)
class Explorer:
    """An image, what the bend changes in it, its spectrum and the transfer, drawn again when a slider moves.

    The browser computes both from coordinates and the first mode, by the sums of `fourier_projection`.

    Parameters
    ----------
    model : ForwardModel
        What is drawn.
    prior : Prior
        How far the sliders reach: four deviations.
    noise : float
        σ_n at which the slider starts.
    still, alt, name : Figure, str, str
        As of `moving_figure`.
    """

    model: ForwardModel
    prior: Prior
    noise: float
    still: Figure
    alt: str
    name: str = "explorer"

    def sliders(self) -> list[Slider]:
        """Those of the figure, from top to bottom."""
        (microscope,), finest = self.model.transfer.latents, self.model.box_size // 2 * 2
        bend = 4 * self.prior.amplitude_scales(self.model.n_modes)[0]
        middle, reach = self._span(microscope)
        return [
            Slider("amplitude", "amplitude α", "Å", -bend, bend, bend / 40, bend / 4),
            Slider("pose", "pose θ", "°", -180, 180, 1, 35),
            Slider(
                microscope.name,
                f"{microscope.name} {microscope.symbol}",
                microscope.unit,
                *(middle - reach, middle + reach, reach / 24, middle),
            ),
            Slider("noise", "noise σₙ", "", 0.0, 10 * self.noise, self.noise / 2, self.noise),
            Slider("resolution", "resolution K", "px", 8, finest, 2, finest),
        ]

    def _span(self, latent: Latent) -> tuple[float, float]:
        """Middle of a slider, and four deviations."""
        mean, scale = self.prior.moments(latent.name, self.model.n_modes, self.model.reference)
        return mean.item(), 4 * scale.item()

    def _repr_html_(self) -> str:
        model, shared = drawn_by_script(self.model) | {"noise": self.noise}, ["projection"]
        return moving_figure(
            "explorer", self.name, self.still, self.alt, self.sliders(), model, shared=shared
        )


def drawn_by_script(model: ForwardModel) -> dict[str, object]:
    """What `projection.js` needs to know of a molecule and its detector."""
    return {
        "reference": rounded(model.reference[:, :2]),
        "mode": rounded(model.modes[0, :, :2]),
        "boxSize": model.box_size,
        "pixelSize": model.pixel_size,
        "atomWidth": model.atom_width,
    }


def observed_for_script(image: Particles, box_size: int) -> dict[str, list]:
    """Coefficients of one image at kx = 0 … m and ky = -m … m, as `projection.js` orders them."""
    m = highest_frequency(box_size)
    table = torch.zeros(m + 1, 2 * m + 1, dtype=torch.complex64)
    frequencies = half_plane_frequencies(box_size).long().tolist()
    for (kx, ky), value in zip(frequencies, image.coefficients[0], strict=True):
        if kx >= 0:
            table[kx, ky + m] = value
        if kx <= 0:
            table[-kx, -ky + m] = value.conj()
    return {"real": rounded(table.real), "imag": rounded(table.imag)}
