"""The symmetry of a molecule: which places lie on which when it is turned, and motions that keep it."""

import math
from dataclasses import dataclass

import scipy  # loads its trees where they are first used
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from cryoanm_lib.errors import CryoANMError, NetworkModelError
from cryoanm_lib.molecule.anm import NormalModes, normal_modes
from cryoanm_lib.molecule.atoms import Atoms
from cryoanm_lib.molecule.pseudo_atoms import PseudoAtoms
from cryoanm_lib.molecule.rigid_blocks import rigid_block_modes
from cryoanm_lib.numerics.point_groups import point_group
from cryoanm_lib.numerics.rotation import rotation_from_quaternion

#: Å by which a place may miss its like when a symmetric molecule is turned, and the share that must not.
_ALIKE, _SHARE = 3.0, 0.9
#: Å between atoms of different names, so that none is taken for another.
_APART = 1e4
#: Share of a mode's square that is left when it is averaged over the group: all of it, or nothing.
_KEPT = 0.5


@dataclass(frozen=True, eq=False)
class Symmetry:
    """The rotations of a point group, and which atom each brings every atom of a molecule to.

    Attributes
    ----------
    name : str
        Such as D2.
    turns : Float64[Tensor, "turns 3 3"]
        The rotations.
    onto : Int64[Tensor, "turns places"]
        Of each rotation and place, the place where it comes to lie.
    found : Bool[Tensor, "turns places"]
        Whether there is one: of some chains some residues may be missing.
    """

    name: str
    turns: Float64[Tensor, "turns 3 3"]
    onto: Int64[Tensor, "turns places"]
    found: Bool[Tensor, "turns places"]

    @classmethod
    def of(cls, source: Atoms | PseudoAtoms, name: str) -> "Symmetry":
        """That of a molecule; an atom comes to lie on one of its name and residue number.

        Raises
        ------
        CryoANMError
            If there is no such group, the molecule does not look the same turned by it, or it is a map, of
            whose places none is the like of another.
        """
        turns = rotation_from_quaternion(point_group(name))
        if len(turns) == 1:
            every = torch.arange(len(source))[None]
            return cls(name, turns, every, torch.ones_like(every, dtype=torch.bool))
        if not isinstance(source, Atoms):
            raise CryoANMError(
                f"symmetry {name} is asked of a map, whose places are no copies of one another: give a "
                "model, or leave out --symmetry"
            )
        kinds = _APART * _kinds(source)[:, None]
        tree = scipy.spatial.cKDTree(torch.cat([source.coordinates, kinds], dim=1).numpy())
        onto, found = [], []
        for turn in turns:
            turned = torch.cat([source.coordinates @ turn.T, kinds], dim=1)
            distance, place = tree.query(turned.numpy())
            alike = torch.from_numpy(distance) < _ALIKE
            if (share := alike.double().mean().item()) < _SHARE:
                degrees = math.degrees(math.acos(min(1.0, max(-1.0, (turn.trace().item() - 1) / 2))))
                raise CryoANMError(
                    f"the molecule has no symmetry {name}: turned by {degrees:.0f}°, {100 * share:.0f} % of "
                    f"its atoms lie within {_ALIKE:g} Å of one of their name and residue number. Turn it so "
                    "that its axes lie as RELION has them, see --origin, and number its chains alike"
                )
            onto.append(torch.from_numpy(place))
            found.append(alike)
        return cls(name, turns, torch.stack(onto), torch.stack(found))

    def average(self, motions: Float64[Tensor, "*motions places 3"]) -> Float64[Tensor, "*motions places 3"]:
        """The part of motions u that keeps the symmetry: of all turns S, the mean of S⁻¹ u(S x).

        Of places it is where they would lie if the molecule were quite symmetric.
        """
        total = torch.zeros_like(motions)
        for turn, onto, found in zip(self.turns, self.onto, self.found, strict=True):
            total += found[:, None] * (motions[..., onto, :] @ turn)
        return total / self.found.sum(0)[:, None]

    def modes(self, source: Atoms | PseudoAtoms, n_modes: int) -> NormalModes:
        """The softest modes that keep the symmetry, of blocks of a residue each or of a map's places.

        Raises
        ------
        CryoANMError
            If there are fewer, or the network is not usable, as of `rigid_block_modes` and `normal_modes`.
        """
        count = n_modes * len(self.turns)
        while True:
            try:
                found = _softest(source, count)
            except NetworkModelError as error:
                if count == n_modes:
                    raise
                raise CryoANMError(
                    f"of the modes that keep the symmetry {self.name} {n_modes} are asked for, and so "
                    f"{count} of all: {error}"
                ) from error
            own = self.average(found.vectors)
            size = own.flatten(1).norm(dim=1)
            rows = torch.nonzero(size.square() > _KEPT)[:n_modes, 0]
            if len(rows) == n_modes:
                vectors = own[rows] / size[rows, None, None]
                return NormalModes(found.eigenvalues[rows], vectors, found.n_zero, found.cutoff)
            count *= 2


def _softest(source: Atoms | PseudoAtoms, count: int) -> NormalModes:
    if isinstance(source, Atoms):
        return rigid_block_modes(source.coordinates, source.residues.tolist(), count)
    return normal_modes(source.coordinates, count)


def _kinds(source: Atoms) -> Float64[Tensor, "atoms"]:
    """A number for each atom's name in its residue, the same in all chains."""
    keys = list(zip(source.residue_numbers, source.residue_names, source.names, strict=True))
    number = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    return torch.tensor([number[key] for key in keys], dtype=torch.float64)
