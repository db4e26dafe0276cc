"""The sparse network: the dense one's Hessian, its softest modes, and its refusals."""

import tracemalloc

import numpy as np
import pytest
import torch
from torch import Tensor

from cryoanm_lib.book.costs import globule
from cryoanm_lib.errors import NetworkModelError
from cryoanm_lib.molecule import anm, sparse_network
from cryoanm_lib.molecule.anm import hessian, normal_modes
from cryoanm_lib.molecule.sparse_network import rigid_motions, sparse_hessian
from cryoanm_lib.molecule.structure import load_structure


def iterated(coordinates: Tensor, n_modes: int, monkeypatch, **settings: float) -> anm.NormalModes:
    """The modes by iteration, whatever the size."""
    monkeypatch.setattr(anm, "DENSE_ATOMS", 0)
    return normal_modes(coordinates, n_modes, **settings)


@pytest.mark.parametrize("cutoff", [7.0, 15.0])
def test_the_hessian_is_the_dense_one(cutoff: float) -> None:
    coordinates = load_structure("adk_open").coordinates
    sparse = torch.from_numpy(sparse_hessian(coordinates.numpy(), cutoff, 2.5).toarray())
    torch.testing.assert_close(sparse, hessian(coordinates, cutoff, 2.5), rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    "coordinates", [load_structure("adk_open").coordinates, globule(300)], ids=["adk", "300"]
)
def test_the_modes_are_those_of_the_whole_spectrum(coordinates: Tensor, monkeypatch) -> None:
    expected = normal_modes(coordinates, 5, spring_constant=2.0)
    found = iterated(coordinates, 5, monkeypatch, spring_constant=2.0)
    torch.testing.assert_close(found.eigenvalues, expected.eigenvalues, rtol=1e-9, atol=0)
    torch.testing.assert_close(found.vectors, expected.vectors, rtol=0, atol=1e-6)
    assert found.n_zero == expected.n_zero == 6


def test_a_large_network_is_iterated_and_its_modes_are_modes() -> None:
    """With 1500 atoms: orthonormal, without rigid-body motion, and H u = λ u."""
    coordinates = globule(1500)
    modes = normal_modes(coordinates, 4)
    vectors = modes.vectors.flatten(1).numpy()
    network = sparse_hessian(coordinates.numpy(), modes.cutoff)
    left = network @ vectors.T - modes.eigenvalues.numpy() * vectors.T
    assert np.abs(left).max() < 1e-6
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(4), atol=1e-9)
    assert np.abs(vectors @ rigid_motions(coordinates.numpy())).max() < 1e-9


def test_networks_without_modes_are_refused(monkeypatch) -> None:
    """As by the whole spectrum: apart, alone, on top of one another, or asked for too much."""
    atoms = globule(40)
    apart = torch.cat([atoms, atoms + 500.0])
    alone = torch.cat([atoms, torch.full((1, 3), 900.0, dtype=torch.float64)])
    for broken in (apart, alone):
        with pytest.raises(NetworkModelError, match=r"zero modes at a cutoff of 15.*larger cutoff"):
            iterated(broken, 3, monkeypatch)
    with pytest.raises(NetworkModelError, match="atoms 0 and 40 coincide"):
        iterated(torch.cat([atoms, atoms[:1]]), 3, monkeypatch)
    with pytest.raises(NetworkModelError, match="choose from 1 to 114"):
        iterated(atoms, 115, monkeypatch)
    with pytest.raises(NetworkModelError, match="cutoff is -1"):
        iterated(atoms, 1, monkeypatch, cutoff=-1.0)


def test_more_springs_than_memory_takes_are_refused_before_they_are_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At what they were measured to take, within a tenth, and with what would do."""
    atoms = np.random.default_rng(0).uniform(size=(2000, 3)) * 31
    tracemalloc.start()
    sparse_hessian(atoms, 12.0)
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    monkeypatch.setattr(sparse_network, "machine_memory", lambda: 1.1 * taken)
    sparse_hessian(atoms, 12.0)
    monkeypatch.setattr(sparse_network, "machine_memory", lambda: 0.9 * taken)
    with pytest.raises(NetworkModelError, match=r"2,000 atoms have some .* springs.*beads_of"):
        sparse_hessian(atoms, 12.0)
