"""How good an answer is: residuals against the truth, and what a draw from the exact posterior would have."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from cryoanm_lib.distributions import ProjectedNormal
from cryoanm_lib.forward import ForwardModel, Latents
from cryoanm_lib.fourier import to_real
from cryoanm_lib.likelihood import cropped_noise
from cryoanm_lib.program import CryoProgram, Particles, Prior, to_forward
from cryoanm_lib.rotation import angle_distance, angle_to_unit_vector, unit_vector_to_angle

#: A residual beyond this many degrees is called a flip: the sample fell into the wrong half-turn.
FLIP_DEGREES = 90.0

#: The weight from which on the opposite direction counts as an answer of its own.
TWO_SIDED_WEIGHT = 0.05

#: The metric that stands for each latent in results/metrics.json.
RESIDUAL_KEYS = {
    "pose": "pose_residual_mean_deg",
    "amplitude": "amplitude_residual_mean",
    "defocus": "defocus_residual_mean",
}


def residuals(
    sampled: Mapping[str, Tensor], truth: Mapping[str, Tensor]
) -> dict[str, Float[Tensor, "images"]]:
    """Distance of a posterior sample from the truth, image by image, for each latent in `sampled`.

    "pose" in degrees along the circle; "amplitude" the mean over modes of |α - α*|; "defocus" |z - z*| in
    natural units.
    """
    found = {}
    if "pose" in sampled:
        angles = (unit_vector_to_angle(latents["pose"]) for latents in (sampled, truth))
        found["pose"] = torch.rad2deg(angle_distance(*angles))
    if "amplitude" in sampled:
        found["amplitude"] = (sampled["amplitude"] - truth["amplitude"]).abs().mean(-1)
    if "defocus" in sampled:
        found["defocus"] = (sampled["defocus"] - truth["defocus"]).abs()
    return found


def turning_error(program: CryoProgram, resolution: int, degrees: float = 45.0) -> float:
    """How far what the networks see of a turned molecule, turned back, is from what they see of it upright.

    The norm of the difference by that of the latter, without noise. Turning back is exact on rings; what is
    left comes from the square crop, which does not turn with the molecule unless by quarters.

    Parameters
    ----------
    program : CryoProgram
        Whose networks look.
    resolution : int
        K of the crop.
    degrees : float
        The turn.
    """
    model = program.forward_model
    pose = angle_to_unit_vector(torch.deg2rad(model.reference.new_tensor([0.0, degrees])))
    latents = {
        "pose": pose,
        "amplitude": pose.new_zeros(2, model.n_modes),
        "defocus": pose.new_full((2,), program.prior.defocus_mean),
    }
    images = model.coefficients(to_forward(latents), resolution)
    upright, turned = program.representation.turn_back(
        program.see(Particles(images, latents), resolution), pose
    )
    return ((turned - upright).norm() / upright.norm()).item()


def opposite_weight(answer: Mapping[str, Tensor]) -> Float[Tensor, "images"]:
    """Weight that each image's mixture gives to components more than 90° away from the heaviest one.

    Parameters
    ----------
    answer : mapping of str to Tensor
        "pose_logits" and "pose_concentrations", as of `CryoProgram.sample_guide`.
    """
    weights = answer["pose_logits"].softmax(-1)
    angles = unit_vector_to_angle(answer["pose_concentrations"])
    leading = angles.gather(-1, weights.argmax(-1, keepdim=True))
    return (weights * (torch.rad2deg(angle_distance(angles, leading)) > FLIP_DEGREES)).sum(-1)


def information_limit(
    forward: ForwardModel,
    truth: Mapping[str, Tensor],
    inferred: tuple[str, ...],
    prior: Prior,
    noise: float,
    resolution: int,
) -> dict[str, Float[Tensor, "images"]]:
    """Expected residual of a draw from the exact posterior, image by image, where that is a Gaussian.

    The Fisher information F = JᵀJ/σ² + prior precision, J the derivative of the crop by the latents, gives
    the covariance Σ = F⁻¹. Posterior mean and draw each deviate by Σ, hence E|draw - truth| = 2 √(Σ/π). It is
    what a posterior that is both honest and exact has on average; a point estimate alone, which says nothing
    of its error, can be closer by √2. Same keys and units as `residuals`.

    Parameters
    ----------
    forward : ForwardModel
        With a projector that has forward-mode derivatives: "fourier" or "separable".
    truth : mapping of str to Tensor
        Latents at which to evaluate, as in `Particles`.
    inferred : tuple of str
        The latents that are unknown; the others are given.
    prior : Prior
        Of the latents; the pose's counts by its curvature at the truth, where that is positive.
    noise : float
        σ_n a pixel of the uncropped image.
    resolution : int
        K.
    """
    fisher = fisher_information(forward, truth, inferred, prior, noise, resolution)
    deviation = torch.linalg.inv(fisher).diagonal(dim1=1, dim2=2).sqrt()
    expected = 2 * deviation / math.sqrt(math.pi)
    numbers = {"pose": 1, "amplitude": forward.n_modes, "defocus": 1}
    names = [name for name in numbers if name in inferred]
    widths = [numbers[name] for name in names]
    limit = {name: part.mean(1) for name, part in zip(names, expected.split(widths, dim=1), strict=True)}
    return limit | {"pose": torch.rad2deg(limit["pose"])} if "pose" in limit else limit


def fisher_information(
    forward: ForwardModel,
    truth: Mapping[str, Tensor],
    inferred: tuple[str, ...],
    prior: Prior,
    noise: float,
    resolution: int,
) -> Float[Tensor, "images unknowns unknowns"]:
    """F = JᵀJ/σ² + prior precision in float64, by forward-mode derivatives; arguments as `information_limit`.

    The unknowns stand in the order pose (radians), amplitudes, defocus, as far as they are inferred.
    """
    sigma = cropped_noise(noise, resolution, forward.box_size)
    pose = unit_vector_to_angle(truth["pose"])
    amplitude, defocus = truth["amplitude"], truth["defocus"]

    def crop(pose: Tensor, amplitude: Tensor, defocus: Tensor) -> Tensor:
        coefficients = forward.coefficients(Latents.in_plane(pose, amplitude, defocus), resolution)
        return to_real(coefficients, resolution) / sigma

    directions = _unit_tangents(pose, amplitude, defocus, inferred)
    point = (pose, amplitude, defocus)
    jacobian = torch.stack(
        [torch.func.jvp(crop, point, tangent)[1] for _, tangent in directions], dim=1
    ).double()
    known = {
        "pose": _pose_prior_precision(prior, pose),
        "amplitude": torch.full_like(pose, prior.amplitude_scale**-2),
        "defocus": torch.full_like(pose, prior.defocus_scale**-2),
    }
    precision = torch.stack([known[name] for name, _ in directions], dim=-1).double()
    return jacobian @ jacobian.transpose(1, 2) + torch.diag_embed(precision)


def _pose_prior_precision(prior: Prior, pose: Float[Tensor, "images"]) -> Float[Tensor, "images"]:
    """Minus the second derivative of the pose's log-prior, and 0 where that is negative."""
    with torch.enable_grad():
        angle = pose.detach().double().requires_grad_()
        distribution = ProjectedNormal(angle.new_tensor(prior.pose_concentration))
        log_density = distribution.log_prob(angle_to_unit_vector(angle)).sum()
        (slope,) = torch.autograd.grad(log_density, angle, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), angle)
    return (-curvature).clamp(min=0.0).to(pose)


def _unit_tangents(
    pose: Tensor, amplitude: Tensor, defocus: Tensor, inferred: tuple[str, ...]
) -> list[tuple[str, tuple[Tensor, Tensor, Tensor]]]:
    """One direction for each inferred number: (name, tangents of pose, amplitude and defocus)."""
    none = tuple(torch.zeros_like(x) for x in (pose, amplitude, defocus))
    tangents = []
    if "pose" in inferred:
        tangents.append(("pose", (torch.ones_like(pose), *none[1:])))
    if "amplitude" in inferred:
        for axis in torch.eye(amplitude.shape[-1], dtype=amplitude.dtype, device=amplitude.device):
            tangents.append(("amplitude", (none[0], axis.expand_as(amplitude), none[2])))
    if "defocus" in inferred:
        tangents.append(("defocus", (*none[:2], torch.ones_like(defocus))))
    return tangents
