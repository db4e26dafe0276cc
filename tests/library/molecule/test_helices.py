"""Blocks on helices: they start along their modes, keep all distances within, and are inferred."""

import pytest
import torch
from scipy.linalg import expm

from cryoanm_lib import ForwardModel, Model, Prior, load_atoms, load_structure, rigid_block_modes
from cryoanm_lib.errors import NetworkModelError
from cryoanm_lib.molecule.helices import Helices
from tests.all_the_way import K, goes_all_the_way

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def residues() -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """The first 40 residues of adenylate kinase, each a block: places, modes, blocks."""
    atoms = load_atoms("adk_open")
    atoms = atoms.only(atoms.residues < 40)
    blocks = atoms.residues.tolist()
    return atoms.coordinates, rigid_block_modes(atoms.coordinates, blocks, n_modes=3).vectors, blocks


def test_blocks_stay_rigid_at_any_amplitude(residues) -> None:
    places, modes, blocks = residues
    helices, amplitudes = Helices(places, modes, blocks), torch.tensor([40.0, -25.0, 60.0]).double()
    straight = places + torch.tensordot(amplitudes, modes, dims=1)
    swollen = []
    for block in range(40):
        own = torch.tensor(blocks) == block
        before, after = (torch.cdist(x[own], x[own]) for x in (places, helices(amplitudes)))
        torch.testing.assert_close(after, before, rtol=0, atol=1e-9)
        swollen.append((torch.cdist(straight[own], straight[own]) - before).abs().max().item())
    assert max(swollen) > 0.5  # Å, of a move that would break bonds on straight lines


def test_they_are_exponentials_of_twists(residues) -> None:
    """By SciPy's matrix exponential, of one block."""
    places, modes, blocks = residues
    helices, amplitudes = Helices(places, modes, blocks), torch.tensor([4.0, -25.0, 6.0]).double()
    turn, move = (torch.tensordot(amplitudes, part, dims=1)[7] for part in (helices.turns, helices.moves))
    x, y, z = turn.tolist()
    twist = torch.tensor([[0, -z, y, move[0]], [z, 0, -x, move[1]], [-y, x, 0, move[2]], [0, 0, 0, 0]])
    moved = torch.from_numpy(expm(twist.double().numpy()))
    own = torch.tensor(blocks) == 7
    expected = helices.away[own] @ moved[:3, :3].T + moved[:3, 3] + helices.middles[7]
    torch.testing.assert_close(helices(amplitudes)[own], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [0.0, 1e-3, 30.0])
def test_tangents_are_slopes(residues, size: float) -> None:
    """At rest those of the modes themselves, and elsewhere differences; also where turns are small."""
    places, modes, blocks = residues
    helices = Helices(places, modes, blocks)
    at = size * torch.tensor([[1.0, -0.5, 0.3], [0.2, 0.8, -1.0]]).double()
    found = helices.tangents(at)
    for mode, step in enumerate(1e-4 * torch.eye(3, dtype=torch.float64)):
        difference = (helices(at + step) - helices(at - step)) / 2e-4
        torch.testing.assert_close(found[:, mode], difference, rtol=0, atol=1e-7)
    if size == 0.0:
        torch.testing.assert_close(found[0], modes, rtol=0, atol=1e-9)


def test_amplitudes_on_helices_are_inferred() -> None:
    """Simulated, bounded and refined, with domains that turn far."""
    structure = load_structure("adk_open", stride=4)
    blocks = [number // 30 for number in structure.residue_numbers]
    modes = rigid_block_modes(structure.coordinates, blocks, n_modes=2, cutoff=20.0).vectors
    forward = ForwardModel(structure.coordinates, modes, pixel_size=1.5, blocks=blocks)
    prior = Prior(pose="space", shift_scale=1.0, amplitude_scale=20.0)
    model = Model(forward, prior, noise=0.05)
    torch.manual_seed(0)
    goes_all_the_way(model, model.simulate(60, K))


@pytest.mark.parametrize(
    ("wrong", "asked"),
    [
        ("few", "there are 3 blocks for"),
        ("one", "is no rigid motion of the blocks"),
    ],
)
def test_blocks_that_do_not_belong_are_refused(residues, wrong: str, asked: str) -> None:
    places, modes, _ = residues
    with pytest.raises(NetworkModelError, match=asked):
        Helices(places, modes, {"few": [0, 1, 2], "one": [0] * len(places)}[wrong])
