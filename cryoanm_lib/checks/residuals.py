"""How good an answer is: residuals against the truth, and how a mixture divides its weight."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from cryoanm_lib.numerics.rotation import (
    angle_distance,
    angle_to_unit_vector,
    quaternion_distance,
    unit_vector_to_angle,
)
from cryoanm_lib.particles.particles import Particles, to_forward
from cryoanm_lib.program.prior import LATENTS, VECTORS
from cryoanm_lib.program.program import CryoProgram

#: A residual beyond this many degrees is called a flip: the sample fell into the wrong half-turn.
FLIP_DEGREES = 90.0

#: A component within this many degrees of the truth is near enough to climb from.
NEAR_DEGREES = 15.0

#: The weight from which on the opposite direction counts as an answer of its own.
TWO_SIDED_WEIGHT = 0.05

#: The metric that stands for each latent in results/metrics.json.
RESIDUAL_KEYS = {
    "pose": "pose_residual_mean_deg",
    "shift": "shift_residual_mean_px",
    "amplitude": "amplitude_residual_mean",
    "defocus": "defocus_residual_mean",
    "contrast": "contrast_residual_mean",
}


def residuals(
    sampled: Mapping[str, Tensor], truth: Mapping[str, Tensor]
) -> dict[str, Float[Tensor, "*batch images"]]:
    """Distance of a posterior sample from the truth, image by image, for each latent in `sampled`.

    "pose" in degrees along the circle, or of the turn in space; "shift" the mean over x and y in pixels;
    "amplitude" the mean over modes of |α - α*|; "defocus" |z - z*| in natural units; "contrast" |c - c*|.
    """
    found = {}
    for name in (name for name in LATENTS if name in sampled):
        if name == "pose":
            found[name] = torch.rad2deg(pose_distance(sampled[name], truth[name]))
        else:
            away = (sampled[name] - truth[name]).abs()
            found[name] = away.mean(-1) if name in VECTORS else away
    return found


def pose_distance(
    a: Float[Tensor, "*#batch dim"], b: Float[Tensor, "*#batch dim"]
) -> Float[Tensor, "*batch"]:
    """Distance between two poses in radians: unit vectors along the circle, quaternions by the turn."""
    if a.shape[-1] == 4:
        return quaternion_distance(a, b)
    return angle_distance(unit_vector_to_angle(a), unit_vector_to_angle(b))


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
    upright, turned = program.family.representation.turn_back(
        program.see(Particles(images, latents), resolution).features, pose
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
    poses = torch.nn.functional.normalize(answer["pose_concentrations"], dim=-1)
    leader = weights.argmax(-1)[..., None, None].expand(*poses.shape[:-2], 1, poses.shape[-1])
    away = pose_distance(poses, poses.gather(-2, leader))
    return (weights * (torch.rad2deg(away) > FLIP_DEGREES)).sum(-1)
