"""The wide search: where in the whole prior an image may come from, by templates."""

from collections.abc import Iterator

import torch
from torch import Tensor

from cryoanm_lib.climb import Peaks, Starts
from cryoanm_lib.program import CryoProgram, Particles
from cryoanm_lib.templates import Lattice, Templates

#: K of the templates: lower ones lose the molecule sooner in the noise, higher ones cost more.
SEARCH_RESOLUTION = 32

#: The search goes on while cells that are not beside a peak or a start hold more than this probability.
LEFT_OVER = 1e-3

#: Starts an image, at most.
MOST = 8

# Cells along every column that are beside one another.
_BESIDE = 2


class WideSearch:
    """Finds points to climb from, whatever a guide may say.

    Parameters
    ----------
    program : CryoProgram
        The model; the guide plays no part.
    resolution : int
        K of the templates.
    """

    def __init__(self, program: CryoProgram, resolution: int = SEARCH_RESOLUTION) -> None:
        self.resolution = min(resolution, program.forward_model.box_size)
        self._templates = Templates(program, self.resolution)

    def starts(self, particles: Particles, seen: Peaks | None = None) -> Starts:
        """The most probable cell of the lattice that is not beside a peak or a start, again and again.

        Parameters
        ----------
        particles : Particles
            Images, and the latents that are given.
        seen : Peaks, optional
            What has been found already.
        """
        log_mass = self._templates.log_joint(particles).log_softmax(1)
        if seen is not None:
            nearest = ((seen.values - self._lattice.origin) / self._lattice.spacing).floor().long()
            for image, index in self._one_each(seen.image, nearest):
                log_mass[image] = log_mass[image].masked_fill(self._beside(index), -torch.inf)
        found = Starts(torch.empty(0, dtype=torch.long), self._lattice.centre[:0])
        for _ in range(MOST):
            left = torch.nonzero(log_mass.logsumexp(1) > torch.tensor(LEFT_OVER).log())[:, 0]
            if not len(left):
                break
            best = log_mass[left].argmax(1)
            found = found.joined(Starts(left, self._lattice.centre[best]))
            beside = self._beside(self._lattice.index[best])
            log_mass[left] = log_mass[left].masked_fill(beside, -torch.inf)
        return found

    @property
    def _lattice(self) -> Lattice:
        return self._templates.lattice

    def _one_each(self, image: Tensor, index: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Peaks in groups that hold no image twice."""
        rank = torch.arange(len(image)) - torch.searchsorted(image, image)
        for number in range(int(rank.max()) + 1):
            yield image[rank == number], index[rank == number]

    def _beside(self, index: Tensor) -> Tensor:
        """For each of some cells, those beside it; all columns go round at their ends, as the poses do."""
        cells = self._lattice.index.amax(0) + 1
        apart = (self._lattice.index - index[:, None]).abs()
        return (torch.minimum(apart, cells - apart) <= _BESIDE).all(-1)
