"""Sliders for every part of a microscope's optics, and what an image makes of them."""

from dataclasses import dataclass

from matplotlib.figure import Figure

from cryoanm_lib.book.widgets.explorer import drawn_by_script
from cryoanm_lib.book.widgets.frame import Slider, moving_figure
from cryoanm_lib.errors import CryoANMError
from cryoanm_lib.imaging.contrast_transfer import ContrastTransfer
from cryoanm_lib.imaging.forward_model import ForwardModel


@dataclass(frozen=True, eq=False)
class Microscope:
    """The molecule at rest, and the transfer in two dimensions and along two directions.

    Parameters
    ----------
    model : ForwardModel
        Of equal Gaussians, with a `ContrastTransfer`, at whose numbers the sliders start.
    defocus, noise : float
        Å and σ_n at which those sliders start.
    still, alt, name : Figure, str, str
        As of `moving_figure`.
    """

    model: ForwardModel
    defocus: float
    noise: float
    still: Figure
    alt: str
    name: str = "microscope"

    def sliders(self) -> list[Slider]:
        """Those of the figure, from top to bottom."""
        optics = self.model.transfer
        if not isinstance(optics, ContrastTransfer) or optics.sign != 1:
            raise CryoANMError("the figure draws a `ContrastTransfer` of sign 1: give the model one")
        return [
            Slider("defocus", "defocus Δf", "µm", 0, 2.4, 0.05, self.defocus / 1e4),
            Slider("astigmatism", "astigmatism", "Å", 0, 3000, 50, 0),
            Slider("angle", "its angle", "°", 0, 180, 5, 30),
            Slider("aberration", "aberration C_s", "mm", 0, 5, 0.1, optics.spherical_aberration),
            Slider("contrast", "amplitude contrast w", "", 0, 1, 0.02, optics.amplitude_contrast),
            Slider("phase", "phase shift φ", "°", 0, 180, 5, 0),
            Slider("envelope", "B-factor", "Å²", 0, 400, 10, 0),
            Slider("voltage", "voltage", "kV", 100, 300, 20, optics.voltage),
            Slider("noise", "noise σₙ", "", 0, 4 * self.noise, self.noise / 5, self.noise),
        ]

    def _repr_html_(self) -> str:
        model, shared = drawn_by_script(self.model), ["projection"]
        return moving_figure(
            "microscope", self.name, self.still, self.alt, self.sliders(), model, shared=shared
        )
