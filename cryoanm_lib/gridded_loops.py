"""Spreading atoms on grids on a CPU: the loops of `gridded_projection`.

A patch of a grid is the product of two short rows of a Gaussian, which take two exponentials each: its values
at whole numbers are known, and a fraction of a point is a geometric series.
"""

import math

import numpy as np

from cryoanm_lib.compiled import loop

# Rows are filled up with zeros to so many numbers.
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
        # What goes over the edge is added up beyond it, and folded back at the end.
        board = np.zeros((points + reach, points + wide), positions.dtype)
        across, down = np.zeros(wide, positions.dtype), np.zeros(wide, positions.dtype)
        for p in range(positions.shape[1]):
            column, _ = _gaussian(positions[image, p, 0], table, points, across)
            row, _ = _gaussian(positions[image, p, 1], table, points, down)
            for i in range(reach):
                for j in range(wide):
                    board[row + i, column + j] += down[i] * across[j]
        for i in range(points, len(board)):
            for j in range(board.shape[1]):
                board[i % points, j] += board[i, j]
        for i in range(points):
            for j in range(points):
                grid[image, i, j] = board[i, j]
            for j in range(points, board.shape[1]):
                grid[image, i, j % points] += board[i, j]


@loop
def spread_back(table, positions, slopes, gradient):
    """Write the gradient by positions (images, atoms, 2), given that by the grids."""
    points, reach = slopes.shape[1], 2 * len(table) - 5
    radius, wide = reach // 2, -(-reach // _LANES) * _LANES
    for image in range(len(positions)):
        board = np.empty((points + reach, points + wide), positions.dtype)
        for i in range(len(board)):
            for j in range(board.shape[1]):
                board[i, j] = slopes[image, i % points, j % points]
        across, down = np.zeros(wide, positions.dtype), np.zeros(wide, positions.dtype)
        seen, moved = np.empty(wide, positions.dtype), np.empty(wide, positions.dtype)
        for p in range(positions.shape[1]):
            column, along_x = _gaussian(positions[image, p, 0], table, points, across)
            row, along_y = _gaussian(positions[image, p, 1], table, points, down)
            seen[:] = 0
            moved[:] = 0
            for i in range(reach):
                leaning = down[i] * (along_y + i - radius)
                for j in range(wide):
                    seen[j] += down[i] * board[row + i, column + j]
                    moved[j] += leaning * board[row + i, column + j]
            by_x = by_y = positions.dtype.type(0)
            for j in range(reach):
                by_x += seen[j] * across[j] * (along_x + j - radius)
                by_y += moved[j] * across[j]
            gradient[image, p, 0] = by_x * table[0]
            gradient[image, p, 1] = by_y * table[0]


@loop
def _gaussian(x, table, points, values):
    """Write the Gaussian about x at the points near it; the first of these, and how far x is from a point."""
    radius = len(table) - 3
    nearest = np.rint(x)
    offset = nearest - x
    middle, step = math.exp(-offset * offset * table[1]), math.exp(-offset * table[0])
    back = math.exp(offset * table[0])
    values[radius] = middle
    up, down = middle, middle
    for i in range(1, radius + 1):
        up *= step
        down *= back
        values[radius + i] = up * table[2 + i]
        values[radius - i] = down * table[2 + i]
    return (int(nearest) - radius) % points, offset
