"""The table of latents: all that an image depends on, one record each, and every name by which it goes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from cryoanm_lib.errors import ForwardModelError
from cryoanm_lib.numerics.manifolds import CIRCLE, LINE, ROTATIONS, Line
from cryoanm_lib.numerics.rotation import rotation_from_quaternion, rotation_from_unit_vector

#: Latents of images by name, batch first: what the forward model draws from, and what inference answers.
Values = Mapping[str, Float[Tensor, "..."]]


@dataclass(frozen=True)
class Latent:
    """One thing that an image depends on.

    Attributes
    ----------
    name : str
        Of the site in Pyro, of the key in every table of values.
    shape : tuple of int or str
        Of the value of one image: () for a number; "modes" stands for how many modes there are.
    manifold : Line, Circle or Rotations
        Where values lie.
    frame : str
        Whether it is easier to read off the image as the "detector" has it, or turned back to where the
        "molecule" lies upright. What looks the same from both, as a radial transfer does, is of the molecule.
    acts_on : str
        "atoms", which it moves on the detector; the "transfer" of the microscope; or the "scale", a factor.
    unit : str
        Of residuals in tables and figures; angles are shown in degrees.
    symbol : str
        In figures and equations.
    rest : float
        Value where images do not have it; a pose always must be given.
    """

    name: str
    shape: tuple[int | Literal["modes"], ...] = ()
    manifold: Line = LINE
    frame: Literal["molecule", "detector"] = "detector"
    acts_on: Literal["atoms", "transfer", "scale"] = "transfer"
    unit: str = ""
    symbol: str = ""
    rest: float = 0.0

    def shape_for(self, n_modes: int) -> tuple[int, ...]:
        """Shape of the value of one image, given the number of modes."""
        return tuple(n_modes if size == "modes" else size for size in self.shape)

    def width_for(self, n_modes: int) -> int:
        """Numbers in the value of one image."""
        return torch.Size(self.shape_for(n_modes)).numel()

    def rows(self, value: Float[Tensor, "..."]) -> Float[Tensor, "*batch width"]:
        """A value as a vector, also where it is a number."""
        return value if self.shape else value[..., None]

    def unrows(self, rows: Float[Tensor, "*batch width"]) -> Float[Tensor, "..."]:
        """The inverse of `rows`."""
        return rows if self.shape else rows[..., 0]

    @property
    def metric(self) -> str:
        """Key of its mean residual among the metrics of a run."""
        return f"{self.name}_residual_mean" + {"°": "_deg", "px": "_px"}.get(self.unit, "")

    @property
    def label(self) -> str:
        """What an axis says of it."""
        return " ".join(filter(None, (self.name, self.symbol, self.unit and f"({self.unit})")))

    @property
    def residual_label(self) -> str:
        """What an axis says of its residual."""
        return " ".join(filter(None, (self.name, self.unit and f"({self.unit})")))

    @property
    def suffix(self) -> str:
        """What stands behind a number of it."""
        return self.unit if self.unit == "°" else f" {self.unit}".rstrip()

    def in_units(self, distance: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """A distance on the manifold in the unit of tables."""
        return torch.rad2deg(distance) if self.manifold.turns else distance


POSE = Latent("pose", (2,), CIRCLE, acts_on="atoms", unit="°", symbol="θ")
POSE_IN_SPACE = Latent("pose", (4,), ROTATIONS, acts_on="atoms", unit="°", symbol="θ")
SHIFT = Latent("shift", (2,), acts_on="atoms", unit="px", symbol="s")
AMPLITUDE = Latent("amplitude", ("modes",), frame="molecule", acts_on="atoms", unit="Å", symbol="α")
DEFOCUS = Latent("defocus", frame="molecule", unit="px²", symbol="z")
UNDERFOCUS = Latent("defocus", frame="molecule", unit="Å", symbol="Δf")
ASTIGMATISM = Latent("astigmatism", (2,), unit="Å", symbol="a")
PHASE_SHIFT = Latent("phase_shift", frame="molecule", unit="rad", symbol="φ")
B_FACTOR = Latent("b_factor", frame="molecule", unit="Å²", symbol="B")
CONTRAST = Latent("contrast", frame="molecule", acts_on="scale", symbol="c", rest=1.0)

#: What a pose may be.
POSES = {"plane": POSE, "space": POSE_IN_SPACE}

#: The latents by name, in the order in which a guide draws them and points hold them.
_OPTICS = (ASTIGMATISM, PHASE_SHIFT, B_FACTOR)
LATENTS = {latent.name: latent for latent in (POSE, SHIFT, AMPLITUDE, DEFOCUS, *_OPTICS, CONTRAST)}

#: Their names, as a type that profiles are checked against.
LatentName: TypeAlias = Literal[tuple(LATENTS)]  # pyright: ignore[reportInvalidTypeForm]


def pose_to_rotation(pose: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch 3 3"]:
    """The rotation matrix of a pose: a unit vector turns in the plane, a unit quaternion in every way."""
    return rotation_from_unit_vector(pose) if pose.shape[-1] == 2 else rotation_from_quaternion(pose)


def in_plane(
    pose: Float[Tensor, "*batch"], amplitude: Float[Tensor, "*batch modes"], **others: Float[Tensor, "..."]
) -> dict[str, Float[Tensor, "..."]]:
    """Values of images turned about the viewing direction, from the angle of the pose in radians.

    Examples
    --------
    >>> in_plane(torch.tensor(0.0), torch.zeros(1), defocus=torch.tensor(50.0))["pose"]
    tensor([1., 0.])
    """
    return {"pose": CIRCLE.value(pose[..., None]), "amplitude": amplitude, **others}


def check_batches(values: Values, latents: Iterable[Latent]) -> None:
    """Refuse values whose batch shapes do not fit together: (B,) and (B, 1).

    Raises
    ------
    ForwardModelError
        If there is none among them that holds the others.
    """
    known = [latent for latent in latents if latent.name in values]
    shapes = {o.name: values[o.name].shape[: values[o.name].ndim - len(o.shape)] for o in known}
    try:
        together = torch.broadcast_shapes(*shapes.values())
    except RuntimeError:
        together = None
    if together not in shapes.values():
        listed = ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
        raise ForwardModelError(
            f"batch shapes do not agree: {listed}: give each latent the same leading dimensions"
        )
