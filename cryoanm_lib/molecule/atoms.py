"""All heavy atoms of a molecule: its chains, proteins and nucleic acids alike, and ligands by choice."""

import math
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from cryoanm_lib.errors import StructureError
from cryoanm_lib.molecule.embedded import EMBEDDED, EMBEDDED_CHAIN, embedded_places, embedded_rows
from cryoanm_lib.molecule.residues import (
    amino_acids,
    belongs_to_polymer,
    chains_of,
    is_water,
    no_such_chain,
    nucleotides,
    places,
)
from cryoanm_lib.molecule.structure_files import Source, read_source

if TYPE_CHECKING:  # its import takes longer than to read a small file
    import gemmi


@dataclass(frozen=True, eq=False)
class Atoms:
    """Heavy atoms, in the order of the file.

    Attributes
    ----------
    name : str
        The embedded name, the lower-case PDB ID, or the name of the file without its suffixes.
    coordinates : Float64[Tensor, "atoms 3"]
        Positions in Å, the centroid of all at the origin.
    names, elements : tuple of str
        Of each atom, such as ``CA`` and ``C``.
    chains, residue_names, residue_numbers : tuple of str
        Of each atom, as the author has them; a number ends with the insertion code, if there is one.
    b_factors : Float64[Tensor, "atoms"]
        In Å².
    is_ligand : Bool[Tensor, "atoms"]
        Whether an atom belongs to none of the polymers.
    provenance : str
        A sentence that says where the coordinates came from.
    centroid : tuple of float
        Where the centroid was in the file, x, y and z in Å.
    """

    name: str
    coordinates: Float64[Tensor, "atoms 3"]
    names: tuple[str, ...]
    elements: tuple[str, ...]
    chains: tuple[str, ...]
    residue_names: tuple[str, ...]
    residue_numbers: tuple[str, ...]
    b_factors: Float64[Tensor, "atoms"]
    is_ligand: Bool[Tensor, "atoms"]
    provenance: str
    centroid: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def residues(self) -> Int[Tensor, "atoms"]:
        """The residue of each atom, counted from 0 through all chains."""
        keys = list(zip(self.chains, self.residue_numbers, self.residue_names, strict=True))
        number = {key: place for place, key in enumerate(dict.fromkeys(keys))}
        return torch.tensor([number[key] for key in keys])

    def only(self, rows: Sequence[int] | Bool[Tensor, "atoms"]) -> "Atoms":
        """Some of the atoms, where they are: their centroid may lie elsewhere than at the origin.

        Raises
        ------
        StructureError
            If there is none.
        """
        kept = torch.as_tensor(rows)
        kept = torch.nonzero(kept)[:, 0] if kept.dtype == torch.bool else kept
        if not len(kept):
            raise StructureError(f"none of the {len(self)} atoms of {self.name!r} is chosen: choose some")
        chosen = kept.tolist()
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, value in values.items():
            if name == "centroid":
                continue
            if isinstance(value, tuple):
                values[name] = tuple(value[place] for place in chosen)
            elif isinstance(value, Tensor):
                values[name] = value[kept]
        values["provenance"] = f"{self.provenance} Of these, {len(kept)}."
        return Atoms(**values)


def load_atoms(
    source: str | Path,
    *,
    chains: str | Collection[str] | None = None,
    ligands: str | Collection[str] = (),
    cache: Path | None = None,
) -> Atoms:
    """Load the heavy atoms of an assembly: all of its chains, or those named.

    Of a residue with several conformations the one with the highest occupancy is kept, of several models the
    first. Water is left out; so are ligands that are not named, which a warning tells.

    Parameters
    ----------
    source : str or Path
        An embedded name, a PDB ID or a path, as of `load_structure`.
    chains : str or collection of str, optional
        The author's identifiers of one chain or several; by default all.
    ligands : str or collection of str
        Names of residues to keep that belong to no polymer, such as ``("AP5", "MG")``.
    cache : Path, optional
        As of `load_structure`.

    Raises
    ------
    StructureError
        If the source is not found, not downloadable or not a structure, a chain or ligand is not in it, no
        polymer is left, a chain holds a residue twice, or an atom has no element, or coordinates or a
        B-factor that are not finite.

    Examples
    --------
    >>> atoms = load_atoms("adk_open")
    >>> len(atoms), atoms.names[:4], int(atoms.residues[-1]) + 1
    (1656, ('N', 'CA', 'C', 'O'), 214)
    """
    asked, named = ({given} if isinstance(given, str) else set(given or ()) for given in (chains, ligands))
    if isinstance(source, str) and source in EMBEDDED:
        return _embedded(source, asked, named)
    found = read_source(source, cache)
    held = chains_of(found.structure)
    for chain in sorted(asked - set(held)):
        raise no_such_chain(chain, found.label, list(held))
    wanted = [chain for chain in held if chain in asked or not asked]
    residues = [each for chain in wanted for each in _residues_of(chain, held[chain])]
    _check_ligands(residues, named, found.label)
    kept = [each for each in residues if not each.is_ligand or each.residue.name in named]
    if all(each.is_ligand for each in kept):
        raise StructureError(
            f"{found.label} has no protein and no nucleic acid among the chains {', '.join(wanted)}"
        )
    return _atoms_of(_distinct(kept, found.label), found)


class _Residue(NamedTuple):
    chain: str
    residue: "gemmi.Residue"
    is_ligand: bool


def _residues_of(chain: str, residues: "list[gemmi.Residue]") -> Iterator[_Residue]:
    polymer = {id(each): each for each in (*amino_acids(residues), *nucleotides(residues))}
    backbone = torch.cat([places(list(polymer.values()), name) for name in ("N", "C")])
    for residue in residues:
        if not is_water(residue):
            inside = id(residue) in polymer or belongs_to_polymer(residue, backbone)
            yield _Residue(chain, residue, not inside)


def _distinct(residues: list[_Residue], label: str) -> list[_Residue]:
    """Of several residues in one place, the one with the highest occupancy."""
    held: dict[tuple[str, str], list[_Residue]] = {}
    for each in residues:
        held.setdefault((each.chain, str(each.residue.seqid)), []).append(each)
    kept = []
    for (chain, number), found in held.items():
        every = [(each.residue.name, atom.name, atom.altloc) for each in found for atom in each.residue]
        if len(set(every)) < len(every):
            raise StructureError(
                f"chain {chain!r} of {label} holds residue {number} more than once: give every molecule a "
                "chain identifier of its own"
            )
        if all(atom.altloc != "\0" for each in found for atom in each.residue):
            found = [max(found, key=lambda each: fmean(atom.occ for atom in each.residue))]
        kept += found
    return kept


def _check_ligands(residues: list[_Residue], ligands: Collection[str], label: str) -> None:
    bound = Counter(each.residue.name for each in residues if each.is_ligand)
    for name in ligands:
        if name not in bound:
            raise StructureError(f"{label} has no ligand {name!r}: choose from {', '.join(bound) or 'none'}")
    if left := [f"{count} {name}" for name, count in bound.items() if name not in ligands]:
        warnings.warn(
            f"of {label} {', '.join(left)} are left out: name those to keep by ligands", stacklevel=3
        )


def _atoms_of(residues: list[_Residue], source: Source) -> Atoms:
    rows = [(each, atom) for each in residues for atom in _one_conformation(each.residue)]
    for each, atom in rows:
        where = f"atom {atom.name} of residue {each.residue} in chain {each.chain!r} of {source.label}"
        if atom.element.atomic_number == 0:
            raise StructureError(f"{where} has no element: give it the symbol of one")
        if not all(map(math.isfinite, (atom.pos.x, atom.pos.y, atom.pos.z, atom.b_iso))):
            raise StructureError(f"{where} has coordinates or a B-factor that are not finite numbers")
    coordinates = torch.tensor([atom.pos.tolist() for _, atom in rows], dtype=torch.float64)
    chains = ", ".join(dict.fromkeys(each.chain for each in residues))
    return Atoms(
        name=source.name,
        coordinates=coordinates - coordinates.mean(dim=0),
        names=tuple(atom.name for _, atom in rows),
        elements=tuple(atom.element.name for _, atom in rows),
        chains=tuple(each.chain for each, _ in rows),
        residue_names=tuple(each.residue.name for each, _ in rows),
        residue_numbers=tuple(str(each.residue.seqid) for each, _ in rows),
        b_factors=torch.tensor([atom.b_iso for _, atom in rows], dtype=torch.float64),
        is_ligand=torch.tensor([each.is_ligand for each, _ in rows]),
        provenance=f"{source.origin}, chains {chains}: {len(rows)} heavy atoms.",
        centroid=_triple(coordinates.mean(dim=0)),
    )


def _one_conformation(residue: "gemmi.Residue") -> "Iterator[gemmi.Atom]":
    """The heavy atoms of the conformation with the highest occupancy, the first of equals."""
    occupancies: dict[str, list[float]] = {}
    for atom in residue:
        if atom.altloc != "\0":
            occupancies.setdefault(atom.altloc, []).append(atom.occ)
    best = max(occupancies, key=lambda altloc: fmean(occupancies[altloc]), default="\0")
    # Of an atom that the best does not have, as where two models of a side chain differ in length, none.
    return (atom for atom in residue if atom.altloc in ("\0", best) and not atom.is_hydrogen())


def _embedded(name: str, chains: set[str], ligands: Collection[str]) -> Atoms:
    rows, origin = embedded_rows(name, chains)
    if ligands:
        raise StructureError(f"{name!r} has no ligand {min(ligands)!r}: choose none")
    coordinates = embedded_places(rows)
    return Atoms(
        name=name,
        coordinates=coordinates - coordinates.mean(dim=0),
        names=tuple(row["atom"] for row in rows),
        elements=tuple(row["element"] for row in rows),
        chains=(EMBEDDED_CHAIN,) * len(rows),
        residue_names=tuple(row["residue_name"] for row in rows),
        residue_numbers=tuple(row["residue_number"] for row in rows),
        b_factors=torch.tensor([float(row["b_factor"]) for row in rows], dtype=torch.float64),
        is_ligand=torch.zeros(len(rows), dtype=torch.bool),
        provenance=f"{origin}, chain {EMBEDDED_CHAIN}: {len(rows)} heavy atoms.",
        centroid=_triple(coordinates.mean(dim=0)),
    )


def _triple(place: Float64[Tensor, "3"]) -> tuple[float, float, float]:
    x, y, z = place.tolist()
    return x, y, z
