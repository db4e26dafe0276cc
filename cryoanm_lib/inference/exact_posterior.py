"""The exact posterior of a few latents, on a lattice that is refined wherever probability may hide."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoanm_lib.errors import CryoANMError
from cryoanm_lib.imaging.latents import Values
from cryoanm_lib.inference.adaptive_lattice import Cells
from cryoanm_lib.inference.templates import Templates
from cryoanm_lib.numerics.segment_ops import segment_logsumexp, segment_max
from cryoanm_lib.particles.particles import Particles, require_images
from cryoanm_lib.program.log_joint import log_joint
from cryoanm_lib.program.program import Model

# Cells of the covering lattice that are held at a time.
_HELD = 2**23

# Steps in which a parabola is followed across a cell.
_POINTS = 8


@dataclass(frozen=True, eq=False)
class ExactPosterior:
    """Posterior of a batch of images as cells of a lattice, those of each image where its probability is.

    Attributes
    ----------
    model, particles, resolution : Model, Particles, int
        Whose posterior it is.
    image : Int[Tensor, "cells"]
        The image that a cell belongs to, in rising order.
    centre, spacing : Float[Tensor, "cells columns"]
        The middle of a cell, and its edges; the columns are those of `Unknowns`.
    log_mass : Float[Tensor, "cells"]
        Logarithm of a cell's probability; they add up to one for each image.
    slope, bend : Float[Tensor, "cells columns"]
        First and second derivative of the log-density along each column, in units of the spacing.
    log_evidence : Float[Tensor, "images"]
        log p(image), the latents integrated out.
    """

    model: Model
    particles: Particles
    resolution: int
    image: Int[Tensor, "cells"]
    centre: Float[Tensor, "cells columns"]
    spacing: Float[Tensor, "cells columns"]
    log_mass: Float[Tensor, "cells"]
    slope: Float[Tensor, "cells columns"]
    bend: Float[Tensor, "cells columns"]
    log_evidence: Float[Tensor, "images"]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.log_evidence)

    def sample(
        self, count: int, generator: torch.Generator | None = None
    ) -> dict[str, Float[Tensor, "draws images ..."]]:
        """Draws for each image: a cell by its probability, then a point of it under the local parabola."""
        device = self.centre.device
        at = (torch.arange(_POINTS, dtype=torch.float64, device=device) + 0.5) / _POINTS - 0.5
        log_within = self.slope[..., None] * at + 0.5 * self.bend[..., None] * at**2
        # A cell's mass is its density in the middle times what the parabolas add on the way to the edges.
        mass = (self.log_mass + log_within.exp().mean(-1).log().sum(-1)).exp()
        reached = mass.cumsum(0)
        after = segment_max(reached, self.image, len(self))
        before = torch.cat([after.new_zeros(1), after[:-1]])
        like = {"dtype": torch.float64, "device": "cpu"}  # the same numbers on every device
        uniform = torch.rand(count, len(self), generator=generator, **like).to(device)
        cell = torch.searchsorted(reached, before + uniform * (after - before)).clamp(max=len(reached) - 1)
        within = log_within[cell].softmax(-1).cumsum(-1)
        shape = (*cell.shape, self.centre.shape[-1], 2)
        uniform = torch.rand(shape, generator=generator, **like).to(device)
        point = (within < uniform[..., :1]).sum(-1).clamp(max=_POINTS - 1)
        place = (point + uniform[..., 1]) / _POINTS - 0.5
        unknowns = self.model.unknowns
        drawn = unknowns.values(unknowns.moved(self.centre[cell], place * self.spacing[cell]))
        return {name: value.to(self.model.forward_model.reference) for name, value in drawn.items()}

    @torch.no_grad()
    def log_density(self, latents: Values) -> Float[Tensor, "*draws images"]:
        """log p(latents | image), by the model itself."""
        return log_joint(self.model, self.particles, latents, self.resolution) - self.log_evidence

    def mean(self) -> dict[str, Float[Tensor, "images ..."]]:
        """Posterior mean of each latent; of the pose the mean direction, a unit vector."""
        weight, means = self.log_mass.exp()[:, None], {}
        for latent in self.model.unknowns.latents:
            rows = latent.rows(self.model.unknowns.values(self.centre)[latent.name])
            mean = rows.new_zeros(len(self), rows.shape[1]).index_add(0, self.image, weight * rows)
            if latent.manifold.turns:
                mean = torch.nn.functional.normalize(mean, dim=-1)
            means[latent.name] = latent.unrows(mean)
        return means

    @classmethod
    def joined(cls, parts: Sequence["ExactPosterior"], particles: Particles) -> "ExactPosterior":
        """The posterior of all images, from those of some in their order."""
        starts = itertools.accumulate((len(part) for part in parts[:-1]), initial=0)
        image = torch.cat([part.image + start for part, start in zip(parts, starts, strict=True)])
        names = ("centre", "spacing", "log_mass", "slope", "bend", "log_evidence")
        columns = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
        return replace(parts[0], particles=particles, image=image, **columns)


@torch.no_grad()
def exact_posterior(
    model: Model, particles: Particles, resolution: int, tolerance: float = 0.01
) -> ExactPosterior:
    """Posterior of the model's unknown latents for each image, and its evidence, to a stated tolerance.

    A lattice over the whole prior is first laid so that neighbouring cells differ by half a pixel of the
    crop. Then, again and again, cells are dropped that cannot hold a peak worth keeping, and the others
    halved, until they are as narrow as the posterior: F_dd h_d² ≤ 1 for the Fisher information F. Between its
    centre and a corner a cell rises by at most ½ Σ_ab |F_ab| h_a h_b / 4 if a peak lies in it. A lattice sum
    of a smooth density converges faster than any power of h; that it has is seen by the two halves of the
    lattice, as of a chess board, giving the same evidence. Where they do not, one more halving follows.

    Parameters
    ----------
    model, particles, resolution : Model, Particles, int
        What made which images, with latents that are given of each, and K.
    tolerance : float
        Nats by which the evidence of either half of the lattice may differ from the other.

    Raises
    ------
    CryoANMError
        If the evidence does not settle, there is no image, one is not finite, or they are not on the
        model's device.
    """
    require_images(particles, model.device)
    model.check_given(particles.given, resolution)
    templates = Templates(model, resolution)
    held = max(1, _HELD // len(templates.lattice))
    chunks = (particles[start : start + held] for start in range(0, len(particles), held))
    parts = [_settled(Cells.covering(templates, chunk), tolerance) for chunk in chunks]
    return ExactPosterior.joined(parts, particles)


def _settled(cells: Cells, tolerance: float) -> ExactPosterior:
    """Prune and halve until the two halves of the lattice agree."""
    for _ in range(40):
        fisher = cells.fisher()
        cells = cells.pruned(fisher)
        wide = cells.too_wide(fisher) | cells.unsettled(tolerance)
        if not wide.any():
            return _posterior_of(cells.in_order())
        cells = cells.halved(wide)
    raise CryoANMError(
        f"the evidence has not settled to {tolerance} nats at K = {cells.resolution}: allow a larger "
        "tolerance"
    )


def _posterior_of(cells: Cells) -> ExactPosterior:
    """Normalised, image by image."""
    image, spacing = cells.image, cells.spacing[cells.image]
    weight = cells.log_joint + spacing.log().sum(-1)
    evidence = segment_logsumexp(weight, image, len(cells.particles))
    return ExactPosterior(
        *(cells.model, cells.particles, cells.resolution),
        *(image, cells.centre, spacing, weight - evidence[image], *cells.parabolas(), evidence),
    )
