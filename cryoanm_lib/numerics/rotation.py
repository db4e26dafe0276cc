"""Rotations: in-plane angles on SO(2), quaternions and matrices on SO(3), and the distances between them.

Rotations are active and right-handed: seen along +z, from the detector, a positive angle takes x to y. A
quaternion is (w, x, y, z) = (cos φ/2, n sin φ/2) for a turn by φ about the axis n; h and -h are one rotation.
A step from a rotation is a rotation vector φ n in radians along the axes of the detector, taken after it.
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


def rotation_from_unit_vector(vector: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch 3 3"]:
    """The rotation about z that takes the x axis to (c, s): [[c, -s, 0], [s, c, 0], [0, 0, 1]]."""
    cos, sin = vector.unbind(-1)
    zero, one = torch.zeros_like(cos), torch.ones_like(cos)
    rows = [cos, -sin, zero, sin, cos, zero, zero, zero, one]
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def cross_matrix(vector: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """The matrix v× that takes the cross product with a vector from the left, (v×) x = v × x.

    Examples
    --------
    >>> v, x = torch.tensor([[1.0, 2.0, 3.0], [0.0, -1.0, 4.0]])
    >>> torch.equal(cross_matrix(v) @ x, torch.linalg.cross(v, x))
    True
    """
    x, y, z = vector.unbind(-1)
    none = torch.zeros_like(x)
    return torch.stack([none, -z, y, z, none, -x, -y, x, none], dim=-1).unflatten(-1, (3, 3))


def quaternion_product(
    a: Float[Tensor, "*#batch 4"], b: Float[Tensor, "*#batch 4"]
) -> Float[Tensor, "*batch 4"]:
    """The rotation b followed by the rotation a.

    Examples
    --------
    >>> about_x, about_y = torch.eye(4)[1], torch.eye(4)[2]
    >>> quaternion_product(about_x, about_y).tolist()
    [0.0, 0.0, 0.0, 1.0]
    """
    (aw, ax, ay, az), (bw, bx, by, bz) = a.unbind(-1), b.unbind(-1)
    product = (
        aw * bw - ax * bx - ay * by - az * bz,
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
    )
    return torch.stack(product, dim=-1)


def quaternion_conjugate(quaternion: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4"]:
    """The inverse rotation."""
    return torch.cat([quaternion[..., :1], -quaternion[..., 1:]], dim=-1)


def quaternion_z(angle: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch 4"]:
    """The turn by an angle (radians) about z, the viewing direction."""
    zero = torch.zeros_like(angle)
    return torch.stack([(angle / 2).cos(), zero, zero, (angle / 2).sin()], dim=-1)


def rotation_from_quaternion(quaternion: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 3 3"]:
    """The rotation matrix of a unit quaternion; h and -h give the same one.

    Examples
    --------
    >>> rotation_from_quaternion(torch.tensor([0.0, 0.0, 0.0, -1.0])).diagonal().tolist()
    [-1.0, -1.0, 1.0]
    """
    w, x, y, z = quaternion.unbind(-1)
    rows = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    ]
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def quaternion_from_rotvec(step: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 4"]:
    """The rotation by |v| radians about v: the exponential map."""
    half = 0.5 * step.norm(dim=-1, keepdim=True)
    # sinc(x) = sin(πx) / πx is smooth where there is no axis.
    return torch.cat([half.cos(), 0.5 * torch.sinc(half / math.pi) * step], dim=-1)


def rotvec_from_quaternion(quaternion: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 3"]:
    """The rotation vector of a unit quaternion, no longer than π: the inverse of `quaternion_from_rotvec`.

    Examples
    --------
    >>> step = torch.tensor([0.1, -0.2, 0.3])
    >>> torch.allclose(rotvec_from_quaternion(-quaternion_from_rotvec(step)), step)
    True
    """
    vector = torch.where(quaternion[..., :1] < 0, -quaternion[..., 1:], quaternion[..., 1:])
    sine = vector.norm(dim=-1, keepdim=True)
    half = torch.atan2(sine, quaternion[..., :1].abs())
    return torch.where(sine > 0, 2 * half / torch.where(sine > 0, sine, 1.0), 2.0) * vector


def turned_by(
    quaternion: Float[Tensor, "*#batch 4"], step: Float[Tensor, "*#batch 3"]
) -> Float[Tensor, "*batch 4"]:
    """The rotation that a step from another one leads to, renormalised."""
    moved = quaternion_product(quaternion_from_rotvec(step), quaternion)
    return moved / moved.norm(dim=-1, keepdim=True)


def rotvec_between(
    origin: Float[Tensor, "*#batch 4"], target: Float[Tensor, "*#batch 4"]
) -> Float[Tensor, "*batch 3"]:
    """The step that leads from one rotation to another by the shorter way: `turned_by` undone."""
    return rotvec_from_quaternion(quaternion_product(target, quaternion_conjugate(origin)))


def quaternion_distance(
    a: Float[Tensor, "*#batch 4"], b: Float[Tensor, "*#batch 4"]
) -> Float[Tensor, "*batch"]:
    """Geodesic distance between two rotations, in radians in [0, π], accurate at either end."""
    return rotvec_between(a, b).norm(dim=-1)


def mean_quaternion(
    quaternions: Float[Tensor, "draws *batch 4"], weights: Float[Tensor, "draws *batch"] | None = None
) -> Float[Tensor, "*batch 4"]:
    """The rotation closest to all of several, by the mean of h hᵀ, which does not know the signs."""
    weights = torch.ones_like(quaternions[..., 0]) if weights is None else weights
    moment = torch.einsum("s...,s...a,s...b->...ab", weights, quaternions, quaternions)
    return torch.linalg.eigh(moment)[1][..., -1]
