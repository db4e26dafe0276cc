"""Where a training run went wrong: the first tensor, in the order of the data, that is no longer a number."""

from collections.abc import Iterator

import pyro
import torch
from pyro import poutine
from torch import Tensor

from cryoanm_lib.particles.particles import Particles
from cryoanm_lib.program.program import CryoProgram


def first_not_finite(program: CryoProgram, particles: Particles, resolution: int) -> str | None:
    """Name of the first tensor with a NaN or an infinity in it: of images, weights, guide or model; or none.

    Parameters
    ----------
    program : CryoProgram
        Its networks are asked, and are left as they are.
    particles : Particles
        The images of the step.
    resolution : int
        K.
    """
    for name, tensor in _tensors(program, particles, resolution):
        values = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        if not values.isfinite().all():
            return name
    return None


def _tensors(program: CryoProgram, particles: Particles, resolution: int) -> Iterator[tuple[str, Tensor]]:
    yield "coefficients of the images", particles.coefficients
    yield from ((f"latent '{name}' of the images", value) for name, value in particles.latents.items())
    yield from ((f"weight '{name}'", value) for name, value in program.encoders.state_dict().items())
    with torch.no_grad(), program.in_use(), pyro.validation_enabled(False):
        guide = poutine.trace(program.guide).get_trace(particles, resolution)
        model = poutine.trace(poutine.replay(program.model, guide)).get_trace(particles, resolution)
    for whose, trace in (("guide", guide), ("model", model)):
        trace.compute_log_prob()
        for site in trace.stochastic_nodes + trace.observation_nodes:
            yield f"{whose}'s site '{site}'", trace.nodes[site]["value"]
            yield f"log-density of {whose}'s site '{site}'", trace.nodes[site]["log_prob"]
