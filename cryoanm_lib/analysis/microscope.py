"""Particles that were imaged alike, and all that it takes to infer them."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from cryoanm_lib.analysis.answering import Answering
from cryoanm_lib.analysis.learned import Learned
from cryoanm_lib.particles.particle_set import ParticleSet
from cryoanm_lib.program.program import Model


@dataclass(frozen=True, eq=False)
class Microscope:
    """Particles that were imaged alike, in whatever optics groups, and how images of them come about."""

    number: int
    rows: Int64[Tensor, "particles"]
    learned: Learned
    answering: Answering

    @property
    def model(self) -> Model:
        """How images come about."""
        return self.answering.model


def same_microscope(particles: ParticleSet) -> list[Int64[Tensor, "particles"]]:
    """Rows of particles of one microscope, pixel and box, whatever their optics groups are called."""
    unnamed = [replace(group, name="") for group in particles.optics]
    first = torch.tensor([unnamed.index(group) for group in unnamed])[particles.group]
    return [torch.nonzero(first == number)[:, 0] for number in first.unique().tolist()]


class Shard(NamedTuple):
    """Particles of one microscope that are inferred and written together."""

    number: int
    microscope: int
    rows: Int64[Tensor, "particles"]


def shards_of(particles: ParticleSet, size: int) -> list[Shard]:
    """All particles, of one microscope after the other, so many at a time; numbered from 0."""
    parts = [
        (number, part) for number, rows in enumerate(same_microscope(particles)) for part in rows.split(size)
    ]
    return [Shard(number, *part) for number, part in enumerate(parts)]
