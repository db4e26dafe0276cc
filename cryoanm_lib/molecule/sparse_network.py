"""The elastic network of very many atoms: springs to neighbours alone, and its softest modes by iteration."""

import numpy as np
import scipy  # loads its parts where they are first used, which most runs never do
from jaxtyping import Float64

from cryoanm_lib.errors import NetworkModelError
from cryoanm_lib.numerics.batching import machine_memory

# Modes beyond those asked for that iterate along: the last ones of a block converge slowest.
GUARDS = 8

#: Bytes held at once for each spring while the network is put together (measured), and atoms whose neighbours
#: are counted to know beforehand how many springs there will be.
_BYTES_A_SPRING, _COUNTED = 460, 1000

# Residual of an eigenvector, relative to the largest eigenvalue, and iterations until it must be reached.
_TOLERANCE, _ITERATIONS = 1e-9, 2000


def sparse_hessian(
    coordinates: Float64[np.ndarray, "atoms 3"], cutoff: float, spring_constant: float = 1.0
) -> "scipy.sparse.bsr_array":
    """The Hessian of `anm.hessian`, with its parameters, in 3 × 3 blocks, those alone that are not zero.

    Raises
    ------
    NetworkModelError
        If two atoms coincide, or there are more springs than memory takes.

    Examples
    --------
    >>> pair = np.array([[0.0, 0.0, 0.0], [4.0, 0.0, 0.0]])
    >>> sparse_hessian(pair, cutoff=15.0).toarray()[0].tolist()
    [1.0, 0.0, 0.0, -1.0, 0.0, 0.0]
    """
    tree = scipy.spatial.cKDTree(coordinates)
    _require_memory(tree, cutoff)
    first, second = tree.query_pairs(cutoff, output_type="ndarray").T
    separation = coordinates[second] - coordinates[first]
    squared = np.square(separation).sum(1)
    if (squared == 0).any():
        a, b = first[squared == 0][0], second[squared == 0][0]
        raise NetworkModelError(f"atoms {a} and {b} coincide, so no direction joins them: keep one of them")
    springs = spring_constant * separation[:, :, None] * separation[:, None, :] / squared[:, None, None]
    n_atoms = len(coordinates)
    own = np.zeros((n_atoms, 3, 3))
    np.add.at(own, first, springs)
    np.add.at(own, second, springs)
    rows = np.concatenate([first, second, np.arange(n_atoms)])
    columns = np.concatenate([second, first, np.arange(n_atoms)])
    blocks = np.concatenate([-springs, -springs, own])
    order = np.lexsort((columns, rows))
    ends = np.concatenate([[0], np.bincount(rows, minlength=n_atoms).cumsum()])
    return scipy.sparse.bsr_array((blocks[order], columns[order], ends), shape=(3 * n_atoms, 3 * n_atoms))


def _require_memory(tree: "scipy.spatial.cKDTree", cutoff: float) -> None:
    """Refuse a network whose springs do not fit into memory, before any is taken."""
    some = tree.data[:: max(1, tree.n // _COUNTED)]
    springs = 0.5 * tree.n * (tree.query_ball_point(some, cutoff, return_length=True).mean() - 1)
    needed, there = _BYTES_A_SPRING * springs, machine_memory()
    if needed > there:
        raise NetworkModelError(
            f"{tree.n:,} atoms have some {springs:,.0f} springs within {cutoff:g} Å, which take "
            f"{needed / 1e9:,.1f} GB, and this machine has {there / 1e9:,.1f}: take beads instead of all "
            "atoms (beads_of; `carried` takes their modes to the atoms), fewer chains, or a smaller cutoff"
        )


def softest_modes(
    network: "scipy.sparse.sparray", rigid: Float64[np.ndarray, "dof six"], n_modes: int
) -> tuple[Float64[np.ndarray, "modes"], Float64[np.ndarray, "modes dof"], float]:
    """Smallest eigenvalues orthogonal to the rigid-body motions, their eigenvectors, and the largest of all.

    The six rigid-body motions are known, so they are kept out instead of found; what is left is iterated in a
    block by LOBPCG, each coordinate scaled by its own stiffness.

    Parameters
    ----------
    network, rigid, n_modes : sparray, Float64[np.ndarray, "dof six"], int
        Of `sparse_hessian`, of `rigid_motions`, and how many.

    Raises
    ------
    NetworkModelError
        If the iteration does not converge.
    """
    start = np.random.default_rng(0).standard_normal((network.shape[0], n_modes + GUARDS))
    linalg = scipy.sparse.linalg
    largest = linalg.eigsh(network, k=1, which="LA", tol=1e-3, v0=start[:, 0], return_eigenvectors=False)[0]
    eigenvalues, vectors = linalg.lobpcg(
        network,
        start,
        M=scipy.sparse.diags_array(1 / network.diagonal()),
        Y=rigid,
        largest=False,
        tol=_TOLERANCE * largest,
        maxiter=_ITERATIONS,
    )
    eigenvalues, vectors = eigenvalues[:n_modes], vectors[:, :n_modes]
    left = np.linalg.norm(network @ vectors - eigenvalues * vectors, axis=0).max() / largest
    if not left < 1e2 * _TOLERANCE:
        raise NetworkModelError(
            f"the {n_modes} softest modes of {network.shape[0]} coordinates have not converged: {left:.0e} "
            f"is left after {_ITERATIONS} iterations: ask for fewer modes, or leave out more atoms"
        )
    return eigenvalues, vectors.T, float(largest)


def rigid_motions(coordinates: Float64[np.ndarray, "atoms 3"]) -> Float64[np.ndarray, "dof six"]:
    """An orthonormal basis of the translations and rotations: six, or five on a line, or three at a point.

    Examples
    --------
    >>> corner = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    >>> bool(np.abs(sparse_hessian(corner, 2.0) @ rigid_motions(corner)).max() < 1e-15)
    True
    """
    centred = coordinates - coordinates.mean(0)
    axes = np.eye(3)
    translations = [np.tile(axis, (len(centred), 1)) for axis in axes]
    rotations = [np.cross(axis, centred) for axis in axes]
    motions = np.stack([motion.ravel() for motion in (*translations, *rotations)], axis=1)
    basis, strength, _ = np.linalg.svd(motions, full_matrices=False)
    return basis[:, strength > 1e-6 * strength[0]]
