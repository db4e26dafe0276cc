"""What an image can tell of its latents: Fisher information, and the residual of an honest answer."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from cryoanm_lib.distributions import ProjectedNormal
from cryoanm_lib.fourier import to_real
from cryoanm_lib.likelihood import cropped_noise
from cryoanm_lib.program import CryoProgram, to_forward
from cryoanm_lib.rotation import angle_to_unit_vector
from cryoanm_lib.unknowns import Unknowns


def information_limit(
    program: CryoProgram, latents: Mapping[str, Tensor], resolution: int
) -> dict[str, Float[Tensor, "images"]]:
    """Expected residual of a draw from the exact posterior, image by image, where that is a Gaussian.

    The covariance is Σ = F⁻¹. Posterior mean and draw each deviate by Σ, hence E|draw - truth| = 2 √(Σ/π). It
    is what a posterior that is both honest and exact has on average; a point estimate alone, which says
    nothing of its error, can be closer by √2. Same keys and units as `residuals`: degrees for the pose, the
    mean over modes for the amplitude.

    Parameters
    ----------
    program : CryoProgram
        Its forward model, noise, prior, and which latents are unknown; the others are given.
    latents : mapping of str to Tensor
        All latents of each image, as in `Particles`.
    resolution : int
        K.
    """
    deviation = torch.linalg.inv(fisher_information(program, latents, resolution)).diagonal(dim1=1, dim2=2)
    expected = 2 * (deviation / math.pi).sqrt()
    unknowns = Unknowns.of(program)
    limit = {}
    for name in unknowns.names:
        own = torch.tensor([column == name for column in unknowns.columns])
        limit[name] = expected[:, own].mean(1)
    return limit | {"pose": torch.rad2deg(limit["pose"])} if "pose" in limit else limit


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
    sigma = cropped_noise(program.noise, resolution, model.box_size)
    _, slopes = model.slopes(to_forward(latents), resolution, Unknowns.of(program).names)
    jacobian = (to_real(slopes, resolution) / sigma).double()
    _, precision = prior_slopes(program, latents)
    return jacobian @ jacobian.transpose(1, 2) + torch.diag_embed(precision)


def prior_slopes(
    program: CryoProgram, latents: Mapping[str, Tensor]
) -> tuple[Float[Tensor, "images columns"], Float[Tensor, "images columns"]]:
    """Gradient of the log-prior in float64, and minus its second derivatives, 0 where they are negative."""
    prior, unknowns = program.prior, Unknowns.of(program)
    values = unknowns.values({name: latents[name] for name in unknowns.names}).double()
    slope, precision = torch.zeros_like(values), torch.zeros_like(values)
    for column, name in enumerate(unknowns.columns):
        if name == "pose":
            slope[:, column], precision[:, column] = _of_pose(prior.pose_concentration, values[:, column])
            continue
        mean, scale = {
            "amplitude": (0.0, prior.amplitude_scale),
            "defocus": (prior.defocus_mean, prior.defocus_scale),
        }[name]
        slope[:, column] = (mean - values[:, column]) / scale**2
        precision[:, column] = scale**-2
    return slope, precision


def _of_pose(
    concentration: tuple[float, float], angle: Float[Tensor, "images"]
) -> tuple[Float[Tensor, "images"], Float[Tensor, "images"]]:
    """The same of the pose, by automatic differentiation; a uniform prior has neither."""
    if concentration == (0.0, 0.0):
        return torch.zeros_like(angle), torch.zeros_like(angle)
    with torch.enable_grad():
        angle = angle.detach().requires_grad_()
        distribution = ProjectedNormal(angle.new_tensor(concentration))
        log_density = distribution.log_prob(angle_to_unit_vector(angle)).sum()
        (slope,) = torch.autograd.grad(log_density, angle, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), angle)
    return slope.detach(), (-curvature).clamp(min=0.0)


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
    return images.flatten(1).var(dim=1) / program.noise**2
