"""Rotations spread evenly over SO(3)."""

import math

import scipy  # loads its rotations where they are first used
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from cryoanm_lib.errors import CryoANMError

# The two irrational steps of super-Fibonacci spirals: √2, and the real root of ψ⁴ = ψ + 4.
_PHI, _PSI = math.sqrt(2.0), 1.533751168755204288118041


def so3_grid(count: int) -> Float64[Tensor, "count 4"]:
    """Unit quaternions of a super-Fibonacci spiral, which fills SO(3) evenly with any number of points.

    With s_i = i + 1/2, quaternion i is (√t sin a, √t cos a, √(1 - t) sin b, √(1 - t) cos b) at t = s_i/count,
    a = 2π s_i/√2, b = 2π s_i/ψ (Alexa, CVPR 2022).

    Examples
    --------
    >>> so3_grid(1000).norm(dim=1).max().item()
    1.0
    """
    s = torch.arange(count, dtype=torch.float64) + 0.5
    t, a, b = s / count, 2 * math.pi * s / _PHI, 2 * math.pi * s / _PSI
    inner, outer = t.sqrt(), (1 - t).sqrt()
    return torch.stack([inner * a.sin(), inner * a.cos(), outer * b.sin(), outer * b.cos()], dim=-1)


def count_for(spacing: float) -> int:
    """Rotations of a grid whose neighbours are about `spacing` degrees apart: 8π² over the cube of it.

    Examples
    --------
    >>> count_for(10.0)
    14852
    """
    return math.ceil(8 * math.pi**2 / math.radians(spacing) ** 3)


def in_asymmetric_unit(
    quaternions: Float64[Tensor, "rotations 4"], symmetry: str
) -> Bool[Tensor, "rotations"]:
    """Which rotations R are no further from rest than any R S that a symmetric molecule looks the same from.

    Of the rotations that differ by the symmetry alone one is marked. The group is C4, D2, T, O or I, its main
    axis along z, as SciPy has it.

    Raises
    ------
    CryoANMError
        If there is no such group.

    Examples
    --------
    >>> in_asymmetric_unit(so3_grid(1200), "D3").sum().item()
    198
    """
    try:
        group = scipy.spatial.transform.Rotation.create_group(symmetry)
    except ValueError as error:
        raise CryoANMError(
            f"symmetry {symmetry!r} does not exist: choose C1, C2 …, D2, D3 …, T, O or I"
        ) from error
    # the real part of the product of two quaternions, of which the inverse is in the group too
    turned = (quaternions @ torch.from_numpy(group.as_quat(scalar_first=True)).T).abs()
    return turned.amax(dim=1) <= quaternions[:, 0].abs() + 1e-12
