"""What an image can tell of its latents: Fisher information, and the residual of an honest answer."""

import math
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from cryoanm_lib.imaging.latents import Values
from cryoanm_lib.imaging.noise import WhiteNoise
from cryoanm_lib.particles.particles import Particles, Simulated
from cryoanm_lib.program.gauss_newton import gauss_newton
from cryoanm_lib.program.program import Model


def information_limit(model: Model, images: Simulated, resolution: int) -> dict[str, Float[Tensor, "images"]]:
    """Expected residual of a draw from the exact posterior, image by image, where that is a Gaussian.

    The covariance is Σ = F⁻¹. Posterior mean and draw each deviate by Σ, hence E|draw - truth| = 2 √(Σ/π). It
    is what a posterior that is both honest and exact has on average; a point estimate alone, which says
    nothing of its error, can be closer by √2. Same keys and units as `residuals`: degrees for the pose, the
    mean over modes for the amplitude, over x and y for the shift. Two poses in space differ by a rotation
    vector, whose mean length is that of `mean_length`.
    """
    covariance = torch.linalg.inv(fisher_information(model, images, images.truth, resolution))
    expected = 2 * (covariance.diagonal(dim1=1, dim2=2) / math.pi).sqrt()
    limit = {}
    for latent in model.unknowns.latents:
        own = model.unknowns.of(lambda other, latent=latent: other is latent, covariance.device)
        limit[latent.name] = expected[:, own].mean(1)
        if latent.manifold.turns:
            # Draw and truth differ by twice the covariance of either.
            length = latent.in_units(mean_length(2 * covariance[:, own][:, :, own]))
            limit[latent.name] = length.clamp(max=latent.manifold.anywhere)
    return limit


def mean_length(covariance: Float[Tensor, "*batch dim dim"]) -> Float[Tensor, "*batch"]:
    """E|x| of a Gaussian about the origin, in any number of dimensions.

    With the eigenvalues λ of the covariance it is ∫_0^∞ (1 - Π_i (1 + 2 λ_i t)^-1/2) t^-3/2 dt / (2 √π),
    here by the trapezoidal rule in log t, which converges geometrically.

    Examples
    --------
    >>> [f"{mean_length(torch.eye(n).double()):.6f}" for n in (1, 2, 3)]
    ['0.797885', '1.253314', '1.595769']
    """
    spread = torch.linalg.eigvalsh(covariance).clamp(min=0.0)
    unit = spread.sum(-1, keepdim=True)
    # In units of the trace; the integrand falls as √t on the left of 1 and as 1/√t on its right.
    log_t = torch.linspace(-80.0, 80.0, 641, dtype=covariance.dtype, device=covariance.device)
    product = -0.5 * torch.log1p(2 * (spread / unit)[..., None] * log_t.exp()).sum(-2)
    integrand = -torch.expm1(product) * (-0.5 * log_t).exp()
    return unit[..., 0].sqrt() * integrand.sum(-1) * (log_t[1] - log_t[0]) / (2 * math.sqrt(math.pi))


def fisher_information(
    model: Model, particles: Particles, latents: Values, resolution: int
) -> Float[Tensor, "images columns columns"]:
    """F = JᵀJ + prior precision in float64, J the derivative of the whitened crop by the unknowns.

    It is worked out at `latents`: those that are unknown, and any that take the place of given ones. A prior
    counts by its curvature there, where that is positive.
    """
    return gauss_newton(model, particles, latents, resolution).precision


def signal_to_noise(model: Model, images: Simulated) -> Float[Tensor, "images"]:
    """Variance of the pixels of each noise-free image over that of the white noise, at full resolution."""
    clean, noise = model.forward_model.images(images.truth), cast(WhiteNoise, images.noise)
    return clean.flatten(1).var(dim=1) / noise.deviation.to(clean) ** 2
