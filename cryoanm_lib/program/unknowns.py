"""The unknown numbers of an image as columns of a table, and how one moves among them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryoanm_lib.numerics.rotation import (
    angle_to_unit_vector,
    rotvec_between,
    turned_by,
    unit_vector_to_angle,
    wrap_angle,
)
from cryoanm_lib.program.prior import LATENTS
from cryoanm_lib.program.program import CryoProgram

#: Whole turns to either side that a density counts: the widest pose, that of a uniform one, has a deviation
#: of π/√3 about an axis.
TURNS = (-2, -1, 0, 1, 2)


@dataclass(frozen=True)
class Unknowns:
    """The latents that are inferred, in the order of `LATENTS`, as a point and as steps from it.

    A point has a column for every number: a pose in the plane is one angle in radians, one in space a unit
    quaternion. A step has one for every way to move: a pose in space moves by a rotation vector in radians,
    everything else by a difference.

    Attributes
    ----------
    names : tuple of str
        Latents.
    n_modes : int
        Columns of the amplitude.
    in_space : bool
        Whether the pose is a quaternion.

    Examples
    --------
    >>> unknowns = Unknowns(("pose", "amplitude"), n_modes=2)
    >>> unknowns.columns
    ('pose', 'amplitude', 'amplitude')
    >>> unknowns.offset(torch.tensor([3.1, 1.0, 0.0]), torch.tensor([-3.1, 0.0, 0.0])).round(decimals=3)
    tensor([-0.0830,  1.0000,  0.0000])
    """

    names: tuple[str, ...]
    n_modes: int
    in_space: bool = False

    @classmethod
    def of(cls, program: CryoProgram) -> "Unknowns":
        """What a program infers."""
        names = tuple(n for n in LATENTS if n in program.inferred)
        return cls(names, program.forward_model.n_modes, program.prior.pose == "space")

    @property
    def columns(self) -> tuple[str, ...]:
        """The latent that each column of a step belongs to."""
        return tuple(n for name in self.names for n in [name] * self._steps(name))

    @property
    def directions(self) -> tuple[str, ...]:
        """The directions of `ForwardModel.slopes` that the columns of a step are."""
        return tuple("rotation" if self.in_space and n == "pose" else n for n in self.names)

    @property
    def width(self) -> int:
        """Columns of a point."""
        return sum(self._numbers(name) for name in self.names)

    def _steps(self, name: str) -> int:
        return {"pose": 3 if self.in_space else 1, "shift": 2, "amplitude": self.n_modes}.get(name, 1)

    def _numbers(self, name: str) -> int:
        return 4 if self.in_space and name == "pose" else self._steps(name)

    @property
    def _turns(self) -> bool:
        return "pose" in self.names

    def latents(self, values: Float[Tensor, "*batch width"]) -> dict[str, Float[Tensor, "..."]]:
        """Latents by name, as in `Particles`: the pose as a unit vector or quaternion."""
        parts = values.split([self._numbers(name) for name in self.names], dim=-1)
        made = {
            "pose": lambda part: part if self.in_space else angle_to_unit_vector(part[..., 0]),
            "shift": lambda part: part,
            "amplitude": lambda part: part,
        }
        alone = {name: made.get(name, lambda part: part[..., 0]) for name in self.names}
        return {name: alone[name](part) for name, part in zip(self.names, parts, strict=True)}

    def values(self, latents: Mapping[str, Tensor]) -> Float[Tensor, "*batch width"]:
        """The point, from latents by name."""
        made = {
            "pose": lambda value: value if self.in_space else unit_vector_to_angle(value)[..., None],
            "shift": lambda value: value,
            "amplitude": lambda value: value,
        }
        alone = {name: made.get(name, lambda value: value[..., None]) for name in self.names}
        return torch.cat([alone[name](latents[name]) for name in self.names], dim=-1)

    def moved(
        self, values: Float[Tensor, "*#batch width"], step: Float[Tensor, "*#batch columns"]
    ) -> Float[Tensor, "*batch width"]:
        """The point that a step leads to; an angle stays in [-π, π], a quaternion of length 1."""
        if not self.in_space or not self._turns:
            return self._wrapped(values + step)
        turned = turned_by(values[..., :4], step[..., :3])
        others = values[..., 4:] + step[..., 3:]
        return torch.cat([turned.expand(*others.shape[:-1], 4), others], dim=-1)

    def offset(
        self, values: Float[Tensor, "*#batch width"], origin: Float[Tensor, "*#batch width"]
    ) -> Float[Tensor, "*batch columns"]:
        """The step from `origin` to `values`, by the shorter way round."""
        if not self.in_space or not self._turns:
            return self._wrapped(values - origin)
        turn = rotvec_between(origin[..., :4], values[..., :4])
        return torch.cat([turn, values[..., 4:] - origin[..., 4:]], dim=-1)

    def _wrapped(self, values: Float[Tensor, "*batch columns"]) -> Float[Tensor, "*batch columns"]:
        """The pose, which comes first, in [-π, π]."""
        if not self._turns:
            return values
        return torch.cat([wrap_angle(values[..., :1]), values[..., 1:]], dim=-1)

    def ways(
        self, step: Float[Tensor, "*batch columns"]
    ) -> list[tuple[Float[Tensor, "*batch columns"], Float[Tensor, "*batch"]]]:
        """All steps that end where this one does, and the logarithm of the volume that each one makes there.

        The pose may go round further times. On the circle a step is as long as the arc; a rotation vector of
        length φ makes (2 sin(φ/2) / φ)² of its own volume.
        """
        if not self._turns:
            return [(step, self.log_volume(step))]
        pose, others = step.tensor_split([3 if self.in_space else 1], dim=-1)
        if self.in_space:
            angle = pose.norm(dim=-1, keepdim=True)
            # Where there is no turn, any axis will do.
            none = angle < 1e-12
            axis = torch.where(none, pose.new_tensor([1.0, 0.0, 0.0]), pose / angle.clamp(min=1e-12))
        else:
            angle, axis = pose, torch.ones_like(pose)
        ways = [torch.cat([(angle + 2 * math.pi * turns) * axis, others], dim=-1) for turns in TURNS]
        return [(way, self.log_volume(way)) for way in ways]

    def log_volume(self, step: Float[Tensor, "*batch columns"]) -> Float[Tensor, "*batch"]:
        """Logarithm of the volume at the end of a step for that of steps: 0 unless a pose turns in space."""
        if not (self.in_space and self._turns):
            return step.new_zeros(step.shape[:-1])
        return 2 * torch.sinc(step[..., :3].norm(dim=-1) / (2 * math.pi)).abs().log()

    def least_precision(self) -> Float[Tensor, "columns"]:
        """1/variance of a pose of which nothing is known, per column: π²/3 about an axis; 0 of all else."""
        return torch.tensor([3 / math.pi**2 if name == "pose" else 0.0 for name in self.columns])
