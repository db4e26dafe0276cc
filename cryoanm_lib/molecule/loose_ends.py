"""Loose ends of a chain: disordered tails, which few springs hold and which flap before the rest bends."""

from collections.abc import Sequence

import numpy as np
import scipy  # loads its parts where they are first used
from jaxtyping import Bool, Float64


def loose_ends(coordinates: Float64[np.ndarray, "atoms 3"], cutoff: float) -> Bool[np.ndarray, "atoms"]:
    """Atoms from either end of the chain on that have less than half the median number of neighbours.

    Parameters
    ----------
    coordinates, cutoff : Float64[np.ndarray, "atoms 3"], float
        Pseudo-atom positions in the order of the chain, and how near neighbours are, in Å.

    Examples
    --------
    >>> corners = 5.0 * np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    >>> tail = np.array([[13.0, 5.0, 5.0], [20.0, 5.0, 5.0]])
    >>> loose_ends(np.concatenate([corners, tail]), cutoff=9.0).nonzero()[0].tolist()
    [8, 9]
    """
    tree = scipy.spatial.cKDTree(coordinates)
    neighbours = tree.query_ball_point(coordinates, cutoff, return_length=True) - 1
    loose = neighbours < np.median(neighbours) / 2
    return np.logical_and.accumulate(loose) | np.logical_and.accumulate(loose[::-1])[::-1]


def named(loose: Bool[np.ndarray, "atoms"], residue_numbers: Sequence[int] | None = None) -> str:
    """Loose ends in words, and if residues have numbers, which of them to keep.

    Examples
    --------
    >>> named(np.array([True, False, False, True]), residue_numbers=(3, 5, 7, 9))
    "a loose end of the chain, residues 3-3 and 9-9 (to leave it out: residues='5-7')"
    """
    numbers = range(len(loose)) if residue_numbers is None else residue_numbers
    firm = np.flatnonzero(~loose)
    first, last = firm[0], firm[-1]
    spans = [(0, first - 1), (last + 1, len(loose) - 1)]
    ends = " and ".join(f"{numbers[start]}-{numbers[stop]}" for start, stop in spans if start <= stop)
    if residue_numbers is None:
        return f"a loose end of the chain, pseudo-atoms {ends}"
    remedy = f"to leave it out: residues='{numbers[first]}-{numbers[last]}'"
    return f"a loose end of the chain, residues {ends} ({remedy})"
