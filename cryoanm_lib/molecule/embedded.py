"""The structures that ship with the library: a row for each heavy atom."""

import csv
import importlib.resources

import torch
from jaxtyping import Float64
from torch import Tensor

from cryoanm_lib.molecule.residues import no_such_chain

EMBEDDED = ("adk_open", "adk_closed")
EMBEDDED_CHAIN = "A"


def embedded_rows(name: str, chains: set[str]) -> tuple[list[dict[str, str]], str]:
    """The table of an embedded structure, and a sentence that says where it came from.

    Raises
    ------
    StructureError
        If other chains are asked for than it has.
    """
    if others := chains - {EMBEDDED_CHAIN}:
        raise no_such_chain(min(others), repr(name), [EMBEDDED_CHAIN])
    table = importlib.resources.files("cryoanm_lib") / "data" / f"{name}.csv"
    lines = table.read_text(encoding="utf-8").splitlines()
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    return rows, lines[0].removeprefix("#").strip()


def embedded_places(rows: list[dict[str, str]]) -> Float64[Tensor, "atoms 3"]:
    """Coordinates in Å of rows of such a table."""
    return torch.tensor([[float(row[axis]) for axis in "xyz"] for row in rows], dtype=torch.float64)
