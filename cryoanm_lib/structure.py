"""Reference structures: one pseudo-atom per kept Cα, in Å, centred at the centroid.

A structure comes from a table shipped with the library, from a PDB or mmCIF file, or from the PDB by its ID.
ProDy reads the files and is imported only when one has to be read.
"""

import contextlib
import csv
import gzip
import http.client
import importlib.resources
import io
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from cryoanm_lib.errors import StructureError

EMBEDDED = ("adk_open", "adk_closed")
EMBEDDED_CHAIN = "A"
FEWEST_ATOMS = 3
PEPTIDE_BOND = 2.0  # Å: between the 1.3 Å of a C-N bond and the 2.4 Å from N to C of one residue
PDB_ID = re.compile(r"[1-9][A-Za-z0-9]{3}")
PDB_HOST = "files.rcsb.org"


@dataclass(frozen=True, eq=False)
class Structure:
    """Pseudo-atoms of one protein chain.

    Attributes
    ----------
    name : str
        The embedded name, the lower-case PDB ID, or the name of the file without its suffixes.
    coordinates : Float64[Tensor, "atoms 3"]
        Positions in Å, their centroid at the origin.
    residue_numbers : tuple of int
        The author's residue number of each pseudo-atom; a number repeats where insertion codes were used.
    chain : str
        The author's chain identifier.
    stride : int
        Every `stride`-th Cα of the chain was kept, starting with the first.
    provenance : str
        A sentence that says where the coordinates came from.
    """

    name: str
    coordinates: Float64[Tensor, "atoms 3"]
    residue_numbers: tuple[int, ...]
    chain: str
    stride: int
    provenance: str

    def __len__(self) -> int:
        return len(self.residue_numbers)


class _Trace(NamedTuple):
    """All Cα of one chain, before coarse-graining."""

    chain: str
    residue_numbers: tuple[int, ...]
    coordinates: Float64[Tensor, "atoms 3"]


class _Atoms(NamedTuple):
    """One column per property of the atoms of a file; every column is an array with a row per atom."""

    chain: np.ndarray
    residue_number: np.ndarray
    residue: np.ndarray
    altloc: np.ndarray
    name: np.ndarray
    is_named_residue: np.ndarray
    occupancy: np.ndarray
    coordinates: np.ndarray

    def rows(self, selected: np.ndarray | list[int]) -> "_Atoms":
        return _Atoms(*(column[selected] for column in self))


def load_structure(
    source: str | Path, *, chain: str | None = None, stride: int = 2, cache: Path | None = None
) -> Structure:
    """Load a chain and keep every `stride`-th Cα as a pseudo-atom.

    Cα of modified residues count although they stand in HETATM records; calcium ions and ligands do not. Of
    several positions of a residue the one with the highest occupancy is kept, of several models the first.
    Chains and residues carry the author's identifiers, those of the publication, in both file formats.

    Parameters
    ----------
    source : str or Path
        An embedded name (`EMBEDDED`), a PDB ID of four characters, or a path to a PDB or mmCIF file, gzipped
        or not. A string that looks like a PDB ID always is one: write ``./1abc`` for a file of that name.
    chain : str, optional
        The author's chain identifier; by default the first chain that has Cα.
    stride : int
        Keep every `stride`-th Cα, starting with the first.
    cache : Path, optional
        Folder for downloaded entries; by default ``$CRYOANM_CACHE``, else ``~/.cache/cryoanm``.

    Returns
    -------
    Structure
        Positions in Å, centred at the centroid of the kept Cα.

    Raises
    ------
    StructureError
        If the source is not found, not downloadable or not a structure, the chain is not in it or has no Cα,
        coordinates are not finite, or fewer than three Cα are left.

    Examples
    --------
    >>> structure = load_structure("adk_open")
    >>> len(structure), structure.residue_numbers[:3]
    (107, (1, 3, 5))
    """
    if stride < 1:
        raise StructureError(f"stride is {stride}; it must be at least 1, which keeps every Cα")
    if isinstance(source, str) and source in EMBEDDED:
        trace, origin = _read_embedded(source, chain)
        name = source
    elif isinstance(source, str) and PDB_ID.fullmatch(source):
        name = source.lower()
        trace = _select_chain(_entry_atoms(name, cache or _default_cache()), chain, f"PDB entry {source!r}")
        origin = f"PDB entry {source.upper()} from {PDB_HOST}"
    else:
        path = Path(source)
        trace = _select_chain(_parse(_read_file(path), f"{str(path)!r}"), chain, f"{str(path)!r}")
        name, origin = path.name.split(".")[0], f"File {path.name}"
    return _coarse_grain(name, trace, stride, origin)


def superpose(mobile: Float[Tensor, "atoms 3"], target: Float[Tensor, "atoms 3"]) -> Float[Tensor, "atoms 3"]:
    """Move `mobile` rigidly onto `target` with the least RMSD, never through a reflection (Kabsch).

    Parameters
    ----------
    mobile, target : Float[Tensor, "atoms 3"]
        Positions in Å of the same atoms in the same order.

    Returns
    -------
    Float[Tensor, "atoms 3"]
        `mobile` in the frame of `target`, in Å.

    Raises
    ------
    StructureError
        If the two do not have the same number of atoms.

    Examples
    --------
    >>> opened, closed = (load_structure(name).coordinates for name in EMBEDDED)
    >>> print(f"{rmsd(superpose(closed, opened), opened):.3f}")
    7.122
    """
    _require_pairs(mobile, target)
    centre = target.mean(dim=0)
    centred = mobile - mobile.mean(dim=0)
    left, _, right = torch.linalg.svd(centred.T @ (target - centre))
    handedness = torch.ones_like(centre)
    handedness[-1] = torch.sign(torch.linalg.det(left @ right))
    return centred @ (left * handedness) @ right + centre


def rmsd(a: Float[Tensor, "atoms 3"], b: Float[Tensor, "atoms 3"]) -> float:
    """Root-mean-square distance in Å between the atoms of `a` and `b` where they stand.

    Parameters
    ----------
    a, b : Float[Tensor, "atoms 3"]
        Positions in Å of the same atoms in the same order.

    Raises
    ------
    StructureError
        If the two do not have the same number of atoms.
    """
    _require_pairs(a, b)
    return (a - b).square().sum(dim=-1).mean().sqrt().item()


def _require_pairs(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape or a.shape[-1:] != (3,):
        raise StructureError(
            f"coordinates have shapes {tuple(a.shape)} and {tuple(b.shape)}; both must be (atoms, 3) with "
            "the same atoms in the same order"
        )


def _coarse_grain(name: str, trace: _Trace, stride: int, origin: str) -> Structure:
    coordinates, numbers = trace.coordinates[::stride], trace.residue_numbers[::stride]
    if len(numbers) < FEWEST_ATOMS:
        raise StructureError(
            f"stride {stride} leaves {len(numbers)} of the {len(trace.residue_numbers)} Cα of chain "
            f"{trace.chain!r} of {name!r}; at least {FEWEST_ATOMS} are needed: lower the stride or take a "
            "longer chain"
        )
    if not coordinates.isfinite().all():
        broken = numbers[int((~coordinates.isfinite()).any(dim=-1).nonzero()[0])]
        raise StructureError(
            f"the Cα of residue {broken} in chain {trace.chain!r} of {name!r} has coordinates that are not "
            "finite numbers: repair or remove that record"
        )
    return Structure(
        name=name,
        coordinates=coordinates - coordinates.mean(dim=0),
        residue_numbers=numbers,
        chain=trace.chain,
        stride=stride,
        provenance=f"{origin}, chain {trace.chain}: {len(numbers)} of {len(trace.residue_numbers)} Cα, "
        f"stride {stride}.",
    )


# Where the content comes from: the library, a file, or the PDB.


def _read_embedded(name: str, chain: str | None) -> tuple[_Trace, str]:
    if chain not in (None, EMBEDDED_CHAIN):
        raise _no_such_chain(chain, repr(name), [EMBEDDED_CHAIN])
    table = importlib.resources.files("cryoanm_lib") / "data" / f"{name}.csv"
    lines = table.read_text(encoding="utf-8").splitlines()
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    coordinates = torch.tensor([[float(row[axis]) for axis in "xyz"] for row in rows], dtype=torch.float64)
    numbers = tuple(int(row["residue_number"]) for row in rows)
    return _Trace(EMBEDDED_CHAIN, numbers, coordinates), lines[0].removeprefix("#").strip()


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise StructureError(
            f"{str(path)!r} is neither a file nor a name: give a path to a PDB or mmCIF file, an embedded "
            f"structure ({', '.join(EMBEDDED)}), or a PDB ID of four characters that starts with a digit"
        ) from error
    except OSError as error:
        raise StructureError(f"{str(path)!r} cannot be read ({error.strerror}): give a file") from error


def _default_cache() -> Path:
    return Path(os.environ.get("CRYOANM_CACHE") or Path.home() / ".cache" / "cryoanm")


def _entry_atoms(pdb_id: str, folder: Path) -> _Atoms:
    path = Path(folder) / f"{pdb_id}.cif.gz"
    if path.exists():
        return _parse(_read_file(path), f"the cached file {str(path)!r}")
    content = _download(pdb_id)
    # Parsed before it is stored: the error page of a proxy must not stay behind as a structure.
    atoms = _parse(content, f"what {PDB_HOST} sent for {pdb_id!r}")
    _store(content, path)
    return atoms


def _download(pdb_id: str) -> bytes:
    url = f"https://{PDB_HOST}/download/{pdb_id}.cif.gz"
    try:
        with urllib.request.urlopen(url, timeout=60) as reply:
            return reply.read()
    except urllib.error.HTTPError as error:
        if error.code == 404:
            raise StructureError(f"the PDB has no entry {pdb_id!r} (HTTP 404): check the ID") from error
        raise StructureError(f"{PDB_HOST} answered {pdb_id!r} with HTTP {error.code}: try later") from error
    except (OSError, http.client.HTTPException) as error:
        raise StructureError(
            f"PDB entry {pdb_id!r} could not be downloaded, {PDB_HOST} is out of reach ({error}): connect to "
            f"the network, give the path of a file, or use an embedded structure ({', '.join(EMBEDDED)})"
        ) from error


def _store(content: bytes, path: Path) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise StructureError(
            f"{str(path)!r} cannot be written ({error.strerror}): set CRYOANM_CACHE to a writable folder"
        ) from error


# From content to atoms: the only part that knows ProDy.


@contextlib.contextmanager
def _quiet_prody() -> Iterator[None]:
    import prody

    # confProDy would do it too, but writes a settings file into the user's home.
    verbosity, prody.LOGGER.verbosity = prody.LOGGER.verbosity, "none"
    try:
        yield
    finally:
        prody.LOGGER.verbosity = verbosity


def _parse(content: bytes, label: str) -> _Atoms:
    try:
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
        with _quiet_prody():
            return _parse_text(content.decode("utf-8", errors="replace"))
    except Exception as error:  # ProDy lets IndexError, KeyError and errors of its own escape on bad input
        reason = str(error) or type(error).__name__
        raise StructureError(
            f"{label} is not a readable PDB or mmCIF structure ({reason}): give an intact file, and delete a "
            "damaged one from the cache"
        ) from error


def _parse_text(text: str) -> _Atoms:
    import prody

    # altloc="all" gives one row per position; by default ProDy drops a residue that lacks position A.
    if _is_mmcif(text):
        atoms = prody.parseMMCIFStream(io.StringIO(_first_model(text)), altloc="all")
    else:
        atoms = prody.parsePDBStream(io.StringIO(text, newline=None), altloc="all", model=1)
    if atoms is None:
        raise ValueError("no atoms")
    names = atoms.getResnames()
    # A standard residue in a HETATM record is a free ligand, such as the glutamate of a receptor.
    free = atoms.getFlags("hetatm") & np.isin(names, prody.flagDefinition("stdaa"))
    return _Atoms(
        chain=_author_chains(atoms.getChids(), atoms.getSegnames(), _is_mmcif(text)),
        residue_number=atoms.getResnums(),
        residue=np.char.add(atoms.getResnums().astype(str), atoms.getIcodes()),
        altloc=atoms.getAltlocs(),
        name=atoms.getNames(),
        is_named_residue=np.isin(names, [*prody.flagDefinition("aminoacid"), "UNK"]) & ~free,
        occupancy=atoms.getOccupancies(),
        coordinates=atoms.getCoords(),
    )


def _author_chains(chains: np.ndarray, segments: np.ndarray, from_mmcif: bool) -> np.ndarray:
    # From mmCIF, ProDy's chain is label_asym_id and its segment the author's chain. In PDB files written by
    # simulation packages the chain is often blank, and only the segment tells the molecules apart.
    return segments if from_mmcif else np.where(chains == "", segments, chains)


def _is_mmcif(text: str) -> bool:
    lines = (line for line in io.StringIO(text) if line.strip() and not line.startswith("#"))
    return next(lines, "").startswith("data_")


def _first_model(text: str) -> str:
    """Drop the later models, of which ProDy mixes the atoms when models differ in length."""
    lines = text.splitlines()
    columns = [line.strip() for line in lines if line.strip().startswith("_atom_site.")]
    column = columns.index("_atom_site.pdbx_PDB_model_num")

    def model(line: str) -> str | None:
        fields = line.split()
        is_atom = line.startswith(("ATOM", "HETATM")) and len(fields) == len(columns)
        return fields[column] if is_atom else None

    first = next(filter(None, map(model, lines)), None)
    return "\n".join(line for line in lines if model(line) in (None, first)) + "\n"


# From atoms to the Cα of one chain.


def _no_such_chain(chain: str, label: str, chains: list[str]) -> StructureError:
    return StructureError(f"{label} has no chain {chain!r}: choose from {', '.join(map(repr, chains))}")


def _select_chain(atoms: _Atoms, chain: str | None, label: str) -> _Trace:
    chains = [str(identifier) for identifier in dict.fromkeys(atoms.chain)]
    if chain is not None and chain not in chains:
        raise _no_such_chain(chain, label, chains)
    for candidate in chains if chain is None else [chain]:
        calphas = _alpha_carbons(atoms.rows(atoms.chain == candidate))
        if len(calphas.residue):
            numbers = tuple(int(number) for number in calphas.residue_number)
            return _Trace(candidate, numbers, torch.from_numpy(calphas.coordinates).to(torch.float64))
    where = f"chain {chain!r} of {label}" if chain is not None else label
    raise StructureError(f"{where} has no Cα: choose a protein chain (the chains are {', '.join(chains)})")


def _alpha_carbons(atoms: _Atoms) -> _Atoms:
    """The Cα of a chain, one per residue: the position of highest occupancy, the first of equals."""
    calphas = atoms.rows((atoms.name == "CA") & (atoms.is_named_residue | _is_peptide_linked(atoms)))
    positions = list(zip(calphas.residue, calphas.altloc, strict=True))
    if len(set(positions)) < len(positions):
        repeated = max(positions, key=positions.count)[0]
        raise StructureError(
            f"chain {str(calphas.chain[0])!r} holds residue {repeated} more than once: give every molecule a "
            "chain identifier of its own"
        )
    kept: dict[str, int] = {}
    for row, residue in enumerate(calphas.residue):
        held = kept.setdefault(residue, row)
        if calphas.occupancy[row] > calphas.occupancy[held]:
            kept[residue] = row
    return calphas.rows(list(kept.values()))


def _is_peptide_linked(atoms: _Atoms) -> np.ndarray:
    """Mark atoms of residues with a peptide bond, so that no list of modified residues has to be complete."""
    nitrogens, carbons = atoms.rows(atoms.name == "N"), atoms.rows(atoms.name == "C")
    bonded = torch.cdist(*map(torch.from_numpy, (nitrogens.coordinates, carbons.coordinates))) < PEPTIDE_BOND
    linked = [nitrogens.residue[bonded.any(dim=1).numpy()], carbons.residue[bonded.any(dim=0).numpy()]]
    return np.isin(atoms.residue, np.concatenate(linked))
