"""Fourier coefficients of a projection by spreading atoms on a grid, for very many of them.

A Gaussian of any width is a narrow one, which touches few points of a grid, times a factor in Fourier space
(Gaussian gridding). Where the pixels sample the atoms well a grid is chosen that is just fine enough for the
crop, whatever the box; where they do not, the grid is that of the pixels and the narrow Gaussian the atom
itself, so that aliases are those of the image. All lengths are in pixels.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from cryoanm_lib.imaging import _gridded_loops as gridded_loops
from cryoanm_lib.numerics import compiled
from cryoanm_lib.numerics.batching import pieces
from cryoanm_lib.numerics.fourier import (
    grid_to_coefficients,
    half_plane_frequencies,
    highest_frequency,
    table_to_grid,
)

#: That of the gridded projector by default: about the rounding of single precision in a sum over atoms.
ACCURACY = 1e-6

# Points of the finer grid for each one that the crop needs.
_OVERSAMPLING = 2


@dataclass(frozen=True)
class Spreading:
    """How atoms are put on a grid.

    Attributes
    ----------
    points : int
        Along an edge of the grid.
    width : float
        Deviation of the Gaussian that is spread, in points.
    radius : int
        Points on each side of the nearest one that it is spread to.
    """

    points: int
    width: float
    radius: int

    @classmethod
    def on_pixels(cls, box_size: int, atom_width: float, accuracy: float) -> "Spreading":
        """The atoms themselves, on the pixels of the box."""
        return cls(box_size, atom_width, max(1, math.ceil(atom_width * math.sqrt(-2 * math.log(accuracy)))))

    @classmethod
    def chosen(cls, box_size: int, atom_width: float, resolution: int, accuracy: float) -> "Spreading":
        """The grid that asks for fewest operations of those that keep the error below an accuracy."""
        nats, m = -math.log(accuracy), highest_frequency(resolution)
        pixels = cls.on_pixels(box_size, atom_width, accuracy)
        points = _OVERSAMPLING * (2 * m + 2)
        # Aliases of a Gaussian of deviation s on a grid of G points fall by exp(-2π² s² (1 - 2m/G)).
        width = math.sqrt(nats / (2 * math.pi**2 * (1 - 2 * m / points)))
        # What the patch cuts off is amplified where the Gaussian that is spread is wider than the atom.
        narrower = (width * box_size / points) ** 2 - atom_width**2
        amplified = nats + max(0.0, 2 * narrower * (math.pi * m / box_size) ** 2)
        finer = cls(points, width, math.ceil(width * math.sqrt(2 * amplified)))
        sampled_well = 2 * (math.pi * atom_width * (1 - m / box_size)) ** 2 > nats
        return finer if sampled_well and finer.radius < pixels.radius else pixels

    def table(self, like: Tensor) -> np.ndarray:
        """What the compiled loops know of the Gaussian."""
        return gridded_loops.gaussian_table(compiled.type_of(like), self.width, self.radius)


def gridded_coefficients(
    positions: Float[Tensor, "*batch atoms 2"],
    box_size: int,
    atom_width: float,
    resolution: int,
    accuracy: float | None = None,
) -> Complex[Tensor, "*batch kept"]:
    """Coefficients of the crop Π_K of the projection of atoms, which may be very many.

    Parameters as of `fourier_coefficients`; the default of the accuracy is `ACCURACY`. Atoms beyond the edge
    of the box come in again on the other side. There are first derivatives alone.

    Examples
    --------
    >>> from cryoanm_lib.imaging.fourier_projection import fourier_coefficients
    >>> positions = 40 * torch.rand(1000, 2) - 20
    >>> gridded = gridded_coefficients(positions, box_size=64, atom_width=0.8, resolution=32)
    >>> straight = fourier_coefficients(positions, 64, 0.8, 32)
    >>> bool((gridded - straight).abs().max() < 1e-5 * straight.abs().max())
    True
    """
    accuracy = ACCURACY if accuracy is None else accuracy
    spreading = Spreading.chosen(box_size, atom_width, resolution, accuracy)
    scale = spreading.points / box_size
    grid = _spread(positions[None].flatten(end_dim=-3) * scale, spreading)
    coefficients = _Analysis.apply(grid, resolution).view(*positions.shape[:-2], -1)
    frequencies = half_plane_frequencies(resolution, positions.device).to(positions.dtype) / box_size
    # What is left of the atom's Gaussian once the narrow one is taken out, and its height.
    narrow = spreading.width / scale
    rest = -2 * math.pi**2 * (atom_width**2 - narrow**2) * frequencies.square().sum(-1)
    return coefficients * (rest.exp() * (atom_width / narrow) ** 2)


def gridded_image(
    positions: Float[Tensor, "*batch atoms 2"],
    box_size: int,
    atom_width: float,
    accuracy: float | None = None,
) -> Float[Tensor, "*batch box box"]:
    """The projection on the pixels themselves, each atom on those alone where it is seen.

    Parameters as of `fourier_coefficients`; the accuracy is what may be cut off an atom as a share of its
    peak, by default the rounding of the type.

    Examples
    --------
    >>> from cryoanm_lib.imaging.spatial_projection import separable_image
    >>> positions = 40 * torch.rand(1000, 2) - 20
    >>> gridded, separable = gridded_image(positions, 64, 0.8), separable_image(positions, 64, 0.8)
    >>> bool((gridded - separable).abs().max() < 1e-5 * separable.max())
    True
    """
    accuracy = torch.finfo(positions.dtype).eps if accuracy is None else accuracy
    spreading = Spreading.on_pixels(box_size, atom_width, accuracy)
    # The loops' origin is the first point, that of an image its middle.
    from_the_corner = positions[None].flatten(end_dim=-3) + box_size // 2
    return _spread(from_the_corner, spreading).view(*positions.shape[:-2], box_size, box_size)


def _spread(positions: Float[Tensor, "images atoms 2"], spreading: Spreading) -> Tensor:
    spread = _SpreadCompiled if compiled.compiled_for(positions) else _Spread
    return spread.apply(positions, spreading)


class _Analysis(torch.autograd.Function):
    """Grids to coefficients, and backward by a real transform: torch's own takes one of the whole plane."""

    @staticmethod
    def forward(ctx, grid: Float[Tensor, "images points points"], resolution: int) -> Tensor:
        ctx.points, ctx.highest = grid.shape[-1], highest_frequency(resolution)
        return grid_to_coefficients(grid, resolution)

    @staticmethod
    @once_differentiable
    def backward(ctx, slope: Complex[Tensor, "images kept"]) -> tuple[Tensor, None]:
        m = ctx.highest
        # What is not kept of k_x = 0 counts for nothing, and what is kept, once.
        once = torch.cat([slope.new_zeros(len(slope), m), slope], dim=-1).unflatten(-1, (m + 1, 2 * m + 1))
        once[:, 1:] *= 0.5
        return table_to_grid(once / ctx.points**2, ctx.points), None


class _Spread(torch.autograd.Function):
    """Σ_p exp(-|r - x_p|²/(2 s²)) on a periodic grid, each term on the points near its atom alone.

    The origin is the first point.
    """

    @staticmethod
    def forward(ctx, positions: Float[Tensor, "images atoms 2"], spreading: Spreading) -> Tensor:
        ctx.save_for_backward(positions)
        ctx.spreading, points = spreading, spreading.points
        grid = positions.new_zeros(len(positions) * points * points)
        for rows in _atom_pieces(positions, spreading):
            where, along_x, along_y, _ = _patches(positions, rows, spreading)
            values = along_y[:, :, None] * along_x[:, None, :]
            grid.index_add_(0, where.flatten(), values.flatten())
        return grid.view(-1, points, points)

    @staticmethod
    @once_differentiable
    def backward(ctx, slope: Float[Tensor, "images points points"]) -> tuple[Tensor, None]:
        (positions,), spreading = ctx.saved_tensors, ctx.spreading
        flat, found = slope.reshape(-1), positions.new_empty(positions.shape).flatten(0, 1)
        for rows in _atom_pieces(positions, spreading):
            where, along_x, along_y, offsets = _patches(positions, rows, spreading)
            near = flat[where]
            slope_x, slope_y = (offsets / spreading.width**2 * torch.stack([along_x, along_y])).unbind(0)
            found[rows, 0] = ((along_y[:, None] @ near)[:, 0] * slope_x).sum(1)
            found[rows, 1] = ((near @ along_x[..., None])[..., 0] * slope_y).sum(1)
        return found.view_as(positions), None


class _SpreadCompiled(torch.autograd.Function):
    """The same by compiled loops."""

    @staticmethod
    def forward(ctx, positions: Float[Tensor, "images atoms 2"], spreading: Spreading) -> Tensor:
        ctx.save_for_backward(positions)
        ctx.spreading = spreading
        grid = positions.new_empty(len(positions), spreading.points, spreading.points)
        compiled.run(gridded_loops.spread, (spreading.table(positions),), positions, grid)
        return grid

    @staticmethod
    @once_differentiable
    def backward(ctx, slope: Float[Tensor, "images points points"]) -> tuple[Tensor, None]:
        (positions,) = ctx.saved_tensors
        found = positions.new_empty(positions.shape)
        compiled.run(gridded_loops.spread_back, (ctx.spreading.table(positions),), positions, slope, found)
        return found, None


def _atom_pieces(positions: Float[Tensor, "images atoms 2"], spreading: Spreading) -> list[slice]:
    """Atoms of all images whose patches, and where they lie, are in work together."""
    bytes_each = (8 + positions.element_size()) * (2 * spreading.radius + 1) ** 2
    return pieces(positions.shape[0] * positions.shape[1], bytes_each, positions.device)


def _patches(
    positions: Float[Tensor, "images atoms 2"], rows: slice, spreading: Spreading
) -> tuple[
    Int[Tensor, "some rows columns"],
    Float[Tensor, "some columns"],
    Float[Tensor, "some rows"],
    Float[Tensor, "2 some columns"],
]:
    """Where the points near some atoms lie in memory, and the Gaussians along x and y there."""
    points, radius = spreading.points, spreading.radius
    at = positions.flatten(0, 1)[rows]
    image = torch.arange(rows.start, rows.stop, device=at.device) // positions.shape[1]
    nearest = at.round()
    steps = torch.arange(-radius, radius + 1, device=at.device)
    offsets = (nearest - at).T[..., None] + steps  # from the atom to the point, along x and along y
    along_x, along_y = (-0.5 * (offsets / spreading.width).square()).exp().unbind(0)
    column, row = (nearest.long().T[..., None] + steps).remainder(points).unbind(0)
    where = (image[:, None, None] * points + row[:, :, None]) * points + column[:, None, :]
    return where, along_x, along_y, offsets
