"""Rotations spread evenly over SO(3)."""

import math

import torch
from jaxtyping import Float64
from torch import Tensor

# The two irrational steps of super-Fibonacci spirals: √2, and the real root of ψ⁴ = ψ + 4.
_PHI, _PSI = math.sqrt(2.0), 1.533751168755204288118041


def so3_grid(count: int, device: torch.device | str | None = None) -> Float64[Tensor, "count 4"]:
    """Unit quaternions of a super-Fibonacci spiral, which fills SO(3) evenly with any number of points.

    With s_i = i + 1/2, quaternion i is (√t sin a, √t cos a, √(1 - t) sin b, √(1 - t) cos b) at t = s_i/count,
    a = 2π s_i/√2, b = 2π s_i/ψ (Alexa, CVPR 2022).

    Examples
    --------
    >>> so3_grid(1000).norm(dim=1).max().item()
    1.0
    """
    s = torch.arange(count, dtype=torch.float64, device=device) + 0.5
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
