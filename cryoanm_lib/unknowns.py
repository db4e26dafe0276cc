"""The unknown numbers of an image as columns of a table, and how one moves among them."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryoanm_lib.program import LATENTS, CryoProgram
from cryoanm_lib.rotation import angle_to_unit_vector, unit_vector_to_angle, wrap_angle


@dataclass(frozen=True)
class Unknowns:
    """The latents that are inferred, in the order of `LATENTS`: a pose is one angle in radians.

    Attributes
    ----------
    names : tuple of str
        Latents.
    n_modes : int
        Columns of the amplitude.

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

    @classmethod
    def of(cls, program: CryoProgram) -> "Unknowns":
        """What a program infers."""
        return cls(tuple(n for n in LATENTS if n in program.inferred), program.forward_model.n_modes)

    @property
    def columns(self) -> tuple[str, ...]:
        """The latent that each column belongs to."""
        return tuple(n for name in self.names for n in [name] * self._width(name))

    def _width(self, name: str) -> int:
        return self.n_modes if name == "amplitude" else 1

    def latents(self, values: Float[Tensor, "*batch columns"]) -> dict[str, Float[Tensor, "..."]]:
        """Latents by name, as in `Particles`: the pose as a unit vector."""
        parts = values.split([self._width(name) for name in self.names], dim=-1)
        made = {
            "pose": lambda part: angle_to_unit_vector(part[..., 0]),
            "amplitude": lambda part: part,
            "defocus": lambda part: part[..., 0],
        }
        return {name: made[name](part) for name, part in zip(self.names, parts, strict=True)}

    def values(self, latents: Mapping[str, Tensor]) -> Float[Tensor, "*batch columns"]:
        """The columns, from latents by name."""
        made = {
            "pose": lambda value: unit_vector_to_angle(value)[..., None],
            "amplitude": lambda value: value,
            "defocus": lambda value: value[..., None],
        }
        return torch.cat([made[name](latents[name]) for name in self.names], dim=-1)

    def wrapped(self, values: Float[Tensor, "*batch columns"]) -> Float[Tensor, "*batch columns"]:
        """The same point, its angle in [-π, π]."""
        turns = torch.tensor([name == "pose" for name in self.columns], device=values.device)
        return torch.where(turns, wrap_angle(values), values)

    def offset(
        self, values: Float[Tensor, "*#batch columns"], origin: Float[Tensor, "*#batch columns"]
    ) -> Float[Tensor, "*batch columns"]:
        """The way from `origin` to `values`, the shorter one round the circle."""
        return self.wrapped(values - origin)
