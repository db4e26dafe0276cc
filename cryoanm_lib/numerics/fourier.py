"""Fourier series of an image: the crop Π_K and the half plane of coefficients on which we compute.

The coefficients of a box of N pixels with the origin at pixel (N//2, N//2) are

    c(k) = N⁻² Σ_r I(r) exp(-2πi k·r / N),    I(r) = Σ_k c(k) exp(2πi k·r / N),

so that c(0) is the mean and a crop, which only drops coefficients, preserves intensity. The crop Π_K keeps
the integer frequencies |k_x|, |k_y| < K/2. Where K is even this drops the unpaired Nyquist row and column,
so that the spectrum stays Hermitian and one half of it says everything.
"""

import math

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryoanm_lib.errors import ForwardModelError


def check_resolution(resolution: int, box_size: int) -> None:
    """Refuse a resolution K below 4, above the box N, or odd, unless it is the whole box.

    Raises
    ------
    ForwardModelError
        If K is not usable with N.
    """
    usable = 4 <= resolution <= box_size and (resolution % 2 == 0 or resolution == box_size)
    if not usable:
        raise ForwardModelError(
            f"resolution K = {resolution} pixels is not usable with a box of N = {box_size} pixels: "
            f"choose an even K from 4 to {box_size}, or the whole box"
        )


def highest_frequency(resolution: int) -> int:
    """The largest integer frequency k < K/2 that the crop Π_K keeps."""
    return (resolution - 1) // 2


def degrees_of_freedom(resolution: int) -> int:
    """Independent real values K'² of the crop Π_K, K' = 2m + 1 for the highest frequency m.

    Examples
    --------
    >>> degrees_of_freedom(32), degrees_of_freedom(5)
    (961, 25)
    """
    return (2 * highest_frequency(resolution) + 1) ** 2


def half_plane_frequencies(
    resolution: int, device: torch.device | str | None = None
) -> Float[Tensor, "kept 2"]:
    """Integer frequencies (k_x, k_y) of the kept half plane, in the order of all coefficient vectors.

    The order is k_x = 0 with k_y = 0 … m, then for each k_x = 1 … m all k_y = -m … m, with m the highest
    frequency kept. These (K'² + 1) / 2 coefficients, K' = 2m + 1, determine the K'² of the full plane.

    Examples
    --------
    >>> half_plane_frequencies(4).tolist()
    [[0.0, 0.0], [0.0, 1.0], [1.0, -1.0], [1.0, 0.0], [1.0, 1.0]]
    """
    m = highest_frequency(resolution)
    kx = torch.arange(m + 1, device=device)
    ky = torch.arange(-m, m + 1, device=device)
    grid = torch.stack(torch.meshgrid(kx, ky, indexing="ij"), dim=-1)
    return grid.flatten(0, 1)[m:].float()


def image_to_coefficients(
    images: Float[Tensor, "*batch box box"], resolution: int
) -> Complex[Tensor, "*batch kept"]:
    """Fourier coefficients c(k) of the crop Π_K of images, on the half plane.

    Parameters
    ----------
    images : Float[Tensor, "*batch box box"]
        Square images of N pixels, odd or even, rows along y and columns along x.
    resolution : int
        K, from 1 to N, odd or even.

    Raises
    ------
    ForwardModelError
        If K is not from 1 to N.
    """
    box_size = images.shape[-1]
    if images.ndim < 2 or images.shape[-2] != box_size:
        raise ForwardModelError(
            f"images of shape {tuple(images.shape)} are not square: pad or cut them first"
        )
    if not 1 <= resolution <= box_size:
        raise ForwardModelError(
            f"cannot crop images of {box_size} pixels to {resolution}: choose K from 1 to {box_size}"
        )
    return grid_to_coefficients(torch.fft.ifftshift(images, dim=(-2, -1)), resolution)


def grid_to_coefficients(
    images: Float[Tensor, "*batch box box"], resolution: int
) -> Complex[Tensor, "*batch kept"]:
    """The same for images whose origin is the first pixel, and which go on at the other edge."""
    m = highest_frequency(resolution)
    half = torch.fft.rfft2(images, norm="forward")[..., : m + 1]
    rows = torch.arange(-m, m + 1, device=images.device) % images.shape[-1]
    return _grid_to_vector(half[..., rows, :].transpose(-2, -1))


def coefficients_to_image(
    coefficients: Complex[Tensor, "*batch kept"], box_size: int
) -> Float[Tensor, "*batch box box"]:
    """The band-limited image, on a grid of any size that holds its frequencies, with intensity preserved.

    A half plane of frequencies up to m takes a box of at least 2m + 1 pixels along an edge.

    Raises
    ------
    ForwardModelError
        If the grid is too coarse for the frequencies.
    """
    grid = _vector_to_grid(coefficients)
    m = grid.shape[-2] - 1
    if box_size < 2 * m + 1:
        raise ForwardModelError(
            f"a box of {box_size} pixels cannot hold frequencies up to {m}: use at least {2 * m + 1} pixels"
        )
    return torch.fft.fftshift(table_to_grid(grid, box_size), dim=(-2, -1))


def table_to_grid(table: Complex[Tensor, "*batch kx ky"], box_size: int) -> Float[Tensor, "*batch box box"]:
    """Re Σ w c(k) exp(2πi k·r/N) with w = 1 at k_x = 0 and 2 at k_x > 0, the origin at the first pixel.

    The table holds c at k_x = 0 … m and k_y = -m … m, and N is at least 2m + 1.
    """
    m = table.shape[-2] - 1
    half = table.new_zeros(*table.shape[:-2], box_size, box_size // 2 + 1)
    rows = torch.arange(-m, m + 1, device=table.device) % box_size
    half[..., rows, : m + 1] = table.transpose(-2, -1)
    return torch.fft.irfft2(half, s=(box_size, box_size), norm="forward")


def spectrum_frequencies(
    box_size: int, device: torch.device | str | None = None
) -> Float[Tensor, "box half 2"]:
    """Integer frequencies (k_x, k_y) in the order of `torch.fft.rfft2`.

    Examples
    --------
    >>> spectrum_frequencies(4)[:, 1].tolist()
    [[1.0, 0.0], [1.0, 1.0], [1.0, -2.0], [1.0, -1.0]]
    """
    ky = torch.fft.fftfreq(box_size, 1 / box_size, device=device)
    kx = torch.arange(box_size // 2 + 1, device=device, dtype=ky.dtype)
    return torch.stack(torch.meshgrid(kx, ky, indexing="xy"), dim=-1)


def crop(images: Float[Tensor, "*batch box box"], resolution: int) -> Float[Tensor, "*batch crop crop"]:
    """The crop Π_K: the same picture on K × K pixels, with white noise σ_n reduced to σ_n K/N.

    That is the deviation in an orthonormal basis of the K'² values that are kept (`to_real`). Where K is odd
    it is that of a pixel too; where K is even, K' = K - 1 and a pixel, which lacks the Nyquist frequency,
    deviates by σ_n K'/N.

    Raises
    ------
    ForwardModelError
        If K is not from 1 to N.

    Examples
    --------
    >>> cropped = crop(torch.full((64, 64), 2.0), 32)
    >>> cropped.shape, cropped.mean().item()
    (torch.Size([32, 32]), 2.0)
    """
    return coefficients_to_image(image_to_coefficients(images, resolution), resolution)


def crop_coefficients(
    coefficients: Complex[Tensor, "*batch kept"], resolution: int
) -> Complex[Tensor, "*batch fewer"]:
    """The crop Π_K of coefficients that were kept at the same or a higher resolution.

    Raises
    ------
    ForwardModelError
        If the coefficients end at a lower frequency than K asks for.
    """
    m, highest = highest_frequency(resolution), _highest_of(coefficients)
    if m == highest:
        return coefficients
    if m > highest:
        raise ForwardModelError(
            f"resolution K = {resolution} needs frequencies up to {m}, but the coefficients end at "
            f"{highest}: choose K of at most {2 * highest + 2}"
        )
    grid = _vector_to_grid(coefficients)
    return _grid_to_vector(grid[..., : m + 1, highest - m : highest + m + 1])


def to_real(coefficients: Complex[Tensor, "*batch kept"], resolution: int) -> Float[Tensor, "*batch dof"]:
    """Coordinates of the K × K crop in an orthonormal real Fourier basis, K (c(0), √2 Re c(k), √2 Im c(k)).

    By Parseval the squared length equals the sum of the squared pixels of the crop, and white noise of
    standard deviation σ_n on N × N pixels becomes independent entries of deviation σ_n K/N.

    Raises
    ------
    ForwardModelError
        If there are more or fewer coefficients than K keeps.

    Examples
    --------
    >>> images = torch.rand(2, 9, 9)
    >>> coordinates = to_real(image_to_coefficients(images, 5), 5)
    >>> coordinates.shape, torch.allclose(coordinates.norm(dim=-1), crop(images, 5).norm(dim=(-2, -1)))
    (torch.Size([2, 25]), True)
    """
    kept = (degrees_of_freedom(resolution) + 1) // 2
    if coefficients.shape[-1] != kept:
        raise ForwardModelError(
            f"{coefficients.shape[-1]} coefficients are not those of K = {resolution}, which keeps {kept}: "
            "crop them to K first"
        )
    rest = math.sqrt(2.0) * torch.view_as_real(coefficients[..., 1:]).flatten(-2)
    return resolution * torch.cat([coefficients[..., :1].real, rest], dim=-1)


def resolution_of(coefficients: Complex[Tensor, "*batch kept"]) -> int:
    """The even K that a vector of coefficients is kept at."""
    return 2 * _highest_of(coefficients) + 2


def _highest_of(coefficients: Complex[Tensor, "*batch kept"]) -> int:
    """The highest frequency that a vector of coefficients holds."""
    return (math.isqrt(2 * coefficients.shape[-1] - 1) - 1) // 2


def _grid_to_vector(grid: Complex[Tensor, "*batch kx ky"]) -> Complex[Tensor, "*batch kept"]:
    """Drop the redundant half of the k_x = 0 line, which comes first in memory."""
    return grid.flatten(-2)[..., grid.shape[-2] - 1 :]


def _vector_to_grid(coefficients: Complex[Tensor, "*batch kept"]) -> Complex[Tensor, "*batch kx ky"]:
    """Restore the redundant half of the k_x = 0 line, the conjugate of what was kept of it."""
    m = _highest_of(coefficients)
    mirrored = coefficients[..., 1 : m + 1].flip(-1).conj()
    return torch.cat([mirrored, coefficients], dim=-1).unflatten(-1, (m + 1, 2 * m + 1))
