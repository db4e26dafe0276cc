"""Modes of a molecule of rigid blocks, and modes of a coarse network carried to all atoms by such blocks."""

from collections.abc import Hashable, Sequence

import numpy as np
import scipy  # loads its parts where they are first used
import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor

from cryoanm_lib.errors import NetworkModelError
from cryoanm_lib.molecule.anm import (
    DEFAULT_CUTOFF,
    DENSE_ATOMS,
    ITERATED_TOLERANCE,
    RIGID_BODY_MODES,
    NormalModes,
    checked,
    not_rigid,
    require_positive,
    with_fixed_sign,
)
from cryoanm_lib.molecule.sparse_network import rigid_motions, softest_modes, sparse_hessian
from cryoanm_lib.numerics.rotation import cross_matrix

#: How many of the nearest anchors say how one turns, and the fewest that can.
_NEAREST, _FEWEST = 8, 3


def rigid_block_modes(
    coordinates: Float[Tensor, "atoms 3"],
    blocks: Sequence[Hashable],
    n_modes: int = 1,
    cutoff: float = DEFAULT_CUTOFF,
    spring_constant: float = 1.0,
) -> NormalModes:
    """The softest modes of a network whose blocks only move and turn as a whole (Tama et al. 2000).

    With P an orthonormal basis of the motions of all blocks, six for each, they are u = P v, where v are the
    eigenvectors of Pᵀ H P and H is that of `anm.hessian`. Up to some thousand motions the whole spectrum is
    computed; beyond, the softest modes by iteration.

    Parameters
    ----------
    coordinates, cutoff, spring_constant
        As of `anm.hessian`.
    blocks : sequence
        The block of each atom: a domain, the name of a chain, a residue. Atoms of one name are one block,
        so that a residue number alone will not do where there are several chains. A block of one atom moves
        and does not turn.
    n_modes : int
        How many modes to return.

    Raises
    ------
    NetworkModelError
        If there is not a block for each atom, coordinates are not usable, there are more springs than memory
        takes, the molecule of blocks has not six zero modes, or fewer than `n_modes` others.

    Examples
    --------
    >>> from cryoanm_lib.molecule.structure import load_structure
    >>> structure = load_structure("adk_open", stride=1)
    >>> blocks = [number // 5 for number in structure.residue_numbers]
    >>> rigid_block_modes(structure.coordinates, blocks, n_modes=3).vectors.shape
    torch.Size([3, 214, 3])
    """
    require_positive(cutoff=cutoff, spring_constant=spring_constant)
    atoms = checked(coordinates).detach().cpu().double().numpy()
    network = sparse_hessian(atoms, cutoff, spring_constant)
    motions = block_motions(atoms, blocks)
    reduced = (motions.T @ network @ motions).tocsr()
    available = reduced.shape[0] - RIGID_BODY_MODES
    if not 1 <= n_modes <= available:
        raise NetworkModelError(
            f"n_modes is {n_modes}; the blocks have {available} internal modes: choose from 1 to {available}"
        )
    if reduced.shape[0] <= 3 * DENSE_ATOMS:
        eigenvalues, vectors = scipy.linalg.eigh(reduced.toarray())
        rounding = len(eigenvalues) * np.finfo(np.float64).eps
        n_zero = int((eigenvalues <= rounding * eigenvalues[-1]).sum())
        eigenvalues, vectors = (found[..., n_zero : n_zero + n_modes] for found in (eigenvalues, vectors))
    else:
        rigid = motions.T @ rigid_motions(atoms)
        eigenvalues, rows, largest = softest_modes(reduced, rigid, n_modes)
        n_zero, vectors = RIGID_BODY_MODES + int((eigenvalues <= ITERATED_TOLERANCE * largest).sum()), rows.T
    if n_zero != RIGID_BODY_MODES:
        raise not_rigid(n_zero, len(atoms), cutoff, "")
    found = with_fixed_sign(torch.from_numpy((motions @ vectors).T.copy()))
    return NormalModes(
        *(torch.from_numpy(eigenvalues.copy()), found.unflatten(1, (-1, 3)), RIGID_BODY_MODES, cutoff)
    )


def block_motions(
    coordinates: Float64[np.ndarray, "atoms 3"], blocks: Sequence[Hashable]
) -> "scipy.sparse.csr_array":
    """An orthonormal basis of the motions of rigid blocks, 3n by as many as there are.

    A block has three translations, and three rotations but where its atoms lie on a line or are one.

    Raises
    ------
    NetworkModelError
        If there is not a block for each atom.
    """
    number = block_numbers(blocks, len(coordinates))
    in_order = np.argsort(number, kind="stable")
    rows, columns, values, width = [], [], [], 0
    for own in np.split(in_order, np.cumsum(np.bincount(number))[:-1]):
        basis = rigid_motions(coordinates[own])
        places = (3 * own[:, None] + np.arange(3)).ravel()
        rows.append(np.repeat(places, basis.shape[1]))
        columns.append(np.tile(width + np.arange(basis.shape[1]), len(places)))
        values.append(basis.ravel())
        width += basis.shape[1]
    entries = np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))
    return scipy.sparse.coo_array(entries, shape=(3 * len(coordinates), width)).tocsr()


def block_numbers(blocks: Sequence[Hashable], n_atoms: int) -> Int64[np.ndarray, "atoms"]:
    """The number of each atom's block, counted from 0 as they first occur.

    Raises
    ------
    NetworkModelError
        If there is not a block for each atom.
    """
    if len(blocks) != n_atoms:
        raise NetworkModelError(f"there are {len(blocks)} blocks for {n_atoms} atoms: name the block of each")
    number = {name: place for place, name in enumerate(dict.fromkeys(blocks))}
    return np.array([number[name] for name in blocks], dtype=np.int64)


def carried(
    vectors: Float[Tensor, "modes anchors 3"],
    anchors: Float[Tensor, "anchors 3"],
    coordinates: Float[Tensor, "atoms 3"],
    anchor: Int[Tensor, "atoms"],
) -> Float64[Tensor, "modes atoms 3"]:
    """Modes of a network of anchors, such as Cα, for all atoms: each moves and turns with its anchor.

    How an anchor turns is the rotation that fits the motion of the eight nearest ones best. Modes
    are normalised anew over all coordinates. Copying an anchor's vector would move a turning residue without
    turning it.

    Parameters
    ----------
    vectors, anchors : Float[Tensor, "modes anchors 3"], Float[Tensor, "anchors 3"]
        Modes of the anchors, and where these are, in Å.
    coordinates, anchor : Float[Tensor, "atoms 3"], Int[Tensor, "atoms"]
        All atoms in the same frame, and the number of the anchor that each goes with.

    Raises
    ------
    NetworkModelError
        If there are fewer than four anchors, or an atom has one that is not there.
    """
    if len(anchor) != len(coordinates) or not ((anchor >= 0) & (anchor < len(anchors))).all():
        raise NetworkModelError(
            f"anchor must hold a number from 0 to {len(anchors) - 1} for each of {len(coordinates)} atoms"
        )
    if len(anchors) <= _FEWEST:
        raise NetworkModelError(
            f"there are {len(anchors)} anchors, and it takes {_FEWEST} others to say how one turns"
        )
    places, moves = anchors.double(), vectors.double()
    turns = torch.empty_like(moves)
    nearest = torch.cdist(places, places).topk(min(_NEAREST + 1, len(anchors)), largest=False).indices
    for number, near in enumerate(nearest):
        away = places[near] - places[number]
        cross = cross_matrix(-away).flatten(0, 1)  # ω × x = (-x)× ω, for all neighbours
        seen = (moves[:, near] - moves[:, number, None]).flatten(1)
        turns[:, number] = (torch.linalg.pinv(cross) @ seen.T).T
    away = coordinates.double() - places[anchor]
    found = moves[:, anchor] + torch.linalg.cross(turns[:, anchor], away[None])
    return found / found.flatten(1).norm(dim=1)[:, None, None]
