"""Directions along which a molecule bends: modes, a straight way to another state, both also of beads."""

from pathlib import Path

import gemmi
import pytest
import torch

from cryoanm_lib import Plan, load_atoms, molecule_of, rigid_block_modes, superpose
from cryoanm_lib.errors import CryoANMError, StructureError
from cryoanm_lib.molecule.movie import write_models

torch.set_num_threads(1)


def plan(**settings: object) -> Plan:
    return Plan.model_validate({"particles": "none.star", "reference": "adk_open", **settings})


def test_the_first_direction_leads_to_the_other_state() -> None:
    molecule, opened = molecule_of(plan(towards="adk_closed")), load_atoms("adk_open").coordinates
    closed = superpose(load_atoms("adk_closed").coordinates, opened)
    there = molecule.coordinates + molecule.scales[0] * molecule.directions[0]
    torch.testing.assert_close(there, closed)


def test_directions_are_orthonormal_and_begin_with_the_modes_where_there_is_no_other_state() -> None:
    gram = torch.einsum("mac,nac->mn", *(molecule_of(plan(towards="adk_closed", modes=5)).directions,) * 2)
    torch.testing.assert_close(gram, torch.eye(5).double(), atol=1e-12, rtol=0)
    atoms = load_atoms("adk_open")
    modes = rigid_block_modes(atoms.coordinates, atoms.residues.tolist(), 3)
    molecule = molecule_of(plan())
    torch.testing.assert_close(molecule.directions, modes.vectors, atol=1e-10, rtol=0)
    # equipartition, and the softest mode moves atoms by two ångströms
    energies = torch.tensor(molecule.scales).double().square() * modes.eigenvalues
    torch.testing.assert_close(energies, energies[:1].expand(3))
    assert molecule.scales[0] / len(atoms) ** 0.5 == pytest.approx(2.0)


def test_an_amplitude_moves_beads_as_the_atoms_that_they_stand_for() -> None:
    molecule = molecule_of(plan(beads=True))
    assert len(molecule.coordinates) == 214
    atoms = load_atoms("adk_open")
    moved = molecule.of_atoms[0]
    of_residue = torch.zeros(214, 3).double().index_add(0, atoms.residues, moved)
    mean = of_residue / torch.bincount(atoms.residues)[:, None]
    torch.testing.assert_close(molecule.directions[0], mean)
    assert molecule.of_atoms[0].norm().item() == pytest.approx(1.0)


def test_the_other_hand_and_another_centre() -> None:
    molecule = molecule_of(plan(modes=1))
    away = torch.tensor([1.0, -2.0, 3.0]).double()
    torch.testing.assert_close(molecule.moved(away).coordinates - molecule.coordinates, away.expand(1656, 3))
    mirrored = molecule.mirrored()
    distances = torch.cdist(molecule.coordinates[::50], molecule.coordinates[::50])
    torch.testing.assert_close(torch.cdist(mirrored.coordinates[::50], mirrored.coordinates[::50]), distances)
    volume = torch.linalg.det(molecule.coordinates[[0, 400, 900]])
    assert torch.linalg.det(mirrored.coordinates[[0, 400, 900]]).item() == pytest.approx(-volume.item())


def test_a_model_is_about_the_point_that_is_named(tmp_path: Path) -> None:
    """One that was fitted to a map, whose middle is at (96, 96, 96) Å in the model's file."""
    atoms = load_atoms("adk_open")
    fitted = atoms.coordinates + torch.tensor([99.0, 94.0, 96.5]).double()
    write_models(atoms, fitted[None], tmp_path / "fitted.cif")
    molecule = molecule_of(plan(reference=str(tmp_path / "fitted.cif"), origin=(96.0, 96.0, 96.0)))
    torch.testing.assert_close(molecule.coordinates, fitted - 96.0, atol=1e-3, rtol=0)
    assert molecule_of(plan(reference=str(tmp_path / "fitted.cif"))).coordinates.mean(0).abs().max() < 1e-9
    with pytest.raises(CryoANMError, match="--origin is for models"):
        molecule_of(plan(reference="map.mrc", threshold=0.1, origin=(0.0, 0.0, 0.0)))


def test_another_molecule_is_no_other_state(tmp_path: Path) -> None:
    atoms = load_atoms("adk_closed")
    part = atoms.only(range(400))
    write_models(part, part.coordinates[None], tmp_path / "part.cif")
    with pytest.raises(CryoANMError, match=r"has 400 of the 1656 atoms .* same molecule"):
        molecule_of(plan(towards=str(tmp_path / "part.cif")))
    with pytest.raises(CryoANMError, match="--threshold"):
        molecule_of(plan(reference="map.mrc"))


@pytest.mark.parametrize("kind", [".cif", ".pdb"])
def test_a_movie_is_read_as_its_models(tmp_path: Path, kind: str) -> None:
    atoms = load_atoms("adk_open")
    frames = atoms.coordinates + torch.arange(3).double()[:, None, None]
    write_models(atoms, frames, tmp_path / f"movie{kind}")
    found = gemmi.read_structure(str(tmp_path / f"movie{kind}"))
    assert len(found) == 3
    for model, frame in zip(found, frames, strict=True):
        places = torch.tensor([list(each.atom.pos) for each in model.all()], dtype=torch.float64)
        assert (places - frame).abs().max() <= 6e-4  # what three decimals leave
    again = load_atoms(tmp_path / f"movie{kind}")
    assert (again.names, again.residue_numbers) == (atoms.names, atoms.residue_numbers)


def test_a_movie_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    atoms = load_atoms("adk_open")
    with pytest.raises(StructureError, match=r"neither a \.pdb nor a \.cif"):
        write_models(atoms, atoms.coordinates[None], tmp_path / "movie.xyz")
    with pytest.raises(StructureError, match="do not belong to 1656 atoms"):
        write_models(atoms, atoms.coordinates[None, :5], tmp_path / "movie.cif")
    assert not list(tmp_path.iterdir())
