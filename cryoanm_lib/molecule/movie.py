"""Several conformations of a molecule in one file, for a viewer to play."""

from pathlib import Path

import gemmi
from jaxtyping import Float
from torch import Tensor

from cryoanm_lib.errors import StructureError
from cryoanm_lib.io.storage import write_atomically
from cryoanm_lib.molecule.atoms import Atoms


def write_models(atoms: Atoms, frames: Float[Tensor, "frames atoms 3"], path: str | Path) -> None:
    """Write conformations as models of a PDB or mmCIF file, by its suffix.

    Raises
    ------
    StructureError
        If there is not a place for each atom, the suffix is another, or the PDB format has no room for chain
        names or numbers of atoms.
    ArtifactError
        If the file cannot be written.
    """
    path = Path(path)
    if frames.shape[1:] != atoms.coordinates.shape:
        raise StructureError(
            f"frames of shape {tuple(frames.shape)} do not belong to {len(atoms)} atoms: expected (frames, "
            f"{len(atoms)}, 3)"
        )
    if path.suffix not in (".pdb", ".cif"):
        raise StructureError(f"{path.name!r} is neither a .pdb nor a .cif file: choose one of these")
    if path.suffix == ".pdb" and not fits_pdb(atoms):
        raise StructureError("the PDB format has no room for this molecule: write a .cif file")
    structure = gemmi.Structure()
    structure.name = atoms.name
    for number, frame in enumerate(frames.double(), start=1):
        structure.add_model(_model(number, atoms, frame))
    structure.setup_entities()
    if path.suffix == ".pdb":
        text = structure.make_pdb_string()
    else:
        text = structure.make_mmcif_document().as_string()
    write_atomically(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def fits_pdb(atoms: Atoms) -> bool:
    """Whether the PDB format holds a molecule: chains of one letter, and five digits for its atoms."""
    return len(atoms) < 100_000 and all(len(chain) == 1 for chain in atoms.chains)


def _model(number: int, atoms: Atoms, places: Float[Tensor, "atoms 3"]) -> gemmi.Model:
    model = gemmi.Model(number)
    chain = residue = None
    residues = atoms.residues.tolist()
    for row, place in enumerate(places.tolist()):
        if chain is None or chain.name != atoms.chains[row]:
            chain, residue = model.add_chain(atoms.chains[row]), None
        if residue is None or residues[row] != residues[row - 1]:
            residue = gemmi.Residue()
            residue.name, residue.seqid = atoms.residue_names[row], gemmi.SeqId(atoms.residue_numbers[row])
            residue = chain.add_residue(residue)
        atom = gemmi.Atom()
        atom.name, atom.element = atoms.names[row], gemmi.Element(atoms.elements[row])
        atom.pos, atom.b_iso, atom.occ = gemmi.Position(*place), float(atoms.b_factors[row]), 1.0
        residue.add_atom(atom)
    return model
