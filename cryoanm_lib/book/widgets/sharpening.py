"""The posterior of an image as resolution grows: its landscape, its peaks and draws from it."""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from cryoanm_lib.book.widgets.frame import Slider, moving_figure, rounded
from cryoanm_lib.book.windows import Window, window
from cryoanm_lib.inference.exact_posterior import exact_posterior
from cryoanm_lib.inference.lattice_search import SEARCH_RESOLUTION, LatticeSearch
from cryoanm_lib.inference.refinement import RefinedPosterior, refine
from cryoanm_lib.particles.particles import Simulated
from cryoanm_lib.program.program import Guide

_POINTS = 64  # of the map along each axis
_DRAWS = 200
_OUTLINE = 48  # corners of the outline of a peak
_FURTHEST = 4  # deviations of the prior that the whole landscape shows
_LEAST_WEIGHT = 0.01  # of a peak that is drawn


@dataclass(frozen=True, eq=False)
class Sharpening:
    """Two maps of one image's posterior over pose and amplitude, scrubbed through resolutions.

    Parameters
    ----------
    guide : Guide
        Of a model that infers pose and amplitude.
    image : Simulated
        One image.
    resolutions : sequence of int
        K, rising.
    still, alt, name : Figure, str, str
        As of `moving_figure`.
    """

    guide: Guide
    image: Simulated
    resolutions: Sequence[int]
    still: Figure
    alt: str
    name: str = "sharpening"

    def frames(self) -> list[dict]:
        """What is shown at each resolution: both maps, draws, and the outlines of peaks; poses in degrees."""
        model = self.guide.model
        reach, found = _FURTHEST * model.prior.amplitude_scales(1)[0], []
        for resolution in self.resolutions:
            exact = exact_posterior(model, self.image, resolution)
            search = LatticeSearch(model, min(resolution, SEARCH_RESOLUTION))
            generator = torch.Generator().manual_seed(0)
            refined = refine(model, self.image, resolution, self.guide, search, generator)
            whole, near = window(exact, _POINTS, _DRAWS, reach), window(exact, _POINTS, _DRAWS)
            height = whole.log_density - whole.log_density.min()
            frame = {"resolution": resolution, "whole": _panel(whole, height / height.max())}
            frame |= {"near": _panel(near, near.density), "draws": rounded(_in_degrees(near.draws))}
            found.append(frame | {"peaks": [rounded(each) for each in _outlines(refined, near)]})
        return found

    def _repr_html_(self) -> str:
        colours = mpl.colormaps["Blues"].resampled(256)
        model = {
            "frames": self.frames(),
            "points": _POINTS,
            "colours": [[round(255 * part) for part in colours(level)[:3]] for level in range(256)],
        }
        last = len(self.resolutions) - 1
        slider = Slider("resolution", "resolution", "", 0, last, 1, min(2, last))
        return moving_figure("sharpening", self.name, self.still, self.alt, [slider], model, shared=["panel"])


def _panel(shown: Window, height: Float[Tensor, "pose amplitude"]) -> dict:
    """A map from its lowest to its highest, the largest amplitude in the first row, and its frame."""
    levels = (255 * height).round().to(torch.uint8).T.flip(0).contiguous()
    ends = torch.stack([shown.pose, shown.amplitude], dim=-1)[[0, -1]]
    (left, bottom), (right, top) = rounded(_in_degrees(ends))
    return {
        "levels": base64.b64encode(levels.numpy().tobytes()).decode(),
        "pose": [left, right],
        "amplitude": [bottom, top],
        "truth": rounded(_in_degrees(shown.truth)),
    }


def _outlines(refined: RefinedPosterior, near: Window) -> list[Float[Tensor, "corners 2"]]:
    """Two deviations about the peaks that matter, on the turn of the circle that the window shows."""
    mixture = refined.mixture
    angle = torch.arange(_OUTLINE, dtype=torch.float64) * 2 * math.pi / _OUTLINE
    circle = 2 * torch.stack([angle.cos(), angle.sin()], dim=-1)
    middle = torch.stack([near.pose.mean(), near.amplitude.mean()])
    found = []
    peaks = zip(mixture.log_weight[0], mixture.centre[0], mixture.scale[0], strict=True)
    for log_weight, centre, scale in peaks:
        if log_weight.exp() > _LEAST_WEIGHT:
            at = middle + mixture.unknowns.offset(centre, middle)
            found.append(_in_degrees(at + circle @ scale.T))
    return found


def _in_degrees(values: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch 2"]:
    """Pose and amplitude, the pose in degrees."""
    return torch.stack([torch.rad2deg(values[..., 0]), values[..., 1]], dim=-1)
