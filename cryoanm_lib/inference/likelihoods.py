"""What each image says of some numbers, apart from the prior that its posterior was computed with."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

#: The least that an image may seem to say, of what a prior says.
_NOTHING = 1e-4


@dataclass(frozen=True, eq=False)
class Likelihoods:
    """What each image says of some numbers, apart from any prior: a Gaussian in them.

    Attributes
    ----------
    mean : Float64[Tensor, "images columns"]
        Where the likelihood is highest.
    covariance : Float64[Tensor, "images columns columns"]
        How precisely that is known.
    count : Float64[Tensor, "images"]
        For how many images it stands that say the same, or all but the same, as of `Tally`: 1 for each.
    """

    mean: Float64[Tensor, "images columns"]
    covariance: Float64[Tensor, "images columns columns"]
    count: Float64[Tensor, "images"]

    def __len__(self) -> int:
        return len(self.mean)

    def __getitem__(self, which: Tensor) -> "Likelihoods":
        return Likelihoods(self.mean[which], self.covariance[which], self.count[which])

    @classmethod
    def of_posteriors(
        cls,
        mean: Float64[Tensor, "images columns"],
        covariance: Float64[Tensor, "images columns columns"],
        prior: Float64[Tensor, "*images columns"],
        wider: Float64[Tensor, "images columns columns"] | None = None,
    ) -> "Likelihoods":
        """Posteriors less the prior N(0, diag(s²)) that they were computed with, s its deviations.

        With Σ the covariance of a posterior, S⁻¹ = Σ⁻¹ - diag(s⁻²) and m = S Σ⁻¹ μ. Where a posterior is as
        wide as the prior, or wider as one of several peaks may be, the image says nothing: m is 0, S wide.
        Where posteriors are `wider` for what the model has wrong, their means are where they were, and
        S + S Σ⁻¹ (Σ_wider - Σ) Σ⁻¹ S is how precisely m is known.
        """
        # in units of the prior's deviations, where it is N(0, 1)
        unit = prior[..., :, None] * prior[..., None, :]
        precision = torch.linalg.inv(covariance / unit)
        values, axes = torch.linalg.eigh(precision)
        left = (values - 1).clamp(min=_NOTHING)
        found = axes @ (axes.transpose(1, 2) / left[..., None])
        # S Σ⁻¹, of which nothing is left where nothing is said
        gain = axes @ ((values / left * (values - 1 > _NOTHING))[..., None] * axes.transpose(1, 2))
        at = (gain @ (mean / prior)[..., None])[..., 0]
        if wider is not None:
            found = found + gain @ ((wider - covariance) / unit) @ gain.transpose(1, 2)
        return cls(prior * at, unit * found, torch.ones(len(mean), dtype=torch.float64))

    @classmethod
    def together(cls, parts: Sequence["Likelihoods"]) -> "Likelihoods":
        """Those of several parts, one after the other."""
        each = zip(*((part.mean, part.covariance, part.count) for part in parts), strict=True)
        return cls(*(torch.cat(some) for some in each))

    @classmethod
    def exact(cls, at: Float64[Tensor, "images columns"]) -> "Likelihoods":
        """As if images had said these numbers without an error."""
        n, columns = at.shape
        return cls(at, at.new_zeros(1, columns, columns).expand(n, -1, -1), at.new_ones(n))
