"""Rotations: in-plane angles on SO(2), matrices on SO(3), and the distances between them."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def wrap_angle(angle: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Bring an angle in radians into [-π, π)."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


def angle_distance(a: Float[Tensor, "*batch"], b: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Geodesic distance between two in-plane angles, in radians in [0, π]."""
    return wrap_angle(a - b).abs()


def angle_to_unit_vector(angle: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch 2"]:
    """The unit vector (cos θ, sin θ) on which a projected normal lives."""
    return torch.stack([angle.cos(), angle.sin()], dim=-1)


def unit_vector_to_angle(vector: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch"]:
    """The angle θ of (cos θ, sin θ), in radians in [-π, π]; the vector's length does not matter."""
    return torch.atan2(vector[..., 1], vector[..., 0])


def rotation_z(angle: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch 3 3"]:
    """The active, right-handed rotation by θ (radians) about z, the viewing direction."""
    return rotation_from_unit_vector(angle_to_unit_vector(angle))


def rotation_from_unit_vector(vector: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch 3 3"]:
    """The rotation about z that takes the x axis to (c, s): [[c, -s, 0], [s, c, 0], [0, 0, 1]]."""
    cos, sin = vector.unbind(-1)
    zero, one = torch.zeros_like(cos), torch.ones_like(cos)
    rows = [cos, -sin, zero, sin, cos, zero, zero, zero, one]
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def rotation_distance(a: Float[Tensor, "*batch 3 3"], b: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch"]:
    """Geodesic distance on SO(3), the angle in radians in [0, π] of the rotation that takes a to b.

    With d = ||a - b||_F the angle is 2 arcsin(d / √8), which stays accurate near zero where the usual
    arccos((tr(aᵀb) - 1) / 2) loses half of its digits.
    """
    chord = torch.linalg.matrix_norm(a - b) / math.sqrt(8.0)
    return 2 * torch.arcsin(chord.clamp(max=1.0))
