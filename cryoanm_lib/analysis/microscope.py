"""Particles that were imaged alike, and all that it takes to infer them."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Int64
from torch import Tensor

from cryoanm_lib.analysis.learned import Learned
from cryoanm_lib.inference.so3_search import SO3Search
from cryoanm_lib.particles.particle_set import ParticleSet
from cryoanm_lib.program.program import Model


@dataclass(frozen=True, eq=False)
class Microscope:
    """Particles that were imaged alike, in whatever optics groups, and how images of them come about."""

    number: int
    rows: Int64[Tensor, "particles"]
    learned: Learned
    model: Model
    search: SO3Search | None


def same_microscope(particles: ParticleSet) -> list[Int64[Tensor, "particles"]]:
    """Rows of particles of one microscope, pixel and box, whatever their optics groups are called."""
    unnamed = [replace(group, name="") for group in particles.optics]
    first = torch.tensor([unnamed.index(group) for group in unnamed])[particles.group]
    return [torch.nonzero(first == number)[:, 0] for number in first.unique().tolist()]
