"""The molecule of a plan: what scatters, and the directions along which it bends."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import scipy  # loads its parts where they are first used
import torch
from jaxtyping import Float64
from torch import Tensor

from cryoanm_lib.analysis.plan import Plan
from cryoanm_lib.analysis.symmetry import Symmetry
from cryoanm_lib.errors import CryoANMError
from cryoanm_lib.imaging.scattering import Scattering
from cryoanm_lib.molecule.atoms import Atoms, load_atoms
from cryoanm_lib.molecule.beads import beads_of
from cryoanm_lib.molecule.density import read_density
from cryoanm_lib.molecule.pseudo_atoms import PseudoAtoms, pseudo_atoms
from cryoanm_lib.molecule.structure import superpose

#: Suffixes of maps; any other reference is a model.
MAPS = (".mrc", ".map", ".ccp4")
#: Share of a path's square that keeps the symmetry, at least, where both states are said to have it.
_ALIKE = 0.9
#: Share of the atoms that another state must have too.
_SHARED = 0.9


@dataclass(frozen=True, eq=False)
class Molecule:
    """What is seen on the images, and how it moves.

    Attributes
    ----------
    source : Atoms or PseudoAtoms
        Of the model or the map.
    coordinates : Float64[Tensor, "places 3"]
        Å about the point about which particles are turned: of atoms, beads or pseudo-atoms.
    scattering : Scattering
        Of each of these.
    directions : Float64[Tensor, "modes places 3"]
        Along which they move.
    of_atoms : Float64[Tensor, "modes atoms 3"]
        Along which all atoms of `source` move, orthonormal; a bead moves as its atoms do on average.
    scales : tuple of float
        Deviations of the amplitudes in Å over all atoms, before an image is seen.
    """

    source: Atoms | PseudoAtoms
    coordinates: Float64[Tensor, "places 3"]
    scattering: Scattering
    directions: Float64[Tensor, "modes places 3"]
    of_atoms: Float64[Tensor, "modes atoms 3"]
    scales: tuple[float, ...]

    def mirrored(self) -> "Molecule":
        """The other hand."""
        mirror = torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
        return replace(self, coordinates=mirror * self.coordinates, directions=mirror * self.directions)

    def moved(self, by: Float64[Tensor, "*#places 3"]) -> "Molecule":
        """About another point; or each place by a vector of its own."""
        return replace(self, coordinates=self.coordinates + by)


def read_molecule(plan: Plan) -> Atoms | PseudoAtoms:
    """Atoms of a model, or by its name the pseudo-atoms of a map, about the point where particles turn.

    Raises
    ------
    CryoANMError
        If a map has no threshold, or an origin.
    StructureError
        As of `load_atoms`, `read_density` and `pseudo_atoms`.
    """
    if Path(plan.reference).suffix.lower() not in MAPS:
        atoms = load_atoms(plan.reference, chains=plan.chains)
        if plan.origin is None:
            return atoms
        away = torch.tensor(atoms.centroid, dtype=torch.float64) - torch.tensor(plan.origin).double()
        return replace(atoms, coordinates=atoms.coordinates + away)
    if plan.threshold is None:
        raise CryoANMError("a map needs a --threshold: the contour within which the molecule is")
    if plan.origin is not None:
        raise CryoANMError("--origin is for models: particles turn about the middle voxel of a map")
    return pseudo_atoms(read_density(plan.reference), plan.threshold)


def molecule_of(plan: Plan) -> Molecule:
    """The molecule that a plan names.

    The softest modes of blocks, a residue each, are its directions; where there is another state, the
    straight path there is the first, and the modes are taken orthogonal to it. Deviations fall as λ^-1/2, as
    in equipartition, from that of the softest mode; along the path it is the whole way. Of a molecule with a
    symmetry, which is made exact, the modes are those that keep it.

    Raises
    ------
    CryoANMError
        As of `read_molecule` and `Symmetry`; or if the other state is of another molecule or symmetry, or the
        reference is a map.
    NetworkModelError
        As of `rigid_block_modes`.
    """
    source = read_molecule(plan)
    symmetry, n = Symmetry.of(source, plan.symmetry), len(source)
    source = replace(source, coordinates=symmetry.average(source.coordinates))
    paths = torch.empty(0, n, 3, dtype=torch.float64)
    if plan.towards is not None:
        paths = _kept(_path(source, plan), symmetry, plan)[None]
    n_modes = plan.modes - len(paths)
    directions, scales = paths, [path.norm().item() for path in paths]
    if n_modes:
        found = symmetry.modes(source, n_modes)
        directions = torch.cat([paths, found.vectors])
        stiffness = (found.eigenvalues[0] / found.eigenvalues).sqrt()
        scales += (plan.spread * math.sqrt(n) * stiffness).tolist()
    if not isinstance(source, Atoms):
        directions = _orthonormal(directions)
        scattering = Scattering.of_pseudo_atoms(source)
        return Molecule(source, source.coordinates, scattering, directions, directions, tuple(scales))
    directions = _orthonormal(directions)
    if not plan.beads:
        scattering = Scattering.of_elements(source.elements, source.b_factors)
        return Molecule(source, source.coordinates, scattering, directions, directions, tuple(scales))
    beads = beads_of(source, centred=True)
    counts = torch.bincount(beads.of_atom, minlength=len(beads))[:, None]
    summed = torch.zeros(len(directions), len(beads), 3, dtype=torch.float64)
    of_beads = summed.index_add(1, beads.of_atom, directions) / counts
    scattering = Scattering.of_beads(source, beads)
    return Molecule(source, beads.coordinates, scattering, of_beads, directions, tuple(scales))


def _path(source: Atoms | PseudoAtoms, plan: Plan) -> Float64[Tensor, "atoms 3"]:
    """From each atom to where another state has it; atoms that it lacks move as the nearest one does."""
    if not isinstance(source, Atoms):
        raise CryoANMError("--towards leads from a model to a model: a map has no atoms to follow")
    other = load_atoms(str(plan.towards), chains=plan.chains)
    # chains are matched by name; or where names differ by their order, as files name them anew
    by_name = set(other.chains) == set(source.chains)
    place = {key: row for row, key in enumerate(_keys(other, by_name))}
    rows = [place.get(key, -1) for key in _keys(source, by_name)]
    here = torch.tensor([row >= 0 for row in rows])
    if here.double().mean() < _SHARED:
        raise CryoANMError(
            f"{plan.towards!r} has {int(here.sum())} of the {len(source)} atoms of {plan.reference!r}, by "
            "chain, residue and name: give a model of the same molecule, numbered alike"
        )
    there = other.coordinates[torch.tensor(rows)[here]]
    moved = torch.zeros_like(source.coordinates)
    moved[here] = superpose(there, source.coordinates[here]) - source.coordinates[here]
    nearest = scipy.spatial.cKDTree(source.coordinates[here].numpy()).query(
        source.coordinates[~here].numpy()
    )[1]
    moved[~here] = moved[here][torch.from_numpy(nearest)]
    return moved


def _kept(path: Float64[Tensor, "atoms 3"], symmetry: Symmetry, plan: Plan) -> Float64[Tensor, "atoms 3"]:
    """What of a path keeps the symmetry, if that is all but the errors of the models."""
    kept = symmetry.average(path)
    if (share := (kept.square().sum() / path.square().sum()).item()) < _ALIKE:
        raise CryoANMError(
            f"{100 * (1 - share):.0f} % of the way to {plan.towards!r} break the symmetry {symmetry.name}: "
            "give a state that has it, or leave out --symmetry"
        )
    return kept


def _keys(atoms: Atoms, by_name: bool) -> list[tuple[str, str, str]]:
    """What an atom is called in every state."""
    number = {chain: str(place) for place, chain in enumerate(dict.fromkeys(atoms.chains))}
    chains = atoms.chains if by_name else [number[chain] for chain in atoms.chains]
    return list(zip(chains, atoms.residue_numbers, atoms.names, strict=True))


def _orthonormal(directions: Float64[Tensor, "modes places 3"]) -> Float64[Tensor, "modes places 3"]:
    """Each less what those before it span, in their order and with their signs."""
    q, r = torch.linalg.qr(directions.flatten(1).T)
    return (q * r.diagonal().sign()).T.reshape(directions.shape)
