"""Pseudo-atoms from a density map, for those who have a map and no model."""

import math
from dataclasses import dataclass, replace

import numpy as np
import scipy  # loads its parts where they are first used
import torch
from jaxtyping import Float64, Int
from torch import Tensor

from cryoanm_lib.errors import StructureError
from cryoanm_lib.molecule.density import Density

#: Kinds of weights: each costs a sum of its own, and eight lose less of a map than its noise does.
KINDS = 8

# How far a Gaussian reaches in deviations; steps of k-means and of descent; by how much the number grows
# where the correlation is too low, and how often.
_REACH, _ROUNDS, _STEPS, _GROWTH, _TRIALS = 3.5, 8, 60, 1.6, 12


@dataclass(frozen=True, eq=False)
class PseudoAtoms:
    """Gaussians that add up to a map, ρ(x) = Σ_p w_p exp(-|x - x_p|² / 2σ²).

    Attributes
    ----------
    coordinates : Float64[Tensor, "atoms 3"]
        Positions in Å, as the map has them.
    kinds : Int[Tensor, "atoms"]
        To which of `weights` each belongs.
    weights : Float64[Tensor, "kinds"]
        Densities at the middle of each kind, in the map's unit.
    width : float
        σ in Å.
    correlation : float
        Of their density with the map's, over the voxels within the mask and those that they reach.
    """

    coordinates: Float64[Tensor, "atoms 3"]
    kinds: Int[Tensor, "atoms"]
    weights: Float64[Tensor, "kinds"]
    width: float
    correlation: float

    def __len__(self) -> int:
        return len(self.kinds)


def pseudo_atoms(
    density: Density,
    threshold: float,
    correlation: float = 0.95,
    most: int = 20_000,
    seed: int = 0,
) -> PseudoAtoms:
    """As few pseudo-atoms as reproduce a map to a correlation, in steps of their number.

    They start at the means of k-means over voxels weighed by density, and places, weights and their common
    width then descend the squared difference from the map together. Weights are gathered into `KINDS`.

    Parameters
    ----------
    density : Density
        A map, positive where the molecule is.
    threshold : float
        The contour within which the molecule is, as in a viewer; what lies below is taken for 0.
    correlation : float
        Pearson's, to be reached.
    most : int
        How many pseudo-atoms are tried at most.
    seed : int
        Of where they start.

    Raises
    ------
    StructureError
        If nothing is above the threshold, `most` is not positive, or the correlation is not between 0 and 1
        or not reached.
    """
    if not 0 < correlation < 1:
        raise StructureError(f"correlation = {correlation:g} is not usable: it must be between 0 and 1")
    if most < 1:
        raise StructureError(f"most = {most} is not usable: it must be at least 1")
    inside = density.values > threshold
    if not (threshold >= 0 and int(inside.sum()) > KINDS):
        raise StructureError(
            f"threshold {threshold:g} leaves {int(inside.sum())} voxels of a map that reaches "
            f"{density.values.max().item():g}: choose a contour from 0 to below that"
        )
    masked = replace(density, values=density.values.where(inside, 0.0))
    count, best = max(KINDS, int(inside.sum()) // 64), 0.0
    for _ in range(_TRIALS):
        count = min(count, most, int(inside.sum()))
        found = _fitted(masked, count, seed)
        if found.correlation >= correlation:
            return found
        best = max(best, found.correlation)
        if count >= min(most, int(inside.sum())):
            break
        count = math.ceil(_GROWTH * count)
    raise StructureError(
        f"{count} pseudo-atoms reach a correlation of {best:.3f} with the map, and {correlation:g} is asked "
        "for: allow more of them, raise the threshold, or filter the map"
    )


def _fitted(density: Density, count: int, seed: int) -> PseudoAtoms:
    """So many pseudo-atoms, fitted twice: with weights of their own, and with those of their kind."""
    places = torch.from_numpy(_means(density, count, seed))
    volume = int((density.values > 0).sum()) / count
    width = torch.tensor(0.5 * volume ** (1 / 3) * density.pixel_size, dtype=torch.float64)
    scale = density.values[density.values > 0].mean()
    weights = torch.full((count,), math.log(scale), dtype=torch.float64)
    own = torch.arange(count)
    places, weights, width = _descended(density, places, weights, width, own)
    kinds, levels = _gathered(weights.exp())
    places, levels, width = _descended(density, places, levels.log(), width, kinds)
    made = _density(density, places, levels.exp()[kinds], width)
    either = (made > 0) | (density.values > 0)
    together = torch.corrcoef(torch.stack([made[either], density.values[either]]))[0, 1].item()
    return PseudoAtoms(places, kinds, levels.exp(), width.item(), together)


def _means(density: Density, count: int, seed: int) -> Float64[np.ndarray, "count 3"]:
    """k-means over the voxels of a map, weighed by their density."""
    inside = density.values > 0
    places, weights = density.places[inside].numpy(), density.values[inside].numpy()
    rng = np.random.default_rng(seed)
    means = places[rng.choice(len(places), count, replace=False, p=weights / weights.sum())]
    for _ in range(_ROUNDS):
        nearest = scipy.spatial.cKDTree(means).query(places)[1]
        total = np.bincount(nearest, weights, count)
        sums = np.stack([np.bincount(nearest, weights * axis, count) for axis in places.T], axis=1)
        # One that lost all of its voxels stays where it is.
        means = np.where(total[:, None] > 0, sums / np.maximum(total, 1e-300)[:, None], means)
    return means


def _gathered(weights: Float64[Tensor, "atoms"]) -> tuple[Int[Tensor, "atoms"], Float64[Tensor, "kinds"]]:
    """As many atoms in each kind, from the lightest to the heaviest, and the mean weight of each."""
    order = weights.argsort()
    kinds = torch.empty_like(order)
    for kind, rows in enumerate(order.chunk(KINDS)):
        kinds[rows] = kind
    return kinds, torch.stack([weights[kinds == kind].mean() for kind in range(int(kinds.max()) + 1)])


def _descended(
    density: Density,
    places: Float64[Tensor, "atoms 3"],
    log_weights: Float64[Tensor, "kinds"],
    width: Float64[Tensor, ""],
    kinds: Int[Tensor, "atoms"],
) -> tuple[Float64[Tensor, "atoms 3"], Float64[Tensor, "kinds"], Float64[Tensor, ""]]:
    """Places, weights and width at the least squared difference that L-BFGS comes to."""
    unknown = [x.clone().requires_grad_() for x in (places / width, log_weights, width.log())]
    optimiser = torch.optim.LBFGS(unknown, max_iter=_STEPS, line_search_fn="strong_wolfe", history_size=20)
    whole = density.values.square().sum()

    def difference() -> Tensor:
        optimiser.zero_grad()
        scaled, weights, log_width = unknown
        made = _density(density, scaled * width, weights.exp()[kinds], log_width.exp())
        loss = (made - density.values).square().sum() / whole
        loss.backward()
        return loss

    optimiser.step(difference)
    scaled, weights, log_width = (x.detach() for x in unknown)
    return scaled * width, weights, log_width.exp()


def _density(
    like: Density,
    places: Float64[Tensor, "atoms 3"],
    weights: Float64[Tensor, "atoms"],
    width: Float64[Tensor, ""],
) -> Float64[Tensor, "z y x"]:
    """Σ_p w_p exp(-|x - x_p|² / 2σ²) on the grid of a map, each within `_REACH` deviations along the axes."""
    sizes = torch.tensor(like.values.shape)
    at = places.flip(-1) / like.pixel_size + sizes // 2  # in voxels, z first
    sigma = width / like.pixel_size
    reach = max(1, math.ceil(_REACH * sigma.item()))
    offsets = torch.arange(-reach, reach + 1)
    voxels = at.detach().round().long()[..., None] + offsets  # atoms, 3, along
    along = (-0.5 * ((voxels - at[..., None]) / sigma).square()).exp()
    along = along * ((voxels >= 0) & (voxels < sizes[:, None]))
    z, y, x = along.unbind(1)
    patch = weights[:, None, None, None] * z[:, :, None, None] * y[:, None, :, None] * x[:, None, None, :]
    z, y, x = voxels.minimum(sizes[:, None] - 1).clamp(min=0).unbind(1)
    cell = (z[:, :, None, None] * sizes[1] + y[:, None, :, None]) * sizes[2] + x[:, None, None, :]
    flat = patch.new_zeros(like.values.numel()).index_add(0, cell.flatten(), patch.flatten())
    return flat.view(like.values.shape)
