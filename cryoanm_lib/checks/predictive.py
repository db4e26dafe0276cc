"""Does the answer explain the image?  What is left without the prediction, against what noise leaves."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoanm_lib.imaging.latents import Values
from cryoanm_lib.numerics.fourier import crop_coefficients, half_plane_frequencies
from cryoanm_lib.particles.particles import Particles
from cryoanm_lib.program.program import Model


def standard_residual(
    model: Model, particles: Particles, latents: Values, resolution: int
) -> Float[Tensor, "images dof"]:
    """Observed less predicted crop in units of the noise, in the basis of `to_real`: normal if right.

    Parameters
    ----------
    model, particles, resolution : Model, Particles, int
        The model, images with the latents that are given, and K.
    latents : mapping of str to Tensor
        One set of those inferred for each image.
    """
    return _compared(model, particles, latents, resolution)[0]


def _compared(
    model: Model, particles: Particles, latents: Values, resolution: int
) -> tuple[Float[Tensor, "images dof"], Float[Tensor, "images dof"]]:
    """Observed less predicted crop, and the predicted one, in units of the noise."""
    chosen = {name: latents[name] for name in model.inferred}
    predicted = model.forward_model.coefficients({**particles.given, **chosen}, resolution)
    left = crop_coefficients(particles.coefficients, resolution) - predicted
    return particles.noise.whiten(left, resolution), particles.noise.whiten(predicted, resolution)


def predictive_p_value(
    model: Model, particles: Particles, latents: Values, resolution: int
) -> Float[Tensor, "images"]:
    """How often noise alone leaves a squared residual as large as that of a posterior draw.

    |r|² is χ² with a degree of freedom for each value of the crop. At a draw from the exact posterior this
    is uniform over images, because (image, draw) and (image, truth) are then alike; a small value says that
    the model cannot explain the image.

    Parameters as of `standard_residual`, at one posterior draw for each image.
    """
    residual = standard_residual(model, particles, latents, resolution).double()
    return chi_square_tail(residual.square().sum(-1), residual.shape[-1])


def chi_square_rings(
    model: Model, particles: Particles, latents: Values, resolution: int
) -> tuple[Float[Tensor, "images rings"], Int[Tensor, "rings"]]:
    """Squared residual on each ring of frequencies |k|, rounded to integers, and how many values it adds up.

    `chi_square_tail` of both says where the model fails.

    Parameters as of `standard_residual`, at one posterior draw for each image.
    """
    residual = standard_residual(model, particles, latents, resolution).double()
    ring = _rings(resolution, residual.device)
    squared = residual.new_zeros(len(residual), int(ring.max()) + 1).index_add(1, ring, residual.square())
    return squared, torch.bincount(ring)


def _rings(resolution: int, device: torch.device) -> Int[Tensor, "dof"]:
    """The ring of every value of the crop: real and imaginary parts side by side, but for k = 0."""
    ring = half_plane_frequencies(resolution, device).norm(dim=-1).round().long()
    return torch.cat([ring[:1], ring[1:].repeat_interleave(2)])


def chi_square_tail(
    value: Float[Tensor, "*batch"], degrees: int | Int[Tensor, "*#batch"]
) -> Float[Tensor, "*batch"]:
    """Probability that a χ² variable exceeds a value.

    Examples
    --------
    >>> [f"{p:.2f}" for p in chi_square_tail(torch.tensor([0.0, 3.84]), 1)]
    ['1.00', '0.05']
    """
    half = torch.as_tensor(degrees, dtype=value.dtype, device=value.device) / 2
    return torch.special.gammaincc(half.expand_as(value), value / 2)


def _matched(
    model: Model,
    latents: Values,
    residual: Float[Tensor, "images dof"],
    predicted: Float[Tensor, "images dof"],
) -> Float[Tensor, "images"]:
    """How often noise alone leaves as little of the prediction in the image.

    At the truth the component of image y along the prediction μ, y·μ/|μ|, is normal with mean |μ| and the
    deviation of the noise. At a wrong pose a part of μ is missing from y. The squared residual, with its
    thousands of degrees of freedom, does not see that where there is little signal; this one degree does.
    Where the contrast c is inferred, it would make up for what is missing: then μ is that of the mean of its
    prior, N(m, s²), and its deviation widens what is allowed to 1 + (s/m)² |μ|². Where that mean is 0, no
    signal at all is allowed, and the test is passed.
    """
    missing, predicted, allowed = residual.double(), predicted.double(), 1.0
    if "contrast" in model.inferred:
        mean, deviation = model.prior.moments("contrast", model.forward_model.n_modes, predicted)
        if mean == 0:
            return torch.ones_like(predicted[:, 0])
        # In units of the mean. A contrast of nothing shows nothing of a molecule to look for.
        contrast = latents["contrast"].double()[:, None] / mean
        contrast = torch.where(contrast == 0, 1e-300, contrast)
        missing, predicted = missing + (1 - 1 / contrast) * predicted, predicted / contrast
        allowed = 1 + (deviation / mean) ** 2 * predicted.square().sum(-1)
    along = (missing * predicted).sum(-1) / predicted.norm(dim=-1).clamp(min=1e-300)
    return torch.special.ndtr(along / allowed**0.5)


def matched_p_value(
    model: Model, particles: Particles, latents: Values, resolution: int
) -> Float[Tensor, "images"]:
    """How often noise alone leaves as little of the prediction in the image, see `_matched`.

    Over images its normal scores have a mean of 0 if the model is right; a set of images tells by them what
    none of them tells alone.

    Parameters as of `standard_residual`, at one posterior draw for each image.
    """
    return _matched(model, latents, *_compared(model, particles, latents, resolution))


def explained_p_value(
    model: Model, particles: Particles, latents: Values, resolution: int
) -> Float[Tensor, "images"]:
    """The smaller of `predictive_p_value` and that of `_matched`, doubled because there are two.

    Parameters as of `standard_residual`, at one posterior draw for each image.
    """
    residual, predicted = _compared(model, particles, latents, resolution)
    of_all = chi_square_tail(residual.double().square().sum(-1), residual.shape[-1])
    return (2 * torch.minimum(of_all, _matched(model, latents, residual, predicted))).clamp(max=1.0)
