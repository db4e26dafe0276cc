"""The exact posterior of a few latents, on a lattice that is refined wherever probability may hide."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoanm_lib.errors import CryoANMError
from cryoanm_lib.fourier import crop_coefficients
from cryoanm_lib.information import fisher_information
from cryoanm_lib.likelihood import log_likelihood
from cryoanm_lib.program import CryoProgram, Particles, require_images
from cryoanm_lib.ragged import argmax_of_each, logsumexp_of_each, max_of_each
from cryoanm_lib.templates import Lattice, Templates, coefficients_reusing, same_projection
from cryoanm_lib.unknowns import Unknowns

#: A cell that cannot rise to within this many nats of the best one is dropped.
NEGLIGIBLE = 14.0

# Cells whose densities are worked out at a time, and cells of the covering lattice that are held at a time.
_CHUNK = 2048
_HELD = 2**23

# Steps in which a parabola is followed across a cell.
_POINTS = 8


@dataclass(frozen=True, eq=False)
class ExactPosterior:
    """Posterior of a batch of images as cells of a lattice, those of each image where its probability is.

    Attributes
    ----------
    program, particles, resolution : CryoProgram, Particles, int
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

    program: CryoProgram
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
        at = (torch.arange(_POINTS, dtype=torch.float64) + 0.5) / _POINTS - 0.5
        log_within = self.slope[..., None] * at + 0.5 * self.bend[..., None] * at**2
        # A cell's mass is its density in the middle times what the parabolas add on the way to the edges.
        mass = (self.log_mass + log_within.exp().mean(-1).log().sum(-1)).exp()
        reached = mass.cumsum(0)
        before, total = _before_and_total(reached, self.image, len(self))
        uniform = torch.rand(count, len(self), generator=generator, dtype=torch.float64)
        cell = torch.searchsorted(reached, before + uniform * total).clamp(max=len(reached) - 1)
        within = log_within[cell].softmax(-1).cumsum(-1)
        uniform = torch.rand(*cell.shape, self.centre.shape[-1], 2, generator=generator, dtype=torch.float64)
        point = (within < uniform[..., :1]).sum(-1).clamp(max=_POINTS - 1)
        place = (point + uniform[..., 1]) / _POINTS - 0.5
        unknowns = Unknowns.of(self.program)
        drawn = unknowns.latents(unknowns.wrapped(self.centre[cell] + place * self.spacing[cell]))
        return {name: value.to(self.program.forward_model.reference) for name, value in drawn.items()}

    @torch.no_grad()
    def log_density(self, latents: Mapping[str, Tensor]) -> Float[Tensor, "*draws images"]:
        """log p(latents | image), by the model itself."""
        return self.program.log_joint(self.particles, latents, self.resolution) - self.log_evidence

    def mean(self) -> dict[str, Float[Tensor, "images ..."]]:
        """Posterior mean of each latent; of the pose the mean direction, a unit vector."""
        weight = self.log_mass.exp()[:, None]
        means = {}
        for name, value in Unknowns.of(self.program).latents(self.centre).items():
            rows = value if value.ndim > 1 else value[:, None]
            mean = rows.new_zeros(len(self), rows.shape[1]).index_add(0, self.image, weight * rows)
            means[name] = mean if value.ndim > 1 else mean[:, 0]
        if "pose" in means:
            means["pose"] = torch.nn.functional.normalize(means["pose"], dim=-1)
        return means

    @classmethod
    def joined(cls, parts: Sequence["ExactPosterior"]) -> "ExactPosterior":
        """The posterior of all images, from those of some."""
        starts = torch.tensor([0, *(len(part) for part in parts[:-1])]).cumsum(0)
        image = torch.cat([part.image + start for part, start in zip(parts, starts, strict=True)])
        particles = Particles(
            torch.cat([part.particles.coefficients for part in parts]),
            {k: torch.cat([p.particles.latents[k] for p in parts]) for k in parts[0].particles.latents},
        )
        names = ("centre", "spacing", "log_mass", "slope", "bend", "log_evidence")
        columns = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
        return replace(parts[0], particles=particles, image=image, **columns)


@torch.no_grad()
def exact_posterior(
    program: CryoProgram, particles: Particles, resolution: int, tolerance: float = 0.01
) -> ExactPosterior:
    """Posterior of the program's unknown latents for each image, and its evidence, to a stated tolerance.

    A lattice over the whole prior is first laid so that neighbouring cells differ by half a pixel of the
    crop. Then, again and again, cells are dropped that cannot hold a peak worth keeping, and the others
    halved, until they are as narrow as the posterior: F_dd h_d² ≤ 1 for the Fisher information F. Between its
    centre and a corner a cell rises by at most ½ Σ_ab |F_ab| h_a h_b / 4 if a peak lies in it. A lattice sum
    of a smooth density converges faster than any power of h; that it has is seen by the two halves of the
    lattice, as of a chess board, giving the same evidence. Where they do not, one more halving follows.

    Parameters
    ----------
    program : CryoProgram
        Its model, prior and noise; the guide plays no part.
    particles : Particles
        Images, and the latents that are given.
    resolution : int
        K.
    tolerance : float
        Nats by which the evidence of either half of the lattice may differ from the other.

    Raises
    ------
    CryoANMError
        If the evidence does not settle, there is no image, one is not finite, or they are not on the CPU.
    """
    require_images(particles)
    templates = Templates(program, resolution)
    held = max(1, _HELD // len(templates.lattice))
    chunks = (particles[start : start + held] for start in range(0, len(particles), held))
    return ExactPosterior.joined([_settled(_Cells.covering(templates, c), tolerance) for c in chunks])


def _settled(cells: "_Cells", tolerance: float) -> ExactPosterior:
    """Prune and halve until the two halves of the lattice agree."""
    for _ in range(40):
        fisher = cells.fisher()
        cells = cells.pruned(fisher)
        wide = cells.too_wide(fisher) | cells.unsettled(tolerance)
        if not wide.any():
            return cells.posterior()
        cells = cells.halved(wide)
    raise CryoANMError(
        f"the evidence has not settled to {tolerance} nats at K = {cells.resolution}: allow a larger "
        "tolerance"
    )


@dataclass(frozen=True, eq=False)
class _Cells:
    """Cells of all images, with the log-joint density at their centres."""

    program: CryoProgram
    particles: Particles
    resolution: int
    lattice: Lattice
    image: Int[Tensor, "cells"]
    index: Int[Tensor, "cells columns"]
    level: Int[Tensor, "images columns"]
    log_joint: Float[Tensor, "cells"]

    @classmethod
    def covering(cls, templates: Templates, particles: Particles) -> "_Cells":
        """The coarsest lattice for every image, without the cells that are out of the question."""
        lattice, log_joint = templates.lattice, templates.log_joint(particles)
        image, best = torch.arange(len(particles)), log_joint.argmax(1)
        level = torch.zeros(len(particles), lattice.index.shape[1], dtype=torch.long)
        peaks = cls(
            *(templates.program, particles, templates.resolution, lattice),
            *(image, lattice.index[best], level, log_joint[image, best]),
        )
        least = peaks._least(peaks.fisher())
        image, cell = torch.nonzero(log_joint >= least[:, None], as_tuple=True)
        return replace(peaks, image=image, index=lattice.index[cell], log_joint=log_joint[image, cell])

    @property
    def spacing(self) -> Float[Tensor, "images columns"]:
        """Edges of the cells of each image."""
        return self.lattice.spacing * 0.5**self.level

    @property
    def centre(self) -> Float[Tensor, "cells columns"]:
        """Middles of the cells."""
        return self.lattice.origin + (self.index + 0.5) * self.spacing[self.image]

    def _latents(self, which: Int[Tensor, "some"] | slice = slice(None)) -> dict[str, Tensor]:
        """All latents at some of the cells."""
        image, like = self.image[which], self.program.forward_model.reference
        chosen = Unknowns.of(self.program).latents(self.centre[which].to(like))
        return {name: value[image] for name, value in self.particles.latents.items()} | chosen

    def _evaluated(self) -> "_Cells":
        """With log p(image, latents) worked out at each cell."""
        program, model = self.program, self.program.forward_model
        observed = crop_coefficients(self.particles.coefficients, self.resolution)
        group = same_projection(program, self.index, self.image)
        order = group.argsort()  # cells that share a projection stand together, whatever the chunk
        log_joint = torch.empty(len(order), dtype=torch.float64)
        latents = self._latents()
        for part in order.split(_CHUNK):
            here = {name: value[part] for name, value in latents.items()}
            same = torch.unique(group[part], return_inverse=True)[1]
            predicted = coefficients_reusing(program, here, same, self.resolution)
            likelihood = log_likelihood(
                observed[self.image[part]], predicted, program.noise, self.resolution, model.box_size
            )
            log_joint[part] = likelihood.double() + program.log_prior(here)
        return replace(self, log_joint=log_joint)

    def fisher(self) -> Float[Tensor, "images columns columns"]:
        """Fisher information at the best cell of each image."""
        best = argmax_of_each(self.log_joint, self.image, len(self.particles))
        return fisher_information(self.program, self._latents(best), self.resolution)

    def _least(self, fisher: Tensor) -> Float[Tensor, "images"]:
        """The density that a cell must have to hold a peak near the height of the best."""
        half = self.spacing / 2
        rise = 0.5 * (fisher.abs() * half[:, :, None] * half[:, None, :]).sum((1, 2))
        return max_of_each(self.log_joint, self.image, len(self.particles)) - NEGLIGIBLE - rise

    def pruned(self, fisher: Tensor) -> "_Cells":
        """Without the cells that cannot hold a peak near the height of the best."""
        keep = self.log_joint >= self._least(fisher)[self.image]
        return replace(self, image=self.image[keep], index=self.index[keep], log_joint=self.log_joint[keep])

    def too_wide(self, fisher: Tensor) -> Tensor:
        """For each image and column whether the cells are wider than the posterior."""
        return self.spacing**2 * fisher.diagonal(dim1=1, dim2=2) > 1.0

    def unsettled(self, tolerance: float) -> Tensor:
        """For each image, in all columns, whether the two halves of the lattice disagree on the evidence."""
        n_images, odd = len(self.particles), self.index.sum(-1) % 2 == 1
        halves = [logsumexp_of_each(self.log_joint[h], self.image[h], n_images) for h in (odd, ~odd)]
        moved = (halves[0] - halves[1]).abs()
        return (~(moved <= tolerance))[:, None].expand_as(self.level)

    def halved(self, wide: Tensor) -> "_Cells":
        """With cells cut in two along the columns that are marked for their image."""
        image, index = self.image, self.index
        for column in range(index.shape[1]):
            cut = wide[image, column]
            step = torch.zeros_like(index)
            step[:, column] = 1
            doubled = torch.where(cut[:, None], index + step * index, index)
            image, index = torch.cat([image, image[cut]]), torch.cat([doubled, (doubled + step)[cut]])
        finer = replace(self, image=image, index=index, level=self.level + wide.long())
        # Images that are settled keep their cells, which stand in front, and what is known of them.
        changed = wide.any(1)[image]
        log_joint = torch.zeros(len(image), dtype=torch.float64)
        log_joint[: len(self.log_joint)] = self.log_joint
        log_joint[changed] = finer._only(changed)._evaluated().log_joint
        return replace(finer, log_joint=log_joint)

    def _only(self, which: Tensor) -> "_Cells":
        """Some of the cells, their densities left out."""
        return replace(self, image=self.image[which], index=self.index[which], log_joint=torch.empty(0))

    def posterior(self) -> ExactPosterior:
        """Normalised, image by image."""
        order = self.image.argsort(stable=True)
        cells = replace(
            self, image=self.image[order], index=self.index[order], log_joint=self.log_joint[order]
        )
        image, spacing = cells.image, cells.spacing[cells.image]
        weight = cells.log_joint + spacing.log().sum(-1)
        evidence = logsumexp_of_each(weight, image, len(self.particles))
        return ExactPosterior(
            *(self.program, self.particles, self.resolution),
            *(image, cells.centre, spacing, weight - evidence[image], *cells.parabolas(), evidence),
        )

    def parabolas(self) -> tuple[Float[Tensor, "cells columns"], Float[Tensor, "cells columns"]]:
        """Slope and bend of the log-density across each cell, from its neighbours; 0 where one is missing."""
        counts = (self.lattice.index.amax(0) + 1) * 2**self.level
        key = self._key(self.index, counts)
        sorted_key, order = key.sort()
        slopes, bends = torch.zeros_like(self.centre), torch.zeros_like(self.centre)
        for column, name in enumerate(Unknowns.of(self.program).columns):
            heights, found = [], torch.ones(len(key), dtype=torch.bool)
            for way in (-1, 1):
                beside = self.index.clone()
                beside[:, column] += way
                if name == "pose":
                    beside[:, column] %= counts[self.image, column]
                wanted = self._key(beside, counts)
                place = torch.searchsorted(sorted_key, wanted).clamp(max=len(key) - 1)
                found &= sorted_key[place] == wanted
                heights.append(self.log_joint[order[place]])
            slopes[:, column] = torch.where(found, (heights[1] - heights[0]) / 2, 0.0)
            bends[:, column] = torch.where(found, heights[1] - 2 * self.log_joint + heights[0], 0.0)
        return slopes, bends

    def _key(self, index: Int[Tensor, "cells columns"], counts: Tensor) -> Int[Tensor, "cells"]:
        """One number for the position of each cell of each image, unlike any other's."""
        key = self.image.clone()
        for column, most in zip(index.unbind(-1), counts.amax(0), strict=True):
            key = key * (most + 2) + column + 1  # one more on either side, where neighbours may be asked for
        return key


def _before_and_total(
    reached: Float[Tensor, "cells"], image: Int[Tensor, "cells"], n_images: int
) -> tuple[Float[Tensor, "images"], Float[Tensor, "images"]]:
    """Of a running sum over cells in the order of their images: where each image starts, and its share."""
    after = max_of_each(reached, image, n_images)
    before = torch.cat([after.new_zeros(1), after[:-1]])
    return before, after - before
