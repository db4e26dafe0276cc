"""Reference structures: one pseudo-atom per kept Cα, in Å, centred at the centroid.

A structure comes from a table shipped with the library, from a PDB or mmCIF file, or from the PDB by its ID.
"""

import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from cryoanm_lib.errors import StructureError
from cryoanm_lib.molecule.calphas import Trace, select_chain
from cryoanm_lib.molecule.embedded import EMBEDDED, EMBEDDED_CHAIN, embedded_places, embedded_rows
from cryoanm_lib.molecule.structure_files import PDB_ID, read_source

FEWEST_ATOMS = 3
RESIDUES = re.compile(r"\s*(-?[0-9]+)\s*-\s*(-?[0-9]+)\s*")


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
    chain, stride : str, int
        The author's chain identifier, of which every `stride`-th Cα was kept, starting with the first.
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


def structure_file(source: str | Path) -> Path | None:
    """The file that `load_structure` reads for a source; none for an embedded name or a PDB ID."""
    if isinstance(source, str) and (source in EMBEDDED or PDB_ID.fullmatch(source)):
        return None
    return Path(source)


def load_structure(
    source: str | Path,
    *,
    chain: str | None = None,
    residues: str | None = None,
    stride: int = 2,
    cache: Path | None = None,
) -> Structure:
    """Load a chain and keep every `stride`-th Cα as a pseudo-atom.

    Cα of modified residues count although they stand in HETATM records; calcium ions and ligands do not. Of
    several positions of a residue the one with the highest occupancy is kept, of several models the first.
    Chains and residues carry the author's identifiers, those of the publication, in both file formats.

    Parameters
    ----------
    source : str or Path
        An embedded name (`EMBEDDED`), a PDB ID such as ``4ake`` or ``pdb_00004ake``, or a path to a PDB or
        mmCIF file, gzipped or not. A string that looks like a PDB ID always is one: write ``./1abc`` for a
        file of that name.
    chain : str, optional
        The author's chain identifier; by default the first chain that has Cα.
    residues : str, optional
        Ranges of the author's residue numbers, such as ``1-214`` or ``1-30, 60-214``, both ends included; by
        default the whole chain.
    stride : int
        Keep every `stride`-th Cα, starting with the first.
    cache : Path, optional
        Folder for downloaded entries; by default ``$CRYOANM_CACHE``, else ``~/.cache/cryoanm``.

    Raises
    ------
    StructureError
        If the source is not found, not downloadable or not a structure, the chain is not in it or has no Cα,
        `residues` are no ranges or one of them is empty, coordinates are not finite, or fewer than three Cα
        are left.

    Examples
    --------
    >>> structure = load_structure("adk_open")
    >>> len(structure), structure.residue_numbers[:3]
    (107, (1, 3, 5))
    """
    if stride < 1:
        raise StructureError(f"stride is {stride}; it must be at least 1, which keeps every Cα")
    if isinstance(source, str) and source in EMBEDDED:
        name = source
        trace, origin = _read_embedded(name, chain)
    else:
        structure, name, label, origin = read_source(source, cache)
        trace = select_chain(structure, chain, label)
    selected = trace if residues is None else _select_residues(name, trace, residues)
    _warn_of_molecules(name, selected)
    part = "" if residues is None else f", residues {residues.strip()}"
    return _coarse_grain(name, selected, stride, f"{origin}, chain {trace.chain}{part}")


def superpose(mobile: Float[Tensor, "atoms 3"], target: Float[Tensor, "atoms 3"]) -> Float[Tensor, "atoms 3"]:
    """Move `mobile` rigidly onto `target` with the least RMSD, never through a reflection (Kabsch).

    Parameters
    ----------
    mobile, target : Float[Tensor, "atoms 3"]
        Positions in Å of the same atoms in the same order.

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

    Parameters and errors as of `superpose`.
    """
    _require_pairs(a, b)
    return (a - b).square().sum(dim=-1).mean().sqrt().item()


def _require_pairs(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape or a.shape[-1:] != (3,):
        raise StructureError(
            f"coordinates have shapes {tuple(a.shape)} and {tuple(b.shape)}; both must be (atoms, 3) with "
            "the same atoms in the same order"
        )


def _select_residues(name: str, trace: Trace, residues: str) -> Trace:
    rows: set[int] = set()
    for part in residues.split(","):
        if not (ends := RESIDUES.fullmatch(part)):
            raise StructureError(
                f"residues are {residues!r}; write ranges, such as '1-214' or '1-30, 60-214'"
            )
        first, last = map(int, ends.groups())
        found = [row for row, number in enumerate(trace.residue_numbers) if first <= number <= last]
        if not found:
            raise StructureError(
                f"chain {trace.chain!r} of {name!r} has no Cα of residues {part.strip()}: its residues are "
                f"{min(trace.residue_numbers)} to {max(trace.residue_numbers)}"
            )
        rows.update(found)
    kept = sorted(rows)
    numbers = tuple(trace.residue_numbers[row] for row in kept)
    molecules = tuple(trace.molecules[row] for row in kept)
    return Trace(trace.chain, numbers, trace.coordinates[kept], molecules)


def _warn_of_molecules(name: str, trace: Trace) -> None:
    held: dict[str, list[int]] = {}
    for number, molecule in zip(trace.residue_numbers, trace.molecules, strict=True):
        held.setdefault(molecule, []).append(number)
    if len(held) > 1:
        ranges = ", ".join(f"{numbers[0]}-{numbers[-1]}" for numbers in held.values())
        warnings.warn(
            f"chain {trace.chain!r} of {name!r} holds {len(held)} molecules, residues {ranges}, which become "
            "one network: choose the residues of one, or give each a chain identifier of its own",
            stacklevel=3,
        )


def _coarse_grain(name: str, trace: Trace, stride: int, origin: str) -> Structure:
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
        provenance=f"{origin}: {len(numbers)} of {len(trace.residue_numbers)} Cα, stride {stride}.",
    )


def _read_embedded(name: str, chain: str | None) -> tuple[Trace, str]:
    rows, origin = embedded_rows(name, {chain or EMBEDDED_CHAIN})
    calphas = [row for row in rows if row["atom"] == "CA"]
    numbers = tuple(int(row["residue_number"]) for row in calphas)
    return Trace(EMBEDDED_CHAIN, numbers, embedded_places(calphas), ("",) * len(numbers)), origin
