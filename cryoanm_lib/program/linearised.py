"""What the model itself says of shift, bend, focus and contrast, once the pose is given."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryoanm_lib.imaging.forward_model import ForwardModel
from cryoanm_lib.imaging.noise import cropped_noise
from cryoanm_lib.numerics.fourier import crop_coefficients, half_plane_frequencies, to_real
from cryoanm_lib.particles.particles import to_forward
from cryoanm_lib.program.prior import Prior

# K at which the shift is looked for, deviations of its prior that are searched, and Newton steps at the end.
_SHIFT_RESOLUTION, _REACH, _STEPS = 20, 4.0, 3

# No number moves by more than this many deviations of its prior in one step: a wrong pose asks for anything.
_LONGEST = 2.0

# Poses that are worked on at a time: what they need should stay near the processor.
_ROWS = 256


@torch.no_grad()
def linearised_posterior(
    model: ForwardModel,
    prior: Prior,
    names: tuple[str, ...],
    observed: Complex[Tensor, "images kept"],
    latents: Mapping[str, Tensor],
    noise: Float[Tensor, "images"],
    resolution: int,
) -> tuple[Float[Tensor, "*batch images total"], Float[Tensor, "*batch images total total"]]:
    """Mean and Cholesky factor of p(others | pose, image), the model made linear in the others.

    Given the pose, an image is nearly linear in amplitudes, defocus and contrast, so that with the derivative
    J of the crop in units of the noise, what it leaves r, and the prior's precision P the posterior is the
    Gaussian with precision F = JᵀJ + P about x + F⁻¹ (Jᵀ r + ∇log p): a Newton step. The shift, in which the
    image is not linear, is first looked for on a grid. No gradient passes through the answer: where it is the
    posterior of the others at the K of the likelihood, the terms that are missing cancel on average.

    Parameters
    ----------
    model, prior : ForwardModel, Prior
        The model.
    names : tuple of str
        The others, in the order of the answer.
    observed : Complex[Tensor, "images kept"]
        The images, at K.
    latents : mapping of str to Tensor
        "pose" (*batch, images, dim), and the latents that are given, (images, …).
    noise : Float[Tensor, "images"]
        σ_n of each image.
    resolution : int
        K.
    """
    batch = latents["pose"].shape[:-1]
    image = torch.arange(len(observed), device=observed.device).expand(batch).reshape(-1)
    pose, parts = latents["pose"].flatten(end_dim=-2), []
    for rows in torch.arange(len(image), device=image.device).split(_ROWS):
        own = image[rows]
        at = {name: value[own] for name, value in latents.items() if name not in ("pose", *names)}
        at["pose"] = pose[rows]
        parts.append(_linearised(model, prior, names, observed[own], at, noise[own], resolution))
    mean, spread = (torch.cat(found) for found in zip(*parts, strict=True))
    return mean.view(*batch, -1), spread.view(*batch, *spread.shape[1:])


def _linearised(
    model: ForwardModel,
    prior: Prior,
    names: tuple[str, ...],
    observed: Complex[Tensor, "rows kept"],
    at: Mapping[str, Tensor],
    noise: Float[Tensor, "rows"],
    resolution: int,
) -> tuple[Float[Tensor, "rows total"], Float[Tensor, "rows total total"]]:
    """The same for one pose an image."""
    moments = [prior.moments(name, model.n_modes, noise) for name in names]
    mean, scale = (torch.cat(parts) for parts in zip(*moments, strict=True))
    values = mean.repeat(len(observed), 1)
    if "shift" in names:
        start = sum(math.prod(prior.shape(n, model.n_modes)) for n in names[: names.index("shift")])
        values[:, start : start + 2] = _best_shift(
            model, prior, observed, at | _split(values, names, prior, model), noise, resolution
        )
    for k in (min(_SHIFT_RESOLUTION, resolution), *[resolution] * _STEPS):
        here = to_forward(at | _split(values, names, prior, model))
        predicted, slopes = model.slopes(here, k, names)
        sigma = cropped_noise(noise, k, model.box_size)[:, None]
        jacobian = to_real(slopes, k) / sigma[..., None]
        left = to_real(crop_coefficients(observed, k) - predicted, k) / sigma
        # In deviations of the prior, whose precision is then the identity.
        jacobian = jacobian * scale[:, None]
        precision = jacobian @ jacobian.transpose(1, 2) + torch.eye(len(scale)).to(scale)
        factor = torch.linalg.cholesky(precision)
        slope = (jacobian @ left[..., None])[..., 0] - (values - mean) / scale
        step = torch.cholesky_solve(slope[..., None], factor)[..., 0]
        values = values + scale * step * (_LONGEST / step.abs().amax(1, keepdim=True)).clamp(max=1.0)
    identity = torch.eye(len(scale)).to(scale).expand_as(factor)
    covariance = torch.cholesky_solve(identity, factor)
    spread = scale[:, None] * torch.linalg.cholesky(covariance)
    return values, spread


def _split(
    values: Float[Tensor, "rows total"], names: tuple[str, ...], prior: Prior, model: ForwardModel
) -> dict[str, Tensor]:
    """Latents by name, from numbers side by side."""
    shapes = [prior.shape(name, model.n_modes) for name in names]
    parts = values.split([math.prod(shape) for shape in shapes], dim=1)
    return {n: part.view(-1, *shape) for n, part, shape in zip(names, parts, shapes, strict=True)}


def _best_shift(
    model: ForwardModel,
    prior: Prior,
    observed: Complex[Tensor, "rows kept"],
    latents: Mapping[str, Tensor],
    noise: Float[Tensor, "rows"],
    resolution: int,
) -> Float[Tensor, "rows 2"]:
    """The most probable shift on a grid of half a pixel of the crop, everything else as it is."""
    k = min(_SHIFT_RESOLUTION, resolution)
    grid = shift_grid(_REACH * prior.shift_scale, 0.5 * model.box_size / k).to(noise)
    predicted = model.coefficients(to_forward(latents), k)
    matched = crop_coefficients(observed, k) * predicted.conj()
    # Every coefficient of the half plane but k = 0 stands for its partner too.
    matched[:, 1:] *= 2
    phase = 2 * math.pi * half_plane_frequencies(k).to(grid) @ grid.T / model.box_size
    correlation = matched.real @ phase.cos() - matched.imag @ phase.sin()
    # to_real counts K² times the squared coefficients.
    score = correlation * (k / cropped_noise(noise, k, model.box_size)[:, None]) ** 2
    score = score - 0.5 * (grid / prior.shift_scale).square().sum(1)
    return grid[score.argmax(1)]


def shift_grid(reach: float, step: float) -> Float[Tensor, "shifts 2"]:
    """Shifts within a circle, on a square grid about zero.

    Examples
    --------
    >>> len(shift_grid(reach=1.0, step=1.0))
    5
    """
    ends = math.floor(reach / step)
    line = step * torch.arange(-ends, ends + 1)
    grid = torch.stack(torch.meshgrid(line, line, indexing="ij"), dim=-1).flatten(0, 1)
    return grid[grid.norm(dim=1) <= reach + 1e-9]
