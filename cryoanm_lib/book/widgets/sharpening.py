"""The posterior of some images as resolution and noise change: the crop, the landscape, peaks and draws."""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import matplotlib as mpl
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from cryoanm_lib.book.widgets.explorer import drawn_by_script, observed_for_script
from cryoanm_lib.book.widgets.frame import Slider, moving_figure, rounded
from cryoanm_lib.book.windows import Window, posterior_of, window
from cryoanm_lib.imaging.noise import WhiteNoise
from cryoanm_lib.inference.exact_posterior import exact_posterior
from cryoanm_lib.inference.lattice_search import SEARCH_RESOLUTION, LatticeSearch
from cryoanm_lib.inference.refinement import RefinedPosterior, refine
from cryoanm_lib.numerics.rotation import unit_vector_to_angle
from cryoanm_lib.particles.particles import Simulated
from cryoanm_lib.program.program import Guide

_WHOLE, _NEAR = (181, 17), (48, 48)  # poses and amplitudes of the two maps
_DRAWS = 100  # that are shown
_DIGITS = 4  # of places on a map: a fortieth of the narrowest posterior's deviation
_OUTLINE = 32  # corners of the outline of a peak
_FURTHEST = 4  # deviations of the prior that the whole landscape shows
_LEAST_WEIGHT = 0.01  # of a peak that is drawn


@dataclass(frozen=True, eq=False)
class Sharpening:
    """The crop of an image beside two maps of its posterior over pose and amplitude, by resolution and noise.

    The browser draws the crop; the maps come with the page.

    Parameters
    ----------
    guide : Guide
        Of a model that infers pose and amplitude, with white noise of one deviation.
    images : Simulated
        Those to choose from.
    resolutions : sequence of int
        K, rising.
    still, alt, name : Figure, str, str
        As of `moving_figure`.
    louder : sequence of float
        Factors by which the noise of each image, itself kept, is multiplied.
    """

    guide: Guide
    images: Simulated
    resolutions: Sequence[int]
    still: Figure
    alt: str
    name: str = "sharpening"
    louder: Sequence[float] = (1, 2, 4, 8)

    @property
    def noise(self) -> float:
        """σ_n of the images as they are."""
        return float(cast(WhiteNoise, self.images.noise).deviation)

    def noisier(self) -> Simulated:
        """Every image at every noise: image by image, the noise rising."""
        forward = self.guide.model.forward_model
        images = self.images[torch.arange(len(self.images)).repeat_interleave(len(self.louder))]
        factor = torch.tensor(self.louder, dtype=torch.float64).repeat(len(self.images))
        clean = forward.coefficients(images.truth, forward.box_size)
        coefficients = clean + factor.to(clean.real)[:, None] * (images.coefficients - clean)
        noise = WhiteNoise(self.noise * factor, forward.box_size)
        return replace(images, coefficients=coefficients, noise=noise)

    def frames(self) -> list[list[dict]]:
        """What is shown of each image of `noisier` at each resolution: maps, draws, outlines of peaks."""
        by_resolution = [self._frames_at(resolution) for resolution in self.resolutions]
        return [list(of_image) for of_image in zip(*by_resolution, strict=True)]

    def _frames_at(self, resolution: int) -> list[dict]:
        model, images = self.guide.model, self.noisier()
        exact = exact_posterior(model, images, resolution)
        search = LatticeSearch(model, min(resolution, SEARCH_RESOLUTION))
        generator = torch.Generator().manual_seed(0)
        refined = refine(model, images, resolution, self.guide, search, generator)
        reach, found = _FURTHEST * model.prior.amplitude_scales(1)[0], []
        for i in range(len(images)):
            of_image, peaks = posterior_of(exact, i), refined[torch.tensor([i])]
            whole, near = window(of_image, _WHOLE, reach=reach), window(of_image, _NEAR)
            height = whole.log_density - whole.log_density.min()
            frame = {"whole": _panel(whole, height / height.max()), "near": _panel(near, near.density)}
            frame |= {"draws": _places(near.draws[:_DRAWS]), "deviation": _places(near.deviation)}
            found.append(frame | {"peaks": [_places(outline) for outline in _outlines(peaks, near)]})
        return found

    def _image(self, index: int) -> dict:
        """What the browser draws the crop from, and the signal-to-noise ratio of the image as it is."""
        forward, image = self.guide.model.forward_model, self.images[index : index + 1]
        truth = image.truth
        return {
            "observed": observed_for_script(image, forward.box_size),
            "pose": unit_vector_to_angle(truth["pose"]).item(),
            "amplitude": truth["amplitude"].item(),
            "defocus": truth["defocus"].item(),
            "ratio": forward.images(truth).var().item() / self.noise**2,
        }

    def _repr_html_(self) -> str:
        colours = mpl.colormaps["Blues"].resampled(256)
        model = drawn_by_script(self.guide.model.forward_model) | {
            "images": [self._image(index) for index in range(len(self.images))],
            "frames": self.frames(),
            "resolutions": list(self.resolutions),
            "noise": self.noise,
            "louder": list(self.louder),
            "whole": _WHOLE[0],
            "near": _NEAR[0],
            "colours": [[round(255 * part) for part in colours(level)[:3]] for level in range(256)],
        }
        last = len(self.resolutions) - 1
        sliders = [
            Slider("resolution", "resolution K", "", 0, last, 1, min(2, last)),
            Slider("noise", "noise σₙ", "", 0, len(self.louder) - 1, 1, 0),
        ]
        shared = ("projection", "panel")
        return moving_figure("sharpening", self.name, self.still, self.alt, sliders, model, shared=shared)


def _panel(shown: Window, height: Float[Tensor, "poses amplitudes"]) -> dict:
    """A map from its lowest to its highest, the largest amplitude in the first row, and its frame."""
    levels = (255 * height).round().to(torch.uint8).T.flip(0).contiguous()
    ends = torch.stack([shown.pose[[0, -1]], shown.amplitude[[0, -1]]], dim=-1)
    (left, bottom), (right, top) = _places(ends)
    return {
        "levels": base64.b64encode(levels.numpy().tobytes()).decode(),
        "pose": [left, right],
        "amplitude": [bottom, top],
        "truth": _places(shown.truth),
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
            found.append(at + circle @ scale.T)
    return found


def _places(values: Float[Tensor, "*batch 2"]) -> list:
    """Pose and amplitude for the script, the pose in degrees."""
    return rounded(torch.stack([torch.rad2deg(values[..., 0]), values[..., 1]], dim=-1), _DIGITS)
