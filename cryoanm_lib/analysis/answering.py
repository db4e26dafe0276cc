"""Posteriors of images, climbed to from the poses of a table or from those that a search finds."""

import torch
from jaxtyping import Float64
from torch import Tensor

from cryoanm_lib.analysis.plan import Plan
from cryoanm_lib.inference.peak_finding import Starts
from cryoanm_lib.inference.refinement import RefinedPosterior, refine
from cryoanm_lib.inference.so3_search import SO3Search
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


def search_of(plan: Plan, model: Model) -> SO3Search | None:
    """What looks for poses, if the plan says so."""
    return SO3Search(model, bends=_bends(model), symmetry=plan.symmetry) if plan.pose == "search" else None


def _starts(model: Model, pose: Float64[Tensor, "images 4"]) -> Float64[Tensor, "images starts width"]:
    """Points at a pose of each image and everything else at rest, but for bends."""
    rest = model.prior.means(len(pose), model.forward_model.n_modes, pose) | {"pose": pose}
    bends = _bends(model)
    each = [model.unknowns.points({**rest, "amplitude": bend.expand(len(pose), -1)}) for bend in bends]
    return torch.stack(each, dim=1)


def _bends(model: Model) -> Float64[Tensor, "bends modes"]:
    """None, and some to either side where the molecule bends too far for a climb."""
    forward, like = model.forward_model, torch.zeros(1, dtype=torch.float64)
    _, scale = model.prior.moments("amplitude", forward.n_modes, like)
    moved = scale * forward.modes.double().square().sum(-1).mean(-1).sqrt()
    wide = torch.diag(scale)[moved > _BASIN]
    return torch.cat([torch.zeros_like(scale)[None], _OUTSIDE * wide, -_OUTSIDE * wide])
