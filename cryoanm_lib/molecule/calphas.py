"""From the atoms of a PDB or mmCIF file to the Cα of one chain: which of them count, and where they are."""

from collections.abc import Iterator
from math import isnan
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from cryoanm_lib.errors import StructureError

if TYPE_CHECKING:  # its import takes longer than to read a small file
    import gemmi

CAPS = {"ACE", "NMA", "NME"}  # the methyl of which is also called CA
STANDARD = set("ACDEFGHIKLMNPQRSTVWY")
PEPTIDE_BOND = 2.0  # Å: between the 1.3 Å of a C-N bond and the 2.4 Å from N to C of one residue
NEXT_CALPHA = (2.7, 4.3)  # Å: about the 2.9 Å over a cis bond and the 3.8 Å over a trans bond


class Trace(NamedTuple):
    """All Cα of one chain, in Å, where the file has them."""

    chain: str
    residue_numbers: tuple[int, ...]
    coordinates: Float64[Tensor, "atoms 3"]
    molecules: tuple[str, ...]  # to which of those under the chain's identifier each Cα belongs


class _Position(NamedTuple):
    """A Cα, or one of the positions of a Cα that has several."""

    molecule: str
    residue: str
    number: int | None
    altloc: str
    rank: tuple[float, int]  # occupancy, then place in the file
    place: list[float]


def select_chain(structure: "gemmi.Structure", chain: str | None, label: str) -> Trace:
    """The Cα of one chain of the first model, by default of the first chain that has any.

    Raises
    ------
    StructureError
        If the chain is not there or has no Cα, or a residue of it occurs twice or has no number.
    """
    chains: dict[str, list[gemmi.Residue]] = {}
    for part in structure[0]:
        for residue in part:
            # In PDB files of simulation packages the chain is often blank, and only the segment tells the
            # molecules apart.
            chains.setdefault(part.name or residue.segment, []).append(residue)
    if chain is not None and chain not in chains:
        raise no_such_chain(chain, label, list(chains))
    for candidate in chains if chain is None else [chain]:
        if positions := list(_alpha_carbons(chains[candidate])):
            return _trace(candidate, positions, label)
    where = f"chain {chain!r} of {label}" if chain is not None else label
    raise StructureError(f"{where} has no Cα: choose a protein chain (the chains are {', '.join(chains)})")


def no_such_chain(chain: str, label: str, chains: list[str]) -> StructureError:
    """The error that says which chains there are."""
    return StructureError(f"{label} has no chain {chain!r}: choose from {', '.join(map(repr, chains))}")


def _alpha_carbons(residues: "list[gemmi.Residue]") -> Iterator[_Position]:
    """The Cα of amino acids: known by name, or linked as amino acids are, as no list of names is complete."""
    molecule = next((each.subchain for each in residues if each.het_flag == "A"), residues[0].subchain)
    backbone = _places(residues, "N"), _places(residues, "C")
    candidates = [residue for residue in residues if residue.name not in CAPS and "CA" in residue]
    counts = [_is_amino_acid(each, molecule) or _is_bonded(each, *backbone) for each in candidates]
    is_trace = all(_is_alone(each) for each in residues if each.het_flag == "A")
    calphas = _places([each for each, count in zip(candidates, counts, strict=True) if count], "CA")
    for residue, count in zip(candidates, counts, strict=True):
        if count or (is_trace and _is_alone(residue) and _is_next_to(residue, calphas)):
            number, name = residue.seqid.num, str(residue.seqid)
            for atom in residue["CA"]:
                rank = (atom.occ, -atom.serial)
                yield _Position(residue.subchain, name, number, atom.altloc, rank, atom.pos.tolist())


def _is_amino_acid(residue: "gemmi.Residue", molecule: str) -> bool:
    import gemmi

    known = gemmi.find_tabulated_residue(residue.name)
    # In a HETATM record, a standard residue or one behind the molecule's end is a ligand, such as the
    # glutamate of a receptor.
    is_ligand = residue.het_flag == "H" and (
        known.one_letter_code in STANDARD or residue.subchain != molecule
    )
    return known.is_amino_acid() and not is_ligand


def _is_bonded(
    residue: "gemmi.Residue", nitrogens: Float64[Tensor, "n 3"], carbons: Float64[Tensor, "c 3"]
) -> bool:
    """Whether a peptide bond leads to a residue, or it stands in an ATOM record with a whole backbone."""
    nitrogen, carbon = _places([residue], "N"), _places([residue], "C")
    bonds = (torch.cdist(nitrogen, carbons), torch.cdist(carbon, nitrogens))
    is_whole = len(nitrogen) > 0 and len(carbon) > 0
    return any(bool((bond < PEPTIDE_BOND).any()) for bond in bonds) or (residue.het_flag == "A" and is_whole)


def _is_alone(residue: "gemmi.Residue") -> bool:
    """Whether a residue is nothing but a Cα, as in a trace of them."""
    return all(atom.name == "CA" for atom in residue)


def _is_next_to(residue: "gemmi.Residue", calphas: Float64[Tensor, "atoms 3"]) -> bool:
    """Whether a residue of unknown name is as far from one of a trace as its neighbour there."""
    import gemmi

    if gemmi.find_tabulated_residue(residue.name).found():
        return False
    distance = torch.cdist(_places([residue], "CA"), calphas)
    return bool(((distance > NEXT_CALPHA[0]) & (distance < NEXT_CALPHA[1])).any())


def _places(residues: "list[gemmi.Residue]", name: str) -> Float64[Tensor, "atoms 3"]:
    found = [atom.pos.tolist() for residue in residues for atom in residue if atom.name == name]
    return torch.tensor(found, dtype=torch.float64).reshape(-1, 3)


def _trace(chain: str, positions: list[_Position], label: str) -> Trace:
    """One position per residue: that of highest occupancy, the first of equals."""
    where = f"chain {chain!r} of {label}"
    residues: dict[str, list[_Position]] = {}
    for position in positions:
        residues.setdefault(position.residue, []).append(position)
    for residue, held in residues.items():
        if len({position.altloc for position in held}) < len(held):
            raise StructureError(
                f"{where} holds residue {residue} more than once: give every molecule a chain identifier of "
                "its own"
            )
        if held[0].number is None or any(isnan(position.rank[0]) for position in held):
            raise StructureError(f"{where} has a Cα without a residue number or an occupancy: give it one")
    kept = [max(held, key=lambda position: position.rank) for held in residues.values()]
    places = torch.tensor([position.place for position in kept], dtype=torch.float64)
    numbers, molecules = zip(*((position.number, position.molecule) for position in kept), strict=True)
    return Trace(chain, numbers, places, molecules)
