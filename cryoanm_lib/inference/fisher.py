"""What an image can tell of its latents: Fisher information, and the residual of an honest answer."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from cryoanm_lib.numerics.fourier import to_real
from cryoanm_lib.numerics.rotation import angle_to_unit_vector, unit_vector_to_angle
from cryoanm_lib.particles.particles import to_forward
from cryoanm_lib.program.distributions import ProjectedNormal
from cryoanm_lib.program.prior import Prior
from cryoanm_lib.program.program import CryoProgram
from cryoanm_lib.program.unknowns import Unknowns

#: Mean distance in degrees of two poses of which nothing is known: on the circle, and in space 90° + 360°/π².
ANYWHERE = {"plane": 90.0, "space": 90.0 + 360.0 / math.pi**2}


def information_limit(
    program: CryoProgram, latents: Mapping[str, Tensor], resolution: int
) -> dict[str, Float[Tensor, "images"]]:
    """Expected residual of a draw from the exact posterior, image by image, where that is a Gaussian.

    The covariance is Σ = F⁻¹. Posterior mean and draw each deviate by Σ, hence E|draw - truth| = 2 √(Σ/π). It
    is what a posterior that is both honest and exact has on average; a point estimate alone, which says
    nothing of its error, can be closer by √2. Same keys and units as `residuals`: degrees for the pose, the
    mean over modes for the amplitude, over x and y for the shift. Two poses in space differ by a rotation
    vector, whose mean length is that of `mean_length`.

    Parameters
    ----------
    program : CryoProgram
        Its forward model, noise, prior, and which latents are unknown; the others are given.
    latents : mapping of str to Tensor
        All latents of each image, as in `Particles`.
    resolution : int
        K.
    """
    covariance = torch.linalg.inv(fisher_information(program, latents, resolution))
    expected = 2 * (covariance.diagonal(dim1=1, dim2=2) / math.pi).sqrt()
    unknowns, limit = Unknowns.of(program), {}
    for name in unknowns.names:
        own = torch.tensor([column == name for column in unknowns.columns])
        limit[name] = expected[:, own].mean(1)
        if name == "pose":
            # Draw and truth differ by twice the covariance of either.
            length = torch.rad2deg(mean_length(2 * covariance[:, own][:, :, own]))
            limit[name] = length.clamp(max=ANYWHERE["space" if unknowns.in_space else "plane"])
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
    program: CryoProgram, latents: Mapping[str, Tensor], resolution: int
) -> Float[Tensor, "images columns columns"]:
    """F = JᵀJ/σ² + prior precision in float64, J the derivative of the crop by the unknowns.

    Parameters
    ----------
    program : CryoProgram
        Its forward model, noise, prior, and which latents are unknown. A prior counts by its curvature at the
        latents, where that is positive.
    latents : mapping of str to Tensor
        All latents of each image, as in `Particles`.
    resolution : int
        K.
    """
    model = program.forward_model
    _, slopes = model.slopes(to_forward(latents), resolution, Unknowns.of(program).directions)
    jacobian = to_real(slopes, resolution).double()
    jacobian = jacobian / program.sigma_of(latents, resolution, jacobian)[..., None, None]
    _, precision = prior_slopes(program, latents)
    return jacobian @ jacobian.transpose(1, 2) + torch.diag_embed(precision)


def prior_slopes(
    program: CryoProgram, latents: Mapping[str, Tensor]
) -> tuple[Float[Tensor, "images columns"], Float[Tensor, "images columns"]]:
    """Gradient of the log-prior in float64, and minus its second derivatives, 0 where they are negative."""
    prior, n_modes = program.prior, program.forward_model.n_modes
    slopes, precisions = [], []
    for name in program.inferred:
        value = latents[name].double()
        if name == "pose":
            slope, precision = _of_pose(prior, value)
        else:
            mean, scale = prior.moments(name, n_modes, value)
            slope = (mean - (value if prior.shape(name, n_modes) else value[:, None])) / scale**2
            precision = (scale**-2).expand_as(slope)
        slopes.append(slope)
        precisions.append(precision)
    return torch.cat(slopes, dim=1), torch.cat(precisions, dim=1)


def _of_pose(
    prior: Prior, pose: Float[Tensor, "images dim"]
) -> tuple[Float[Tensor, "images columns"], Float[Tensor, "images columns"]]:
    """The same of the pose, by automatic differentiation; a uniform prior has neither."""
    if prior.pose_concentration == (0.0, 0.0):
        nothing = pose.new_zeros(len(pose), 3 if prior.pose == "space" else 1)
        return nothing, nothing
    with torch.enable_grad():
        angle = unit_vector_to_angle(pose).detach().requires_grad_()
        distribution = ProjectedNormal(angle.new_tensor(prior.pose_concentration))
        log_density = distribution.log_prob(angle_to_unit_vector(angle)).sum()
        (slope,) = torch.autograd.grad(log_density, angle, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), angle)
    return slope.detach()[:, None], (-curvature).clamp(min=0.0)[:, None]


def signal_to_noise(program: CryoProgram, latents: Mapping[str, Tensor]) -> Float[Tensor, "images"]:
    """Variance of the pixels of each noise-free image over that of the noise, at full resolution.

    Parameters
    ----------
    program : CryoProgram
        Its forward model and noise.
    latents : mapping of str to Tensor
        All latents of each image, as in `Particles`.
    """
    images = program.forward_model.images(to_forward(latents))
    return images.flatten(1).var(dim=1) / program.noise_of(latents) ** 2
