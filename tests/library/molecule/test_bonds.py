"""Bonds by chemistry's count, and what three ways to bend a molecule make of them."""

import torch

from cryoanm_lib import beads_of, carried, load_atoms, normal_modes, rigid_block_modes
from cryoanm_lib.molecule.bonds import bond_lengths, covalent_bonds
from cryoanm_lib.molecule.helices import Helices

torch.set_num_threads(1)

#: Rings of a residue, each of which closes one bond more than a tree has.
RINGS = {"PRO": 1, "PHE": 1, "TYR": 1, "HIS": 1, "TRP": 2}


def test_a_chain_is_a_tree_and_its_rings() -> None:
    atoms = load_atoms("adk_open")
    of_calphas = [name for name, atom in zip(atoms.residue_names, atoms.names, strict=True) if atom == "CA"]
    rings = sum(RINGS.get(name, 0) for name in of_calphas)
    assert len(covalent_bonds(atoms)) == len(atoms) - 1 + rings


def test_helices_keep_the_bonds_that_straight_lines_stretch() -> None:
    """At 3 Å RMSD along the softest mode of blocks of residues: only bonds between residues change."""
    atoms = load_atoms("adk_open")
    bonds, blocks = covalent_bonds(atoms), atoms.residues.tolist()
    modes = rigid_block_modes(atoms.coordinates, blocks, n_modes=1).vectors
    amplitude = torch.tensor([3.0]).double() * len(atoms) ** 0.5
    rest = bond_lengths(atoms.coordinates, bonds)
    on_helices = bond_lengths(Helices(atoms.coordinates, modes, blocks)(amplitude), bonds) - rest
    straight = bond_lengths(atoms.coordinates + amplitude * modes[0], bonds) - rest
    within = atoms.residues[bonds[:, 0]] == atoms.residues[bonds[:, 1]]
    assert on_helices[within].abs().max() < 1e-9
    assert straight[within].abs().max() > 10 * on_helices[within].abs().max() + 0.01


def test_residues_that_turn_keep_their_bonds() -> None:
    """Modes of Cα carried by rigid residues stretch bonds less than vectors that are copied do."""
    atoms = load_atoms("adk_open")
    beads, bonds = beads_of(atoms), covalent_bonds(atoms)
    modes = normal_modes(beads.coordinates, n_modes=3).vectors
    turning = carried(modes, beads.coordinates, atoms.coordinates, beads.of_atom)
    copied = modes[:, beads.of_atom]
    copied = copied / copied.flatten(1).norm(dim=1)[:, None, None]
    rest, step = bond_lengths(atoms.coordinates, bonds), 0.1 * len(atoms) ** 0.5
    between = atoms.residues[bonds[:, 0]] != atoms.residues[bonds[:, 1]]
    for mode in range(3):
        stretch = [
            (bond_lengths(atoms.coordinates + step * vectors[mode], bonds) - rest)[between].square().mean()
            for vectors in (turning, copied)
        ]
        assert stretch[0] < stretch[1]
