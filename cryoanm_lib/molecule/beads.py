"""Beads that stand for the atoms of a molecule: a Cα for an amino acid, P, C4′ and C2 for a nucleotide."""

from dataclasses import dataclass

import scipy  # loads its parts where they are first used
import torch
from jaxtyping import Float64, Int
from torch import Tensor

from cryoanm_lib.errors import StructureError
from cryoanm_lib.molecule.atoms import Atoms
from cryoanm_lib.molecule.residues import BEADS_OF_NUCLEOTIDE


@dataclass(frozen=True, eq=False)
class Beads:
    """Beads, each of which stands for an atom and its neighbours.

    Attributes
    ----------
    coordinates : Float64[Tensor, "beads 3"]
        Positions in Å, in the frame of the atoms.
    atoms : Int[Tensor, "beads"]
        The atom where each bead is, or in whose stead it is centred.
    of_atom : Int[Tensor, "atoms"]
        The bead that stands for each atom.
    kinds : tuple of str
        Of each bead: its residue's name, and of a nucleotide its atom's too.
    """

    coordinates: Float64[Tensor, "beads 3"]
    atoms: Int[Tensor, "beads"]
    of_atom: Int[Tensor, "atoms"]
    kinds: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.kinds)


def beads_of(atoms: Atoms, stride: int = 1, centred: bool = False) -> Beads:
    """Beads of every residue and ligand, or of every `stride`-th.

    An atom goes with a bead of its own residue: of a nucleotide the phosphate with P, the sugar with C4′ and
    the base with C2. A ligand has one bead, at the atom next to its centroid. Atoms of residues without a
    bead go with the nearest one.

    Parameters
    ----------
    atoms : Atoms
        The molecule.
    stride : int
        Keep the beads of every `stride`-th residue, starting with the first.
    centred : bool
        Put each at the mean of its atoms, where it scatters most nearly as they do, and not at one of them.

    Raises
    ------
    StructureError
        If the stride is not positive, or there is no bead.

    Examples
    --------
    >>> from cryoanm_lib.molecule.atoms import load_atoms
    >>> beads = beads_of(load_atoms("adk_open"))
    >>> len(beads), beads.kinds[:3], torch.bincount(beads.of_atom)[:3].tolist()
    (214, ('MET', 'ARG', 'ILE'), [8, 11, 8])
    """
    if stride < 1:
        raise StructureError(f"stride is {stride}; it must be at least 1, which keeps every residue")
    residues = atoms.residues
    held: list[list[int]] = [[] for _ in range(int(residues.max()) + 1)]
    for row, residue in enumerate(residues.tolist()):
        held[residue].append(row)
    places, of_atom = [], torch.full((len(atoms),), -1)
    for own in held[::stride]:
        groups = _groups(atoms, own)
        for place, rows in groups.items():
            of_atom[rows] = len(places)
            places.append(place)
    if not places:
        raise StructureError(f"no residue of {atoms.name!r} has an atom for a bead: Cα, P, C4′ or C2")
    at = torch.tensor(places)
    left = torch.nonzero(of_atom < 0)[:, 0]
    tree = scipy.spatial.cKDTree(atoms.coordinates[at].numpy())
    of_atom[left] = torch.from_numpy(tree.query(atoms.coordinates[left].numpy())[1])
    kinds = tuple(
        f"{atoms.residue_names[place]} {atoms.names[place]}"
        if atoms.names[place] in BEADS_OF_NUCLEOTIDE and not atoms.is_ligand[place]
        else atoms.residue_names[place]
        for place in places
    )
    coordinates = atoms.coordinates[at]
    if centred:
        summed = torch.zeros_like(coordinates).index_add(0, of_atom, atoms.coordinates)
        coordinates = summed / torch.bincount(of_atom)[:, None]
    return Beads(coordinates, at, of_atom, kinds)


def _groups(atoms: Atoms, rows: list[int]) -> dict[int, list[int]]:
    """The atoms of one residue, by the atom where their bead is."""
    at = {atoms.names[row]: row for row in rows}
    if atoms.is_ligand[rows[0]]:
        centre = atoms.coordinates[rows].mean(dim=0)
        return {rows[int((atoms.coordinates[rows] - centre).norm(dim=1).argmin())]: rows}
    if "CA" in at:
        return {at["CA"]: rows}
    groups: dict[int, list[int]] = {}
    if there := [at[name] for name in BEADS_OF_NUCLEOTIDE if name in at]:
        for row in rows:
            groups.setdefault(at.get(_part_of_nucleotide(atoms.names[row]), there[0]), []).append(row)
    return groups


def _part_of_nucleotide(atom: str) -> str:
    """Where the bead is that an atom goes with."""
    if atom.endswith("'"):
        return "C4'"
    return "P" if "P" in atom else "C2"
