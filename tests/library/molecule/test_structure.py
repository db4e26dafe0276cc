"""Structures: which Cα a reader keeps, where they come from, and what is said when they cannot be had."""

import gzip
import http.client
import io
import math
import re
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import prody
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cryoanm_lib.errors import StructureError
from cryoanm_lib.molecule.structure import EMBEDDED, load_structure, rmsd, structure_file, superpose

torch.set_num_threads(1)
PRODY_DATA = Path(prody.__file__).parent / "tests" / "datafiles"


class Row(NamedTuple):
    """One atom of a synthetic file."""

    number: int
    x: float = 0.0
    y: float = 0.0
    z: float = 0.0
    residue: str = "ALA"
    name: str = "CA"
    element: str = "C"
    record: str = "ATOM"
    chain: str = "A"
    altloc: str = ""
    icode: str = ""
    occupancy: float = 1.0
    model: int = 1
    segment: str = ""


def as_pdb(rows: list[Row]) -> str:
    lines, model = ["MODEL        1"], 1
    for serial, row in enumerate(rows, start=1):
        if row.model != model:
            lines += ["ENDMDL", f"MODEL     {row.model:4d}"]
            model = row.model
        lines.append(
            f"{row.record:<6}{serial:5d}  {row.name:<3}{row.altloc:1}{row.residue:>3} {row.chain:1}"
            f"{row.number:4d}{row.icode:1}   {row.x:8.3f}{row.y:8.3f}{row.z:8.3f}"
            f"{row.occupancy:6.2f}{0.0:6.2f}      {row.segment:<4}{row.element:>2}"
        )
    return "\n".join([*lines, "ENDMDL", "END", ""])


CIF_COLUMNS = """group_PDB id type_symbol label_atom_id label_alt_id label_comp_id label_asym_id label_seq_id
pdbx_PDB_ins_code Cartn_x Cartn_y Cartn_z occupancy B_iso_or_equiv auth_seq_id auth_asym_id
pdbx_PDB_model_num""".split()


def as_cif(rows: list[Row], columns: Sequence[str] = CIF_COLUMNS) -> str:
    """The same atoms as mmCIF, with label identifiers that differ from the author's."""
    lines = ["data_SYNTHETIC", "#", "loop_", *(f"_atom_site.{column}" for column in columns)]
    for serial, row in enumerate(rows, start=1):
        values = (
            f"{row.record} {serial} {row.element} {row.name} {row.altloc or '.'} {row.residue} Z{row.chain} "
            f"{serial + 500} {row.icode or '?'} {row.x:.3f} {row.y:.3f} {row.z:.3f} {row.occupancy:.2f} 0.00 "
            f"{row.number} {row.chain} {row.model}"
        )
        named = dict(zip(CIF_COLUMNS, values.split(" "), strict=True))
        lines.append(" ".join(named[column] for column in columns))
    return "\n".join([*lines, "#", ""])


Writer = Callable[[list[Row]], Path]


@pytest.fixture(params=["pdb", "pdb.gz", "ent", "cif", "cif.gz"])
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Writer:
    """Write rows in each format that can be read, so that every rule below is a rule for all of them."""
    path = tmp_path / f"synthetic.{request.param}"

    def write_rows(rows: list[Row]) -> Path:
        content = (as_cif if "cif" in request.param else as_pdb)(rows).encode()
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
        return path

    return write_rows


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("CRYOANM_CACHE", str(folder))
    return folder


def answer_with(monkeypatch: pytest.MonkeyPatch, answer: bytes | Exception) -> list[str]:
    """Let every download give `answer`; the list that is returned fills with the addresses asked for."""
    asked: list[str] = []

    def urlopen(url: str, **_: object) -> io.BytesIO:
        asked.append(url)
        if isinstance(answer, Exception):
            raise answer
        return io.BytesIO(answer)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return asked


def http_error(code: int) -> urllib.error.HTTPError:
    return urllib.error.HTTPError("https://example.org", code, "refused", http.client.HTTPMessage(), None)


def chain_of(n: int, **columns: object) -> list[Row]:
    """A zigzag of n alanines, 3.8 Å apart along x."""
    return [Row(number, 3.8 * number, float(number % 2), **columns) for number in range(1, n + 1)]


def random_rotation(generator: torch.Generator) -> torch.Tensor:
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    return q * torch.linalg.det(q)


class Entry(NamedTuple):
    """A synthetic file, and the Cα of each chain that a reader keeps of it."""

    rows: list[Row]
    kept: dict[str, list[Row]]


RESIDUES = [("ALA", "ATOM"), ("SER", "ATOM"), ("PRO", "ATOM"), ("MSE", "HETATM"), ("TPO", "HETATM")]
STRANGERS = [
    Row(0, residue="CA", element="CA", record="HETATM"),
    Row(0, residue="LIG", record="HETATM"),
    Row(0, residue="GLU", record="HETATM"),
    Row(0, residue="HOH", name="O", element="O", record="HETATM"),
    Row(0, residue="G", name="P", element="P"),
]

# What the columns of both formats hold.
lengths = st.integers(-999_999, 9_999_999).map(lambda n: n / 1000)
places = st.fixed_dictionaries({"x": lengths, "y": lengths, "z": lengths})
occupancies = st.integers(0, 100).map(lambda n: n / 100)
numbers = st.integers(-2, 2) | st.integers(-999, 9999)  # few of them, so that many differ by a code alone
identities = st.tuples(numbers, st.sampled_from(["", "A", "Z"]))


@st.composite
def positions(draw: st.DrawFn) -> list[Row]:
    """Those of the Cα of one residue, which may be another residue in each of them."""
    rows = []
    for altloc in draw(st.lists(st.sampled_from(["", "A", "B", "1"]), min_size=1, max_size=3, unique=True)):
        residue, record = draw(st.sampled_from(RESIDUES))
        row = Row(0, residue=residue, record=record, altloc=altloc, occupancy=draw(occupancies))
        rows.append(row._replace(**draw(places)))
    return rows


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    """Chains and a stranger in each, in any order, and perhaps a second model of some of the atoms."""
    groups = []
    for chain in draw(st.lists(st.sampled_from("A7z"), min_size=1, max_size=2, unique=True)):
        named = draw(st.lists(identities, min_size=4, max_size=6, unique=True))
        groups.append((draw(st.sampled_from(STRANGERS)), [], chain, named[0]))
        for name in named[1:]:
            other = draw(st.sampled_from([Row(0, name="N", element="N"), Row(0, name="CB")]))
            groups.append((other, draw(positions()), chain, name))

    rows, kept = [], {}
    for other, calphas, chain, (number, icode) in draw(st.permutations(groups)):
        of_residue = {"chain": chain, "number": number, "icode": icode}
        other, *calphas = (row._replace(**of_residue) for row in (other, *calphas))
        rows += [other._replace(**draw(places)), *calphas]
        if calphas:
            kept.setdefault(chain, []).append(max(calphas, key=lambda row: row.occupancy))
    again = [row._replace(x=row.z, z=row.x, model=2) for row in rows[: draw(st.integers(0, len(rows)))]]
    return Entry(rows + again, kept)


# Embedded structures


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_structure_is_centred_and_coarse_grained(name: str) -> None:
    structure = load_structure(name)
    assert structure.coordinates.shape == (107, 3) and len(structure) == 107
    assert structure.coordinates.dtype == torch.float64
    assert structure.coordinates.mean(dim=0).abs().max() < 1e-12
    assert structure.residue_numbers == tuple(range(1, 215, 2))
    assert (structure.name, structure.chain, structure.stride) == (name, "A", 2)
    assert structure.provenance.endswith("chain A: 107 of 214 Cα, stride 2.")


@pytest.mark.parametrize(
    ("name", "file", "selection"),
    [
        ("adk_open", "4akeA_alg_fixed.pdb", "calpha and chain A"),
        ("adk_closed", "mmcif_1ake_chimerax.cif", "calpha and segment A"),
    ],
)
def test_embedded_table_agrees_with_prody(name: str, file: str, selection: str) -> None:
    parse = prody.parseMMCIF if file.endswith("cif") else prody.parsePDB
    selected = parse(str(PRODY_DATA / file)).select(selection)
    expected = torch.from_numpy(selected.getCoords())
    ours = load_structure(name, stride=1)
    assert ours.residue_numbers == tuple(selected.getResnums())
    torch.testing.assert_close(ours.coordinates, expected - expected.mean(dim=0), rtol=0, atol=1e-10)
    read = load_structure(PRODY_DATA / file, chain="A", stride=1)
    torch.testing.assert_close(read.coordinates, ours.coordinates, rtol=0, atol=1e-10)


@pytest.mark.parametrize("stride", [1, 2, 3, 50])
def test_stride_keeps_every_nth_from_the_first(stride: int) -> None:
    kept, everything = load_structure("adk_open", stride=stride), load_structure("adk_open", stride=1)
    assert kept.residue_numbers == everything.residue_numbers[::stride]
    between = torch.pdist(everything.coordinates[::stride])
    torch.testing.assert_close(torch.pdist(kept.coordinates), between, rtol=0, atol=1e-10)


# Superposition


def clouds(n: int) -> st.SearchStrategy[Tensor]:
    """Points anywhere, also on a line, in a plane, or all at one place."""
    number = st.floats(-50.0, 50.0)
    points = st.lists(st.tuples(number, number, number), min_size=n, max_size=n)
    return points.map(lambda drawn: torch.tensor(drawn, dtype=torch.float64))


def motion(seed: int) -> Callable[[Tensor], Tensor]:
    """A random turn and a random shift."""
    generator = torch.Generator().manual_seed(seed)
    turn = random_rotation(generator)
    shift = 30 * torch.randn(3, generator=generator, dtype=torch.float64)
    return lambda points: points @ turn.T + shift


sizes, seeds = st.integers(1, 8), st.integers(0, 2**32 - 1)


@given(sizes.flatmap(clouds), seeds)
def test_superpose_undoes_a_rigid_motion(target: Tensor, seed: int) -> None:
    """To √eps of its size, by which points that are all but on a line may be turned about it."""
    torch.testing.assert_close(superpose(motion(seed)(target), target), target, rtol=0, atol=1e-5)


@given(sizes.flatmap(lambda n: st.tuples(clouds(n), clouds(n))), seeds)
def test_superpose_moves_rigidly_to_the_least_rmsd(pair: tuple[Tensor, Tensor], seed: int) -> None:
    """By Horn: the least sum of squares is Σ a² + b² less twice the largest eigenvalue of a 4 × 4 matrix."""
    mobile, target = pair
    placed = superpose(mobile, target)
    torch.testing.assert_close(torch.cdist(placed, placed), torch.cdist(mobile, mobile), rtol=0, atol=1e-9)
    a, b = mobile - mobile.mean(0), target - target.mean(0)
    m = a.T @ b
    column = torch.stack([m[1, 2] - m[2, 1], m[2, 0] - m[0, 2], m[0, 1] - m[1, 0]])
    block = m + m.T - m.trace() * torch.eye(3, dtype=torch.float64)
    horn = torch.cat([torch.cat([m.trace()[None], column])[None], torch.cat([column[:, None], block], 1)])
    squares = a.square().sum() + b.square().sum() - 2 * torch.linalg.eigvalsh(horn)[-1]
    for least in (rmsd(placed, target), rmsd(superpose(target, motion(seed)(mobile)), motion(seed)(mobile))):
        assert least**2 * len(target) == pytest.approx(squares.item(), rel=1e-9, abs=1e-9)


def test_superpose_never_reflects() -> None:
    target = load_structure("adk_open").coordinates
    mirrored = target * torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    placed = superpose(mirrored, target)
    linear = torch.linalg.lstsq(mirrored, placed - placed.mean(dim=0)).solution
    assert torch.linalg.det(linear).item() == pytest.approx(1.0)
    assert rmsd(placed, target) > 5.0


def test_superpose_is_a_minimum() -> None:
    generator = torch.Generator().manual_seed(1)
    opened, closed = (load_structure(name, stride=1).coordinates for name in EMBEDDED)
    placed = superpose(closed, opened)
    least = rmsd(placed, opened)
    assert least == pytest.approx(7.13, abs=0.01)
    for _ in range(20):
        skew = torch.randn(3, 3, generator=generator, dtype=torch.float64) * 0.01
        turned = placed @ torch.linalg.matrix_exp(skew - skew.T)
        assert rmsd(turned, opened) > least


def test_rmsd_of_a_translation_is_its_length() -> None:
    opened = load_structure("adk_open").coordinates
    assert rmsd(opened, opened + torch.tensor([3.0, 4.0, 0.0])) == pytest.approx(5.0)


@pytest.mark.mistyped
def test_superposition_needs_pairs() -> None:
    opened = load_structure("adk_open").coordinates
    with pytest.raises(StructureError, match=r"\(106, 3\) and \(107, 3\)"):
        superpose(opened[1:], opened)
    with pytest.raises(StructureError, match="same atoms"):
        rmsd(opened[:, :2], opened[:, :2])


# Which atoms are Cα of the chain, in every format


def test_modified_residues_count_and_ions_and_ligands_do_not(write: Writer) -> None:
    rows = [
        *chain_of(3),
        Row(4, 15.2, residue="TPO", record="HETATM"),
        Row(5, 19.0, residue="MSE", record="HETATM"),
        Row(901, 40.0, residue="CA", element="CA", record="HETATM"),
        Row(902, 44.0, residue="LIG", record="HETATM"),
        Row(903, 48.0, residue="GLU", record="HETATM"),
        Row(904, 52.0, residue="HOH", name="O", element="O", record="HETATM"),
    ]
    assert load_structure(write(rows), stride=1).residue_numbers == (1, 2, 3, 4, 5)


def test_an_unlisted_residue_counts_where_it_is_peptide_linked(write: Writer) -> None:
    free = [
        Row(950, 60.0, 1.4, residue="SAM", name="N", element="N", record="HETATM"),
        Row(950, 61.2, 0.7, residue="SAM", record="HETATM"),
        Row(950, 62.4, 1.4, residue="SAM", name="C", record="HETATM"),
    ]
    linked = [
        Row(4, 14.0, 1.4, residue="QQQ", name="N", element="N", record="HETATM"),
        Row(4, 15.2, 0.7, residue="QQQ", record="HETATM"),
        Row(3, 12.7, 1.4, name="C"),
    ]
    assert load_structure(write([*chain_of(3), *linked, *free]), stride=1).residue_numbers == (1, 2, 3, 4)


def test_an_unlisted_residue_counts_in_a_trace_of_calphas(write: Writer) -> None:
    """Where it is as far from its neighbour as residues are, and it is a Cα alone."""
    rows = [
        *chain_of(3),
        Row(4, 15.2, residue="HSD"),
        Row(5, 19.0, 1.0, residue="QQQ", record="HETATM"),
        Row(6, 22.8),
        Row(901, 60.0, residue="LIG", record="HETATM"),
        Row(902, 19.0, -2.0, residue="LIG", record="HETATM"),
        Row(902, 19.0, -3.4, residue="LIG", name="CB", record="HETATM"),
        Row(903, 26.6, residue="NMA"),
    ]
    assert load_structure(write(rows), stride=1).residue_numbers == (1, 2, 3, 4, 5, 6)


def test_what_stands_behind_the_end_of_a_molecule_counts_if_it_is_linked(tmp_path: Path) -> None:
    free = Row(901, 40.0, residue="TPO", record="HETATM")
    linked = [
        Row(4, 12.8, 1.0, residue="TPO", record="HETATM", name="N", element="N"),
        Row(4, 14.0, residue="TPO", record="HETATM"),
    ]
    *lines, end, _ = as_pdb([*chain_of(3), Row(3, 12.4, 1.5, name="C"), free, *linked]).splitlines(
        keepends=True
    )
    path = tmp_path / "ended.pdb"
    path.write_text("".join([*lines[:5], "TER\n", *lines[5:], end]))
    with pytest.warns(UserWarning, match="holds 2 molecules, residues 1-3, 4-4"):
        assert load_structure(path, stride=1).residue_numbers == (1, 2, 3, 4)


@pytest.mark.parametrize("chain", ["A", ""])
def test_residue_names_of_four_letters_reach_into_the_column_of_the_chain(tmp_path: Path, chain: str) -> None:
    """LYSH, of GROMACS, is no LYS of chain HA."""
    rows = [
        row._replace(residue="LYS" if row.number in (2, 5) else "ALA") for row in chain_of(6, chain=chain)
    ]
    path = tmp_path / "gromacs.pdb"
    path.write_text(as_pdb(rows).replace("LYS ", "LYSH"))
    assert load_structure(path, stride=1).residue_numbers == (1, 2, 3, 4, 5, 6)
    assert load_structure(path).chain == chain


@pytest.mark.parametrize("field", ["        ", "   1x371", "********", "   1.3 1", "    1,37", "    1e99"])
def test_a_coordinate_that_is_no_number_is_refused(tmp_path: Path, field: str) -> None:
    """Of which a reader may make a number, or 0, without a word."""
    *before, line, end, _ = as_pdb(chain_of(4)).splitlines(keepends=True)
    path = tmp_path / "overflown.pdb"
    path.write_text("".join([*before, line[:38] + field + line[46:], end]))
    with pytest.raises(
        StructureError, match=f"residue 4 in chain 'A' .*{re.escape(field.strip())}.*not finite"
    ):
        load_structure(path)


def test_the_position_of_highest_occupancy_is_kept(write: Writer) -> None:
    rows = [
        Row(1, 0.0),
        Row(2, 3.0, altloc="A", occupancy=0.3),
        Row(2, 4.0, altloc="B", occupancy=0.7),
        Row(3, 8.0, altloc="B", occupancy=0.5),
        Row(3, 9.0, altloc="C", occupancy=0.5),
        Row(4, 12.0, altloc="A", residue="SER", occupancy=0.6),
        Row(4, 13.0, altloc="B", residue="PRO", occupancy=0.4),
    ]
    structure = load_structure(write(rows), stride=1)
    assert structure.residue_numbers == (1, 2, 3, 4)
    assert (structure.coordinates[:, 0] - structure.coordinates[0, 0]).tolist() == pytest.approx(
        [0, 4, 8, 12]
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("structures")


@given(entries(), st.permutations(CIF_COLUMNS[1:]))
def test_any_entry_is_read_alike_from_either_format(folder: Path, entry: Entry, columns: list[str]) -> None:
    """Chain by chain, in the file's order: one Cα for each number and insertion code of the first model."""
    first = next(row.chain for row in entry.rows if row.chain in entry.kept)
    contents = {"entry.pdb": as_pdb(entry.rows), "entry.cif": as_cif(entry.rows, [CIF_COLUMNS[0], *columns])}
    for name, content in contents.items():
        path = folder / name
        path.write_text(content)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            assert load_structure(path, stride=1).chain == first
        assert len(warned) == (len(entry.kept) > 1)
        for chain, kept in entry.kept.items():
            structure = load_structure(path, chain=chain, stride=1)
            expected = torch.tensor([(row.x, row.y, row.z) for row in kept], dtype=torch.float64)
            assert structure.residue_numbers == tuple(row.number for row in kept)
            torch.testing.assert_close(structure.coordinates, expected - expected.mean(0), rtol=0, atol=1e-9)


def test_chains_go_by_the_authors_identifiers(write: Writer) -> None:
    rna = [Row(number, 4.0 * number, residue="G", name="P", element="P", chain="R") for number in range(4)]
    path = write([*rna, *chain_of(5, chain="C"), *chain_of(6, chain="B")])
    with pytest.warns(UserWarning, match="only chain 'C' is read, and R, B left out: name one by chain"):
        structure = load_structure(path, stride=1)
    assert (structure.chain, len(structure)) == ("C", 5)
    assert len(load_structure(path, chain="B", stride=1)) == 6
    with pytest.raises(StructureError, match="no chain 'A': choose from 'R', 'C', 'B'"):
        load_structure(path, chain="A")
    with pytest.raises(StructureError, match=r"chain 'R' of .* has no Cα"):
        load_structure(path, chain="R")


def test_a_file_gives_its_name_and_provenance(write: Writer) -> None:
    path = write(chain_of(5))
    structure = load_structure(path)
    assert structure.name == "synthetic"
    assert structure.provenance == f"File {path.name}, chain A: 3 of 5 Cα, stride 2."
    assert load_structure(str(path)).residue_numbers == (1, 3, 5)


LAST = [row._replace(number=9996 + row.number) for row in chain_of(3)]  # of the numbers that fit


def test_residue_numbers_may_start_again_after_the_last_that_fits(tmp_path: Path) -> None:
    path = tmp_path / "solvated.pdb"
    path.write_text(as_pdb([*LAST, *chain_of(16)]))
    assert load_structure(path, stride=1).residue_numbers == (9997, 9998, 9999, *range(1, 17))


@pytest.mark.parametrize("field", ["2710 ", "A000 ", "270g ", "10000", "   11", "  -  ", "     "])
def test_residues_counted_in_another_way_are_refused(tmp_path: Path, field: str) -> None:
    *before, line = as_pdb([*chain_of(3), *LAST, Row(1)]).splitlines(keepends=True)[:-2]
    path = tmp_path / "counted.pdb"
    path.write_text("".join([*before, line[:22] + field + line[27:]]))
    with pytest.raises(StructureError, match=rf"line 8 counts residues by '{field.strip()}' .*mmCIF"):
        load_structure(path)


@pytest.mark.parametrize("fields", [["2710 ", "2711 "], ["A000 ", "A001 "], ["10000", "10001"]])
def test_how_waters_are_counted_does_not_matter(tmp_path: Path, fields: list[str]) -> None:
    """Nor does it matter to the protein that is counted after them."""
    waters = [row._replace(residue="HOH", name="O", element="O", record="HETATM") for row in LAST]
    *lines, end, _ = as_pdb([*waters, *waters[-1:] * 2, *chain_of(5)]).splitlines(keepends=True)
    for line, field in enumerate(fields, start=4):
        lines[line] = lines[line][:22] + field + lines[line][27:]
    path = tmp_path / "solvated.pdb"
    path.write_text("".join([*lines, end]))
    assert load_structure(path, stride=1).residue_numbers == (1, 2, 3, 4, 5)


def test_blank_chains_are_told_apart_by_segment(tmp_path: Path) -> None:
    rows = [*chain_of(5, chain="", segment="PROA"), *chain_of(6, chain="", segment="PROB")]
    path = tmp_path / "simulation.pdb"
    path.write_text(as_pdb(rows))
    with pytest.warns(UserWarning, match="PROB left out"):
        assert load_structure(path).chain == "PROA"
    assert len(load_structure(path, chain="PROB", stride=1)) == 6


# Which residues of the chain


def test_residues_are_chosen_by_the_authors_numbers(write: Writer) -> None:
    path = write([row._replace(number=row.number - 4) for row in chain_of(9)])
    everything = load_structure(path, stride=1)
    assert everything.residue_numbers == tuple(range(-3, 6))
    assert load_structure(path, residues="-3-5", stride=1).residue_numbers == everything.residue_numbers
    assert load_structure(path, residues="-2--1, 3 - 99", stride=1).residue_numbers == (-2, -1, 3, 4, 5)
    some = load_structure(path, residues="-1-5")
    assert some.residue_numbers == (-1, 1, 3, 5)
    assert some.provenance == f"File {path.name}, chain A, residues -1-5: 4 of 7 Cα, stride 2."
    between = torch.pdist(everything.coordinates[2::2])
    torch.testing.assert_close(torch.pdist(some.coordinates), between, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("residues", "message"),
    [
        ("", "write ranges"),
        ("1", "write ranges"),
        ("A-B", "write ranges"),
        ("1-30,", "write ranges"),
        ("30-1", "no Cα of residues 30-1: its residues are 1 to 214"),
        ("1-20, 300-310", "no Cα of residues 300-310"),
        ("1-4", "leaves 2 of the 4 Cα"),
    ],
)
def test_residues_that_are_not_there_are_refused(residues: str, message: str) -> None:
    with pytest.raises(StructureError, match=message):
        load_structure("adk_open", residues=residues)


# What is said when there is no structure


def test_unreadable_coordinates(write: Writer) -> None:
    rows = chain_of(4)
    rows[2] = rows[2]._replace(x=math.nan)
    with pytest.raises(StructureError, match=r"residue 3 in chain 'A'.*not finite"):
        load_structure(write(rows), stride=1)


def test_no_calpha_at_all(write: Writer) -> None:
    with pytest.raises(StructureError, match="has no Cα: choose a protein chain"):
        load_structure(write(chain_of(4, residue="HOH", name="O", element="O")))


def test_a_residue_that_occurs_twice(write: Writer) -> None:
    with pytest.raises(StructureError, match="residue 2 more than once"):
        load_structure(write([*chain_of(3), Row(2, 30.0)]))


def test_too_few_atoms(write: Writer) -> None:
    with pytest.raises(StructureError, match="leaves 2 of the 4 Cα"):
        load_structure(write(chain_of(4)))


@pytest.mark.parametrize("stride", [0, -2])
def test_stride_below_one(stride: int) -> None:
    with pytest.raises(StructureError, match=f"stride is {stride}; it must be at least 1"):
        load_structure("adk_open", stride=stride)


@pytest.mark.parametrize("source", ["adk_opened", "nowhere/model.pdb", Path("1abc"), ""])
def test_missing_file_or_unknown_name(source: str | Path) -> None:
    with pytest.raises(StructureError, match=r"adk_open, adk_closed.*PDB ID of four|cannot be read"):
        load_structure(source)


def test_embedded_structures_have_chain_a_only() -> None:
    with pytest.raises(StructureError, match="'adk_open' has no chain 'B': choose from 'A'"):
        load_structure("adk_open", chain="B")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"Dear reader,\nthis is a letter.\n",
        b"data_X\n#\n",
        b"\x1f\x8b but not gzip",
        as_cif([]).encode(),
    ],
)
def test_a_file_that_is_no_structure(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "letter.pdb"
    path.write_bytes(content)
    with pytest.raises(StructureError, match=r"letter\.pdb' is not a readable PDB or mmCIF structure"):
        load_structure(path)


# Entries of the PDB


def test_an_entry_is_downloaded_once_and_cached(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answer_with(monkeypatch, gzip.compress(as_cif(chain_of(7)).encode()))
    structures = [load_structure("1ABC"), load_structure("1abc"), load_structure("1abc", stride=1)]
    assert asked == ["https://files.rcsb.org/download/1abc.cif.gz"]
    assert [len(structure) for structure in structures] == [4, 4, 7]
    assert structures[0].name == "1abc"
    assert structures[0].provenance.startswith("PDB entry 1ABC from files.rcsb.org, chain A")
    assert [path.name for path in cache.iterdir()] == ["1abc.cif.gz"]


@pytest.mark.parametrize(
    ("source", "entry"),
    [("pdb_00001abc", "1abc"), ("PDB_00001ABC", "1abc"), ("pdb_10001abc", "pdb_10001abc")],
)
def test_an_entry_may_have_a_name_of_the_new_form(
    cache: Path, monkeypatch: pytest.MonkeyPatch, source: str, entry: str
) -> None:
    asked = answer_with(monkeypatch, gzip.compress(as_cif(chain_of(7)).encode()))
    assert load_structure(source).name == entry
    assert asked == [f"https://files.rcsb.org/download/{entry}.cif.gz"]
    assert structure_file(source) is None


def test_a_user_without_a_home_is_told_to_set_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("CRYOANM_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(StructureError, match="set CRYOANM_CACHE"):
        load_structure("1abc")


def test_the_cache_can_be_chosen(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, gzip.compress(as_cif(chain_of(7)).encode()))
    load_structure("1abc", cache=tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / "1abc.cif.gz").exists() and not cache.exists()


# No time stamp: the bytes are the name of a test, which must not change from second to second.
whole = gzip.compress(as_cif(chain_of(200)).encode(), mtime=0)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (http_error(404), "the PDB has no entry '1abc'"),
        (http_error(503), "HTTP 503"),
        (urllib.error.URLError("no route to host"), "out of reach .*no route to host.*adk_open"),
        (TimeoutError("timed out"), "out of reach .*timed out"),
        (http.client.IncompleteRead(b"data_"), "out of reach"),
        (
            b"<!DOCTYPE html><html><body>Log in to the network</body></html>",
            "sent for '1abc' is not a readable",
        ),
        (gzip.compress(b"<html>ATOM</html>", mtime=0), "is not a readable"),
        (whole[: len(whole) // 2], "is not a readable"),
        (b"", "is not a readable"),
    ],
)
def test_a_failed_download_leaves_nothing_behind(
    cache: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes | Exception, message: str
) -> None:
    cache.mkdir()
    answer_with(monkeypatch, answer)
    with pytest.raises(StructureError, match=message):
        load_structure("1abc")
    assert list(cache.iterdir()) == []


def test_an_interrupted_write_leaves_nothing_behind(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    answer_with(monkeypatch, whole)
    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(StructureError, match=r"No space left on device.*CRYOANM_CACHE"):
        load_structure("1abc")
    assert list(cache.iterdir()) == []


def test_a_cache_that_is_a_file(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write_text("")
    answer_with(monkeypatch, whole)
    with pytest.raises(StructureError, match="cannot be written"):
        load_structure("1abc")


def test_a_damaged_cached_entry_is_reported_and_not_replaced(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.mkdir()
    (cache / "1abc.cif.gz").write_bytes(whole[:100])
    asked = answer_with(monkeypatch, whole)
    with pytest.raises(StructureError, match=r"the cached file .*delete a damaged one"):
        load_structure("1abc")
    assert asked == []


def test_a_pdb_id_never_reads_a_file_of_that_name(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("1abc").write_text(as_pdb(chain_of(5)))
    answer_with(monkeypatch, urllib.error.URLError("no network"))
    with pytest.raises(StructureError, match="out of reach"):
        load_structure("1abc")
    assert len(load_structure("./1abc", stride=1)) == len(load_structure(Path("1abc"), stride=1)) == 5
