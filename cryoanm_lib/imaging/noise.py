"""White noise: on the coefficients of an image, and what the crop makes of it."""

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryoanm_lib.errors import ForwardModelError


def add_noise(
    coefficients: Complex[Tensor, "*batch kept"],
    noise: float | Float[Tensor, "*batch"],
    box_size: int,
    generator: torch.Generator | None = None,
) -> Complex[Tensor, "*batch kept"]:
    """Add the coefficients of white noise of deviation σ_n on N × N pixels.

    Each coefficient gains a complex Gaussian with E|ε|² = σ_n²/N², real at k = 0.

    Parameters
    ----------
    coefficients : Complex[Tensor, "*batch kept"]
        Of the noise-free image, at any resolution.
    noise : float or Float[Tensor, "*batch"]
        σ_n, the standard deviation of a pixel of the uncropped image, of all images or of each.
    box_size : int
        N, pixels along an edge of the uncropped image.
    generator : torch.Generator, optional
        Source of the noise; by default torch's global one.

    Raises
    ------
    ForwardModelError
        If the noise is negative.
    """
    noise = torch.as_tensor(noise, device=coefficients.device)
    if not (noise >= 0).all():
        raise ForwardModelError(
            f"noise = {noise.min().item():g} is not a standard deviation: it must be 0 or greater"
        )
    draw = torch.randn(
        coefficients.shape, dtype=coefficients.dtype, device=coefficients.device, generator=generator
    )
    # randn's complex draws have E|ε|² = 1, half of it in each part; the coefficient at k = 0 is all real.
    draw[..., 0] = draw[..., 0].real * 2**0.5
    return coefficients + noise.to(draw.real)[..., None] / box_size * draw


def cropped_noise(
    noise: float | Float[Tensor, "*batch"], resolution: int, box_size: int
) -> float | Float[Tensor, "*batch"]:
    """Standard deviation σ_n K/N of white noise after the crop Π_K, in the orthonormal basis of `to_real`.

    Raises
    ------
    ForwardModelError
        If the noise is not positive.

    Examples
    --------
    >>> cropped_noise(0.1, resolution=32, box_size=64)
    0.05
    """
    lowest = noise.min().item() if isinstance(noise, Tensor) else noise
    if not lowest > 0:
        raise ForwardModelError(f"noise = {lowest:g} gives no likelihood: it must be greater than 0")
    return noise * resolution / box_size
