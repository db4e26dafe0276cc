"""The symmetry of a molecule: which places lie on which when it is turned, and motions that keep it."""

import math
from dataclasses import dataclass

import scipy  # loads its trees where they are first used
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from cryoanm_lib.errors import CryoANMError, NetworkModelError
from cryoanm_lib.molecule.anm import NormalModes, normal_modes
from cryoanm_lib.molecule.atoms import Atoms
from cryoanm_lib.molecule.pseudo_atoms import PseudoAtoms
from cryoanm_lib.molecule.rigid_blocks import rigid_block_modes
from cryoanm_lib.numerics.point_groups import point_group
from cryoanm_lib.numerics.rotation import rotation_from_quaternion

#: Å, root mean square, by which places may miss others when a symmetric molecule is turned.
_ALIKE = 3.0
#: Å between atoms of different names, so that none is taken for another.
_APART = 1e4
#: Share of a mode's square that is left when it is averaged over the group: all of it, or nothing.
_KEPT = 0.5


@dataclass(frozen=True, eq=False)
class Symmetry:
    """The rotations of a point group, and which place each brings every place of a molecule to.

    Attributes
    ----------
    name : str
        Such as D2.
    turns : Float64[Tensor, "turns 3 3"]
        The rotations.
    onto : Int64[Tensor, "turns places"]
        Of each rotation and place, the place where it comes to lie.
    """

    name: str
    turns: Float64[Tensor, "turns 3 3"]
    onto: Int64[Tensor, "turns places"]

    @classmethod
    def of(cls, source: Atoms | PseudoAtoms, name: str) -> "Symmetry":
        """That of a molecule; an atom comes to lie on one of its name and residue number.

        Raises
        ------
        CryoANMError
            If there is no such group, or the molecule does not look the same turned by it.
        """
        turns = rotation_from_quaternion(point_group(name))
        places = torch.cat([source.coordinates, _APART * _kinds(source)[:, None]], dim=1)
        tree, onto = scipy.spatial.cKDTree(places.numpy()), []
        for turn in turns:
            turned = torch.cat([source.coordinates @ turn.T, places[:, 3:]], dim=1)
            distance, place = tree.query(turned.numpy())
            if (off := float((distance**2).mean() ** 0.5)) > _ALIKE:
                degrees = math.degrees(math.acos(min(1.0, max(-1.0, (turn.trace().item() - 1) / 2))))
                raise CryoANMError(
                    f"the molecule has no symmetry {name} about its axes: turned by {degrees:.0f}° it is "
                    f"{off:.1f} Å off; turn it so that they lie as RELION has them, and see --origin"
                )
            onto.append(torch.from_numpy(place))
        return cls(name, turns, torch.stack(onto))

    def average(self, motions: Float64[Tensor, "*motions places 3"]) -> Float64[Tensor, "*motions places 3"]:
        """The part of motions u that keeps the symmetry: of all turns S, the mean of S⁻¹ u(S x)."""
        turned = [motions[..., onto, :] @ turn for turn, onto in zip(self.turns, self.onto, strict=True)]
        return torch.stack(turned).mean(0)

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


def _kinds(source: Atoms | PseudoAtoms) -> Float64[Tensor, "places"]:
    """A number for each atom's name in its residue, the same in all chains; those of a map are all alike."""
    if not isinstance(source, Atoms):
        return torch.zeros(len(source.coordinates), dtype=torch.float64)
    keys = list(zip(source.residue_numbers, source.residue_names, source.names, strict=True))
    number = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    return torch.tensor([number[key] for key in keys], dtype=torch.float64)
