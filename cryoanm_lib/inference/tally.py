"""What many images say of one number, counted: sums over shards are exact, and as small as for a few."""

from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from cryoanm_lib.inference.likelihoods import Likelihoods

#: Steps of what images say, in errors of theirs, and of the logarithm of these.
_STEP, _LOG_STEP = 0.1, 0.05
#: Levels of errors, from the least to the largest in whatever unit; and how many steps anything is from 0.
_LEAST, _LEVELS, _FAR = 1e-9, 1024, 1e9


@dataclass(frozen=True, eq=False)
class Tally:
    """How many images say what, and how surely, in steps of a tenth of the error and of 5 % of it.

    Counts are whole numbers: in whatever shards images come, and whatever order these are added in, the sum
    is the same to the bit. There are no more cells than there are steps, however many images.

    Attributes
    ----------
    cell : Int64[Tensor, "cells"]
        Which steps, in their order.
    count : Int64[Tensor, "cells"]
        Images in each.
    """

    cell: Int64[Tensor, "cells"]
    count: Int64[Tensor, "cells"]

    @classmethod
    def of(cls, seen: Likelihoods) -> "Tally":
        """Of images that say something of one number."""
        level = (seen.covariance[:, 0, 0].sqrt() / _LEAST).log().div(_LOG_STEP).round()
        level = level.clamp(0, _LEVELS - 1)
        at = (seen.mean[:, 0] / (_STEP * _deviation(level))).round().clamp(-_FAR, _FAR)
        return cls(*_counted(at.long() * _LEVELS + level.long(), seen.count.long()))

    def __add__(self, other: "Tally") -> "Tally":
        """Of both."""
        return Tally(*_counted(torch.cat([self.cell, other.cell]), torch.cat([self.count, other.count])))

    def likelihoods(self) -> Likelihoods:
        """What images say, one for all in a cell."""
        at = torch.div(self.cell, _LEVELS, rounding_mode="floor")
        deviation = _deviation(self.cell - at * _LEVELS)
        mean: Float64[Tensor, "cells 1"] = (_STEP * at * deviation)[:, None]
        return Likelihoods(mean, deviation.square()[:, None, None], self.count.double())


def _deviation(level: Tensor) -> Float64[Tensor, "cells"]:
    """Error of a level."""
    return _LEAST * (_LOG_STEP * level.double()).exp()


def _counted(cell: Tensor, count: Tensor) -> tuple[Int64[Tensor, "cells"], Int64[Tensor, "cells"]]:
    """Each cell once, and all that is in it."""
    found, which = cell.unique(return_inverse=True)
    return found, torch.zeros_like(found).scatter_add_(0, which, count)
