"""Maps in MRC files of every mode, and pseudo-atoms that reproduce them to what was asked."""

import re
import warnings
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch

from cryoanm_lib import (
    Density,
    ForwardModel,
    Scattering,
    load_atoms,
    normal_modes,
    read_density,
    write_density,
)
from cryoanm_lib.errors import StructureError
from cryoanm_lib.molecule.pseudo_atoms import PseudoAtoms, pseudo_atoms
from cryoanm_lib.numerics.fourier import image_to_coefficients
from tests.relion import atoms_map

torch.set_num_threads(1)
BOX, PIXEL = 40, 2.5


@pytest.fixture(scope="module")
def density() -> Density:
    """Adenylate kinase from its atoms, at some 8 Å."""
    atoms = load_atoms("adk_open")
    values = atoms_map(atoms.coordinates, Scattering.of_elements(atoms.elements, 300.0), BOX, PIXEL)
    return Density(torch.from_numpy(values).double(), PIXEL)


@pytest.fixture(scope="module")
def found(density: Density) -> PseudoAtoms:
    return pseudo_atoms(density, 0.1 * density.values.max().item(), correlation=0.97)


def summed(found: PseudoAtoms, density: Density) -> torch.Tensor:
    """Their density from the formula, atom by atom and everywhere."""
    total = torch.zeros_like(density.values)
    for place, kind in zip(found.coordinates, found.kinds, strict=True):
        away = (density.places - place).square().sum(-1)
        total += found.weights[kind] * (-0.5 * away / found.width**2).exp()
    return total


def test_a_map_is_reproduced_as_well_as_is_asked(density: Density, found: PseudoAtoms) -> None:
    """By their formula: the correlation over the map's own contour and all that the atoms reach."""
    made, threshold = summed(found, density), 0.1 * density.values.max()
    masked = density.values.where(density.values > threshold, 0.0)
    either = (masked > 0) | (made > 1e-3 * made.max())
    correlation = torch.corrcoef(torch.stack([masked[either], made[either]]))[0, 1].item()
    assert correlation > 0.97 - 0.005 and found.correlation >= 0.97
    assert 20 < len(found) < 1656 / 8 and len(found.weights) <= 8
    # They stand where atoms are.
    atoms = load_atoms("adk_open").coordinates
    assert torch.cdist(found.coordinates, atoms).amin(1).max() < 4.0


def test_their_images_are_projections_of_the_map(density: Density, found: PseudoAtoms) -> None:
    """Along z, as near as in space at the least; and they bend as a network of beads does."""
    modes = normal_modes(found.coordinates, n_modes=2).vectors
    scattering = Scattering.of_pseudo_atoms(found)
    forward = ForwardModel(found.coordinates, modes, BOX, pixel_size=PIXEL, scattering=scattering)
    latents = {"pose": torch.tensor([1.0, 0.0]).double(), "amplitude": torch.zeros(2).double()}
    ours = forward.projections(latents, 24)
    threshold = 0.1 * density.values.max()
    flat = PIXEL * density.values.where(density.values > threshold, 0.0).sum(0)
    theirs = image_to_coefficients(flat, 24)
    assert (ours - theirs).norm() / theirs.norm() < 0.5 * (1 - found.correlation**2) ** 0.5


def test_it_is_the_same_again(density: Density, found: PseudoAtoms) -> None:
    again = pseudo_atoms(density, 0.1 * density.values.max().item(), correlation=0.97)
    assert torch.equal(again.coordinates, found.coordinates) and again.correlation == found.correlation


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({"threshold": 1e9}, r"threshold 1e\+09 leaves 0 voxels of a map that reaches"),
        ({"threshold": 0.0, "correlation": 1.5}, "correlation = 1.5 is not usable"),
        ({"threshold": 0.1, "most": 0}, "most = 0 is not usable"),
        ({"threshold": 0.01, "correlation": 0.99, "most": 20}, "20 pseudo-atoms reach a correlation of 0"),
    ],
)
def test_what_cannot_be_is_refused(density: Density, options: dict, asked: str) -> None:
    with pytest.raises(StructureError, match=asked):
        pseudo_atoms(density, **options)


# Files


@pytest.mark.parametrize("mode", ["int8", "int16", "float32", "uint16", "float16"])
def test_maps_of_every_mode_are_read(tmp_path: Path, mode: str) -> None:
    values = np.arange(4 * 5 * 6).reshape(4, 5, 6).astype(mode)
    with mrcfile.new(tmp_path / "map.mrc", values) as file:
        file.voxel_size = 1.7
    read = read_density(tmp_path / "map.mrc")
    assert read.pixel_size == pytest.approx(1.7)
    assert torch.equal(read.values, torch.from_numpy(values.astype(np.float64)))
    assert read.places[1, 2, 3].tolist() == pytest.approx([0.0, 0.0, -1.7])


def test_a_map_is_what_was_written(tmp_path: Path, density: Density) -> None:
    write_density(density, tmp_path / "ours.mrc")
    read = read_density(tmp_path / "ours.mrc")
    torch.testing.assert_close(read.values, density.values, rtol=1e-6, atol=0)
    with mrcfile.open(tmp_path / "ours.mrc") as file:
        assert file.header.origin.x == -BOX // 2 * PIXEL


def test_axes_may_stand_in_any_order(tmp_path: Path) -> None:
    """Sections along x, rows along z, columns along y: what CCP4's programs may write."""
    values = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    with mrcfile.new(tmp_path / "turned.mrc", values.transpose(2, 0, 1).copy()) as file:
        file.header.mx, file.header.my, file.header.mz = 6, 5, 4
        file.voxel_size = 2.0
        file.header.maps, file.header.mapr, file.header.mapc = 1, 3, 2
    assert torch.equal(read_density(tmp_path / "turned.mrc").values, torch.from_numpy(values).double())


def test_a_cube_that_is_marked_as_images_is_a_map_with_a_warning(tmp_path: Path) -> None:
    """As programs wrote maps before the format of 2014."""
    with mrcfile.new(tmp_path / "old.mrc", np.ones((4, 4, 4), dtype=np.float32)) as file:
        file.voxel_size = 1.0
        file.header.ispg = 0
    with pytest.warns(UserWarning, match="marked as a stack of images; being a cube"):
        assert read_density(tmp_path / "old.mrc").values.shape == (4, 4, 4)


def bad(path: Path, kind: str) -> None:
    values = np.ones((4, 4, 4), dtype=np.complex64 if kind == "transform" else np.float32)
    if kind == "nan":
        values[1, 2, 3] = np.nan
    with warnings.catch_warnings(), mrcfile.new(path) as file:
        warnings.simplefilter("ignore", RuntimeWarning)  # that it is bad
        file.set_data(values)
        file.voxel_size = {"anisotropic": (1.0, 1.0, 1.2), "no size": 0.0}.get(kind, 1.0)
        if kind == "stack":
            file.set_image_stack()
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    if kind == "text":
        path.write_text("not a map\n" * 300)


@pytest.mark.parametrize(
    ("kind", "asked"),
    [
        ("nan", "has 1 voxels that are not finite numbers"),
        ("anisotropic", "are 1 × 1 × 1.2 Å: resample them to cubes"),
        ("no size", "does not say how large a voxel is"),
        ("stack", "is a stack of 4 images"),
        ("transform", "is a transform, mode 4"),
        ("cut", "is not a readable MRC map"),
        ("text", "is not a readable MRC map"),
    ],
)
def test_what_is_no_map_is_refused(tmp_path: Path, kind: str, asked: str) -> None:
    path = tmp_path / "bad.mrc"
    bad(path, kind)
    with pytest.raises(StructureError, match=re.escape(asked)):
        read_density(path)


def test_a_map_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StructureError, match="cannot be read"):
        read_density(tmp_path / "none.mrc")
