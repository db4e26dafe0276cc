"""The unknown numbers of an image as columns of a table, and how one moves among them."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cryoanm_lib.imaging.latents import Latent, Values


@dataclass(frozen=True)
class Unknowns:
    """The latents that are inferred, as a point and as steps from it.

    A point has a column for every number, a step one for every way to move: what these are for each latent
    is its `manifold`'s to say.

    Attributes
    ----------
    latents : tuple of Latent
        In the order of the columns.
    n_modes : int
        Columns of the amplitude.

    Examples
    --------
    >>> from cryoanm_lib.imaging.latents import AMPLITUDE, POSE
    >>> unknowns = Unknowns((POSE, AMPLITUDE), n_modes=2)
    >>> unknowns.columns
    ('pose', 'amplitude', 'amplitude')
    >>> unknowns.offset(torch.tensor([3.1, 1.0, 0.0]), torch.tensor([-3.1, 0.0, 0.0])).round(decimals=3)
    tensor([-0.0830,  1.0000,  0.0000])
    """

    latents: tuple[Latent, ...]
    n_modes: int

    @property
    def names(self) -> tuple[str, ...]:
        """Of the latents."""
        return tuple(latent.name for latent in self.latents)

    @property
    def columns(self) -> tuple[str, ...]:
        """The latent that each column of a step belongs to."""
        return tuple(latent.name for latent in self.latents for _ in range(self._n_columns(latent)))

    @property
    def width(self) -> int:
        """Columns of a point."""
        return sum(map(self._n_numbers, self.latents))

    def of(
        self, which: Callable[[Latent], object], device: torch.device | str = "cpu"
    ) -> Bool[Tensor, "columns"]:
        """Mark the columns of those latents for which something is so."""
        marked = {latent.name for latent in self.latents if which(latent)}
        return torch.tensor([name in marked for name in self.columns], device=device)

    def _n_columns(self, latent: Latent) -> int:
        return latent.manifold.n_columns(latent.width_for(self.n_modes))

    def _n_numbers(self, latent: Latent) -> int:
        return latent.manifold.n_numbers(latent.width_for(self.n_modes))

    def values(self, points: Float[Tensor, "*batch width"]) -> dict[str, Float[Tensor, "..."]]:
        """Values by name, of points."""
        return {
            latent.name: latent.unrows(latent.manifold.value(part))
            for latent, part in zip(self.latents, self._points(points), strict=True)
        }

    def points(self, values: Values) -> Float[Tensor, "*batch width"]:
        """The points, of values by name."""
        parts = [latent.manifold.point(latent.rows(values[latent.name])) for latent in self.latents]
        return torch.cat(parts, dim=-1)

    def moved(
        self, points: Float[Tensor, "*#batch width"], steps: Float[Tensor, "*#batch columns"]
    ) -> Float[Tensor, "*batch width"]:
        """The points that steps lead to; an angle stays in [-π, π], a quaternion of length 1."""
        return self._each("moved", self._points(points), self._steps(steps))

    def offset(
        self, points: Float[Tensor, "*#batch width"], origins: Float[Tensor, "*#batch width"]
    ) -> Float[Tensor, "*batch columns"]:
        """The steps from origins to points, by the shorter way round."""
        return self._each("offset", self._points(points), self._points(origins))

    def ways(
        self, steps: Float[Tensor, "*batch columns"]
    ) -> list[tuple[Float[Tensor, "*batch columns"], Float[Tensor, "*batch"]]]:
        """All steps that end where these do, and the logarithm of the volume that each one makes there.

        What turns may go round further times, see `manifolds`.
        """
        parts = zip(self.latents, self._steps(steps), strict=True)
        ways = itertools.product(*(latent.manifold.ways(part) for latent, part in parts))
        return [
            (together, self.log_volume(together)) for together in (torch.cat(way, dim=-1) for way in ways)
        ]

    def log_volume(self, steps: Float[Tensor, "*batch columns"]) -> Float[Tensor, "*batch"]:
        """Logarithm of the volume at the end of steps for that of steps: 0 unless a pose turns in space."""
        parts = zip(self.latents, self._steps(steps), strict=True)
        volumes = [latent.manifold.log_volume(part) for latent, part in parts if latent.manifold.turns]
        return sum(volumes, start=steps.new_zeros(steps.shape[:-1]))

    def of_manifold(self, attribute: str, device: torch.device | str = "cpu") -> Float[Tensor, "columns"]:
        """What the manifold of each column says: "least_precision", "unit"."""
        by_name = {latent.name: getattr(latent.manifold, attribute) for latent in self.latents}
        return torch.tensor([by_name[name] for name in self.columns], device=device)

    def _points(self, points: Float[Tensor, "*batch width"]) -> tuple[Tensor, ...]:
        return points.split([self._n_numbers(latent) for latent in self.latents], dim=-1)

    def _steps(self, steps: Float[Tensor, "*batch columns"]) -> tuple[Tensor, ...]:
        return steps.split([self._n_columns(latent) for latent in self.latents], dim=-1)

    def _each(self, operation: str, *parts: tuple[Tensor, ...]) -> Tensor:
        """An operation of every latent's manifold on its own parts, side by side."""
        own = zip(self.latents, *parts, strict=True)
        found = [getattr(latent.manifold, operation)(*of_latent) for latent, *of_latent in own]
        batch = torch.broadcast_shapes(*(part.shape[:-1] for part in found))
        return torch.cat([part.expand(*batch, -1) for part in found], dim=-1)
