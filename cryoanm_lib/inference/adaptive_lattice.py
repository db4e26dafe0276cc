"""A lattice that is pruned where there is nothing and halved where there is something, image by image."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cryoanm_lib.imaging.likelihood import log_likelihood
from cryoanm_lib.inference.fisher import fisher_information
from cryoanm_lib.inference.templates import Lattice, Templates, coefficients_reusing, same_projection
from cryoanm_lib.numerics.batching import many
from cryoanm_lib.numerics.fourier import crop_coefficients
from cryoanm_lib.numerics.segment_ops import segment_argmax, segment_logsumexp, segment_max
from cryoanm_lib.particles.particles import Particles
from cryoanm_lib.program.program import Model

#: A cell that cannot rise to within this many nats of the best one is dropped.
NEGLIGIBLE = 14.0

# Cells whose densities are worked out at a time.
_CHUNK = 2048


@dataclass(frozen=True, eq=False)
class Cells:
    """Cells of all images, with the log-joint density at their centres.

    Attributes
    ----------
    model, particles, resolution : Model, Particles, int
        Whose density it is.
    lattice : Lattice
        The coarsest one.
    image : Int[Tensor, "cells"]
        The image that a cell belongs to.
    index : Int[Tensor, "cells columns"]
        Its position on the lattice of its image.
    level : Int[Tensor, "images columns"]
        How often the lattice of an image has been halved along each column.
    log_joint : Float[Tensor, "cells"]
        log p(image, latents) in the middle.
    """

    model: Model
    particles: Particles
    resolution: int
    lattice: Lattice
    image: Int[Tensor, "cells"]
    index: Int[Tensor, "cells columns"]
    level: Int[Tensor, "images columns"]
    log_joint: Float[Tensor, "cells"]

    @classmethod
    def covering(cls, templates: Templates, particles: Particles) -> "Cells":
        """The coarsest lattice for every image, without the cells that are out of the question."""
        lattice, log_joint = templates.lattice, templates.log_joint(particles)
        image, best = torch.arange(len(particles), device=log_joint.device), log_joint.argmax(1)
        level = image.new_zeros(len(particles), lattice.index.shape[1])
        peaks = cls(
            *(templates.model, particles, templates.resolution, lattice),
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

    def _values(self, which: Int[Tensor, "some"] | slice = slice(None)) -> dict[str, Tensor]:
        """All latents at some of the cells."""
        image, like = self.image[which], self.model.forward_model.reference
        chosen = self.model.unknowns.values(self.centre[which].to(like))
        return {name: value[image] for name, value in self.particles.given.items()} | chosen

    def _evaluated(self, marked: Bool[Tensor, "cells"]) -> "Cells":
        """With log p(image, latents) worked out at the cells that are marked."""
        model = self.model
        observed = crop_coefficients(self.particles.coefficients, self.resolution)
        cells = torch.nonzero(marked)[:, 0]
        group = same_projection(model.unknowns, self.index[cells], self.image[cells])
        order = group.argsort()  # cells that share a projection stand together, whatever the chunk
        log_joint, latents = self.log_joint.clone(), self._values(cells)
        for part in order.split(many(_CHUNK, order.device)):
            here = {name: value[part] for name, value in latents.items()}
            same = torch.unique(group[part], return_inverse=True)[1]
            predicted = coefficients_reusing(model.forward_model, here, same, self.resolution)
            image = self.image[cells[part]]
            noise = self.particles.noise[image]
            likelihood = log_likelihood(observed[image], predicted, noise, self.resolution)
            log_joint[cells[part]] = likelihood.double() + model.log_prior(here)
        return replace(self, log_joint=log_joint)

    def fisher(self) -> Float[Tensor, "images columns columns"]:
        """Fisher information at the best cell of each image."""
        best = segment_argmax(self.log_joint, self.image, len(self.particles))
        return fisher_information(self.model, self.particles, self._values(best), self.resolution)

    def _least(self, fisher: Tensor) -> Float[Tensor, "images"]:
        """The density that a cell must have to hold a peak near the height of the best."""
        half = self.spacing / 2
        rise = 0.5 * (fisher.abs() * half[:, :, None] * half[:, None, :]).sum((1, 2))
        return segment_max(self.log_joint, self.image, len(self.particles)) - NEGLIGIBLE - rise

    def pruned(self, fisher: Tensor) -> "Cells":
        """Without the cells that cannot hold a peak near the height of the best."""
        return self._rows(self.log_joint >= self._least(fisher)[self.image])

    def too_wide(self, fisher: Tensor) -> Tensor:
        """For each image and column whether the cells are wider than the posterior."""
        return self.spacing**2 * fisher.diagonal(dim1=1, dim2=2) > 1.0

    def unsettled(self, tolerance: float) -> Tensor:
        """For each image, in all columns, whether the two halves of the lattice disagree on the evidence."""
        n_images, odd = len(self.particles), self.index.sum(-1) % 2 == 1
        halves = [segment_logsumexp(self.log_joint[h], self.image[h], n_images) for h in (odd, ~odd)]
        moved = (halves[0] - halves[1]).abs()
        return (~(moved <= tolerance))[:, None].expand_as(self.level)

    def halved(self, wide: Tensor) -> "Cells":
        """With cells cut in two along the columns that are marked for their image."""
        image, index = self.image, self.index
        for column in range(index.shape[1]):
            cut = wide[image, column]
            step = torch.zeros_like(index)
            step[:, column] = 1
            doubled = torch.where(cut[:, None], index + step * index, index)
            image, index = torch.cat([image, image[cut]]), torch.cat([doubled, (doubled + step)[cut]])
        # Images that are settled keep their cells, which stand in front, and what is known of them.
        unknown = self.log_joint.new_full((len(image) - len(self.log_joint),), torch.nan)
        log_joint, level = torch.cat([self.log_joint, unknown]), self.level + wide.long()
        finer = replace(self, image=image, index=index, level=level, log_joint=log_joint)
        return finer._evaluated(wide.any(1)[image])

    def in_order(self) -> "Cells":
        """The cells of each image together, in the order of the images."""
        return self._rows(self.image.argsort(stable=True))

    def _rows(self, which: Tensor) -> "Cells":
        image, index, log_joint = self.image[which], self.index[which], self.log_joint[which]
        return replace(self, image=image, index=index, log_joint=log_joint)

    def parabolas(self) -> tuple[Float[Tensor, "cells columns"], Float[Tensor, "cells columns"]]:
        """Slope and bend of the log-density across each cell, from its neighbours; 0 where one is missing."""
        counts = (self.lattice.index.amax(0) + 1) * 2**self.level
        key = self._key(self.index, counts)
        sorted_key, order = key.sort()
        slopes, bends = torch.zeros_like(self.centre), torch.zeros_like(self.centre)
        turns = self.model.unknowns.of(lambda latent: latent.manifold.turns)
        for column, round_ in enumerate(turns.tolist()):
            heights, found = [], torch.ones_like(key, dtype=torch.bool)
            for way in (-1, 1):
                beside = self.index.clone()
                beside[:, column] += way
                if round_:
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
