"""Which residues of a file belong to a polymer: amino acids and nucleotides, not what is bound to them."""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float64
from torch import Tensor

from cryoanm_lib.errors import StructureError

if TYPE_CHECKING:  # its import takes longer than to read a small file
    import gemmi

CAPS = {"ACE", "NMA", "NME"}  # the methyl of which is also called CA
#: Where the beads of a nucleotide are, as elastic networks of RNA have them (Setny and Zacharias 2013).
BEADS_OF_NUCLEOTIDE = ("P", "C4'", "C2")
#: Names that simulations give to water, beside those that gemmi knows.
WATERS = {"SOL", "TIP", "TIP3", "TIP4", "TP3", "TP4", "T3P", "T4P", "SPC", "OH2"}
STANDARD = set("ACDEFGHIKLMNPQRSTVWY")
PEPTIDE_BOND = 2.0  # Å: between the 1.3 Å of a C-N bond and the 2.4 Å from N to C of one residue
PHOSPHATE_BOND = 2.0  # Å: between the 1.6 Å of an O-P bond and the 2.5 Å to the next oxygen
NEXT_CALPHA = (2.7, 4.3)  # Å: about the 2.9 Å over a cis bond and the 3.8 Å over a trans bond


def chains_of(structure: "gemmi.Structure") -> "dict[str, list[gemmi.Residue]]":
    """The residues of each chain of the first model, by the author's identifier."""
    chains: dict[str, list[gemmi.Residue]] = {}
    for part in structure[0]:
        for residue in part:
            # In PDB files of simulation packages the chain is often blank, and only the segment tells the
            # molecules apart.
            chains.setdefault(part.name or residue.segment, []).append(residue)
    return chains


def no_such_chain(chain: str, label: str, chains: list[str]) -> StructureError:
    """The error that says which chains there are."""
    return StructureError(f"{label} has no chain {chain!r}: choose from {', '.join(map(repr, chains))}")


def amino_acids(residues: "list[gemmi.Residue]") -> "list[gemmi.Residue]":
    """Those with a Cα: known by name, or linked as amino acids are, as no list of names is complete."""
    molecule = _polymer(residues)
    backbone = places(residues, "N"), places(residues, "C")
    candidates = [residue for residue in residues if residue.name not in CAPS and "CA" in residue]
    counts = [_is_amino_acid(each, molecule) or _is_bonded(each, *backbone) for each in candidates]
    is_trace = all(_is_alone(each) for each in residues if each.het_flag == "A")
    calphas = places([each for each, count in zip(candidates, counts, strict=True) if count], "CA")
    return [
        residue
        for residue, count in zip(candidates, counts, strict=True)
        if count or (is_trace and _is_alone(residue) and _is_next_to(residue, calphas))
    ]


def nucleotides(residues: "list[gemmi.Residue]") -> "list[gemmi.Residue]":
    """Those known by name, and those with a C4′ that a phosphate links."""
    import gemmi

    molecule, found = _polymer(residues), []
    for residue in residues:
        if not any(name in residue for name in BEADS_OF_NUCLEOTIDE):
            continue
        known = gemmi.find_tabulated_residue(residue.name)
        is_ligand = residue.het_flag == "H" and residue.subchain != molecule
        if (known.is_nucleic_acid() and not is_ligand) or (
            "C4'" in residue and _is_linked(residue, residues)
        ):
            found.append(residue)
    return found


def belongs_to_polymer(residue: "gemmi.Residue", backbone: Float64[Tensor, "atoms 3"]) -> bool:
    """Whether a residue is a cap, a chromophore or a remnant: bonded to N or C of one, or known and cut."""
    import gemmi

    known = gemmi.find_tabulated_residue(residue.name)
    if residue.het_flag == "A" and (known.is_amino_acid() or known.is_nucleic_acid()):
        return True
    own = torch.tensor([atom.pos.tolist() for atom in residue], dtype=torch.float64).reshape(-1, 3)
    return bool((torch.cdist(own, backbone) < PEPTIDE_BOND).any())


def is_water(residue: "gemmi.Residue") -> bool:
    """By its name, as the PDB or a simulation has it."""
    return residue.is_water() or residue.name in WATERS


def places(residues: "list[gemmi.Residue]", name: str) -> Float64[Tensor, "atoms 3"]:
    """Where the atoms of a name are, in Å."""
    found = [atom.pos.tolist() for residue in residues for atom in residue if atom.name == name]
    return torch.tensor(found, dtype=torch.float64).reshape(-1, 3)


def _polymer(residues: "list[gemmi.Residue]") -> str:
    return next((each.subchain for each in residues if each.het_flag == "A"), residues[0].subchain)


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
    nitrogen, carbon = places([residue], "N"), places([residue], "C")
    bonds = (torch.cdist(nitrogen, carbons), torch.cdist(carbon, nitrogens))
    is_whole = len(nitrogen) > 0 and len(carbon) > 0
    return any(bool((bond < PEPTIDE_BOND).any()) for bond in bonds) or (residue.het_flag == "A" and is_whole)


def _is_linked(residue: "gemmi.Residue", residues: "list[gemmi.Residue]") -> bool:
    """Whether a phosphate leads to another residue; in a cyclic nucleotide it leads back to its own."""
    others = [each for each in residues if each is not residue]
    pairs = (("P", "O3'"), ("O3'", "P"))
    bonds = (torch.cdist(places([residue], own), places(others, other)) for own, other in pairs)
    return any(bool((bond < PHOSPHATE_BOND).any()) for bond in bonds)


def _is_alone(residue: "gemmi.Residue") -> bool:
    """Whether a residue is nothing but a Cα, as in a trace of them."""
    return all(atom.name == "CA" for atom in residue)


def _is_next_to(residue: "gemmi.Residue", calphas: Float64[Tensor, "atoms 3"]) -> bool:
    """Whether a residue of unknown name is as far from one of a trace as its neighbour there."""
    import gemmi

    if gemmi.find_tabulated_residue(residue.name).found():
        return False
    distance = torch.cdist(places([residue], "CA"), calphas)
    return bool(((distance > NEXT_CALPHA[0]) & (distance < NEXT_CALPHA[1])).any())
