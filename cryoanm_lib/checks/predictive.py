"""Does the answer explain the image?  What is left without the prediction, against what noise leaves."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoanm_lib.numerics.fourier import crop_coefficients, half_plane_frequencies, to_real
from cryoanm_lib.particles.particles import Particles, to_forward
from cryoanm_lib.program.program import CryoProgram


def standard_residual(
    program: CryoProgram, particles: Particles, latents: Mapping[str, Tensor], resolution: int
) -> Float[Tensor, "images dof"]:
    """Observed less predicted crop in units of the noise, in the basis of `to_real`: normal if right.

    Parameters
    ----------
    program : CryoProgram
        The model.
    particles : Particles
        Images, and the latents that are given.
    latents : mapping of str to Tensor
        One set of those inferred for each image.
    resolution : int
        K.
    """
    return _compared(program, particles, latents, resolution)[0]


def _compared(
    program: CryoProgram, particles: Particles, latents: Mapping[str, Tensor], resolution: int
) -> tuple[Float[Tensor, "images dof"], Float[Tensor, "images dof"]]:
    """Observed less predicted crop, and the predicted one, in units of the noise."""
    chosen = {name: latents[name] for name in program.inferred}
    predicted = program.forward_model.coefficients(to_forward({**particles.latents, **chosen}), resolution)
    left = to_real(crop_coefficients(particles.coefficients, resolution) - predicted, resolution)
    sigma = program.sigma_of(particles.latents, resolution, left)[..., None]
    return left / sigma, to_real(predicted, resolution) / sigma


def predictive_p_value(
    program: CryoProgram, particles: Particles, latents: Mapping[str, Tensor], resolution: int
) -> Float[Tensor, "images"]:
    """How often noise alone leaves a squared residual as large as that of a posterior draw.

    |r|² is χ² with a degree of freedom for each value of the crop. At a draw from the exact posterior this
    is uniform over images, because (image, draw) and (image, truth) are then alike; a small value says that
    the model cannot explain the image.

    Parameters
    ----------
    program : CryoProgram
        The model.
    particles : Particles
        Images, and the latents that are given.
    latents : mapping of str to Tensor
        One posterior draw for each image.
    resolution : int
        K.
    """
    residual = standard_residual(program, particles, latents, resolution).double()
    return chi_square_tail(residual.square().sum(-1), residual.shape[-1])


def ring_p_values(
    program: CryoProgram, particles: Particles, latents: Mapping[str, Tensor], resolution: int
) -> Float[Tensor, "images rings"]:
    """The same for each ring of `chi_square_rings` alone: where the model fails.

    Parameters
    ----------
    program : CryoProgram
        The model.
    particles : Particles
        Images, and the latents that are given.
    latents : mapping of str to Tensor
        One posterior draw for each image.
    resolution : int
        K.
    """
    return chi_square_tail(*chi_square_rings(program, particles, latents, resolution))


def chi_square_rings(
    program: CryoProgram, particles: Particles, latents: Mapping[str, Tensor], resolution: int
) -> tuple[Float[Tensor, "images rings"], Int[Tensor, "rings"]]:
    """Squared residual on each ring of frequencies |k|, rounded to integers, and how many values it adds up.

    Parameters
    ----------
    program : CryoProgram
        The model.
    particles : Particles
        Images, and the latents that are given.
    latents : mapping of str to Tensor
        One posterior draw for each image.
    resolution : int
        K.
    """
    residual = standard_residual(program, particles, latents, resolution).double()
    ring = _rings(resolution)
    squared = residual.new_zeros(len(residual), int(ring.max()) + 1).index_add(1, ring, residual.square())
    return squared, torch.bincount(ring)


def _rings(resolution: int) -> Int[Tensor, "dof"]:
    """The ring of every value of the crop: real and imaginary parts side by side, but for k = 0."""
    ring = half_plane_frequencies(resolution).norm(dim=-1).round().long()
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
    half = torch.as_tensor(degrees, dtype=value.dtype) / 2
    return torch.special.gammaincc(half.expand_as(value), value / 2)


def matched_p_value(
    program: CryoProgram, particles: Particles, latents: Mapping[str, Tensor], resolution: int
) -> Float[Tensor, "images"]:
    """How often noise alone leaves as little of the prediction in the image.

    At the truth the component of image y along the prediction μ, y·μ/|μ|, is normal with mean |μ| and the
    deviation of the noise. At a wrong pose a part of μ is missing from y. The squared residual, with its
    thousands of degrees of freedom, does not see that where there is little signal; this one degree does.
    Where the contrast is inferred, it would make up for what is missing: then μ is that of contrast 1, and
    the contrast's prior deviation s widens what is allowed to 1 + s² |μ|².

    Parameters
    ----------
    program : CryoProgram
        The model.
    particles : Particles
        Images, and the latents that are given.
    latents : mapping of str to Tensor
        One posterior draw for each image.
    resolution : int
        K.
    """
    return _matched(program, latents, *_compared(program, particles, latents, resolution))


def _matched(
    program: CryoProgram,
    latents: Mapping[str, Tensor],
    residual: Float[Tensor, "images dof"],
    predicted: Float[Tensor, "images dof"],
) -> Float[Tensor, "images"]:
    missing, predicted, allowed = residual.double(), predicted.double(), 1.0
    if "contrast" in program.inferred:
        contrast = latents["contrast"].double()[:, None]
        missing, predicted = missing + (1 - 1 / contrast) * predicted, predicted / contrast
        allowed = 1 + program.prior.contrast_scale**2 * predicted.square().sum(-1)
    along = (missing * predicted).sum(-1) / predicted.norm(dim=-1).clamp(min=1e-300)
    return torch.special.ndtr(along / allowed**0.5)


def explained_p_value(
    program: CryoProgram, particles: Particles, latents: Mapping[str, Tensor], resolution: int
) -> Float[Tensor, "images"]:
    """The smaller of `predictive_p_value` and `matched_p_value`, doubled because there are two.

    Parameters
    ----------
    program : CryoProgram
        The model.
    particles : Particles
        Images, and the latents that are given.
    latents : mapping of str to Tensor
        One set of latents for each image.
    resolution : int
        K.
    """
    residual, predicted = _compared(program, particles, latents, resolution)
    of_all = chi_square_tail(residual.double().square().sum(-1), residual.shape[-1])
    return (2 * torch.minimum(of_all, _matched(program, latents, residual, predicted))).clamp(max=1.0)
