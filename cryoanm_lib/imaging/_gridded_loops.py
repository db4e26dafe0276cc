"""Spreading atoms on grids on a CPU: the loops of `gridded_projection`.

A patch of a grid is the product of two short rows of a Gaussian, which take three exponentials each: its
values at whole numbers are known, and a fraction of a point is a geometric series. Patches go on a board that
is larger than the grid by a patch, so that only the board is folded at the edges.
"""

import math

import numpy as np

from cryoanm_lib.numerics.compiled import loop

# Rows of patches are filled up with zeros to so many numbers.
_LANES = 16


def gaussian_table(dtype: np.dtype, width: float, radius: int) -> np.ndarray:
    """1/s² and 1/(2 s²), and behind them the Gaussian exp(-i²/(2 s²)) at i = 0 … radius."""
    steps = np.arange(radius + 1)
    return np.concatenate([[width**-2, 0.5 * width**-2], np.exp(-0.5 * (steps / width) ** 2)]).astype(dtype)


@loop
def spread(table, positions, grid):
    """Write Σ_p exp(-|r - x_p|²/(2 s²)) on periodic grids (images, points, points), near each atom alone.

    The origin is the first point. `table` is that of `gaussian_table`.
    """
    points, reach = grid.shape[1], 2 * len(table) - 5
    wide = -(-reach // _LANES) * _LANES
    for image in range(len(positions)):
        board = np.zeros((points + reach, points + wide), positions.dtype)
        across, down = np.zeros(wide, positions.dtype), np.zeros(wide, positions.dtype)
        for p in range(positions.shape[1]):
            column, _ = _gaussian(positions[image, p, 0], table, points, across)
            row, _ = _gaussian(positions[image, p, 1], table, points, down)
            for i in range(reach):
                onto, height = board[row + i, column:], down[i]
                for j in range(wide):
                    onto[j] += height * across[j]
        _fold(board, grid[image])


@loop
def spread_back(table, positions, slopes, gradient):
    """Write the gradient by positions (images, atoms, 2), given that by the grids."""
    points, reach = slopes.shape[1], 2 * len(table) - 5
    radius, wide = reach // 2, -(-reach // _LANES) * _LANES
    steps = np.arange(-radius, wide - radius).astype(positions.dtype)
    for image in range(len(positions)):
        board = np.empty((points + reach, points + wide), positions.dtype)
        _unfold(slopes[image], board)
        across, down = np.zeros(wide, positions.dtype), np.zeros(wide, positions.dtype)
        # Sums of the patch's rows, weighted by the Gaussian and by its derivative.
        seen, moved = np.empty(wide, positions.dtype), np.empty(wide, positions.dtype)
        for p in range(positions.shape[1]):
            column, left = _gaussian(positions[image, p, 0], table, points, across)
            row, above = _gaussian(positions[image, p, 1], table, points, down)
            seen[:] = 0
            moved[:] = 0
            for i in range(reach):
                here, height = board[row + i, column:], down[i]
                leaning = height * (above + steps[i])
                for j in range(wide):
                    seen[j] += height * here[j]
                    moved[j] += leaning * here[j]
            by_x = by_y = positions.dtype.type(0)
            for j in range(wide):
                by_x += seen[j] * across[j] * (left + steps[j])
                by_y += moved[j] * across[j]
            gradient[image, p, 0] = by_x * table[0]
            gradient[image, p, 1] = by_y * table[0]


@loop
def _fold(board, grid):
    """Write a board to a grid; what went over the edges comes in again on the other side."""
    points, width = len(grid), board.shape[1]
    grid[:] = 0
    for top in range(0, len(board), points):
        for left in range(0, width, points):
            for i in range(min(points, len(board) - top)):
                for j in range(min(points, width - left)):
                    grid[i, j] += board[top + i, left + j]


@loop
def _unfold(grid, board):
    """The same backward: the grid, over and over."""
    points, width = len(grid), board.shape[1]
    for top in range(0, len(board), points):
        for left in range(0, width, points):
            for i in range(min(points, len(board) - top)):
                for j in range(min(points, width - left)):
                    board[top + i, left + j] = grid[i, j]


@loop
def _gaussian(x, table, points, values):
    """Write the Gaussian about x at the points near it; the first of these, and how far x is from a point."""
    radius = len(table) - 3
    nearest = np.rint(x)
    offset = nearest - x
    middle = math.exp(-offset * offset * table[1])
    values[radius] = middle
    if radius == 1:  # of atoms so narrow that the series would overflow
        one = values.dtype.type(1)
        values[0] = math.exp(-((offset - one) ** 2) * table[1])
        values[2] = math.exp(-((offset + one) ** 2) * table[1])
        return (int(nearest) - radius) % points, offset
    step, back = math.exp(-offset * table[0]), math.exp(offset * table[0])
    up, down = middle, middle
    for i in range(1, radius + 1):
        up *= step
        down *= back
        values[radius + i] = up * table[2 + i]
        values[radius - i] = down * table[2 + i]
    return (int(nearest) - radius) % points, offset
