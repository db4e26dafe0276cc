"""Projection of pseudo-atoms to an image (Eq. 11), three ways behind one signature.

A pseudo-atom is an isotropic Gaussian of width σ_a. Its integral along the viewing direction is again a
Gaussian, so no integral is computed: the image is

    I(r) = Σ_p exp(-|r - x_p|² / (2 σ_a²)),

sampled at the pixel centres r. The peak of an atom is 1: with this scale, and no other common one, the
paper's noise of 0.1 gives its signal-to-noise ratio of 2.6. All lengths here are in pixels, and the origin
is pixel (N//2, N//2).
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryoanm_lib.fourier import highest_frequency, image_to_coefficients

#: (positions, box_size, atom_width, resolution) -> Fourier coefficients of the crop Π_K of the projection
Projector = Callable[[Float[Tensor, "*batch atoms 2"], int, float, int], Complex[Tensor, "*batch kept"]]

# The sparse projector cuts a Gaussian off here: beyond it lies exp(-5.5² / 2) < 3e-7 of the peak.
PATCH_RADIUS_IN_WIDTHS = 5.5


def separable_image(
    positions: Float[Tensor, "*batch atoms 2"], box_size: int, atom_width: float
) -> Float[Tensor, "*batch box box"]:
    """The exact image, as a product of one-dimensional Gaussians summed over the atoms.

    Parameters
    ----------
    positions : Float[Tensor, "*batch atoms 2"]
        (x, y) of each atom in pixels from the origin.
    box_size : int
        N, pixels along an edge, odd or even.
    atom_width : float
        σ_a in pixels.

    Examples
    --------
    >>> image = separable_image(torch.tensor([[0.0, 0.0], [2.0, 1.0]]), box_size=8, atom_width=0.3)
    >>> image.round().nonzero().tolist()
    [[4, 4], [5, 6]]
    """
    pixels = torch.arange(box_size, device=positions.device, dtype=positions.dtype) - box_size // 2
    offsets = (positions.unsqueeze(-1) - pixels) / atom_width
    along_x, along_y = (-0.5 * offsets.square()).exp().unbind(dim=-2)
    return along_y.transpose(-2, -1) @ along_x


def sparse_image(
    positions: Float[Tensor, "*batch atoms 2"], box_size: int, atom_width: float
) -> Float[Tensor, "*batch box box"]:
    """The paper's image: each atom in a truncated patch, the patches summed by a sparse COO tensor.

    Pixels further than 5.5 σ_a from an atom along x or y are left out, an error of at most 3e-7 of the
    peak for each atom. Pixels outside the box are dropped.

    Parameters
    ----------
    positions : Float[Tensor, "*batch atoms 2"]
        (x, y) of each atom in pixels from the origin.
    box_size : int
        N, pixels along an edge, odd or even.
    atom_width : float
        σ_a in pixels.
    """
    flat = positions[None].flatten(end_dim=-3)
    radius = math.ceil(PATCH_RADIUS_IN_WIDTHS * atom_width)
    steps = torch.arange(-radius, radius + 1, device=flat.device)
    nearest = flat.detach().round().long()[..., None] + steps
    along_x, along_y = (-0.5 * ((nearest - flat[..., None]) / atom_width).square()).exp().unbind(dim=-2)
    values = along_y[..., :, None] * along_x[..., None, :]
    columns, rows = (nearest + box_size // 2).unbind(dim=-2)
    batch = torch.arange(len(flat), device=flat.device)[:, None, None, None]
    batch, rows, columns = torch.broadcast_tensors(batch, rows[..., :, None], columns[..., None, :])
    inside = (rows >= 0) & (rows < box_size) & (columns >= 0) & (columns < box_size)
    indices = torch.stack([batch[inside], rows[inside], columns[inside]])
    image = torch.sparse_coo_tensor(
        indices, values[inside], (len(flat), box_size, box_size), check_invariants=False
    )
    return image.to_dense().reshape(*positions.shape[:-2], box_size, box_size)


def fourier_coefficients(
    positions: Float[Tensor, "*batch atoms 2"], box_size: int, atom_width: float, resolution: int
) -> Complex[Tensor, "*batch kept"]:
    """Fourier coefficients straight from the coordinates, at a cost of K² and not N², with no FFT.

    An atom contributes X(k_x) Y(k_y), where X is the transform of a Gaussian sampled on the pixel grid,

        X(k) = √(2π) σ_a/N Σ_a exp(-2π² σ_a² (k/N + a)²) exp(-2πi (k/N + a) x),

    and the sum over aliases a makes the answer equal to sampling in space. X(-k) is the conjugate of X(k),
    so the real and imaginary parts at k >= 0 give all four quadrants by one real matrix product. Where a
    Gaussian reaches over the edge of the box it comes in again on the other side; in space it is cut off.

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

    Examples
    --------
    >>> positions = torch.tensor([[0.3, -1.2], [2.0, 1.0]])
    >>> straight = fourier_coefficients(positions, box_size=32, atom_width=0.8, resolution=16)
    >>> through_space = image_to_coefficients(separable_image(positions, 32, 0.8), 16)
    >>> torch.allclose(straight, through_space, atol=1e-7)
    True
    """
    m = highest_frequency(resolution)
    (along_x,) = _axis_transforms(positions[..., 0], box_size, atom_width, m)
    (along_y,) = _axis_transforms(positions[..., 1], box_size, atom_width, m)
    return _half_plane(along_x @ along_y.transpose(-2, -1))


def fourier_slopes(
    positions: Float[Tensor, "*batch atoms 2"],
    velocities: Float[Tensor, "*batch directions atoms 2"],
    box_size: int,
    atom_width: float,
    resolution: int,
) -> tuple[Complex[Tensor, "*batch kept"], Complex[Tensor, "*batch directions kept"]]:
    """The coefficients of `fourier_coefficients`, and how fast they change as the atoms move.

    With X' = dX/dx an atom that moves by (v_x, v_y) changes its product by v_x X' Y + v_y X Y', so that a
    direction costs one product twice as long as that of the coefficients, and no sine or cosine.

    Parameters
    ----------
    positions : Float[Tensor, "*batch atoms 2"]
        (x, y) of each atom in pixels from the origin.
    velocities : Float[Tensor, "*batch directions atoms 2"]
        Pixels that each atom moves for one unit of each direction.
    box_size : int
        N, pixels along an edge, odd or even.
    atom_width : float
        σ_a in pixels.
    resolution : int
        K, from 1 to N.

    Examples
    --------
    >>> positions = torch.tensor([[0.3, -1.2], [2.0, 1.0]])
    >>> to_the_right = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    >>> image, slope = fourier_slopes(positions, to_the_right, 32, 0.8, resolution=16)
    >>> step = fourier_coefficients(positions + 1e-2 * to_the_right[0], 32, 0.8, 16) - image
    >>> torch.allclose(step, 1e-2 * slope[0], atol=1e-6)
    True
    """
    m = highest_frequency(resolution)
    along_x, slope_x = _axis_transforms(positions[..., 0], box_size, atom_width, m, orders=2)
    along_y, slope_y = _axis_transforms(positions[..., 1], box_size, atom_width, m, orders=2)
    image = _half_plane(along_x @ along_y.transpose(-2, -1))
    velocity_x, velocity_y = velocities[..., None, :, :].unbind(-1)
    left = torch.cat([slope_x[..., None, :, :] * velocity_x, along_x[..., None, :, :] * velocity_y], dim=-1)
    right = torch.cat([along_y, slope_y], dim=-1)[..., None, :, :]
    return image, _half_plane(left @ right.transpose(-2, -1))


def _half_plane(products: Float[Tensor, "*batch 2k 2k"]) -> Complex[Tensor, "*batch kept"]:
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


def _axis_transforms(
    x: Float[Tensor, "*batch atoms"], box_size: int, atom_width: float, highest: int, orders: int = 1
) -> list[Float[Tensor, "*batch 2k atoms"]]:
    """X(k) and its derivatives by x below an order, real above imaginary parts for k = 0 … highest."""
    k = torch.arange(highest + 1, device=x.device, dtype=x.dtype) / box_size
    # exp(-2 (π σ_a f)²) falls below the precision of the type at this frequency f, in cycles per pixel.
    cutoff = math.sqrt(-0.5 * math.log(torch.finfo(x.dtype).eps)) / (math.pi * atom_width)
    lowest_alias = -math.floor(cutoff + highest / box_size)
    aliases = torch.arange(lowest_alias, math.floor(cutoff) + 1, device=x.device, dtype=x.dtype)
    scale = math.sqrt(2 * math.pi) * atom_width / box_size
    angular = 2 * math.pi * (k[:, None] + aliases)
    envelope = scale * (-0.5 * (atom_width * angular).square()).exp()
    # exp(-2πi (k + a) x) = exp(-2πi k x) exp(-2πi a x): few sines and cosines for many frequencies.
    alias_phase = -2 * math.pi * aliases[:, None] * x.unsqueeze(-2)
    alias_real, alias_imag = alias_phase.cos(), alias_phase.sin()
    phase = -2 * math.pi * k[:, None] * x.unsqueeze(-2)
    cos, sin = phase.cos(), phase.sin()
    transforms = []
    for _ in range(orders):
        sum_real, sum_imag = envelope @ alias_real, envelope @ alias_imag
        real, imag = cos * sum_real - sin * sum_imag, cos * sum_imag + sin * sum_real
        transforms.append(torch.cat([real, imag], dim=-2))
        # d/dx exp(-iωx) = -iω exp(-iωx): weigh by ω, and -i (a + ib) = b - ia.
        envelope, alias_real, alias_imag = angular * envelope, alias_imag, -alias_real
    return transforms


def _through_image(project: Callable[..., Float[Tensor, "*batch box box"]]) -> Projector:
    """A projector from a function that makes images."""

    def coefficients(
        positions: Float[Tensor, "*batch atoms 2"], box_size: int, atom_width: float, resolution: int
    ) -> Complex[Tensor, "*batch kept"]:
        return image_to_coefficients(project(positions, box_size, atom_width), resolution)

    return coefficients


PROJECTORS: dict[str, Projector] = {
    "sparse": _through_image(sparse_image),
    "separable": _through_image(separable_image),
    "fourier": fourier_coefficients,
}
