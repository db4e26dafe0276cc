"""The microscope: what becomes of every Fourier coefficient of a projection, and the slopes of it."""

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from cryoanm_lib.imaging.latents import DEFOCUS, Latent, Values


class Transfer(ABC):
    """A real factor on each coefficient that depends on latents of its own.

    Another microscope is a subclass: `latents` names what it depends on, `values` is the factor, and `slopes`
    its derivatives, which a test holds against finite differences.
    """

    #: What it depends on, in the order in which points hold them.
    latents: tuple[Latent, ...] = ()
    #: Å per pixel, of one in physical units.
    pixel_size: float | None = None

    @abstractmethod
    def values(self, latents: Values, frequencies: Float[Tensor, "kept 2"]) -> Float[Tensor, "*batch kept"]:
        """The factor at frequencies k in cycles per pixel of the uncropped box."""

    @abstractmethod
    def slopes(
        self, latents: Values, frequencies: Float[Tensor, "kept 2"]
    ) -> dict[str, Float[Tensor, "*batch columns kept"]]:
        """Derivatives of the factor by each of its latents, a row for each of their numbers."""

    def check(self, latents: Values, box_size: int, resolution: int) -> None:  # noqa: B027  most have no limit
        """Refuse latents with which the transfer is too fine for a box's frequencies up to a resolution K."""

    def steps(self, latents: Values, highest: float) -> dict[str, list[float]]:
        """Changes of each number that move any image's factor by half at most: the cells of a lattice.

        Here by slopes along rays; a microscope that knows better says so.
        """
        radius = highest * torch.arange(1, 65, device=latents["pose"].device) / 64
        angle = math.pi * torch.arange(16, device=radius.device) / 16
        rays = torch.stack([angle.cos(), angle.sin()], dim=-1)[:, None] * radius[:, None]
        slopes = self.slopes(latents, rays.flatten(0, 1).to(latents["pose"].dtype))
        steepest = {name: slope.abs().amax(-1).flatten(end_dim=-2).amax(0) for name, slope in slopes.items()}
        return {name: (0.5 / slope).tolist() for name, slope in steepest.items()}


class SineTransfer(Transfer):
    """The paper's microscope: `ctf`, which depends on the defocus alone."""

    latents = (DEFOCUS,)

    def values(self, latents: Values, frequencies: Float[Tensor, "kept 2"]) -> Float[Tensor, "*batch kept"]:
        """sin(-z |k|²)."""
        return ctf(latents["defocus"], frequencies)

    def slopes(
        self, latents: Values, frequencies: Float[Tensor, "kept 2"]
    ) -> dict[str, Float[Tensor, "*batch 1 kept"]]:
        """-|k|² cos(z |k|²)."""
        squared = frequencies.square().sum(-1)
        slope = -squared * (latents["defocus"][..., None] * squared).cos()
        return {"defocus": slope[..., None, :]}

    def steps(self, latents: Values, highest: float) -> dict[str, list[float]]:
        """Half a radian of the phase at the highest frequency, 1 / (2 |k|²)."""
        return {"defocus": [0.5 / highest**2]}


def ctf(
    defocus: Float[Tensor, "*batch"], frequencies: Float[Tensor, "kept 2"]
) -> Float[Tensor, "*batch kept"]:
    """Contrast transfer H_z(k) = sin(-z |k|²) of a weak-phase object (Algorithm 1).

    z is in natural units, px² (the paper's prior is 50 ± 3), and k in cycles per pixel of the uncropped box.

    Examples
    --------
    >>> frequencies = torch.tensor([[0.0, 0.0], [0.1, 0.0], [0.1, 0.2]])
    >>> [f"{transfer:.3f}" for transfer in ctf(torch.tensor(50.0), frequencies)]
    ['-0.000', '-0.479', '-0.598']
    """
    return (-defocus[..., None] * frequencies.square().sum(-1)).sin()
