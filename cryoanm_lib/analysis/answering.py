"""Posteriors of images, climbed to from the poses of a table or from those that a search finds."""

import copy
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from cryoanm_lib.analysis.plan import Plan
from cryoanm_lib.inference.peak_finding import Starts
from cryoanm_lib.inference.refinement import RefinedPosterior, refine
from cryoanm_lib.inference.so3_search import SEARCH_RESOLUTION, SO3Search
from cryoanm_lib.particles.particles import Particles
from cryoanm_lib.program.prior import GIVEN_POSE
from cryoanm_lib.program.program import Model

#: Worth of draws from Gaussians that will do.
GOOD_SHARE = 0.5
#: Å, root mean square, that a climb finds its way back from; and where it starts too, in deviations.
_BASIN, _OUTSIDE = 2.5, 1.2


def answer(
    model: Model,
    particles: Particles,
    resolution: int,
    search: SO3Search | None = None,
    generator: torch.Generator | None = None,
    good_share: float = GOOD_SHARE,
) -> RefinedPosterior:
    """Posteriors of images, from the poses of their table or from those that a search finds."""
    if search is not None:
        starts = search.starts(particles)
    else:
        starts = Starts.of_each(_starts(model, particles.given[GIVEN_POSE].double()))
    group = None if search is None else search.group
    return refine(
        model, particles, resolution, starts, generator=generator, good_share=good_share, group=group
    )


@dataclass(frozen=True, eq=False)
class Answering:
    """What answers images: where it computes, and what looks for poses.

    Attributes
    ----------
    model : Model
        How images come about, on the CPU, where they are read and answers are judged and kept.
    there : Model
        The same on the device that computes posteriors.
    resolution : int
        K.
    search : SO3Search, optional
        Looks for poses there.
    """

    model: Model
    there: Model
    resolution: int
    search: SO3Search | None

    @classmethod
    def of(cls, plan: Plan, model: Model, resolution: int, device: torch.device) -> "Answering":
        """As a plan says."""
        there = model if device.type == "cpu" else copy.deepcopy(model).to(device)
        if plan.pose != "search":
            return cls(model, there, resolution, None)
        coarse = min(resolution, SEARCH_RESOLUTION)
        search = SO3Search(there, coarse, bends=_bends(there), symmetry=plan.symmetry)
        return cls(model, there, resolution, search)

    def __call__(
        self,
        particles: Particles,
        generator: torch.Generator,
        good_share: float = GOOD_SHARE,
    ) -> RefinedPosterior:
        """Posteriors of images of the CPU, which are there too whatever computed them."""
        images = particles.to(self.there.device)
        found = answer(self.there, images, self.resolution, self.search, generator, good_share)
        return found.beside(self.model, particles)


def _starts(model: Model, pose: Float64[Tensor, "images 4"]) -> Float64[Tensor, "images starts width"]:
    """Points at a pose of each image and everything else at rest, but for bends."""
    rest = model.prior.means(len(pose), model.forward_model.n_modes, pose) | {"pose": pose}
    bends = _bends(model)
    each = [model.unknowns.points({**rest, "amplitude": bend.expand(len(pose), -1)}) for bend in bends]
    return torch.stack(each, dim=1)


def _bends(model: Model) -> Float64[Tensor, "bends modes"]:
    """None, and some to either side where the molecule bends too far for a climb."""
    forward, like = model.forward_model, model.forward_model.reference.new_zeros(1).double()
    _, scale = model.prior.moments("amplitude", forward.n_modes, like)
    moved = scale * forward.modes.double().square().sum(-1).mean(-1).sqrt()
    wide = torch.diag(scale)[moved > _BASIN]
    return torch.cat([torch.zeros_like(scale)[None], _OUTSIDE * wide, -_OUTSIDE * wide])
