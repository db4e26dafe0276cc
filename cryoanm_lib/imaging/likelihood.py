"""The white-noise likelihood at resolution K, and its landscapes."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryoanm_lib.errors import ForwardModelError
from cryoanm_lib.imaging.forward_model import ForwardModel
from cryoanm_lib.imaging.latents import Latents
from cryoanm_lib.imaging.noise import cropped_noise
from cryoanm_lib.numerics.fourier import check_count, crop_coefficients


def log_likelihood(
    observed: Complex[Tensor, "*#batch kept"],
    predicted: Complex[Tensor, "*#batch kept"],
    noise: float | Float[Tensor, "*#batch"],
    resolution: int,
    box_size: int,
) -> Float[Tensor, "*batch"]:
    """Log-density of the observed K × K crop given the predicted one (the paper's Eq. 10, corrected).

    log p = -|y - ŷ|² / (2 σ²) - D/2 log(2π σ²) with σ = σ_n K/N, where y holds the D = K'² independent values
    of the crop in an orthonormal Fourier basis: the pixel likelihood, without computing a pixel. Where K is
    even, K' = K - 1: the crop has no Nyquist frequency, so that K² - K'² of its pixels are redundant.

    Parameters
    ----------
    observed, predicted : Complex[Tensor, "*#batch kept"]
        Fourier coefficients at resolution K; batches are broadcast.
    noise : float or Float[Tensor, "*#batch"]
        σ_n, the standard deviation of a pixel of the uncropped image, of all images or of each.
    resolution, box_size : int
        K and N.

    Raises
    ------
    ForwardModelError
        If the noise is not positive, or there are more or fewer coefficients than K keeps.

    Examples
    --------
    >>> empty = torch.zeros(481, dtype=torch.complex64)
    >>> print(f"{log_likelihood(empty, empty, noise=0.1, resolution=32, box_size=64):.1f}")
    1995.8
    """
    check_count(observed, resolution)
    check_count(predicted, resolution)
    residual = torch.view_as_real(observed - predicted).flatten(-2)
    sigma = cropped_noise(
        torch.as_tensor(noise, dtype=residual.dtype, device=residual.device), resolution, box_size
    )
    # The squared length of `to_real`, without making it: a real mean, and twice what has a twin at -k.
    twice = residual.new_full((residual.shape[-1],), 2.0 * resolution**2)
    twice[0], twice[1] = resolution**2, 0.0
    squared = residual.square() @ twice
    normalisation = (residual.shape[-1] - 1) * (math.sqrt(2 * math.pi) * sigma).log()
    return -0.5 * squared / sigma.square() - normalisation


def landscape(
    forward: ForwardModel,
    observed: Complex[Tensor, "kept"],
    at: Mapping[str, float],
    along: Mapping[str, Float[Tensor, "points"]],
    noise: float,
    resolution: int,
) -> Float[Tensor, "rows columns"]:
    """Log-likelihood of one image over a grid of any two latents.

    Parameters
    ----------
    forward : ForwardModel
        The model that predicts.
    observed : Complex[Tensor, "kept"]
        Fourier coefficients of one image, at `resolution` or higher.
    at : mapping of str to float
        The latents that stay, e.g. ``{"amplitude": 1.5, "defocus": 50.0}``; one named in neither place is
        0, one named in both varies. Names: "pose" (radians), "amplitude" (first mode), "amplitude_2" …
        (others), "defocus" (px²), "shift_x", "shift_y" (pixels).
    along : mapping of str to Float[Tensor, "points"]
        The two latents that vary and their values; the first runs along the rows.
    noise : float
        σ_n, the standard deviation of a pixel of the uncropped image.
    resolution : int
        K.

    Raises
    ------
    ForwardModelError
        If a name is unknown, `along` does not name two latents, or the noise is not positive.
    """
    allowed = _latent_names(forward.n_modes)
    unknown = [name for name in (*at, *along) if name not in allowed]
    if unknown or len(along) != 2:
        raise ForwardModelError(
            f"a landscape varies two latents of {allowed}; got along = {list(along)}, at = {list(at)}"
        )
    grid = torch.meshgrid(*along.values(), indexing="ij")
    varied = dict(zip(along, grid, strict=True))
    values = {name: varied.get(name, torch.full_like(grid[0], at.get(name, 0.0))) for name in allowed}
    observed = crop_coefficients(observed, resolution)
    rows = []
    for row in range(len(grid[0])):  # one at a time: a fine grid of images would not fit into memory
        latents = _latents({name: value[row] for name, value in values.items()}, forward.n_modes)
        predicted = forward.coefficients(latents, resolution)
        rows.append(log_likelihood(observed, predicted, noise, resolution, forward.box_size))
    return torch.stack(rows)


def _latent_names(n_modes: int) -> list[str]:
    amplitudes = ["amplitude"] + [f"amplitude_{mode}" for mode in range(2, n_modes + 1)]
    return ["pose", *amplitudes, "defocus", "shift_x", "shift_y"]


def _latents(values: Mapping[str, Float[Tensor, "points"]], n_modes: int) -> Latents:
    amplitudes = torch.stack([values[name] for name in _latent_names(n_modes)[1 : n_modes + 1]], dim=-1)
    shift = torch.stack([values["shift_x"], values["shift_y"]], dim=-1)
    return Latents.in_plane(values["pose"], amplitudes, values["defocus"], shift)
