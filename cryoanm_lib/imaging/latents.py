"""What an image depends on: bend, rotation, focus, shift and contrast."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryoanm_lib.errors import ForwardModelError
from cryoanm_lib.numerics.rotation import rotation_z


@dataclass(frozen=True, eq=False)
class Latents:
    """What one image depends on, batch first.

    Attributes
    ----------
    amplitudes : Float[Tensor, "*#batch modes"]
        α of each mode; it moves the structure by an RMSD of α/√n Å.
    rotations : Float[Tensor, "*#batch 3 3"]
        Active rotation matrices.
    defocus : Float[Tensor, "*#batch"]
        z in natural units, px².
    shifts : Float[Tensor, "*#batch 2"]
        Displacement (x, y) of the projection in pixels.
    contrast : Float[Tensor, "*#batch"], optional
        Factor on the image; none is 1.
    """

    amplitudes: Float[Tensor, "*#batch modes"]
    rotations: Float[Tensor, "*#batch 3 3"]
    defocus: Float[Tensor, "*#batch"]
    shifts: Float[Tensor, "*#batch 2"]
    contrast: Float[Tensor, "*#batch"] | None = None

    def __post_init__(self) -> None:
        """Fill in the contrast; refuse batch shapes of which none holds the others: (B,) and (B, 1)."""
        if self.contrast is None:
            object.__setattr__(self, "contrast", torch.ones_like(self.defocus))
        shapes = {
            "amplitudes": self.amplitudes.shape[:-1],
            "rotations": self.rotations.shape[:-2],
            "defocus": self.defocus.shape,
            "shifts": self.shifts.shape[:-1],
            "contrast": self.contrast.shape,
        }
        try:
            together = torch.broadcast_shapes(*shapes.values())
        except RuntimeError:
            together = None
        if together not in shapes.values():
            listed = ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
            raise ForwardModelError(
                f"batch shapes do not agree: {listed}: give each latent the same leading dimensions"
            )

    @classmethod
    def in_plane(
        cls,
        pose: Float[Tensor, "*#batch"],
        amplitude: Float[Tensor, "*#batch modes"],
        defocus: Float[Tensor, "*#batch"],
        shift: Float[Tensor, "*#batch 2"] | None = None,
    ) -> "Latents":
        """The paper's case: turned about the viewing direction by a pose in radians, and centred."""
        if shift is None:
            shift = torch.zeros(*pose.shape, 2, dtype=pose.dtype, device=pose.device)
        return cls(amplitude, rotation_z(pose), defocus, shift)
