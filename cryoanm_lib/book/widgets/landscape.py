"""The likelihood of one image as a landscape that a reader walks through, turning and bending the model."""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import matplotlib as mpl
import torch
from matplotlib.figure import Figure

from cryoanm_lib.book.landscapes import landscape
from cryoanm_lib.book.widgets.explorer import drawn_by_script, observed_for_script
from cryoanm_lib.book.widgets.frame import Slider, moving_figure
from cryoanm_lib.imaging.noise import WhiteNoise
from cryoanm_lib.numerics.rotation import unit_vector_to_angle
from cryoanm_lib.particles.particles import Simulated
from cryoanm_lib.program.program import Model

# Poses and amplitudes of the map, and how many deviations of the prior it reaches.
_COLUMNS, _ROWS, _FURTHEST = 241, 25, 3


@dataclass(frozen=True, eq=False)
class Landscape:
    """One noisy image, the model beside it, and the log-likelihood over pose and amplitude at rising K.

    The browser computes model, residual and log-likelihood; the maps come with the page.

    Parameters
    ----------
    model : Model
        Of a pose in the plane and one amplitude, with white noise of one deviation.
    image : Simulated
        One image.
    resolutions : sequence of int
        K, rising.
    still, alt, name : Figure, str, str
        As of `moving_figure`.
    """

    model: Model
    image: Simulated
    resolutions: Sequence[int]
    still: Figure
    alt: str
    name: str = "landscape"

    @property
    def reach(self) -> float:
        """Largest amplitude of the map."""
        return _FURTHEST * self.model.prior.amplitude_scales(1)[0]

    def frames(self) -> list[dict]:
        """At each resolution the map, from its median (0) to its top (255), and the height of the top."""
        pose = torch.linspace(-math.pi, math.pi, _COLUMNS)
        along = {"amplitude": torch.linspace(-self.reach, self.reach, _ROWS), "pose": pose}
        at, found = {"defocus": self.image.truth["defocus"].item()}, []
        for resolution in self.resolutions:
            height = landscape(self.model.forward_model, self.image, at, along, resolution)
            share = ((height - height.median()) / (height.max() - height.median())).clamp(min=0)
            levels = (255 * share).round().to(torch.uint8).flip(0).contiguous()
            constant = self.image.noise.log_normaliser(resolution).item()
            frame = {"pose": [-180, 180], "amplitude": [-self.reach, self.reach]}
            frame["levels"] = base64.b64encode(levels.numpy().tobytes()).decode()
            top = height.max().item() + constant
            found.append({"resolution": resolution, "map": frame, "top": round(top, 3)})
        return found

    def _repr_html_(self) -> str:
        forward, noise = self.model.forward_model, cast(WhiteNoise, self.image.noise)
        truth = self.image.truth
        step = {"pose": 2 * math.pi / (_COLUMNS - 1), "amplitude": 2 * self.reach / (_ROWS - 1)}
        colours = mpl.colormaps["Blues"].resampled(256)
        model = drawn_by_script(forward) | {
            "observed": observed_for_script(self.image, forward.box_size),
            "sigma": float(noise.deviation),
            "defocus": truth["defocus"].item(),
            "truth": [math.degrees(unit_vector_to_angle(truth["pose"]).item()), truth["amplitude"].item()],
            "frames": self.frames(),
            "columns": _COLUMNS,
            "step": step | {"furthest": self.reach},
            "colours": [[round(255 * part) for part in colours(level)[:3]] for level in range(256)],
        }
        sliders = [
            Slider("pose", "pose θ", "°", -180, 180, 0.5, 0.0),
            Slider("amplitude", "amplitude α", "Å", -self.reach, self.reach, self.reach / 48, 0.0),
            Slider("resolution", "resolution", "", 0, len(self.resolutions) - 1, 1, 0),
        ]
        shared = ("projection", "panel")
        return moving_figure("landscape", self.name, self.still, self.alt, sliders, model, shared=shared)
