"""A batch of particle images with what is known of each."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryoanm_lib.errors import CryoANMError
from cryoanm_lib.imaging.latents import Latents
from cryoanm_lib.numerics.rotation import rotation_from_quaternion, rotation_from_unit_vector


@dataclass(frozen=True)
class Particles:
    """Images as Fourier coefficients at the highest resolution in use, with the latents that made them.

    Attributes
    ----------
    coefficients : Complex[Tensor, "images kept"]
        The half plane of each image.
    latents : mapping of str to Tensor
        "pose" (B, 2), a unit vector, or (B, 4), a unit quaternion; "amplitude" (B, M); "defocus" (B,). Where
        images have them, "shift" (B, 2) in pixels and "contrast" (B,). Where it differs from image to image,
        "noise" (B,), σ_n of a pixel, which is always known.
    """

    coefficients: Complex[Tensor, "images kept"]
    latents: Mapping[str, Float[Tensor, "images ..."]]

    def __len__(self) -> int:
        return len(self.coefficients)

    def __getitem__(self, index: Tensor | slice) -> "Particles":
        return Particles(self.coefficients[index], {name: v[index] for name, v in self.latents.items()})

    def to(self, device: torch.device | str) -> "Particles":
        """The same images on another device."""
        latents = {name: v.to(device) for name, v in self.latents.items()}
        return Particles(self.coefficients.to(device), latents)


def require_images(particles: Particles) -> None:
    """Refuse images of which no posterior can be computed.

    Raises
    ------
    CryoANMError
        If there is none, one is not finite, or they are on another device than the CPU.
    """
    device = particles.coefficients.device
    if device.type != "cpu":
        raise CryoANMError(
            f"the images are on {device}, and posteriors are computed on the CPU: use particles.to('cpu') "
            "and program.cpu()"
        )
    if not len(particles):
        raise CryoANMError("there are 0 images: give at least one")
    wrong = torch.nonzero(~particles.coefficients.isfinite().all(-1))[:, 0].tolist()
    if wrong:
        raise CryoANMError(f"images {wrong[:5]} hold NaN or infinite values: leave them out")


def pose_to_rotation(pose: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch 3 3"]:
    """The rotation matrix of a pose: a unit vector turns in the plane, a unit quaternion in every way."""
    return rotation_from_unit_vector(pose) if pose.shape[-1] == 2 else rotation_from_quaternion(pose)


def to_forward(latents: Mapping[str, Tensor]) -> Latents:
    """The forward model's latents from the program's: a pose becomes a rotation, what is absent no change."""
    rotations = pose_to_rotation(latents["pose"])
    none = rotations.new_zeros(*rotations.shape[:-2], 2)
    return Latents(
        *(latents["amplitude"], rotations, latents["defocus"]),
        *(latents.get("shift", none), latents.get("contrast")),
    )
