"""Where the values of a latent lie, and how one moves among them: a line, a circle, rotations of space.

A value is what programs pass on: a number, a vector, a unit vector for an angle, a unit quaternion for a
rotation. A point holds the numbers that are searched and refined, a step the ways to move from it: an angle
is one number and moves by one, a rotation is a unit quaternion and moves by a rotation vector in radians.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from cryoanm_lib.numerics.constants import constant
from cryoanm_lib.numerics.rotation import (
    angle_distance,
    angle_to_unit_vector,
    mean_quaternion,
    quaternion_distance,
    rotvec_between,
    turned_by,
    unit_vector_to_angle,
    wrap_angle,
)

Value = Float[Tensor, "*#batch width"]
Point = Float[Tensor, "*#batch numbers"]
Step = Float[Tensor, "*#batch columns"]

#: Whole turns to either side that a density counts: the widest, that of a uniform pose, has a deviation of
#: π/√3 about an axis.
TURNS = (-2, -1, 0, 1, 2)


@dataclass(frozen=True)
class Line:
    """Numbers that differ by numbers.

    Attributes
    ----------
    turns : bool
        Whether one that goes on comes back.
    least_precision : float
        1/variance along each column of a value of which nothing is known.
    anywhere : float
        Mean distance of two such values in degrees, where they are angles.
    unit : float
        A step that is short for every data set, by which chains measure.
    numbers, columns : int, optional
        Numbers of a point and ways to move from it; default as many as a value has numbers.
    """

    turns: bool = False
    least_precision: float = 0.0
    anywhere: float = math.inf
    unit: float = 1.0
    numbers: int | None = None
    columns: int | None = None

    def n_numbers(self, width: int) -> int:
        """Numbers of a point, for values of so many."""
        return self.numbers or width

    def n_columns(self, width: int) -> int:
        """Ways to move, for values of so many numbers."""
        return self.columns or width

    def point(self, value: Value) -> Point:
        """The point that holds a value."""
        return value

    def value(self, point: Point) -> Value:
        """The value that a point holds."""
        return point

    def moved(self, point: Point, step: Step) -> Point:
        """Where a step leads to."""
        return point + step

    def offset(self, point: Point, origin: Point) -> Step:
        """The step from the origin to a point, by the shorter way round."""
        return point - origin

    def ways(self, step: Step) -> list[Step]:
        """All steps that end where this one does."""
        return [step]

    def log_volume(self, step: Step) -> Float[Tensor, "*batch"]:
        """Logarithm of the volume at the end of a step for that of steps."""
        return step.new_zeros(step.shape[:-1])

    def mean(
        self, values: Float[Tensor, "*batch draws width"], weights: Float[Tensor, "*batch draws"]
    ) -> Float[Tensor, "*batch width"]:
        """Mean of weighted values."""
        return torch.einsum("...d,...dw->...w", weights, values)

    def distance(self, a: Value, b: Value) -> Float[Tensor, "*batch"]:
        """Mean over the numbers of their differences; of angles, in radians."""
        return (a - b).abs().mean(-1)


@dataclass(frozen=True)
class Circle(Line):
    """Angles in radians, in [-π, π]; values are the unit vectors (cos θ, sin θ)."""

    turns: bool = True
    least_precision: float = 3 / math.pi**2
    anywhere: float = 90.0
    unit: float = 1e-3
    numbers: int | None = 1
    columns: int | None = 1

    def point(self, value: Value) -> Point:
        """The angle of a vector."""
        return unit_vector_to_angle(value)[..., None]

    def value(self, point: Point) -> Value:
        """The unit vector of an angle."""
        return angle_to_unit_vector(point[..., 0])

    def moved(self, point: Point, step: Step) -> Point:
        """Where a turn leads to."""
        return wrap_angle(point + step)

    def offset(self, point: Point, origin: Point) -> Step:
        """The turn from the origin to a point."""
        return wrap_angle(point - origin)

    def ways(self, step: Step) -> list[Step]:
        """Further turns, each as long as its arc."""
        return [step + 2 * math.pi * turns for turns in TURNS]

    def mean(
        self, values: Float[Tensor, "*batch draws 2"], weights: Float[Tensor, "*batch draws"]
    ) -> Float[Tensor, "*batch 2"]:
        """The mean direction."""
        return normalize(super().mean(values, weights), dim=-1)

    def distance(self, a: Value, b: Value) -> Float[Tensor, "*batch"]:
        """Along the circle, in radians."""
        return angle_distance(unit_vector_to_angle(a), unit_vector_to_angle(b))


@dataclass(frozen=True)
class Rotations(Line):
    """Unit quaternions, of which h and -h are one rotation, moved by rotation vectors in radians."""

    turns: bool = True
    least_precision: float = 3 / math.pi**2
    anywhere: float = 90.0 + 360.0 / math.pi**2
    unit: float = 1e-3
    numbers: int | None = 4
    columns: int | None = 3

    def moved(self, point: Point, step: Step) -> Point:
        """Where a rotation vector leads to, of length 1."""
        return turned_by(point, step)

    def offset(self, point: Point, origin: Point) -> Step:
        """The rotation vector from the origin to a point."""
        return rotvec_between(origin, point)

    def ways(self, step: Step) -> list[Step]:
        """Further turns about the same axis."""
        angle = step.norm(dim=-1, keepdim=True)
        # Where there is no turn, any axis will do.
        any_axis = constant((1.0, 0.0, 0.0), step)
        axis = torch.where(angle < 1e-12, any_axis, step / angle.clamp(min=1e-12))
        return [(angle + 2 * math.pi * turns) * axis for turns in TURNS]

    def log_volume(self, step: Step) -> Float[Tensor, "*batch"]:
        """A rotation vector of length φ makes (2 sin(φ/2) / φ)² of its own volume of SO(3)."""
        return 2 * torch.sinc(step.norm(dim=-1) / (2 * math.pi)).abs().log()

    def mean(
        self, values: Float[Tensor, "*batch draws 4"], weights: Float[Tensor, "*batch draws"]
    ) -> Float[Tensor, "*batch 4"]:
        """The rotation closest to all."""
        return mean_quaternion(values.movedim(-2, 0), weights.movedim(-1, 0))

    def distance(self, a: Value, b: Value) -> Float[Tensor, "*batch"]:
        """The angle of the turn between them, in radians."""
        return quaternion_distance(a, b)


LINE, CIRCLE, ROTATIONS = Line(), Circle(), Rotations()
