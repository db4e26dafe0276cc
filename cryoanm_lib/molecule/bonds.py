"""Covalent bonds of a molecule, whose lengths say how far its modes can be trusted."""

import numpy as np
import scipy  # loads its parts where they are first used
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoanm_lib.molecule.atoms import Atoms

#: Å by which two atoms may stand further apart than their covalent radii add up to, and be bonded.
_TOLERANCE = 0.4


def covalent_bonds(atoms: Atoms) -> Int[Tensor, "bonds 2"]:
    """Pairs of atoms no further apart than their covalent radii, as gemmi has them, and 0.4 Å.

    Examples
    --------
    >>> from cryoanm_lib.molecule.atoms import load_atoms
    >>> atoms = load_atoms("adk_open")
    >>> bonds = covalent_bonds(atoms)
    >>> lengths = bond_lengths(atoms.coordinates, bonds)
    >>> f"{len(bonds)} bonds of {lengths.min():.2f} to {lengths.max():.2f} Å"
    '1680 bonds of 1.20 to 1.85 Å'
    """
    import gemmi  # takes longer to load than most of what the library does

    radius = {name: gemmi.Element(name).covalent_r for name in set(atoms.elements)}
    radii = np.array([radius[name] for name in atoms.elements])
    places = atoms.coordinates.numpy()
    pairs = scipy.spatial.cKDTree(places).query_pairs(2 * radii.max() + _TOLERANCE, output_type="ndarray")
    apart = np.linalg.norm(places[pairs[:, 0]] - places[pairs[:, 1]], axis=1)
    bonded = apart <= radii[pairs].sum(axis=1) + _TOLERANCE
    return torch.from_numpy(np.sort(pairs[bonded], axis=1)).unique(dim=0)


def bond_lengths(
    coordinates: Float[Tensor, "*batch atoms 3"], bonds: Int[Tensor, "bonds 2"]
) -> Float[Tensor, "*batch bonds"]:
    """Å from atom to atom of each bond, where the molecule is at rest or bent."""
    first, second = (coordinates[..., bonds[:, end], :] for end in (0, 1))
    return (first - second).norm(dim=-1)
