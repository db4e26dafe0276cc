"""The wide search: where in the whole prior an image may come from, by templates."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cryoanm_lib.inference.peak_finding import Peaks, Starts
from cryoanm_lib.inference.templates import Templates
from cryoanm_lib.numerics.segment_ops import segment_argmax, segment_logsumexp
from cryoanm_lib.particles.particles import Particles, require_images
from cryoanm_lib.program.program import Model

#: K of the templates: lower ones lose the molecule sooner in the noise, higher ones cost more.
SEARCH_RESOLUTION = 32

#: The search goes on while cells that are not beside a peak or a start hold more than this probability.
LEFT_OVER = 1e-3

#: Starts an image, at most.
MOST = 40

# Cells along every column that are beside one another, and images that are scored at a time.
_BESIDE = 2
_IMAGES = 512


class LatticeSearch:
    """Finds points to climb from by templates at resolution K, whatever a guide may say."""

    def __init__(self, model: Model, resolution: int = SEARCH_RESOLUTION) -> None:
        self.resolution = min(resolution, model.forward_model.box_size)
        self._templates = Templates(model, self.resolution)
        self._lattice = self._templates.lattice
        self._round = model.unknowns.of(lambda latent: latent.manifold.turns, model.device)

    def starts(self, particles: Particles, seen: Peaks | None = None) -> Starts:
        """The most probable cell of the lattice that is not beside a peak or a start, again and again.

        Peaks that have been seen already stand in the order of the images.
        """
        require_images(particles, self._lattice.origin.device)
        image, cell, log_mass = self._probable(particles)
        if seen is not None:
            index = ((seen.points - self._lattice.origin) / self._lattice.spacing).floor().long()
            rank = seen.rank
            for number in range(int(rank.max()) + 1):
                one_each = rank == number
                far = ~self._beside(image, cell, seen.image[one_each], index[one_each], len(particles))
                image, cell, log_mass = image[far], cell[far], log_mass[far]
        found = Starts(image[:0], self._lattice.centre[:0])
        for _ in range(MOST):
            left = segment_logsumexp(log_mass, image, len(particles)) > math.log(LEFT_OVER)
            open_ = left[image]
            image, cell, log_mass = image[open_], cell[open_], log_mass[open_]
            if not len(image):
                break
            best = segment_argmax(log_mass, image, len(particles))[left]
            found = found.joined(Starts(image[best], self._lattice.centre[cell[best]]))
            index = self._lattice.index[cell[best]]
            far = ~self._beside(image, cell, image[best], index, len(particles))
            image, cell, log_mass = image[far], cell[far], log_mass[far]
        return found

    def _probable(
        self, particles: Particles
    ) -> tuple[Int[Tensor, "rows"], Int[Tensor, "rows"], Float[Tensor, "rows"]]:
        """Image, cell and log-probability wherever that matters: the rest holds less than may be left."""
        parts = []
        for start in range(0, len(particles), _IMAGES):
            log_mass = self._templates.log_joint(particles[start : start + _IMAGES]).log_softmax(1)
            enough = log_mass > math.log(LEFT_OVER / len(self._lattice))
            image, cell = torch.nonzero(enough, as_tuple=True)
            parts.append((image + start, cell, log_mass[enough]))
        image, cell, log_mass = zip(*parts, strict=True)
        return torch.cat(image), torch.cat(cell), torch.cat(log_mass)

    def _beside(
        self,
        image: Int[Tensor, "rows"],
        cell: Int[Tensor, "rows"],
        owner: Int[Tensor, "points"],
        index: Int[Tensor, "points columns"],
        n_images: int,
    ) -> Bool[Tensor, "rows"]:
        """Whether a cell is beside the point of its image, poses also round the circle."""
        point = index.new_zeros(n_images, index.shape[1])
        has_one = torch.zeros(n_images, dtype=torch.bool, device=index.device)
        cells = self._lattice.index.amax(0) + 1
        # A peak may be further out than the lattice: then it is at its end.
        point[owner], has_one[owner] = torch.minimum(index.clamp(min=0), cells - 1), True
        apart = (self._lattice.index[cell] - point[image]).abs()
        apart = torch.where(self._round, torch.minimum(apart, cells - apart), apart)
        return (apart <= _BESIDE).all(-1) & has_one[image]
