"""Fourier coefficients of a projection straight from the coordinates: a cost of K² and not N², and no FFT.

An atom contributes X(k_x) Y(k_y), where X is the transform of a Gaussian sampled on the pixel grid,

    X(k) = √(2π) σ_a/N Σ_a exp(-2π² σ_a² (k/N + a)²) exp(-2πi (k/N + a) x),

and the sum over aliases a makes the answer equal to sampling in space. X(-k) is the conjugate of X(k), so the
real and imaginary parts at k >= 0 give all four quadrants by one real matrix product. All lengths are in
pixels, and the origin is pixel (N//2, N//2).

What limits the speed is not the product but the sines, cosines and passes through memory on the way to it:
one sine and cosine an atom and axis is computed, all higher ones are powers of it, and images are worked on
so few at a time that their factors stay near the processor. On a CPU `fourier_loops` does it image by image.
"""

import itertools
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from cryoanm_lib.imaging import _fourier_loops as fourier_loops
from cryoanm_lib.imaging.fourier_axis import Axis, axis_for
from cryoanm_lib.numerics import compiled
from cryoanm_lib.numerics.batching import pieces


class Kinds(NamedTuple):
    """Atoms of several kinds, one kind behind the other.

    Attributes
    ----------
    starts : tuple of int
        The first atom of each kind, and behind the last one the number of all.
    weights : Float[Tensor, "kinds kept"]
        What the sum over the atoms of a kind is multiplied by, coefficient by coefficient.
    """

    starts: tuple[int, ...]
    weights: Float[Tensor, "kinds kept"]


def fourier_coefficients(
    positions: Float[Tensor, "*batch atoms 2"],
    box_size: int,
    atom_width: float,
    resolution: int,
    accuracy: float | None = None,
    kinds: Kinds | None = None,
) -> Complex[Tensor, "*batch kept"]:
    """Coefficients of the crop Π_K of the projection of atoms.

    Where a Gaussian reaches over the edge of the box it comes in again on the other side; in space it is cut
    off. Memory beyond that of the answer does not grow with the number of images, also in the derivative, of
    which there is the first alone.

    Parameters
    ----------
    positions : Float[Tensor, "*batch atoms 2"]
        (x, y) of each atom in pixels from the origin.
    box_size : int
        N, pixels along an edge, odd or even.
    atom_width : float
        σ_a in pixels.
    resolution : int
        K, from 1 to N: frequencies |k| < K/2 are returned, in the order of `half_plane_frequencies`.
    accuracy : float, optional
        A quarter of the largest error that an atom may add to a coefficient, as a share of the most that it
        may add to the mean; default the rounding of the type.
    kinds : Kinds, optional
        Weights of the atoms by their kind, in whose order they then are.

    Examples
    --------
    >>> from cryoanm_lib.numerics.fourier import image_to_coefficients
    >>> from cryoanm_lib.imaging.spatial_projection import separable_image
    >>> positions = torch.tensor([[0.3, -1.2], [2.0, 1.0]])
    >>> straight = fourier_coefficients(positions, box_size=32, atom_width=0.8, resolution=16)
    >>> through_space = image_to_coefficients(separable_image(positions, 32, 0.8), 16)
    >>> torch.allclose(straight, through_space, atol=1e-7)
    True
    """
    axis = axis_for(positions, box_size, atom_width, resolution, accuracy)
    flat, kinds = positions[None].flatten(end_dim=-3), kinds or _of_one_kind(positions.shape[-2], axis)
    found = _Compiled.apply(flat, axis, kinds) if axis.compiled else _by_products(flat, axis, kinds)
    return found.view(*positions.shape[:-2], found.shape[-1])


@torch.no_grad()
def fourier_slopes(
    positions: Float[Tensor, "*batch atoms 2"],
    velocities: Float[Tensor, "*batch directions atoms 2"],
    box_size: int,
    atom_width: float,
    resolution: int,
    accuracy: float | None = None,
    kinds: Kinds | None = None,
) -> tuple[Complex[Tensor, "*batch kept"], Complex[Tensor, "*batch directions kept"]]:
    """The coefficients of `fourier_coefficients`, and how fast they change as the atoms move.

    With X' = dX/dx an atom that moves by (v_x, v_y) changes its product by v_x X' Y + v_y X Y', so that a
    direction costs one product twice as long as that of the coefficients, and no sine or cosine. Velocities
    are the pixels that each atom moves for one unit of each direction. No gradient passes through the answer.

    Examples
    --------
    >>> positions = torch.tensor([[0.3, -1.2], [2.0, 1.0]])
    >>> to_the_right = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    >>> image, slope = fourier_slopes(positions, to_the_right, 32, 0.8, resolution=16)
    >>> step = fourier_coefficients(positions + 1e-2 * to_the_right[0], 32, 0.8, 16) - image
    >>> torch.allclose(step, 1e-2 * slope[0], atol=1e-6)
    True
    """
    axis = axis_for(positions, box_size, atom_width, resolution, accuracy)
    kinds = kinds or _of_one_kind(positions.shape[-2], axis)
    flat, moving = positions[None].flatten(end_dim=-3), velocities[None].flatten(end_dim=-4)
    slopes = _slopes_compiled if axis.compiled else _slopes_by_products
    both = slopes(flat, moving, axis, kinds)
    both = both.view(*positions.shape[:-2], *both.shape[1:])
    return both[..., 0, :], both[..., 1:, :]


def _by_products(
    flat: Float[Tensor, "images atoms 2"], axis: Axis, kinds: Kinds
) -> Complex[Tensor, "images kept"]:
    """Coefficients by matrix products of torch."""
    return _summed([half_plane(_Products.apply(flat[:, own], axis)) for own in _slices(kinds)], kinds)


def _slopes_by_products(
    flat: Float[Tensor, "images atoms 2"],
    moving: Float[Tensor, "images directions atoms 2"],
    axis: Axis,
    kinds: Kinds,
) -> Complex[Tensor, "images both kept"]:
    """Coefficients, and behind them their derivatives."""
    return _summed([_slopes(flat[:, own], moving[..., own, :], axis) for own in _slices(kinds)], kinds)


def _slopes_compiled(
    flat: Float[Tensor, "images atoms 2"],
    moving: Float[Tensor, "images directions atoms 2"],
    axis: Axis,
    kinds: Kinds,
) -> Complex[Tensor, "images both kept"]:
    """The same by the compiled loops."""
    found = axis.empty(len(flat), 1 + moving.shape[1])
    compiled.run(fourier_loops.project_slopes, _shared(kinds, axis), flat, moving, found)
    return found


def _slopes(
    flat: Float[Tensor, "images atoms 2"], moving: Float[Tensor, "images directions atoms 2"], axis: Axis
) -> Complex[Tensor, "images both kept"]:
    """The same of atoms of one kind."""
    products = flat.new_empty(len(flat), 1 + moving.shape[1], axis.width, axis.width)
    for rows in _few_at_a_time(flat, axis, copies=2 + 2 * moving.shape[1]):
        along_x, slope_x = axis.transforms(flat[rows, :, 0], orders=2)
        along_y, slope_y = axis.transforms(flat[rows, :, 1], orders=2)
        products[rows, 0] = along_x @ along_y.transpose(-2, -1)
        velocity_x, velocity_y = moving[rows, :, None].unbind(-1)
        left = torch.cat([slope_x[:, None] * velocity_x, along_x[:, None] * velocity_y], dim=-1)
        right = torch.cat([along_y, slope_y], dim=-1)
        products[rows, 1:] = (left.flatten(1, 2) @ right.transpose(-2, -1)).unflatten(1, (-1, axis.width))
    return half_plane(products)


def _of_one_kind(n_atoms: int, axis: Axis) -> Kinds:
    """All atoms, as they are."""
    return Kinds((0, n_atoms), axis.ones)


def _shared(kinds: Kinds, axis: Axis) -> tuple[np.ndarray, ...]:
    """What the compiled loops need for all images."""
    weights = kinds.weights.to(axis.dtype).contiguous().numpy()
    return *axis.numbers, np.array(kinds.starts), weights


def _slices(kinds: Kinds) -> list[slice]:
    return [slice(a, b) for a, b in itertools.pairwise(kinds.starts)]


def _summed(parts: list[Complex[Tensor, "*batch kept"]], kinds: Kinds) -> Complex[Tensor, "*batch kept"]:
    """Sums over each kind, times its weights."""
    total = parts[0] * kinds.weights[0]
    for part, weight in zip(parts[1:], kinds.weights[1:], strict=True):
        total = total + part * weight
    return total


def half_plane(products: Float[Tensor, "*batch rows rows"]) -> Complex[Tensor, "*batch kept"]:
    """All coefficients from products of the real and imaginary parts at k >= 0."""
    half = products.shape[-1] // 2
    (real_real, real_imag), (imag_real, imag_imag) = (
        part.split(half, dim=-1) for part in products.split(half, dim=-2)
    )
    upper = torch.complex(real_real - imag_imag, imag_real + real_imag)
    lower = torch.complex(real_real + imag_imag, imag_real - real_imag)
    first_column = upper[..., 0, :]
    others = torch.cat([lower[..., 1:, 1:].flip(-1), upper[..., 1:, :]], dim=-1)
    return torch.cat([first_column, others.flatten(-2)], dim=-1)


class _Compiled(torch.autograd.Function):
    """Coefficients by the compiled loops."""

    @staticmethod
    def forward(ctx, positions: Float[Tensor, "images atoms 2"], axis: Axis, kinds: Kinds) -> Tensor:
        ctx.save_for_backward(positions)
        ctx.axis, ctx.kinds = axis, kinds
        found = axis.empty(len(positions))
        compiled.run(fourier_loops.project, _shared(kinds, axis), positions, found)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx, slope: Complex[Tensor, "images kept"]) -> tuple[Tensor, None, None]:
        (positions,), axis = ctx.saved_tensors, ctx.axis
        found = torch.empty_like(positions, memory_format=torch.contiguous_format)
        compiled.run(fourier_loops.project_back, _shared(ctx.kinds, axis), positions, slope, found)
        return found, None, None


class _Products(torch.autograd.Function):
    """Σ_p X_p Y_pᵀ of images, and its derivative by the positions, which computes X and Y again.

    With G the derivative by the products, that by x_p is Σ X'_p ∘ (G Y_p), and that by y_p Σ Y'_p ∘ (Gᵀ X_p).
    """

    @staticmethod
    def forward(ctx, positions: Float[Tensor, "images atoms 2"], axis: Axis) -> Tensor:
        ctx.save_for_backward(positions)
        ctx.axis = axis
        products = positions.new_empty(len(positions), axis.width, axis.width)
        for rows in _few_at_a_time(positions, axis, copies=2):
            (along_x,), (along_y,) = (axis.transforms(positions[rows, :, i], orders=1) for i in (0, 1))
            torch.bmm(along_x, along_y.transpose(1, 2), out=products[rows])
        return products

    @staticmethod
    @once_differentiable
    def backward(ctx, slope: Float[Tensor, "images rows rows"]) -> tuple[Tensor, None]:
        (positions,), axis = ctx.saved_tensors, ctx.axis
        found = torch.empty_like(positions)
        for rows in _few_at_a_time(positions, axis, copies=6):
            along_x, slope_x = axis.transforms(positions[rows, :, 0], orders=2)
            along_y, slope_y = axis.transforms(positions[rows, :, 1], orders=2)
            torch.sum((slope[rows] @ along_y).mul_(slope_x), 1, out=found[rows, :, 0])
            torch.sum((slope[rows].transpose(1, 2) @ along_x).mul_(slope_y), 1, out=found[rows, :, 1])
        return found, None


def _few_at_a_time(positions: Float[Tensor, "images atoms 2"], axis: Axis, copies: int) -> list[slice]:
    """Images whose factors are in work together."""
    bytes_each = copies * axis.width * positions.shape[1] * positions.element_size()
    return pieces(len(positions), bytes_each, positions.device)
