"""Sliders for amplitude, pose, defocus, noise and resolution, and what an image makes of them."""

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path
from string import Template

from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from cryoanm_lib.forward import ForwardModel
from cryoanm_lib.prior import Prior

_FOLDER = Path(__file__).resolve().parent

# Å and pixels to a tenth of what single precision resolves: a pixel errs by less than 1e-4 of the brightest.
_DIGITS = 6


@dataclass(frozen=True)
class Slider:
    """One latent that a reader can move."""

    name: str
    label: str
    unit: str
    low: float
    high: float
    step: float
    value: float

    def html(self, of: str) -> str:
        """A label, the slider, and the number that it stands at, in the figure of that name."""
        id_ = f"{of}-{self.name}"
        bounds = f'min="{self.low:g}" max="{self.high:g}" step="{self.step:g}" value="{self.value:g}"'
        return (
            f'    <label for="{id_}">{self.label}</label>'
            f'<input type="range" id="{id_}" name="{self.name}" data-unit="{self.unit}" {bounds}>'
            f'<output for="{id_}"></output>'
        )


@dataclass(frozen=True, eq=False)
class Explorer:
    """An image and its spectrum, drawn again whenever a slider moves.

    The browser computes both from coordinates and the first mode, by the sums of `fourier_projection`.

    Parameters
    ----------
    model : ForwardModel
        What is drawn.
    prior : Prior
        How far the sliders reach: four deviations.
    noise : float
        σ_n at which the slider starts.
    still : Figure
        What stands in its place where no script runs.
    alt : str
        What the still shows, in words.
    name : str
        Of the figure on its page.
    """

    model: ForwardModel
    prior: Prior
    noise: float
    still: Figure
    alt: str
    name: str = "explorer"

    def sliders(self) -> list[Slider]:
        """Those of the figure, from top to bottom."""
        scale = self.prior.amplitude_scale
        bend = 4 * (scale[0] if isinstance(scale, tuple) else scale)
        focus = 4 * self.prior.defocus_scale
        middle, finest = self.prior.defocus_mean, self.model.box_size // 2 * 2
        return [
            Slider("amplitude", "amplitude α", "Å", -bend, bend, bend / 40, 0.0),
            Slider("pose", "pose θ", "°", -180, 180, 1, 35),
            Slider("defocus", "defocus z", "px²", middle - focus, middle + focus, focus / 24, middle),
            Slider("noise", "noise σₙ", "", 0.0, 10 * self.noise, self.noise / 2, self.noise),
            Slider("resolution", "resolution K", "px", 8, finest, 2, finest),
        ]

    def _repr_html_(self) -> str:
        picture = io.BytesIO()
        self.still.savefig(picture, format="png", dpi=100)
        model = {
            "reference": _rounded(self.model.reference[:, :2]),
            "mode": _rounded(self.model.modes[0, :, :2]),
            "boxSize": self.model.box_size,
            "pixelSize": self.model.pixel_size,
            "atomWidth": self.model.atom_width,
        }
        return Template((_FOLDER / "explorer.html").read_text()).substitute(
            id=self.name,
            still=base64.b64encode(picture.getvalue()).decode(),
            alt=self.alt,
            sliders="\n".join(slider.html(self.name) for slider in self.sliders()),
            script=(_FOLDER / "explorer.js").read_text(),
            model=json.dumps(model, separators=(",", ":")),
        )


def _rounded(table: Float[Tensor, "rows columns"]) -> list[list[float]]:
    return [[round(value, _DIGITS) for value in row] for row in table.tolist()]
