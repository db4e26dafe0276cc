"""Coefficients straight from coordinates on a CPU: the loops of `fourier_projection`, which explains them.

A thread works on one image after the other, in arrays that stay in its cache: the factors, a product of them,
and the half plane of coefficients. Rows come in fours and atoms in sixteens, filled up with zeros, so that
inner loops have no remainder. All numbers have the type of the positions: one constant of Python's would make
everything double.
"""

import math

import numpy as np

from cryoanm_lib.numerics.compiled import loop

_ROWS, _LANES = 4, 16
# Atoms at a time: what belongs to them should stay in the cache, and be few against what belongs to none.
_BLOCK = 128


def constants(dtype: np.dtype, box_size: int) -> np.ndarray:
    """Numbers that the loops need in their type: 1/N, 1, 4, 1/4, 2π, and Taylor's series of cos and sin."""
    cosine = [(-1) ** n / math.factorial(2 * n) for n in range(9)]
    sine = [(-1) ** n / math.factorial(2 * n + 1) for n in range(9)]
    return np.array([1 / box_size, 1.0, 4.0, 0.25, 2 * math.pi, *cosine, *sine], dtype)


@loop
def project(numbers, orders, starts, weights, positions, coefficients):
    """Write the coefficients (images, kept) of positions (images, atoms, 2).

    `orders` (2, 1 + 2 aliases, powers) are the weights of the middle term, of the even and of the odd parts
    of the aliases, for the transforms and for their derivatives. Atoms come kind by kind: `starts` holds the
    first of each and the end of the last, `weights` (kinds, kept) what the sum over a kind is multiplied by.
    """
    n_atoms, powers = positions.shape[1], orders.shape[2]
    width, depth = _up_to(2 * powers, _ROWS), _up_to(min(n_atoms, _BLOCK), _LANES)
    for image in range(len(positions)):
        coefficients[image] = 0  # here and not all at once, for which threads would wait on one another
        factors = np.zeros((2, width, depth), positions.dtype)
        scratch = _scratch(orders, depth, positions.dtype)
        product = np.empty((width, width), positions.dtype)
        for kind in range(len(weights)):
            product[:] = 0
            for first in range(starts[kind], starts[kind + 1], _BLOCK):
                here = positions[image, first : min(first + _BLOCK, starts[kind + 1])]
                for axis in range(2):
                    _waves(here[:, axis], numbers, scratch, powers)
                    _transform(scratch, orders[0], factors[axis], powers, len(here))
                _add_product(factors[0], factors[1], len(here), product)
            _add_half_plane(product, powers, weights[kind], coefficients[image])


@loop
def project_slopes(numbers, orders, starts, weights, positions, velocities, coefficients):
    """Write coefficients and derivatives (images, 1 + directions, kept) as atoms move.

    Velocities are (images, directions, atoms, 2).
    """
    n_atoms, powers, directions = positions.shape[1], orders.shape[2], velocities.shape[1]
    width, depth = _up_to(2 * powers, _ROWS), _up_to(min(n_atoms, _BLOCK), _LANES)
    for image in range(len(positions)):
        coefficients[image] = 0  # here and not all at once, for which threads would wait on one another
        # X and X', and Y and Y'; v_x X' Y + v_y X Y' is a product of each pair.
        along = np.zeros((2, 2, width, depth), positions.dtype)
        moved = np.zeros((width, depth), positions.dtype)
        speed = np.zeros(depth, positions.dtype)
        scratch = _scratch(orders, depth, positions.dtype)
        products = np.empty((1 + directions, width, width), positions.dtype)
        for kind in range(len(weights)):
            products[:] = 0
            for first in range(starts[kind], starts[kind + 1], _BLOCK):
                here = positions[image, first : min(first + _BLOCK, starts[kind + 1])]
                for axis in range(2):
                    _waves(here[:, axis], numbers, scratch, powers)
                    for order in range(2):
                        _transform(scratch, orders[order], along[axis, order], powers, len(here))
                    _turn(along[axis, 1], powers)
                _add_product(along[0, 0], along[1, 0], len(here), products[0])
                for direction in range(directions):
                    for axis in range(2):
                        moves = False
                        for p in range(len(here)):
                            speed[p] = velocities[image, direction, first + p, axis]
                            moves |= speed[p] != 0
                        if not moves:  # as in shifts, and turns about x and y
                            continue
                        for row in range(2 * powers):
                            for p in range(_up_to(len(here), _LANES)):
                                moved[row, p] = along[0, 1 - axis, row, p] * speed[p]
                        _add_product(moved, along[1, axis], len(here), products[1 + direction])
            for number in range(1 + directions):
                _add_half_plane(products[number], powers, weights[kind], coefficients[image, number])


@loop
def project_back(numbers, orders, starts, weights, positions, slopes, gradient):
    """Write the gradient by positions (images, atoms, 2), given that by the coefficients (images, kept)."""
    n_atoms, powers = positions.shape[1], orders.shape[2]
    width, depth = _up_to(2 * powers, _ROWS), _up_to(min(n_atoms, _BLOCK), _LANES)
    for image in range(len(positions)):
        factors = np.zeros((2, width, depth), positions.dtype)
        derived = np.zeros((2, width, depth), positions.dtype)
        scratch = _scratch(orders, depth, positions.dtype)
        by_product = np.empty((2, width, width), positions.dtype)
        rows, total = np.empty((4, depth), positions.dtype), np.empty(depth, positions.dtype)
        for kind in range(len(weights)):
            _from_half_plane(slopes[image], weights[kind], powers, by_product[0])
            by_product[1] = by_product[0].T
            for first in range(starts[kind], starts[kind + 1], _BLOCK):
                here = positions[image, first : min(first + _BLOCK, starts[kind + 1])]
                for axis in range(2):
                    _waves(here[:, axis], numbers, scratch, powers)
                    _transform(scratch, orders[0], factors[axis], powers, len(here))
                    _transform(scratch, orders[1], derived[axis], powers, len(here))
                    _turn(derived[axis], powers)
                for axis in range(2):
                    _weigh(by_product[axis], factors[1 - axis], derived[axis], len(here), rows, total)
                    for p in range(len(here)):
                        gradient[image, first + p, axis] = total[p]


@loop
def _up_to(count, multiple):
    return -(-count // multiple) * multiple


@loop
def _scratch(orders, depth, dtype):
    """Room for the powers of a wave, and the powers of the wave of the aliases: cosines above sines."""
    aliases = (orders.shape[1] - 1) // 2
    powers = np.zeros((2, orders.shape[2], depth), dtype)
    outer = np.zeros((2, aliases, depth), dtype)
    sums = np.zeros((2, depth), dtype)
    return powers, outer, sums


@loop
def _waves(x, numbers, scratch, n_powers):
    """Powers of exp(-2πix/N) and of exp(-2πix)."""
    powers, outer, sums = scratch
    at = sums[0]
    at[:] = 0
    at[: len(x)] = x
    powers[0, 0] = numbers[1]
    powers[1, 0] = 0
    if n_powers > 1:
        _wave(at, numbers[0], numbers, powers[0, 1], powers[1, 1])
    for k in range(2, n_powers):
        _times(powers, k // 2, k - k // 2, k)
    if outer.shape[1] > 0:
        _wave(at, numbers[1], numbers, outer[0, 0], outer[1, 0])
    for a in range(1, outer.shape[1]):
        _times(outer, a - 1, 0, a)


@loop
def _wave(x, frequency, numbers, cos, sin):
    """cos and sin(-2π f x): back to an eighth of a turn, Taylor's series there, and the quarters again."""
    one, four, quarter, turn = numbers[1], numbers[2], numbers[3], numbers[4]
    c0, c1, c2, c3, c4, c5, c6, c7, c8 = numbers[5:14]
    s0, s1, s2, s3, s4, s5, s6, s7, s8 = numbers[14:23]
    for p in range(len(x)):
        turns = -frequency * x[p]
        turns -= np.rint(turns)
        quarters = np.rint(four * turns)
        angle = turn * (turns - quarter * quarters)
        z = angle * angle
        c = c0 + z * (c1 + z * (c2 + z * (c3 + z * (c4 + z * (c5 + z * (c6 + z * (c7 + z * c8)))))))
        s = s0 + z * (s1 + z * (s2 + z * (s3 + z * (s4 + z * (s5 + z * (s6 + z * (s7 + z * s8)))))))
        s *= angle
        size = abs(quarters)
        # One quarter swaps them; two turn both round.
        swapped = size == one
        both = one - size if size > one else one
        cos[p] = -quarters * s if swapped else both * c
        sin[p] = quarters * c if swapped else both * s


@loop
def _times(wave, i, j, k):
    """Row k from rows i and j: cos and sin of a sum."""
    for p in range(wave.shape[2]):
        wave[0, k, p] = wave[0, i, p] * wave[0, j, p] - wave[1, i, p] * wave[1, j, p]
    for p in range(wave.shape[2]):
        wave[1, k, p] = wave[0, i, p] * wave[1, j, p] + wave[1, i, p] * wave[0, j, p]


@loop
def _transform(scratch, weights, transform, n_powers, n_atoms):
    """Each power times the sum over its aliases: real above imaginary parts, and nothing behind the atoms."""
    powers, outer, sums = scratch
    aliases = outer.shape[1]
    transform[: 2 * n_powers, n_atoms:] = 0
    for k in range(n_powers):
        cos, sin, real, imag = powers[0, k], powers[1, k], transform[k], transform[n_powers + k]
        middle = weights[0, k]
        if aliases == 0:
            for p in range(n_atoms):
                real[p] = middle * cos[p]
                imag[p] = middle * sin[p]
            continue
        even, odd, cos_a, sin_a = weights[1, k], weights[1 + aliases, k], outer[0, 0], outer[1, 0]
        if aliases == 1:
            for p in range(n_atoms):
                real_sum, imag_sum = middle + even * cos_a[p], odd * sin_a[p]
                real[p] = cos[p] * real_sum - sin[p] * imag_sum
                imag[p] = cos[p] * imag_sum + sin[p] * real_sum
            continue
        for p in range(n_atoms):
            sums[0, p] = middle + even * cos_a[p]
            sums[1, p] = odd * sin_a[p]
        for a in range(1, aliases):
            even, odd, cos_a, sin_a = weights[1 + a, k], weights[1 + aliases + a, k], outer[0, a], outer[1, a]
            for p in range(n_atoms):
                sums[0, p] += even * cos_a[p]
                sums[1, p] += odd * sin_a[p]
        for p in range(n_atoms):
            real[p] = cos[p] * sums[0, p] - sin[p] * sums[1, p]
            imag[p] = cos[p] * sums[1, p] + sin[p] * sums[0, p]


@loop
def _turn(transform, n_powers):
    """Times -i: a + ib becomes b - ia."""
    for k in range(n_powers):
        for p in range(transform.shape[1]):
            real = transform[k, p]
            transform[k, p] = transform[n_powers + k, p]
            transform[n_powers + k, p] = -real


@loop
def _add_product(a, b, n_atoms, product):
    """Add a bᵀ, four rows by four."""
    zero, depth = a.dtype.type(0), _up_to(n_atoms, _LANES)
    for i in range(0, len(a), 4):
        for j in range(0, len(b), 4):
            s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = zero
            s20 = s21 = s22 = s23 = s30 = s31 = s32 = s33 = zero
            for p in range(depth):
                a0, a1, a2, a3 = a[i, p], a[i + 1, p], a[i + 2, p], a[i + 3, p]
                b0, b1, b2, b3 = b[j, p], b[j + 1, p], b[j + 2, p], b[j + 3, p]
                s00 += a0 * b0
                s01 += a0 * b1
                s02 += a0 * b2
                s03 += a0 * b3
                s10 += a1 * b0
                s11 += a1 * b1
                s12 += a1 * b2
                s13 += a1 * b3
                s20 += a2 * b0
                s21 += a2 * b1
                s22 += a2 * b2
                s23 += a2 * b3
                s30 += a3 * b0
                s31 += a3 * b1
                s32 += a3 * b2
                s33 += a3 * b3
            found = product[i : i + 4, j : j + 4]
            found[0, 0] += s00
            found[0, 1] += s01
            found[0, 2] += s02
            found[0, 3] += s03
            found[1, 0] += s10
            found[1, 1] += s11
            found[1, 2] += s12
            found[1, 3] += s13
            found[2, 0] += s20
            found[2, 1] += s21
            found[2, 2] += s22
            found[2, 3] += s23
            found[3, 0] += s30
            found[3, 1] += s31
            found[3, 2] += s32
            found[3, 3] += s33


@loop
def _weigh(by_product, factor, derived, n_atoms, rows, total):
    """Σ_i derived_i ∘ (G factor)_i, with G the derivative by the product, four rows by four."""
    depth = _up_to(n_atoms, _LANES)
    total[:] = 0
    for i in range(0, len(by_product), 4):
        rows[:] = 0
        for j in range(0, len(by_product), 4):
            g = by_product[i : i + 4, j : j + 4]
            g00, g01, g02, g03 = g[0, 0], g[0, 1], g[0, 2], g[0, 3]
            g10, g11, g12, g13 = g[1, 0], g[1, 1], g[1, 2], g[1, 3]
            g20, g21, g22, g23 = g[2, 0], g[2, 1], g[2, 2], g[2, 3]
            g30, g31, g32, g33 = g[3, 0], g[3, 1], g[3, 2], g[3, 3]
            for p in range(depth):
                f0, f1, f2, f3 = factor[j, p], factor[j + 1, p], factor[j + 2, p], factor[j + 3, p]
                rows[0, p] += g00 * f0 + g01 * f1 + g02 * f2 + g03 * f3
                rows[1, p] += g10 * f0 + g11 * f1 + g12 * f2 + g13 * f3
                rows[2, p] += g20 * f0 + g21 * f1 + g22 * f2 + g23 * f3
                rows[3, p] += g30 * f0 + g31 * f1 + g32 * f2 + g33 * f3
        for p in range(depth):
            total[p] += (
                derived[i, p] * rows[0, p]
                + derived[i + 1, p] * rows[1, p]
                + derived[i + 2, p] * rows[2, p]
                + derived[i + 3, p] * rows[3, p]
            )


@loop
def _add_half_plane(product, n_powers, weight, coefficients):
    """Add all coefficients from the four products of real and imaginary parts, each times its weight."""
    h, kept = n_powers, 0
    for x in range(h):
        if x > 0:
            for y in range(h - 1, 0, -1):
                real, imag = product[x, y] + product[h + x, h + y], product[h + x, y] - product[x, h + y]
                coefficients[kept] += complex(weight[kept] * real, weight[kept] * imag)
                kept += 1
        for y in range(h):
            real, imag = product[x, y] - product[h + x, h + y], product[h + x, y] + product[x, h + y]
            coefficients[kept] += complex(weight[kept] * real, weight[kept] * imag)
            kept += 1


@loop
def _from_half_plane(slopes, weight, n_powers, by_product):
    """The derivative by the four products, given that by the coefficients."""
    h, kept = n_powers, 0
    by_product[:] = 0
    for x in range(h):
        if x > 0:
            for y in range(h - 1, 0, -1):
                real, imag = weight[kept] * slopes[kept].real, weight[kept] * slopes[kept].imag
                by_product[x, y] += real
                by_product[h + x, h + y] += real
                by_product[h + x, y] += imag
                by_product[x, h + y] -= imag
                kept += 1
        for y in range(h):
            real, imag = weight[kept] * slopes[kept].real, weight[kept] * slopes[kept].imag
            by_product[x, y] += real
            by_product[h + x, h + y] -= real
            by_product[h + x, y] += imag
            by_product[x, h + y] += imag
            kept += 1
