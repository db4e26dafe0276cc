"""A mixture of Gaussians for the posterior of each image, in steps from their centres; poses go round."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryoanm_lib.imaging.unknowns import Unknowns
from cryoanm_lib.numerics.batching import pieces
from cryoanm_lib.numerics.per_image_rng import PerImageRNG


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """One mixture an image; a component that an image lacks has a weight of zero.

    Attributes
    ----------
    unknowns : Unknowns
        What the columns are.
    log_weight : Float[Tensor, "images components"]
        Logarithms of the weights, normalised.
    centre : Float[Tensor, "images components width"]
        Points from which the steps are taken.
    scale : Float[Tensor, "images components columns columns"]
        Lower triangular Cholesky factors of the covariances of the steps.
    """

    unknowns: Unknowns
    log_weight: Float[Tensor, "images components"]
    centre: Float[Tensor, "images components width"]
    scale: Float[Tensor, "images components columns columns"]

    def __getitem__(self, which: Tensor | slice) -> "GaussianMixture":
        return GaussianMixture(self.unknowns, self.log_weight[which], self.centre[which], self.scale[which])

    def to(self, device: torch.device | str) -> "GaussianMixture":
        """The same on another device."""
        parts = (self.log_weight, self.centre, self.scale)
        return GaussianMixture(self.unknowns, *(part.to(device) for part in parts))

    def with_images(self, which: Tensor, others: "GaussianMixture") -> "GaussianMixture":
        """The same, the mixtures of some images replaced; all get as many components as the largest has."""
        most = max(self.log_weight.shape[1], others.log_weight.shape[1])
        own, theirs = self._padded(most), others._padded(most)
        for name in ("log_weight", "centre", "scale"):
            getattr(own, name)[which] = getattr(theirs, name)
        return own

    def _padded(self, components: int) -> "GaussianMixture":
        """A copy with further components, of no weight."""
        n_images, present, columns, _ = self.scale.shape
        missing = (n_images, components - present)
        like = {"dtype": self.scale.dtype, "device": self.scale.device}
        identity = torch.eye(columns, **like).expand(*missing, columns, columns)
        nowhere = self.centre[:, :1].expand(*missing, -1)
        return GaussianMixture(
            self.unknowns,
            torch.cat([self.log_weight, self.log_weight.new_full(missing, -math.inf)], dim=1),
            torch.cat([self.centre, nowhere], dim=1),
            torch.cat([self.scale, identity], dim=1),
        )

    @property
    def covariance(self) -> Float[Tensor, "images components columns columns"]:
        """Covariance of each component."""
        return self.scale @ self.scale.transpose(-2, -1)

    def widened(self, factor: float, share: float) -> "GaussianMixture":
        """With a share of each weight given to the same component, its deviations multiplied by a factor."""
        log_weight = torch.cat(
            [self.log_weight + math.log1p(-share), self.log_weight + math.log(share)], dim=1
        )
        scale = torch.cat([self.scale, factor * self.scale], dim=1)
        return GaussianMixture(self.unknowns, log_weight, self.centre.repeat(1, 2, 1), scale)

    def sample(self, count: int, streams: PerImageRNG) -> Float[Tensor, "draws images width"]:
        """Draws for each image, from its own stream."""
        reached = self.log_weight.exp().cumsum(-1)
        uniform = streams.uniform(count).T[..., None] * reached[:, -1:]
        component = (reached < uniform).sum(-1)
        image = torch.arange(len(reached), device=reached.device).expand_as(component)
        normal = streams.normal(count, self.scale.shape[-1]).transpose(0, 1)
        away = (self.scale[image, component] @ normal[..., None])[..., 0]
        return self.unknowns.moved(self.centre[image, component], away)

    def component_log_density(
        self, values: Float[Tensor, "draws images width"]
    ) -> Float[Tensor, "draws images components"]:
        """Log-density of each component, its weight included; a pose counts further turns too."""
        parts = self._parts(len(values))
        return torch.cat([self[rows]._component_log_density(values[:, rows]) for rows in parts], dim=1)

    def _parts(self, n_draws: int) -> list[slice]:
        """So few images at a time that steps from all centres to all draws stay near the processor."""
        n_images, components, columns, _ = self.scale.shape
        steps = n_draws * components * columns * self.scale.element_size()
        return pieces(n_images, steps, self.scale.device) or [slice(0, 0)]

    def _component_log_density(
        self, values: Float[Tensor, "draws images width"]
    ) -> Float[Tensor, "draws images components"]:
        away = self.unknowns.offset(values[..., None, :], self.centre)
        ways = self.unknowns.ways(away)
        each = torch.stack([-0.5 * self._squared_distance(way) - volume for way, volume in ways])
        log_volume = self.scale.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        constant = 0.5 * away.shape[-1] * math.log(2 * math.pi)
        return each.logsumexp(0) - log_volume - constant + self.log_weight

    def _squared_distance(self, away: Float[Tensor, "draws images components columns"]) -> Tensor:
        """Mahalanobis distance, for each component."""
        # All draws are columns of one system: a system for each draw would repeat the factor.
        standard = torch.linalg.solve_triangular(self.scale, away.permute(1, 2, 3, 0), upper=False)
        return standard.square().sum(-2).permute(2, 0, 1)

    def log_density(self, values: Float[Tensor, "draws images width"]) -> Float[Tensor, "draws images"]:
        """Log-density of the mixture."""
        return self.component_log_density(values).logsumexp(-1)

    def refitted(
        self, values: Float[Tensor, "draws images width"], log_weight: Float[Tensor, "draws images"]
    ) -> "GaussianMixture":
        """The components moved to the moments of weighted draws, each draw shared by responsibility.

        So many effective draws n say of a covariance of d(d + 1)/2 numbers; what a component was before
        counts as if it had been seen on as many draws as that, and its middle on one.
        """
        parts = [
            self[rows]._refitted(values[:, rows], log_weight[:, rows]) for rows in self._parts(len(values))
        ]
        each = ([getattr(part, name) for part in parts] for name in ("log_weight", "centre", "scale"))
        return GaussianMixture(self.unknowns, *(torch.cat(some) for some in each))

    def _refitted(
        self, values: Float[Tensor, "draws images width"], log_weight: Float[Tensor, "draws images"]
    ) -> "GaussianMixture":
        each = self.component_log_density(values)
        share = (log_weight - log_weight.logsumexp(0))[..., None] + each - each.logsumexp(-1, keepdim=True)
        log_mass = share.logsumexp(0)
        within = (share - log_mass.clamp(min=-1e300)).exp()
        away = self.unknowns.offset(values[..., None, :], self.centre)
        effective, columns = 1 / within.square().sum(0).clamp(min=1e-300), away.shape[-1]
        mean = (effective / (effective + 1))[..., None] * (within[..., None] * away).sum(0)
        spread = away - mean
        seen = torch.einsum("sic,sica,sicb->icab", within, spread, spread)
        trust = (effective / (effective + columns * (columns + 1) / 2))[..., None, None]
        factor, failed = torch.linalg.cholesky_ex(trust * seen + (1 - trust) * self.covariance)
        known = (failed == 0) & log_mass.isfinite()
        centre = torch.where(known[..., None], self.unknowns.moved(self.centre, mean), self.centre)
        scale = torch.where(known[..., None, None], factor, self.scale)
        # No component is given up on the word of one round.
        log_weight = torch.where(self.log_weight.isfinite(), log_mass.clamp(min=-8.0), self.log_weight)
        return GaussianMixture(self.unknowns, log_weight.log_softmax(-1), centre, scale)
