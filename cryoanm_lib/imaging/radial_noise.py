"""Noise of a radial power spectrum, as ice and detectors make it, with a scale and a level for each image."""

import copy
import functools
import math

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryoanm_lib.errors import ForwardModelError
from cryoanm_lib.imaging.noise import Index, Noise, unit_noise
from cryoanm_lib.numerics.fourier import (
    degrees_of_freedom,
    half_plane_frequencies,
    resolution_of,
    to_real,
)


class RadialNoise(Noise):
    """Gaussian noise whose power depends on the length of the frequency: N² E|ε(k)|² = ν² S(|k|).

    White noise of deviation σ_n has S = σ_n² everywhere. Between whole |k|, in cycles per box, it is
    interpolated, and beyond the last it stays. An image's level, a constant on all of its pixels of which
    nothing is known but its deviation, adds to the variance of the coefficient at k = 0 and of no other.

    Parameters
    ----------
    power : Float[Tensor, "shells"]
        S at |k| = 0 … N//2, variances of a pixel.
    box_size : int
        N, pixels along an edge of the uncropped image.
    scale : Float[Tensor, "images"], optional
        ν, a factor on the deviation for each image; default 1 for all.
    level : float
        Deviation of the level; 0 for none.

    Raises
    ------
    ForwardModelError
        If the spectrum has another length or is not positive, or a scale or the level is no deviation.

    Examples
    --------
    >>> white = RadialNoise(torch.full((33,), 0.01), box_size=64)
    >>> white.whiten(torch.ones(5, dtype=torch.complex64), resolution=4)[:3]
    tensor([640.0000, 905.0967,   0.0000])
    """

    def __init__(
        self,
        power: Float[Tensor, "shells"],
        box_size: int,
        scale: Float[Tensor, "images"] | None = None,
        level: float = 0.0,
    ) -> None:
        if power.shape != (box_size // 2 + 1,):
            raise ForwardModelError(
                f"a spectrum of {len(power)} shells is not that of a box of {box_size} pixels: give S at "
                f"|k| = 0 … {box_size // 2}, which are {box_size // 2 + 1}"
            )
        if wrong := [shell for shell, s in enumerate(power.tolist()) if not 0 < s < math.inf]:
            raise ForwardModelError(
                f"the spectrum is {power[wrong[0]].item():g} in shell {wrong[0]}: it must be greater than 0"
            )
        if scale is not None and not ((scale > 0) & scale.isfinite()).all():
            raise ForwardModelError("scale must be greater than 0 for each image")
        if not 0 <= level < math.inf:
            raise ForwardModelError(f"level = {level:g} is no standard deviation: it must be 0 or greater")
        self.power, self.box_size, self.level = power.double(), box_size, level
        self.scale = self.power.new_ones(()) if scale is None else scale.double()

    def deviations(self, resolution: int) -> Float[Tensor, "kept"]:
        """N times the root mean square of each coefficient that K keeps, for a scale of 1."""
        power = shell_hats(resolution, len(self.power), self.power.device) @ self.power
        at_origin = torch.zeros_like(power)
        at_origin[0] = (self.box_size * self.level) ** 2
        return (power + at_origin).sqrt()

    def sample(
        self, coefficients: Complex[Tensor, "*batch kept"], generator: torch.Generator | None = None
    ) -> Complex[Tensor, "*batch kept"]:
        """Coefficients with noise added, and a level."""
        draw = unit_noise(coefficients, generator)
        deviations = self.scale[..., None] * self.deviations(resolution_of(coefficients)) / self.box_size
        return coefficients + deviations.to(draw.real) * draw

    def whiten(
        self, coefficients: Complex[Tensor, "*batch kept"], resolution: int
    ) -> Float[Tensor, "*batch dof"]:
        """Each divided by its deviation, which the basis of `to_real` makes K times as large."""
        deviations = self.scale[..., None] * self.deviations(resolution) * resolution / self.box_size
        return to_real(coefficients * deviations.reciprocal().to(coefficients.real), resolution)

    def flat(self, coefficients: Complex[Tensor, "*batch kept"]) -> Complex[Tensor, "*batch kept"]:
        """Times σ/√S, where σ² is the mean of S over what is kept: white, of nearly the same total power."""
        deviations = self.deviations(resolution_of(coefficients))
        typical = deviations[1:].square().mean().sqrt()
        return coefficients * (typical / deviations).to(coefficients.real)

    def log_normaliser(self, resolution: int) -> Float[Tensor, "*images"]:
        """Σ log(√(2π) ν √S K/N) over the independent values: two a coefficient, but one at k = 0."""
        log_each = (math.sqrt(2 * math.pi) * self.deviations(resolution) * resolution / self.box_size).log()
        return 2 * log_each.sum() - log_each[0] + degrees_of_freedom(resolution) * self.scale.log()

    def summary(self, n_images: int, like: Float[Tensor, "..."]) -> Float[Tensor, "images 1"]:
        """log of the root mean square of a pixel's noise, without the level."""
        told = self.scale.log() + self.deviations(self.box_size)[1:].square().mean().sqrt().log()
        told = told.to(like)
        return (told if told.ndim else told.repeat(n_images))[:, None]

    def __getitem__(self, index: Index) -> "RadialNoise":
        """That of some images."""
        return self._with(self.scale[index]) if self.scale.ndim else self

    def to(self, device: torch.device | str) -> "RadialNoise":
        """The same for images on another device."""
        changed = self._with(self.scale.to(device))
        changed.power = self.power.to(device)
        return changed

    def unit(self) -> tuple["RadialNoise", Float[Tensor, "*images"]]:
        """That of a scale of 1, and ν."""
        return self._with(self.scale.new_ones(())), self.scale

    def _with(self, scale: Float[Tensor, "*images"]) -> "RadialNoise":
        """The same with other scales."""
        changed = copy.copy(self)
        changed.scale = scale
        return changed


@functools.lru_cache(maxsize=8)
def shell_hats(
    resolution: int, n_shells: int, device: torch.device | str | None = None
) -> Float[Tensor, "kept shells"]:
    """Weights by which a spectrum is interpolated at each frequency that K keeps; the last one beyond.

    Examples
    --------
    >>> shell_hats(4, 3)[2:4].round(decimals=2)
    tensor([[0.0000, 0.5900, 0.4100],
            [0.0000, 1.0000, 0.0000]], dtype=torch.float64)
    """
    radius = half_plane_frequencies(resolution, device).double().norm(dim=-1).clamp(max=n_shells - 1)
    return (1 - (radius[:, None] - torch.arange(n_shells, device=device)).abs()).clamp(min=0.0)
