"""PDB and mmCIF files and entries of the PDB: from where they are to their models.

Gemmi parses the text and is imported only when there is some to parse. Chains and residues carry the author's
identifiers, those of the publication, in both formats.
"""

import gzip
import http.client
import io
import os
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cryoanm_lib.errors import ArtifactError, StructureError
from cryoanm_lib.io.storage import write_atomically
from cryoanm_lib.molecule.embedded import EMBEDDED

if TYPE_CHECKING:
    import gemmi

PDB_HOST = "files.rcsb.org"
PDB_ID = re.compile(r"(?:(?i:pdb)_0000)?([1-9][A-Za-z0-9]{3})|(?i:pdb)_[A-Za-z0-9]{8}")
# Names of four letters that programs write in three columns and the one that may begin a chain's name.
LONG_NAME = re.compile("LYS[HN]|HIS[ABDEHP12]|ARGN|ASP[HP]|GLU[HP]|CYS[HX2]")


class Source(NamedTuple):
    """What was read, what it is called, how messages name it, and a sentence that says where it came from."""

    structure: "gemmi.Structure"
    name: str
    label: str
    origin: str


def read_source(source: str | Path, cache: Path | None = None) -> Source:
    """Read a PDB or mmCIF file, gzipped or not, or an entry of the PDB, downloaded once and cached.

    Parameters
    ----------
    source : str or Path
        A PDB ID such as ``4ake`` or ``pdb_00004ake``, or a path. A string that looks like a PDB ID always is
        one: write ``./1abc`` for a file of that name. A file's content and not its name tells its format.
    cache : Path, optional
        Folder of downloaded entries; by default ``$CRYOANM_CACHE``, else ``~/.cache/cryoanm``.

    Raises
    ------
    StructureError
        If the source is not found or is not a structure; and of an entry if there is none, the PDB is out of
        reach, or the cache is damaged, cannot be written or has no folder.
    """
    if isinstance(source, str) and (entry := PDB_ID.fullmatch(source)):
        name = (entry[1] or source).lower()
        origin = f"PDB entry {name.upper()} from {PDB_HOST}"
        return Source(_read_entry(name, cache), name, f"PDB entry {name!r}", origin)
    path = Path(source)
    if not os.path.exists(path):  # which a name that is too long does not upset
        raise StructureError(
            f"{str(source)!r} is neither a file nor a name: give a path to a PDB or mmCIF file, an embedded "
            f"structure ({', '.join(EMBEDDED)}), or a PDB ID of four characters that starts with a digit"
        )
    label = repr(str(path))
    return Source(_parse(_read_bytes(path), label), path.name.split(".")[0], label, f"File {path.name}")


def _read_entry(pdb_id: str, cache: Path | None) -> "gemmi.Structure":
    path = Path(cache or os.environ.get("CRYOANM_CACHE") or _home_cache()) / f"{pdb_id}.cif.gz"
    if path.exists():
        return _parse(_read_bytes(path), f"the cached file {str(path)!r}")
    content = _download(pdb_id)
    # Parsed before it is stored: the error page of a proxy must not stay behind as a structure.
    structure = _parse(content, f"what {PDB_HOST} sent for {pdb_id!r}")
    _store(content, path)
    return structure


# Where the content comes from: a file or the PDB.


def _home_cache() -> Path:
    try:
        return Path.home() / ".cache" / "cryoanm"
    except RuntimeError as error:  # of a user without a home
        raise StructureError(
            f"there is no folder to keep entries of the PDB in ({error}): set CRYOANM_CACHE to one"
        ) from error


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
    try:
        write_atomically(path, lambda beside: beside.write_bytes(content))
    except ArtifactError as error:
        raise StructureError(
            f"{str(path)!r} cannot be written ({error.__cause__}): set CRYOANM_CACHE to a writable folder"
        ) from error


# From content to atoms.


def _parse(content: bytes, label: str) -> "gemmi.Structure":
    try:
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
        encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
        text = io.TextIOWrapper(io.BytesIO(content), encoding, errors="replace").read()  # any line ends
        is_mmcif = re.match(r"(?:\s|#.*\n)*data_", text, re.IGNORECASE)
        structure = _parse_mmcif(text) if is_mmcif else _parse_pdb(text)
        if not len(structure) or not len(structure[0]):
            raise ValueError("no atoms")
        return structure
    except Exception as error:  # gemmi lets ValueError, RuntimeError and others escape on bad input
        reason = str(error) or type(error).__name__
        raise StructureError(
            f"{label} is not a readable PDB or mmCIF structure ({reason}): give an intact file, and delete a "
            "damaged one from the cache"
        ) from error


def _parse_mmcif(text: str) -> "gemmi.Structure":
    import gemmi

    blocks = [block for block in gemmi.cif.read_string(text) if block.find_values("_atom_site.Cartn_x")]
    if not blocks:
        raise ValueError("no atoms")
    if len(blocks) > 1:
        names = ", ".join(repr(block.name) for block in blocks)
        raise ValueError(f"{len(blocks)} data blocks have atoms, {names}: keep one of them")
    return gemmi.make_structure_from_block(blocks[0])


def _parse_pdb(text: str) -> "gemmi.Structure":
    import gemmi

    text = _without_long_names(text.encode("ascii", errors="replace").decode())  # a byte a column
    _require_numbers(text)
    structure = gemmi.read_pdb_string(text, split_chain_on_ter=True)
    if re.search("^TER", text, re.MULTILINE):  # else atoms of a chain may stand apart without an end between
        for part, chain in enumerate(structure[0]):
            for residue in chain:
                residue.subchain = str(part)
    return structure


def _without_long_names(text: str) -> str:
    """Cut residue names of four letters, such as LYSH, to three, where their last is not a chain's first.

    Both stand in the same column. It belongs to the name where all residues of a chain of two letters have
    names that programs lengthen, and the other letter is a chain too.
    """
    lines, names = text.split("\n"), dict[str, set[str]]()
    for line in lines:
        if line.startswith(("ATOM", "HETATM")):
            names.setdefault(line[20:22], set()).add(line[17:21])
    long = {
        chain
        for chain, found in names.items()
        if f" {chain[1:]}" in names and all(map(LONG_NAME.fullmatch, found))
    }
    return "\n".join(f"{line[:20]} {line[21:]}" if line[20:22] in long else line for line in lines)


def _require_numbers(text: str) -> None:
    """Refuse a Cα of the first model with anything else in its fields, which gemmi reads as far as it can.

    Programs count residues beyond 9999 in many ways: from 0 again, in hexadecimal, with letters, or over the
    column of the insertion code.
    """
    before = number = ""
    for place, line in enumerate(text.split("\n"), start=1):
        record = line[:6].upper()
        if record.startswith("END") and number:
            return
        if record == "MODEL " and number:
            raise ValueError(f"line {place} begins a model, and no ENDMDL has ended the one before")
        if not record.startswith(("ATOM", "HETATM")):
            continue
        if line[22:26].strip() != number:
            before, number = number, line[22:26].strip()
        if line[12:16].strip() != "CA" or line[17:20].strip() == "CA":
            continue
        is_decimal = re.fullmatch("-?[0-9]+", number) and not line[26:27].isdigit()
        if not is_decimal or (before, number) == ("9999", f"{10_000:x}"):
            raise ValueError(
                f"line {place} counts residues by {line[22:27].strip()!r} and PDB files by decimal numbers "
                "to 9999, while mmCIF has room for more"
            )
        for field in (line[30:38], line[38:46], line[46:54]):
            if not re.fullmatch(r" *-?([0-9]+\.?[0-9]*|\.[0-9]+) *", field):
                raise ValueError(
                    f"line {place}: residue {number} in chain {line[20:22].strip()!r} has the coordinate "
                    f"{field.strip()!r}, which is not finite"
                )
