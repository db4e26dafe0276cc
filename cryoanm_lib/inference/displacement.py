"""What becomes of predictions as atoms are displaced in the molecule's own frame, and back."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from cryoanm_lib.imaging.latents import Values, pose_to_rotation
from cryoanm_lib.particles.particles import Particles
from cryoanm_lib.program.gauss_newton import all_latents
from cryoanm_lib.program.program import Model


def push_forward(
    model: Model,
    particles: Particles,
    values: Values,
    away: Float64[Tensor, "fields atoms 3"],
    resolution: int,
) -> Float[Tensor, "images fields dof"]:
    """G e, what becomes of whitened predictions as atoms are displaced in the molecule's frame, in Å."""
    forward, latents = model.forward_model, all_latents(model, particles, values)
    across = pose_to_rotation(latents["pose"])[:, None, :2].transpose(2, 3)
    velocities = away.to(forward.reference) @ across / forward.pixel_size
    _, moved = forward.projected_slopes(forward.positions(latents), velocities, resolution)
    return particles.noise[:, None].whiten(forward.factor(latents, resolution)[:, None] * moved, resolution)


def pull_back(
    model: Model,
    particles: Particles,
    values: Values,
    whitened: Float[Tensor, "images dof"],
    resolution: int,
) -> Float64[Tensor, "images atoms 3"]:
    """Gᵀ x, the gradient of what whitened predictions have in common with x by places in Å."""
    forward, latents = model.forward_model, all_latents(model, particles, values)
    positions = forward.positions(latents).requires_grad_()
    with torch.enable_grad():
        predicted = forward.factor(latents, resolution) * forward.projected(positions, resolution)
        shared = (particles.noise.whiten(predicted, resolution) * whitened.to(forward.reference)).sum()
        (gradient,) = torch.autograd.grad(shared, positions)
    turned = gradient @ pose_to_rotation(latents["pose"])[:, :2] / forward.pixel_size
    return turned.double()
