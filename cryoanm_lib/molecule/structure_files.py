"""PDB and mmCIF files and entries of the PDB: from text to atoms to the Cα trace of one chain.

ProDy parses the text and is imported only when there is some to parse. Chains and residues carry the
author's identifiers, those of the publication, in both formats.
"""

import contextlib
import gzip
import http.client
import io
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from cryoanm_lib.errors import StructureError

PDB_HOST = "files.rcsb.org"
DECIMAL = re.compile(r"-?[0-9]+")
PEPTIDE_BOND = 2.0  # Å: between the 1.3 Å of a C-N bond and the 2.4 Å from N to C of one residue


class Trace(NamedTuple):
    """All Cα of one chain, in Å, where the file has them."""

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
    complaint: np.ndarray

    def rows(self, selected: np.ndarray | list[int]) -> "_Atoms":
        return _Atoms(*(column[selected] for column in self))


def read_file(path: Path, chain: str | None = None) -> Trace:
    """Read the Cα of one chain of a PDB or mmCIF file, gzipped or not.

    Parameters
    ----------
    path : Path
        The file; its content and not its name tells the format.
    chain : str, optional
        The author's chain identifier; by default the first chain that has Cα.

    Raises
    ------
    StructureError
        If the file cannot be read or is not a structure, or the chain is not in it or has no Cα.
    """
    label = repr(str(path))
    return _select_chain(_parse(_read_bytes(path), label), chain, label)


def read_entry(pdb_id: str, chain: str | None = None, cache: Path | None = None) -> Trace:
    """Read the Cα of one chain of an entry of the PDB, downloaded once and cached.

    Parameters
    ----------
    pdb_id : str
        Four characters, in lower case.
    chain : str, optional
        The author's chain identifier; by default the first chain that has Cα.
    cache : Path, optional
        Folder of downloaded entries; by default ``$CRYOANM_CACHE``, else ``~/.cache/cryoanm``.

    Raises
    ------
    StructureError
        If there is no such entry, the PDB is out of reach, the cache is damaged or cannot be written, or the
        chain is not in the entry or has no Cα.
    """
    folder = cache or os.environ.get("CRYOANM_CACHE") or Path.home() / ".cache" / "cryoanm"
    path = Path(folder) / f"{pdb_id}.cif.gz"
    if path.exists():
        atoms = _parse(_read_bytes(path), f"the cached file {str(path)!r}")
    else:
        content = _download(pdb_id)
        # Parsed before it is stored: the error page of a proxy must not stay behind as a structure.
        atoms = _parse(content, f"what {PDB_HOST} sent for {pdb_id!r}")
        _store(content, path)
    return _select_chain(atoms, chain, f"PDB entry {pdb_id!r}")


def no_such_chain(chain: str, label: str, chains: list[str]) -> StructureError:
    """The error that says which chains there are."""
    return StructureError(f"{label} has no chain {chain!r}: choose from {', '.join(map(repr, chains))}")


# Where the content comes from: a file or the PDB.


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StructureError(f"{str(path)!r} cannot be read ({error.strerror}): give a file") from error


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
            "the network, give the path of a file, or use an embedded structure such as 'adk_open'"
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
    is_mmcif = _is_mmcif(text)
    if is_mmcif:
        atoms = prody.parseMMCIFStream(io.StringIO(_first_model(text)), altloc="all")
    else:
        atoms = prody.parsePDBStream(io.StringIO(text, newline=None), altloc="all", model=1)
    if atoms is None:
        raise ValueError("no atoms")
    complaints = ("",) * len(atoms)
    if not is_mmcif:
        numbers, codes, complaints = zip(*_pdb_residues(text), strict=True)
        atoms.setResnums(numbers)
        atoms.setIcodes(codes)
    chains, segments, names = atoms.getChids(), atoms.getSegnames(), atoms.getResnames()
    # A standard residue in a HETATM record is a free ligand, such as the glutamate of a receptor.
    free = atoms.getFlags("hetatm") & np.isin(names, prody.flagDefinition("stdaa"))
    return _Atoms(
        # From mmCIF, ProDy's chain is label_asym_id and its segment the author's chain. In PDB files of
        # simulation packages the chain is often blank, and only the segment tells the molecules apart.
        chain=segments if is_mmcif else np.where(chains == "", segments, chains),
        residue_number=atoms.getResnums(),
        residue=np.char.add(atoms.getResnums().astype(str), atoms.getIcodes()),
        altloc=atoms.getAltlocs(),
        name=atoms.getNames(),
        is_named_residue=np.isin(names, [*prody.flagDefinition("aminoacid"), "UNK"]) & ~free,
        occupancy=atoms.getOccupancies(),
        coordinates=atoms.getCoords(),
        complaint=np.array(complaints),
    )


def _is_mmcif(text: str) -> bool:
    lines = (line for line in io.StringIO(text) if line.strip() and not line.startswith("#"))
    return next(lines, "").startswith("data_")


def _pdb_residues(text: str) -> list[tuple[int, str, str]]:
    """Number, insertion code and what is wrong with them, for each atom of the first model.

    ProDy guesses numbers beyond 9999. Programs write them in many ways: from 0 again, in hexadecimal, with
    letters, or over the column of the insertion code.
    """
    residues: list[tuple[int, str, str]] = []
    is_hexadecimal = False
    for place, line in enumerate(io.StringIO(text, newline=None), start=1):
        record, number, code = line[:6].strip(), line[22:26].strip(), line[26:27].strip()
        if record.startswith("END") and residues:
            break
        if record in ("ATOM", "HETATM"):
            is_decimal = bool(DECIMAL.fullmatch(number)) and not code.isdigit()
            if is_decimal:
                begins = number == f"{10_000:x}" and residues[-1:] and residues[-1][0] == 9999
                is_hexadecimal = bool(begins) or (is_hexadecimal and int(number, 16) >= 10_000)
            if is_decimal and not is_hexadecimal:
                residues.append((int(number), code, ""))
            else:
                shown = line[22:27].strip()
                residues.append((0, shown, f"line {place} counts residues by {shown!r}"))
    return residues


def _first_model(text: str) -> str:
    """Drop the later models, of which ProDy mixes the atoms when models differ in length."""
    lines = text.splitlines()
    columns = [line.strip() for line in lines if line.strip().startswith("_atom_site.")]
    if "_atom_site.pdbx_PDB_model_num" not in columns:
        return text
    column = columns.index("_atom_site.pdbx_PDB_model_num")

    def model(line: str) -> str | None:
        fields = line.split()
        is_atom = line.startswith(("ATOM", "HETATM")) and len(fields) == len(columns)
        return fields[column] if is_atom else None

    first = next(filter(None, map(model, lines)), None)
    return "\n".join(line for line in lines if model(line) in (None, first)) + "\n"


# From atoms to the Cα of one chain.


def _select_chain(atoms: _Atoms, chain: str | None, label: str) -> Trace:
    chains = [str(identifier) for identifier in dict.fromkeys(atoms.chain)]
    if chain is not None and chain not in chains:
        raise no_such_chain(chain, label, chains)
    for candidate in chains if chain is None else [chain]:
        calphas = _alpha_carbons(atoms.rows(atoms.chain == candidate))
        if len(calphas.residue):
            numbers = tuple(calphas.residue_number.tolist())
            return Trace(candidate, numbers, torch.from_numpy(calphas.coordinates).to(torch.float64))
    where = f"chain {chain!r} of {label}" if chain is not None else label
    raise StructureError(f"{where} has no Cα: choose a protein chain (the chains are {', '.join(chains)})")


def _alpha_carbons(atoms: _Atoms) -> _Atoms:
    """The Cα of a chain, one per residue: the position of highest occupancy, the first of equals."""
    calphas = atoms.rows((atoms.name == "CA") & (atoms.is_named_residue | _is_peptide_linked(atoms)))
    for complaint in filter(None, calphas.complaint):
        where = f"in chain {str(calphas.chain[0])!r}"
        raise StructureError(f"{complaint} {where}, and PDB files have decimal numbers to 9999: give mmCIF")
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
