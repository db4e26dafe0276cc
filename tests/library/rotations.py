"""Rotation matrices and the angle between two, which quaternions are held against, and uniform rotations."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from cryoanm_lib.numerics.rotation import angle_to_unit_vector, rotation_from_unit_vector


def rotation_z(angle: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch 3 3"]:
    """The active, right-handed rotation by θ (radians) about z, the viewing direction.

    Examples
    --------
    >>> quarter_turn = rotation_z(torch.tensor(math.pi / 2))
    >>> (quarter_turn @ torch.tensor([2.0, 0.0, 1.0])).round().tolist()
    [-0.0, 2.0, 1.0]
    """
    return rotation_from_unit_vector(angle_to_unit_vector(angle))


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


def uniform_rotations(count: int, generator: torch.Generator) -> Float[Tensor, "count 4"]:
    """Unit quaternions of uniform rotations."""
    return torch.nn.functional.normalize(torch.randn(count, 4, generator=generator), dim=-1)
