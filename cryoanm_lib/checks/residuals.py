"""How good an answer is: residuals against the truth, and how a mixture divides its weight."""

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from cryoanm_lib.imaging.latents import LATENTS, POSES, Latent, Values
from cryoanm_lib.particles.particles import Particles
from cryoanm_lib.program.program import Guide

#: A residual beyond this many degrees is called a flip: the sample fell into the wrong half-turn.
FLIP_DEGREES = 90.0

#: A component within this many degrees of the truth is near enough to climb from.
NEAR_DEGREES = 15.0

#: The weight from which on the opposite direction counts as an answer of its own.
TWO_SIDED_WEIGHT = 0.05


def residuals(
    sampled: Values, truth: Values, latents: Iterable[Latent] = tuple(LATENTS.values())
) -> dict[str, Float[Tensor, "*batch images"]]:
    """Distance of a posterior sample from the truth, image by image, for each latent in `sampled`.

    Of the pose in degrees along the circle, or of the turn in space; of others the mean over their numbers,
    in their own unit.

    Parameters
    ----------
    sampled, truth : mapping of str to Tensor
        Values by name.
    latents : iterable of Latent
        Those that may be among them; default the library's.
    """
    found = {}
    for latent in (latent for latent in latents if latent.name in sampled):
        distance = pose_distance if latent.name == "pose" else latent.manifold.distance
        found[latent.name] = latent.in_units(
            distance(latent.rows(sampled[latent.name]), latent.rows(truth[latent.name]))
        )
    return found


def pose_distance(
    a: Float[Tensor, "*#batch dim"], b: Float[Tensor, "*#batch dim"]
) -> Float[Tensor, "*batch"]:
    """Distance between two poses in radians: unit vectors along the circle, quaternions by the turn."""
    return POSES["plane" if a.shape[-1] == 2 else "space"].manifold.distance(a, b)


def turning_error(guide: Guide, resolution: int, degrees: float = 45.0) -> float:
    """How far what the networks see of a turned molecule, turned back, is from what they see of it upright.

    The norm of the difference by that of the latter, without noise. Turning back is exact on rings; what is
    left comes from the square crop, which does not turn with the molecule unless by quarters.

    Parameters
    ----------
    guide, resolution, degrees : Guide, int, float
        Whose networks look, K of the crop, and the turn.
    """
    model, forward = guide.model, guide.model.forward_model
    turns = torch.deg2rad(forward.reference.new_tensor([[0.0], [degrees]]))
    pose = POSES["plane"].manifold.value(turns)
    latents = model.prior.means(2, forward.n_modes, pose) | {"pose": pose}
    images = Particles(forward.coefficients(latents, resolution), latents, model.noise)
    representation = guide.family.representation  # pyright: ignore[reportAttributeAccessIssue] networks apart
    upright, turned = representation.turn_back(guide.see(images, resolution).features, pose)
    return ((turned - upright).norm() / upright.norm()).item()


def opposite_weight(answer: Mapping[str, Tensor]) -> Float[Tensor, "images"]:
    """Weight that each image's mixture gives to components more than 90° away from the heaviest one.

    Of the answer, `amortised.draw_from`, "pose_logits" and "pose_concentrations" are read.
    """
    weights = answer["pose_logits"].softmax(-1)
    poses = torch.nn.functional.normalize(answer["pose_concentrations"], dim=-1)
    leader = weights.argmax(-1)[..., None, None].expand(*poses.shape[:-2], 1, poses.shape[-1])
    away = pose_distance(poses, poses.gather(-2, leader))
    return (weights * (torch.rad2deg(away) > FLIP_DEGREES)).sum(-1)
