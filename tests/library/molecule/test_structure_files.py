"""Structure files as real programs write them: ideal helices, and the Cα of each chain that they hold."""

import re
from pathlib import Path

import pytest

from cryoanm_lib.errors import StructureError
from cryoanm_lib.molecule.structure import Structure, load_structure

FOLDER = Path(__file__).parent / "structures"

#: What each file holds by chain, the first chain first.
READ = {
    # rows of mmCIF that wrap, or are indented
    "wrapped.cif": {"A": 80},
    "all_wrapped.cif": {"A": 80},
    "modelcif_wrote_this.cif": {"A": 200, "B": 200},
    "phenix_like.cif": {"A": 80},
    # optional columns left out, and an unknown occupancy
    "no_auth_asym.cif": {"A": 80},
    "no_model_num.cif": {"A": 80},
    "occupancy_unknown.cif": {"A": 80},
    # chains of two letters in columns 21 and 22 of PDB files
    "apart.pdb": {"A": 30, "AA": 30, "BA": 30},
    "touching.pdb": {"A": 30, "AA": 30, "BA": 30},
    "homodimer.pdb": {"AA": 30, "BA": 30},
    # modified residues in traces of Cα, and one that lacks both neighbours
    "collagen.cif": {"A": 24},
    "collagen.pdb": {"A": 24},
    "collagen_backbone.pdb": {"A": 24},
    "mixed.pdb": {"A": 12},
    "lonely_hyp.pdb": {"A": 22},
    # caps, the methyl of which is also called CA
    "capped.pdb": {"A": 30},
    "capped_same_number.pdb": {"A": 30},
    # quoted names
    "single.cif": {"A": 80},
    "double.cif": {"A": 80},
    "chain.cif": {"A": 80},
    "blank_in_ligand.cif": {"A": 80},
    # byte-order marks, other encodings and line ends, and letters of either case
    "bom.cif": {"A": 80},
    "bom.pdb": {"A": 80},
    "utf16.cif": {"A": 80},
    "cr.pdb": {"A": 80},
    "crlf.cif": {"A": 80},
    "indented_data.cif": {"A": 80},
    "lower_tags.cif": {"A": 80},
    "upper_DATA.cif": {"A": 80},
    # models that count from 5, and files that end with their last atom
    "first_is_5.pdb": {"A": 30},
    "gemmi_wrote_this.cif": {"A": 40, "B": 40},
    "no_newline.cif": {"A": 80},
    # a disordered tail, of which the network has to say something
    "tail_20.cif": {"A": 234},
    "tail_80.cif": {"A": 294},
}

REFUSED = {
    "two.pdb": "line 93 begins a model, and no ENDMDL has ended the one before",
    "two.cif": "2 data blocks have atoms, 'one', 'two'",
}

WARNED = {"ter.pdb": (80, "holds 2 molecules, residues 1-40, 41-80")}


def load(name: str, chain: str | None = None) -> Structure:
    return load_structure(FOLDER / f"{name}.gz", chain=chain, stride=1)


def test_the_table_has_every_file() -> None:
    assert {path.name.removesuffix(".gz") for path in FOLDER.iterdir()} == {*READ, *REFUSED, *WARNED}


@pytest.mark.filterwarnings("ignore:.* only chain")
@pytest.mark.parametrize("name", READ)
def test_every_chain_is_read(name: str) -> None:
    first = load(name).chain
    assert first == next(iter(READ[name]))
    assert {chain: len(load(name, chain)) for chain in READ[name]} == READ[name]
    with pytest.raises(StructureError, match=f"choose from {', '.join(map(repr, READ[name]))}$"):
        load(name, "no such chain")


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_of_which_a_part_must_be_chosen_is_refused(name: str) -> None:
    with pytest.raises(StructureError, match=re.escape(REFUSED[name])):
        load(name)


@pytest.mark.parametrize("name", WARNED)
def test_two_molecules_of_one_letter_are_one_only_with_a_warning(name: str) -> None:
    count, message = WARNED[name]
    with pytest.warns(UserWarning, match=message):
        assert len(load(name)) == count
    assert len(load_structure(FOLDER / f"{name}.gz", residues="41-80", stride=1)) == count // 2
