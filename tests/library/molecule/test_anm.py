"""Elastic network: agreement with ProDy, the invariants of a spring network, and its two descriptors."""

import math
import re
from pathlib import Path

import numpy as np
import prody
import pytest
import torch
from torch import Tensor
from torch.func import jacrev

from cryoanm_lib.errors import NetworkModelError
from cryoanm_lib.molecule.anm import (
    DEFAULT_CUTOFF,
    boltzmann_variances,
    collectivity,
    hessian,
    normal_modes,
    overlap,
)
from cryoanm_lib.molecule.structure import EMBEDDED, load_structure, superpose

torch.set_num_threads(1)
UBIQUITIN = Path(prody.__file__).parent / "tests" / "datafiles" / "pdb1ubi.pdb"


def cluster(n: int = 8, seed: int = 0, spread: float = 4.0) -> Tensor:
    """Points within reach of each other, in Å."""
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(n, 3, generator=generator, dtype=torch.float64)


def rotation(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    return q * torch.linalg.det(q)


def spring_energy(positions: Tensor, reference: Tensor, cutoff: float, spring_constant: float) -> Tensor:
    """½ γ Σ (|r_ij| - |r_ij⁰|)² over connected pairs: what the Hessian is the second derivative of."""
    first, second = torch.triu_indices(len(reference), len(reference), offset=1)
    length = (positions[first] - positions[second]).norm(dim=-1)
    rest = (reference[first] - reference[second]).norm(dim=-1)
    return 0.5 * spring_constant * ((length - rest).square() * (rest <= cutoff)).sum()


def rigid_body_motions(coordinates: Tensor) -> Tensor:
    """Three translations and three infinitesimal rotations, one a column."""
    axes = torch.eye(3, dtype=torch.float64)
    translations = [axis.expand_as(coordinates) for axis in axes]
    rotations = [torch.linalg.cross(axis.expand_as(coordinates), coordinates) for axis in axes]
    return torch.stack([motion.flatten() for motion in translations + rotations], dim=1)


@pytest.mark.filterwarnings("ignore:.*loose end")  # the last residue of ubiquitin
@pytest.mark.parametrize("cutoff", [DEFAULT_CUTOFF, 20.0])
@pytest.mark.parametrize("source", [*EMBEDDED, UBIQUITIN], ids=["adk_open", "adk_closed", "ubiquitin"])
def test_modes_agree_with_prody(source: str | Path, cutoff: float) -> None:
    coordinates = load_structure(source, stride=1).coordinates[::2]
    theirs = prody.ANM()
    theirs.buildHessian(coordinates.numpy(), cutoff=cutoff)
    theirs.calcModes(n_modes=10)
    torch.testing.assert_close(
        hessian(coordinates, cutoff), torch.from_numpy(theirs.getHessian()), rtol=0, atol=1e-12
    )
    ours = normal_modes(coordinates, n_modes=10, cutoff=cutoff)
    np.testing.assert_allclose(ours.eigenvalues.numpy(), theirs.getEigvals(), rtol=1e-8)
    # Projectors do not depend on the signs, which each solver chooses for itself.
    rows, columns = ours.vectors.flatten(1), torch.from_numpy(theirs.getEigvecs())
    torch.testing.assert_close(rows.T @ rows, columns @ columns.T, rtol=0, atol=1e-8)


@pytest.mark.parametrize("cutoff", [6.0, 9.0, DEFAULT_CUTOFF])
def test_hessian_is_the_second_derivative_of_the_spring_energy(cutoff: float) -> None:
    reference = cluster()
    # Reverse over reverse: torch.func.hessian warns of the deprecated torch.jit on its forward pass.
    second_derivative = jacrev(jacrev(spring_energy))(reference, reference, cutoff, 2.5)
    torch.testing.assert_close(
        hessian(reference, cutoff, 2.5), second_derivative.reshape(24, 24), rtol=0, atol=1e-10
    )


def test_a_sum_over_all_ordered_pairs_counts_each_spring_twice() -> None:
    """The paper's Eq. 3 as it is written, without i < j and without a cutoff, beside its Eq. 4."""

    def as_written(positions: Tensor) -> Tensor:
        total = positions.new_zeros(())
        for i in range(len(positions)):
            for j in range(len(positions)):
                if i != j:
                    length, rest = (x[i] - x[j] for x in (positions, reference))
                    total = total + 0.5 * (length.norm() - rest.norm()).square()
        return total

    reference = cluster(5)
    second_derivative = jacrev(jacrev(as_written))(reference).reshape(15, 15)
    torch.testing.assert_close(2 * hessian(reference, cutoff=1e3), second_derivative, rtol=0, atol=1e-10)


def test_hessian_is_symmetric_and_positive_semidefinite() -> None:
    matrix = hessian(load_structure("adk_open").coordinates)
    assert torch.equal(matrix, matrix.T)
    eigenvalues = torch.linalg.eigvalsh(matrix)
    assert eigenvalues[0] > -1e-12 * eigenvalues[-1]


def test_rigid_motions_cost_nothing() -> None:
    coordinates = load_structure("adk_open").coordinates
    assert (hessian(coordinates) @ rigid_body_motions(coordinates)).abs().max() < 1e-10


def test_a_long_rod_is_rigid_however_softly_it_bends() -> None:
    """A helix of 1000 residues: two bends as soft as each other, and eigenvalues that fall as 1 / n⁴."""
    turns = torch.arange(0, 1000, 2, dtype=torch.float64)
    angle = math.radians(100) * turns
    helix = torch.stack([2.3 * angle.cos(), 2.3 * angle.sin(), 1.5 * turns], dim=1)
    longer, shorter = normal_modes(helix, 2), normal_modes(helix[:250], 2)
    assert longer.n_zero == shorter.n_zero == 6
    assert longer.eigenvalues[1] == pytest.approx(longer.eigenvalues[0].item(), rel=1e-3)
    ratio = (shorter.eigenvalues / longer.eigenvalues).log2()
    assert ratio.tolist() == pytest.approx([4, 4], abs=0.05)
    rigid = torch.linalg.qr(rigid_body_motions(helix)).Q
    assert (longer.vectors.flatten(1) @ rigid).abs().max() < 1e-6


TAILED = Path(__file__).parent / "structures"


@pytest.mark.parametrize(("tail", "cutoff"), [(20, 15.0), (20, 20.0), (20, 25.0), (80, 15.0), (80, 20.0)])
def test_a_disordered_tail_is_named_and_can_be_left_out(tail: int, cutoff: float) -> None:
    """Adenylate kinase's 214 residues and a tail: refused at 15 Å, and beyond with a warning."""
    path = TAILED / f"tail_{tail}.cif.gz"
    structure = load_structure(path)
    said = pytest.raises(NetworkModelError) if cutoff == 15.0 else pytest.warns(UserWarning)
    with said as caught:
        normal_modes(structure.coordinates, cutoff=cutoff, residue_numbers=structure.residue_numbers)
    message = str(caught.value if cutoff == 15.0 else caught[0].message)
    first, last, kept = re.search(r"residues (\d+)-(\d+) \(.*residues='(1-\d+)'\)", message).groups()
    assert abs(int(first) - 215) <= 6 and int(last) > 214 + tail - 2
    firm = load_structure(path, residues=kept)
    assert normal_modes(firm.coordinates, cutoff=cutoff).n_zero == 6


def test_hessian_is_differentiable() -> None:
    assert torch.autograd.gradcheck(hessian, cluster(5).requires_grad_())


def test_hessian_of_single_precision_is_computed_in_double() -> None:
    coordinates = cluster().to(torch.float32)
    assert torch.equal(hessian(coordinates), hessian(coordinates.to(torch.float64)))


def test_modes_are_orthonormal_internal_and_solve_the_eigenproblem() -> None:
    coordinates = load_structure("adk_open").coordinates
    modes = normal_modes(coordinates, n_modes=12)
    rows, matrix = modes.vectors.flatten(1), hessian(coordinates)
    torch.testing.assert_close(rows @ rows.T, torch.eye(12, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(matrix @ rows.T, rows.T * modes.eigenvalues, rtol=0, atol=1e-10)
    assert (rows @ rigid_body_motions(coordinates)).abs().max() < 1e-8
    assert (modes.eigenvalues.diff() > 0).all()
    assert modes.n_zero == 6 and modes.cutoff == DEFAULT_CUTOFF


def test_the_largest_component_is_positive() -> None:
    for vector in normal_modes(cluster(), n_modes=18, cutoff=50.0).vectors.flatten(1):
        assert vector[vector.abs().argmax()] > 0


def test_modes_turn_with_the_structure() -> None:
    coordinates, turn = load_structure("adk_open").coordinates, rotation()
    still = normal_modes(coordinates, n_modes=5)
    turned = normal_modes(coordinates @ turn.T + 7.0, n_modes=5)
    torch.testing.assert_close(turned.eigenvalues, still.eigenvalues, rtol=1e-9, atol=0)
    inner = ((still.vectors @ turn.T) * turned.vectors).sum(dim=(1, 2))
    torch.testing.assert_close(inner.abs(), torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-9)


def test_eigenvalues_scale_with_the_spring_constant_and_modes_do_not() -> None:
    soft, stiff = (normal_modes(cluster(), 3, spring_constant=gamma) for gamma in (1.0, 1e-6))
    torch.testing.assert_close(stiff.eigenvalues, soft.eigenvalues * 1e-6, rtol=1e-9, atol=0)
    torch.testing.assert_close(stiff.vectors, soft.vectors, rtol=0, atol=1e-9)


def test_an_amplitude_is_an_rmsd_times_root_n() -> None:
    coordinates = load_structure("adk_open").coordinates
    modes = normal_modes(coordinates)
    moved = coordinates + 4.0 * modes.vectors[0]
    by_hand = (moved - coordinates).square().sum(dim=1).mean().sqrt().item()
    assert by_hand == pytest.approx(4.0 / math.sqrt(107))


@pytest.mark.parametrize(
    ("coordinates", "n_zero"),
    [
        (torch.cat([cluster(seed=1), cluster(seed=2) + 100.0]), 12),
        (torch.cat([cluster(seed=1), torch.full((1, 3), 100.0, dtype=torch.float64)]), 9),
        (torch.tensor([[0.0, 0.0, 0.0], [4.0, 0.0, 0.0], [9.0, 0.0, 0.0]]), 7),
    ],
    ids=["two clusters", "a stray atom", "a line"],
)
def test_a_network_that_is_not_rigid_is_refused(coordinates: Tensor, n_zero: int) -> None:
    with pytest.raises(NetworkModelError, match=f"{n_zero} zero modes at a cutoff of 20.0 Å.*larger cutoff"):
        normal_modes(coordinates, cutoff=20.0)


@pytest.mark.parametrize(("n", "n_zero"), [(1, 3), (2, 5)])
def test_one_or_two_atoms_are_no_network(n: int, n_zero: int) -> None:
    with pytest.raises(NetworkModelError, match=f"{n} pseudo-atoms have {n_zero} zero modes instead of 6"):
        normal_modes(cluster(3)[:n], cutoff=100.0)


def test_a_cutoff_below_every_distance_connects_nothing() -> None:
    with pytest.raises(NetworkModelError, match="24 zero modes"):
        normal_modes(cluster(), cutoff=1e-3)


@pytest.mark.parametrize("n_modes", [0, -1, 19])
def test_number_of_modes_out_of_range(n_modes: int) -> None:
    with pytest.raises(NetworkModelError, match=f"n_modes is {n_modes}; 8 .* have 18 internal modes"):
        normal_modes(cluster(), n_modes, cutoff=50.0)


@pytest.mark.parametrize("parameter", ["cutoff", "spring_constant"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_parameters_must_be_positive(parameter: str, value: float) -> None:
    with pytest.raises(NetworkModelError, match=f"{parameter} is {value}; it must be positive"):
        hessian(cluster(), **{parameter: value})


@pytest.mark.mistyped
def test_coordinates_must_be_usable() -> None:
    broken, doubled = cluster(), cluster()
    broken[3, 1] = math.nan
    doubled[5] = doubled[2]
    with pytest.raises(NetworkModelError, match=r"atom 3 are .*nan"):
        hessian(broken)
    with pytest.raises(NetworkModelError, match="atoms 2 and 5 coincide"):
        hessian(doubled)
    for shape in [(8, 2), (24,), (0, 3)]:
        with pytest.raises(NetworkModelError, match="it must be \\(atoms, 3\\)"):
            hessian(torch.zeros(shape))


def test_boltzmann_variances_share_the_energy_equally() -> None:
    """Equipartition: each mode holds ½ λ <α²> = ½ kT."""
    eigenvalues = normal_modes(cluster(), 5, cutoff=50.0).eigenvalues
    energy = 0.5 * eigenvalues * boltzmann_variances(eigenvalues, thermal_energy=0.6)
    torch.testing.assert_close(energy, torch.full_like(energy, 0.3))
    with pytest.raises(NetworkModelError, match="thermal_energy is 0;"):
        boltzmann_variances(eigenvalues, thermal_energy=0)
    with pytest.raises(NetworkModelError, match="eigenvalues include 0"):
        boltzmann_variances(torch.zeros(2), thermal_energy=1.0)


@pytest.mark.parametrize("thermal_energy", [0.3, 2.0])
def test_the_boltzmann_density_of_an_amplitude_by_quadrature(thermal_energy: float) -> None:
    """Eqs. 7 and 10: exp(-V/kT) along a mode has the variance kT/λ; what the paper writes is no density."""
    reference = cluster()
    modes = normal_modes(reference, 1, cutoff=50.0)
    (stiffness,), matrix = modes.eigenvalues, hessian(reference, cutoff=50.0)
    amplitude = torch.linspace(-15, 15, 60_001, dtype=torch.float64) * (thermal_energy / stiffness).sqrt()
    energy = 0.5 * amplitude.square() * (modes.vectors[0].flatten() @ matrix @ modes.vectors[0].flatten())
    density = (-energy / thermal_energy).exp() * (stiffness / (2 * math.pi * thermal_energy)).sqrt()
    assert torch.trapezoid(density, amplitude).item() == pytest.approx(1, rel=1e-9)
    variance = torch.trapezoid(density * amplitude.square(), amplitude)
    torch.testing.assert_close(variance, boltzmann_variances(stiffness[None], thermal_energy)[0])

    compliance, beta = 1 / stiffness, 1 / thermal_energy
    written = (2 * math.pi * compliance) ** -0.5 * (-beta * amplitude.square() / compliance).exp()
    assert torch.trapezoid(written, amplitude).item() == pytest.approx((2 * beta) ** -0.5, rel=1e-9)
    halved = torch.trapezoid(written * amplitude.square(), amplitude) / torch.trapezoid(written, amplitude)
    torch.testing.assert_close(halved, variance / 2)


def test_collectivity_runs_from_one_atom_to_all() -> None:
    together = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64).expand(10, 3)
    alone = torch.zeros(10, 3, dtype=torch.float64)
    alone[4, 2] = -3.0
    assert collectivity(together) == pytest.approx(1.0)
    assert collectivity(alone) == pytest.approx(0.1)
    half = torch.cat([together[:5], torch.zeros(5, 3, dtype=torch.float64)])
    assert collectivity(half) == pytest.approx(0.5)
    for vector in normal_modes(cluster(), 18, cutoff=50.0).vectors:
        assert 1 / 8 < collectivity(vector) < 1
        assert collectivity(vector) == pytest.approx(collectivity(-7.0 * vector @ rotation()))
    with pytest.raises(NetworkModelError, match="at least one atom must move"):
        collectivity(torch.zeros(4, 3))


def test_collectivity_agrees_with_prody() -> None:
    coordinates = load_structure("adk_closed").coordinates
    theirs = prody.ANM()
    theirs.buildHessian(coordinates.numpy())
    theirs.calcModes(n_modes=3)
    ours = [collectivity(vector) for vector in normal_modes(coordinates, 3).vectors]
    np.testing.assert_allclose(ours, prody.calcCollectivity(theirs), rtol=1e-8)


@pytest.mark.mistyped
def test_overlap_of_parallel_and_orthogonal_motions() -> None:
    first, second = normal_modes(cluster(), 2, cutoff=50.0).vectors
    assert overlap(first, -3.0 * first) == pytest.approx(1.0)
    assert overlap(first, second) == pytest.approx(0.0, abs=1e-10)
    assert overlap(first, first + second) == pytest.approx(math.sqrt(0.5))
    with pytest.raises(NetworkModelError, match=r"\(8, 3\) and displacement \(7, 3\)"):
        overlap(first, second[1:])
    with pytest.raises(NetworkModelError, match="at least one atom must move"):
        overlap(first, torch.zeros_like(first))


def test_the_softest_mode_of_adenylate_kinase_closes_it() -> None:
    opened, closed = (load_structure(name).coordinates for name in EMBEDDED)
    displacement = superpose(closed, opened) - opened
    overlaps = [overlap(vector, displacement) for vector in normal_modes(opened, 10).vectors]
    assert overlaps[0] >= 0.75
    assert max(overlaps) == overlaps[0]
    assert sum(value**2 for value in overlaps) <= 1 + 1e-12
