"""From the atoms of a PDB or mmCIF file to the Cα of one chain: where they are, and of which residue."""

import warnings
from collections.abc import Iterator
from math import isnan
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from cryoanm_lib.errors import StructureError
from cryoanm_lib.molecule.residues import amino_acids, chains_of, no_such_chain, nucleotides

if TYPE_CHECKING:  # its import takes longer than to read a small file
    import gemmi


class Trace(NamedTuple):
    """All Cα of one chain, in Å, where the file has them."""

    chain: str
    residue_numbers: tuple[int, ...]
    coordinates: Float64[Tensor, "atoms 3"]
    molecules: tuple[str, ...]  # to which of those under the chain's identifier each Cα belongs


class _Position(NamedTuple):
    """A Cα, or one of the positions of a Cα that has several."""

    molecule: str
    residue: str
    number: int | None
    altloc: str
    rank: tuple[float, int]  # occupancy, then place in the file
    place: list[float]


def select_chain(structure: "gemmi.Structure", chain: str | None, label: str) -> Trace:
    """The Cα of one chain of the first model, by default of the first chain that has any.

    A warning names the other chains of a polymer, which are left out by default.

    Raises
    ------
    StructureError
        If the chain is not there or has no Cα, or a residue of it occurs twice or has no number.
    """
    chains = chains_of(structure)
    if chain is not None and chain not in chains:
        raise no_such_chain(chain, label, list(chains))
    for candidate in chains if chain is None else [chain]:
        if positions := list(_alpha_carbons(chains[candidate])):
            if chain is None:
                _warn_of_others(chains, candidate, label)
            return _trace(candidate, positions, label)
    where = f"chain {chain!r} of {label}" if chain is not None else label
    raise StructureError(f"{where} has no Cα: choose a protein chain (the chains are {', '.join(chains)})")


def _warn_of_others(chains: "dict[str, list[gemmi.Residue]]", kept: str, label: str) -> None:
    others = [
        name for name, held in chains.items() if name != kept and (amino_acids(held) or nucleotides(held))
    ]
    if others:
        warnings.warn(
            f"of {label} only chain {kept!r} is read, and {', '.join(others)} left out: name one by chain, "
            "or take all of them by load_atoms",
            stacklevel=4,
        )


def _alpha_carbons(residues: "list[gemmi.Residue]") -> Iterator[_Position]:
    for residue in amino_acids(residues):
        number, name = residue.seqid.num, str(residue.seqid)
        for atom in residue["CA"]:
            rank = (atom.occ, -atom.serial)
            yield _Position(residue.subchain, name, number, atom.altloc, rank, atom.pos.tolist())


def _trace(chain: str, positions: list[_Position], label: str) -> Trace:
    """One position per residue: that of highest occupancy, the first of equals."""
    where = f"chain {chain!r} of {label}"
    residues: dict[str, list[_Position]] = {}
    for position in positions:
        residues.setdefault(position.residue, []).append(position)
    for residue, held in residues.items():
        if len({position.altloc for position in held}) < len(held):
            raise StructureError(
                f"{where} holds residue {residue} more than once: give every molecule a chain identifier of "
                "its own"
            )
        if held[0].number is None or any(isnan(position.rank[0]) for position in held):
            raise StructureError(f"{where} has a Cα without a residue number or an occupancy: give it one")
    kept = [max(held, key=lambda position: position.rank) for held in residues.values()]
    places = torch.tensor([position.place for position in kept], dtype=torch.float64)
    numbers, molecules = zip(*((position.number, position.molecule) for position in kept), strict=True)
    return Trace(chain, numbers, places, molecules)
