"""Rotations: in-plane angles on SO(2), matrices on SO(3), and the distances between them.

Rotations are active and right-handed: seen along +z, from the detector, a positive angle takes x to y.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def wrap_angle(angle: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Bring an angle in radians into [-π, π]; one that is there already stays what it is, to the last bit.

    Examples
    --------
    >>> [f"{angle:.3f}" for angle in wrap_angle(torch.tensor([0.5, 6.0]))]
    ['0.500', '-0.283']
    """
    return angle - 2 * math.pi * torch.round(angle / (2 * math.pi))


def angle_distance(a: Float[Tensor, "*#batch"], b: Float[Tensor, "*#batch"]) -> Float[Tensor, "*batch"]:
    """Geodesic distance between two in-plane angles, in radians in [0, π]."""
    return wrap_angle(a - b).abs()


def angle_to_unit_vector(angle: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch 2"]:
    """The unit vector (cos θ, sin θ) on which a projected normal lives, of an angle in radians."""
    return torch.stack([angle.cos(), angle.sin()], dim=-1)


def unit_vector_to_angle(vector: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch"]:
    """The angle θ of (cos θ, sin θ), in radians in [-π, π]; the vector's length does not matter."""
    return torch.atan2(vector[..., 1], vector[..., 0])


def rotation_z(angle: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch 3 3"]:
    """The active, right-handed rotation by θ (radians) about z, the viewing direction.

    Examples
    --------
    >>> quarter_turn = rotation_z(torch.tensor(math.pi / 2))
    >>> (quarter_turn @ torch.tensor([2.0, 0.0, 1.0])).round().tolist()
    [-0.0, 2.0, 1.0]
    """
    return rotation_from_unit_vector(angle_to_unit_vector(angle))


def rotation_from_unit_vector(vector: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch 3 3"]:
    """The rotation about z that takes the x axis to (c, s): [[c, -s, 0], [s, c, 0], [0, 0, 1]]."""
    cos, sin = vector.unbind(-1)
    zero, one = torch.zeros_like(cos), torch.ones_like(cos)
    rows = [cos, -sin, zero, sin, cos, zero, zero, zero, one]
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def rotation_distance(
    a: Float[Tensor, "*#batch 3 3"], b: Float[Tensor, "*#batch 3 3"]
) -> Float[Tensor, "*batch"]:
    """Geodesic distance on SO(3), the angle in radians in [0, π] of the rotation Q = aᵀb that takes a to b.

    θ = atan2(||Q - Qᵀ||_F / √8, (tr Q - 1) / 2), sine and cosine, is accurate to rounding at every angle; the
    usual arccos of the trace loses half of its digits near 0 and near π.

    Examples
    --------
    >>> turned = rotation_z(torch.tensor([0.0, 1e-7, 3.0]))
    >>> [f"{distance:.3g}" for distance in rotation_distance(turned, torch.eye(3))]
    ['0', '1e-07', '3']
    """
    relative = a.transpose(-2, -1) @ b
    sine = torch.linalg.matrix_norm(relative - relative.transpose(-2, -1)) / math.sqrt(8.0)
    trace = relative.diagonal(dim1=-2, dim2=-1).sum(-1)
    return torch.atan2(sine, (trace - 1) / 2)
