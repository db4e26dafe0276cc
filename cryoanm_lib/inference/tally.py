"""What many images say of one number, counted: sums over shards are exact, and as small as for a few."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from cryoanm_lib.errors import CryoANMError
from cryoanm_lib.inference.population import Likelihoods

#: Steps of what images say, in units, and of the logarithm of how well they know it: a fraction of errors.
_STEP, _LOG_STEP = 0.02, 0.05
#: Least and largest deviation in units, and how far from 0 anything is; what is beyond counts as there.
_LEAST, _LARGEST, _FAR = 1e-3, 1e3, 1e7
_LEVELS = math.ceil(math.log(_LARGEST / _LEAST) / _LOG_STEP) + 1


@dataclass(frozen=True, eq=False)
class Tally:
    """How many images say what, and how surely, in steps of a fiftieth of a unit and of 5 %.

    Counts are whole numbers: in whatever shards images come, and whatever order these are added in, the sum
    is the same to the bit. There are no more cells than there are steps, however many images.

    Attributes
    ----------
    unit : float
        By which the number varies, about.
    cell : Int64[Tensor, "cells"]
        Which steps, in their order.
    count : Int64[Tensor, "cells"]
        Images in each.
    """

    unit: float
    cell: Int64[Tensor, "cells"]
    count: Int64[Tensor, "cells"]

    @classmethod
    def of(cls, seen: Likelihoods, unit: float) -> "Tally":
        """Of images that say something of one number."""
        at = (seen.mean[:, 0] / unit).clamp(-_FAR, _FAR).div(_STEP).round().long()
        deviation = (seen.covariance[:, 0, 0].sqrt() / unit).clamp(_LEAST, _LARGEST)
        level = (deviation / _LEAST).log().div(_LOG_STEP).round().long()
        return cls(unit, *_counted(at * _LEVELS + level, seen.count.long()))

    def __add__(self, other: "Tally") -> "Tally":
        """Of both.

        Raises
        ------
        CryoANMError
            If they are in other units.
        """
        if self.unit != other.unit:
            raise CryoANMError(f"units of {self.unit:g} and {other.unit:g} do not add: count both in one")
        cells, counts = torch.cat([self.cell, other.cell]), torch.cat([self.count, other.count])
        return Tally(self.unit, *_counted(cells, counts))

    def likelihoods(self) -> Likelihoods:
        """What images say, one for all in a cell."""
        at = torch.div(self.cell, _LEVELS, rounding_mode="floor")
        deviation = self.unit * _LEAST * (_LOG_STEP * (self.cell - at * _LEVELS).double()).exp()
        mean: Float64[Tensor, "cells 1"] = (self.unit * _STEP * at.double())[:, None]
        return Likelihoods(mean, deviation.square()[:, None, None], self.count.double())


def _counted(cell: Tensor, count: Tensor) -> tuple[Int64[Tensor, "cells"], Int64[Tensor, "cells"]]:
    """Each cell once, and all that is in it."""
    found, which = cell.unique(return_inverse=True)
    return found, torch.zeros_like(found).scatter_add_(0, which, count)
