"""Heavy atoms of assemblies against ProDy's selections, and the beads that stand for them."""

import re
from pathlib import Path

import prody
import pytest
import torch

from cryoanm_lib import beads_of, load_atoms
from cryoanm_lib.errors import StructureError
from cryoanm_lib.molecule.atoms import Atoms
from cryoanm_lib.molecule.embedded import EMBEDDED

from .test_structure import PRODY_DATA, Row, as_cif, as_pdb, chain_of

DIMER, WITH_DNA = PRODY_DATA / "mmcif_1ake_chimerax.cif", PRODY_DATA / "pdb3mht.pdb"


@pytest.fixture(scope="module")
def complex_with_dna() -> Atoms:
    """A methyltransferase on its DNA, of which one base is flipped out, with a cofactor that is left out."""
    with pytest.warns(UserWarning, match="1 SAH are left out: name those to keep by ligands"):
        return load_atoms(WITH_DNA)


def test_an_assembly_is_all_of_its_polymers(complex_with_dna: Atoms) -> None:
    """Those that ProDy selects, where the centroid is taken away."""
    expected = prody.parsePDB(str(WITH_DNA)).select("(protein or nucleic) and not element H")
    atoms = complex_with_dna
    assert atoms.names == tuple(expected.getNames())
    assert atoms.chains == tuple(expected.getChids())
    assert atoms.elements == tuple(expected.getElements())
    assert atoms.residue_names == tuple(expected.getResnames())
    torch.testing.assert_close(atoms.b_factors, torch.from_numpy(expected.getBetas()), rtol=0, atol=1e-5)
    places = torch.from_numpy(expected.getCoords())
    torch.testing.assert_close(atoms.coordinates, places - places.mean(0), rtol=0, atol=1e-9)


def test_chains_and_ligands_are_those_named() -> None:
    with pytest.warns(UserWarning, match="2 AP5 are left out"):
        both = load_atoms(DIMER)
    assert set(both.chains) == {"A", "B"} and len(both) == 2 * 1656
    one = load_atoms(DIMER, chains="B", ligands=("AP5",))
    assert set(one.chains) == {"B"} and len(one) == 1656 + 57
    assert int(one.is_ligand.sum()) == 57 and "P" in one.elements
    again = load_atoms(DIMER, chains=("B", "A"), ligands={"AP5"})
    assert again.provenance.endswith(": 3426 heavy atoms.") and again.chains[0] == "A"


@pytest.mark.filterwarnings("ignore:.* 1 AP5 are left out")
@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_structures_are_those_of_prody(name: str) -> None:
    files = {"adk_open": PRODY_DATA / "4akeA_alg_fixed.pdb", "adk_closed": DIMER}
    expected, atoms = load_atoms(files[name], chains="A"), load_atoms(name)
    for labels in ("names", "elements", "residue_names", "residue_numbers", "chains"):
        assert getattr(atoms, labels) == getattr(expected, labels)
    torch.testing.assert_close(atoms.coordinates, expected.coordinates, rtol=0, atol=1e-9)
    torch.testing.assert_close(atoms.b_factors, expected.b_factors, rtol=0, atol=1e-5)  # gemmi's float32


def test_one_conformation_of_a_residue_is_kept(tmp_path: Path) -> None:
    """As a whole, though an atom of another conformation may be fuller."""
    rows = chain_of(4)
    extra = [
        Row(2, 7.0, name="N", element="N", altloc="A", occupancy=0.4),
        Row(2, 8.0, name="N", element="N", altloc="B", occupancy=0.6),
        Row(2, 9.0, name="CB", altloc="A", occupancy=0.5),
        Row(2, 10.0, name="CB", altloc="B", occupancy=0.5),
    ]
    path = tmp_path / "two.pdb"
    path.write_text(as_pdb([*rows[:2], *extra, *rows[2:]]))
    atoms = load_atoms(path)
    kept = [(name, x) for name, x in zip(atoms.names, atoms.coordinates[:, 0].tolist(), strict=True)]
    middle = sum(row.x for row in rows) + 8.0 + 10.0
    expected = [(row.name, row.x) for row in [*rows[:2], extra[1], extra[3], *rows[2:]]]
    assert kept == [(name, pytest.approx(x - middle / 6)) for name, x in expected]


def test_the_fuller_conformation_is_kept_and_not_the_longer(tmp_path: Path) -> None:
    longer = [Row(2, 8.0 + i, name=name, altloc="B", occupancy=0.4) for i, name in enumerate(("CB", "CG"))]
    rows = [*chain_of(3), Row(2, 7.0, name="CB", altloc="A", occupancy=0.6), *longer]
    path = tmp_path / "two.pdb"
    path.write_text(as_pdb(sorted(rows, key=lambda row: row.number)))
    assert load_atoms(path).names.count("CB") == 1 and "CG" not in load_atoms(path).names


def test_of_two_residues_in_one_place_the_fuller_is_kept(tmp_path: Path) -> None:
    rows = chain_of(5)
    here = [row for row in rows if row.number == 3]
    rest = [row for row in rows if row.number != 3]
    either = [
        row._replace(residue=residue, altloc=altloc, occupancy=occupancy)
        for residue, altloc, occupancy in (("THR", "A", 0.3), ("SER", "B", 0.7))
        for row in here
    ]
    path = tmp_path / "either.cif"
    path.write_text(as_cif([*rest[: len(rest) // 2], *either, *rest[len(rest) // 2 :]]))
    atoms = load_atoms(path)
    assert "SER" in atoms.residue_names and "THR" not in atoms.residue_names
    assert len(beads_of(atoms)) == 5


def test_a_chain_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.pdb"
    path.write_text(as_pdb([*chain_of(3), *[row._replace(y=100.0) for row in chain_of(3)]]))
    with pytest.raises(StructureError, match=r"chain 'A' of .* holds residue 1 more than once"):
        load_atoms(path)


def test_caps_belong_to_the_polymer_and_solvent_does_not(tmp_path: Path) -> None:
    """A cap in a HETATM record that is bonded to the chain; water and an ion in ATOM records, with no end."""
    cap = [Row(0, -1.3, residue="ACE", name="C", record="HETATM")]
    chain = [row for n in range(1, 4) for row in backbone(n)]
    solvent = [Row(90, 50.0, residue="SOL", name="OW", element="O"), Row(91, 60.0, residue="POP", name="C1")]
    path = tmp_path / "capped.pdb"
    path.write_text(as_pdb([*cap, *chain, *solvent]).replace("TER", "REM"))
    with pytest.warns(UserWarning, match="of .* 1 POP are left out"):
        atoms = load_atoms(path)
    assert set(atoms.residue_names) == {"ACE", "ALA"} and not atoms.is_ligand.any()


def backbone(number: int) -> list[Row]:
    """N, Cα and C of a residue on a line, bonded to the one before."""
    start = 3.9 * (number - 1)
    return [
        Row(number, start + 1.3 * i, name=name, element=name[0]) for i, name in enumerate(("N", "CA", "C"))
    ]


def test_a_cyclic_nucleotide_is_a_ligand(tmp_path: Path) -> None:
    """Its phosphate leads back to its own sugar."""
    ring = {"P": 0.0, "O3'": 1.6, "C3'": 3.0, "C4'": 4.4}
    bound = [
        Row(9, 40.0 + x, residue="CMP", name=name, element=name[0], record="HETATM")
        for name, x in ring.items()
    ]
    path = tmp_path / "bound.pdb"
    path.write_text(as_pdb([*chain_of(4), *bound]))
    with pytest.warns(UserWarning, match="1 CMP are left out"):
        assert len(load_atoms(path)) == 4
    assert int(load_atoms(path, ligands="CMP").is_ligand.sum()) == 4


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({"chains": "Z"}, "no chain 'Z': choose from 'A', 'B'"),
        ({"ligands": ("ATP",)}, "no ligand 'ATP': choose from AP5"),
    ],
)
def test_what_is_not_there_is_refused(options: dict, asked: str) -> None:
    with pytest.raises(StructureError, match=re.escape(asked)):
        load_atoms(DIMER, **options)


def test_bad_atoms_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.cif"
    path.write_text(as_cif([*chain_of(3), Row(9, 3.0, element="X", name="CB")]))
    with pytest.raises(StructureError, match=r"atom CB of residue 9\(ALA\) in chain 'A'.*has no element"):
        load_atoms(path)
    with pytest.raises(StructureError, match="'adk_open' has no chain 'B'"):
        load_atoms("adk_open", chains="B")
    with pytest.raises(StructureError, match="'adk_open' has no ligand 'AP5'"):
        load_atoms("adk_open", ligands=["AP5"])


def test_beads_stand_for_the_atoms_of_their_residue(complex_with_dna: Atoms) -> None:
    atoms, beads = complex_with_dna, beads_of(complex_with_dna)
    # One nucleotide of the 25 has no phosphate.
    assert len(beads) == 327 + 3 * 25 - 1 == sum(atoms.names.count(at) for at in ("CA", "P", "C4'", "C2"))
    residues = atoms.residues
    assert (residues[beads.atoms[beads.of_atom]] == residues).all()
    assert (beads.of_atom[beads.atoms] == torch.arange(len(beads))).all()
    torch.testing.assert_close(beads.coordinates, atoms.coordinates[beads.atoms])
    own = {
        kind: {atoms.names[row] for row in torch.nonzero(beads.of_atom == place)[:, 0].tolist()}
        for place, kind in enumerate(beads.kinds)
    }
    assert own["DC P"] == {"P", "OP1", "OP2"}
    assert own["DA C2"] == {"N1", "C2", "N3", "C4", "C5", "C6", "N6", "N7", "C8", "N9"}
    assert own["DT C4'"] == {"O5'", "C5'", "C4'", "O4'", "C3'", "O3'", "C2'", "C1'"}


def test_atoms_without_a_bead_go_with_the_nearest(complex_with_dna: Atoms) -> None:
    atoms, beads = complex_with_dna, beads_of(complex_with_dna, stride=3)
    distance = torch.cdist(atoms.coordinates, beads.coordinates)
    dropped = ~torch.isin(atoms.residues, atoms.residues[beads.atoms])
    assert dropped.float().mean() > 0.6
    assert (beads.of_atom[dropped] == distance[dropped].argmin(1)).all()
    with pytest.raises(StructureError, match="stride is 0"):
        beads_of(atoms, stride=0)


def test_a_ligand_has_a_bead_of_its_own() -> None:
    atoms = load_atoms(DIMER, chains="A", ligands=("AP5",))
    beads = beads_of(atoms)
    assert beads.kinds[-1] == "AP5" and int((beads.of_atom == len(beads) - 1).sum()) == 57
