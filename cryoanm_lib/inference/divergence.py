"""Where a training run went wrong: the first tensor, in the order of the data, that is no longer a number."""

from collections.abc import Iterator
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from cryoanm_lib.inference.amortised import in_use
from cryoanm_lib.particles.particles import Particles
from cryoanm_lib.program.program import Guide


def first_not_finite(guide: Guide, particles: Particles, resolution: int) -> str | None:
    """Name of the first tensor that is not finite: of images, weights, guide or model; None if all are."""
    for name, tensor in _tensors(guide, particles, resolution):
        values = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        if not values.isfinite().all():
            return name
    return None


def _tensors(guide: Guide, particles: Particles, resolution: int) -> Iterator[tuple[str, Tensor]]:
    yield "coefficients of the images", particles.coefficients
    yield from ((f"latent '{name}' of the images", value) for name, value in particles.given.items())
    yield from ((f"weight '{name}'", value) for name, value in guide.encoders.state_dict().items())
    with torch.no_grad(), in_use(guide), pyro.validation_enabled(False):
        q = poutine.trace(guide.guide).get_trace(particles, resolution)
        p = poutine.trace(poutine.replay(guide.model.model, q)).get_trace(particles, resolution)
        for trace in (q, p):
            trace.compute_log_prob()
    for whose, trace in (("guide", q), ("model", p)):
        sites: dict[str, Any] = dict(trace.nodes)
        for name in trace.stochastic_nodes + trace.observation_nodes:
            yield f"{whose}'s site '{name}'", sites[name]["value"]
            yield f"log-density of {whose}'s site '{name}'", sites[name]["log_prob"]
