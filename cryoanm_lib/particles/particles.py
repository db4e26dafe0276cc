"""A batch of particle images with what is known of each; and images whose truth is known."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryoanm_lib.errors import CryoANMError
from cryoanm_lib.imaging.latents import Values
from cryoanm_lib.imaging.noise import Noise

_Images = TypeVar("_Images", bound="Particles")


@dataclass(frozen=True, eq=False)
class Particles:
    """Images as Fourier coefficients at the highest resolution in use.

    Attributes
    ----------
    coefficients : Complex[Tensor, "images kept"]
        The half plane of each image.
    given : mapping of str to Tensor
        Latents that are known of each image, by name.
    noise : Noise
        Of the images.
    """

    coefficients: Complex[Tensor, "images kept"]
    given: Values
    noise: Noise

    def __len__(self) -> int:
        """Number of images."""
        return len(self.coefficients)

    def __getitem__(self: _Images, index: Tensor | slice) -> _Images:
        return self._changed(lambda value: value[index], self.noise[index])

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.coefficients.device

    def to(self: _Images, device: torch.device | str) -> _Images:
        """The same images on another device."""
        return self._changed(lambda value: value.to(device), self.noise.to(device))

    def _changed(self: _Images, change: Callable[[Tensor], Tensor], noise: Noise) -> _Images:
        """With the coefficients and every table of values changed alike."""
        tables = {name: table for name, table in vars(self).items() if isinstance(table, Mapping)}
        changed = {name: {key: change(table[key]) for key in table} for name, table in tables.items()}
        return replace(self, coefficients=change(self.coefficients), noise=noise, **changed)


@dataclass(frozen=True, eq=False)
class Simulated(Particles):
    """Images with the latents that made them, which nothing but a check asks for, and simulated training.

    Attributes
    ----------
    truth : mapping of str to Tensor
        "pose" (B, 2), a unit vector, or (B, 4), a unit quaternion; "amplitude" (B, M); "defocus" (B,). Where
        images have them, "shift" (B, 2) in pixels and "contrast" (B,).
    """

    truth: Mapping[str, Float[Tensor, "images ..."]]

    def giving(self, names: Iterable[str]) -> "Simulated":
        """The same images, of which these latents are given."""
        return replace(self, given={name: self.truth[name] for name in names if name in self.truth})


def require_cpu(particles: Particles) -> None:
    """Refuse images that are elsewhere, where something is computed on the CPU alone.

    Raises
    ------
    CryoANMError
        Naming where they are.
    """
    if particles.device.type != "cpu":
        raise CryoANMError(
            f"this is computed on the CPU, and the images are on {particles.device}: refine them there, by "
            "particles.to('cpu') and model.cpu()"
        )


def require_images(particles: Particles, device: torch.device) -> None:
    """Refuse images of which no posterior can be computed on a device, which is the model's.

    Raises
    ------
    CryoANMError
        If there is none, one is not finite, or they or what is given of them are on another device.
    """
    given = {f"given {name}": table.device for name, table in particles.given.items()}
    for name, place in {"images": particles.device, **given}.items():
        if place != device:
            raise CryoANMError(
                f"{name} on {place} and a model on {device} do not meet: use particles.to('{device}') or "
                f"model.to('{place}')"
            )
    if not len(particles):
        raise CryoANMError("there are 0 images: give at least one")
    wrong = torch.nonzero(~particles.coefficients.isfinite().all(-1))[:, 0].tolist()
    if wrong:
        raise CryoANMError(f"images {wrong[:5]} hold NaN or infinite values: leave them out")
