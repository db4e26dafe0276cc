"""Rotations that a symmetric molecule looks the same from."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import cryoanm_lib
from cryoanm_lib import read_star, write_star
from cryoanm_lib.errors import CryoANMError
from cryoanm_lib.numerics.point_groups import in_asymmetric_unit, nearest_equivalent, point_group
from cryoanm_lib.numerics.rotation import quaternion_distance, quaternion_product
from tests.library.rotations import uniform_rotations
from tests.relion import needs_relion

DATA = Path(cryoanm_lib.__file__).parent / "data"

torch.set_num_threads(1)
GROUPS = pytest.mark.parametrize(
    ("symmetry", "order"), [("C1", 1), ("C5", 5), ("D2", 4), ("T", 12), ("O", 24), ("I", 60)]
)


@pytest.fixture
def anywhere() -> torch.Tensor:
    return uniform_rotations(300, torch.Generator().manual_seed(0)).double()


@GROUPS
def test_of_rotations_that_look_the_same_one_is_in_the_asymmetric_unit(
    anywhere: torch.Tensor, symmetry: str, order: int
) -> None:
    """A molecule that S leaves as it is looks the same from R and from R S."""
    group = point_group(symmetry)
    assert len(group) == order
    alike = quaternion_product(anywhere[:, None], group)
    inside = in_asymmetric_unit(alike.flatten(0, 1), group).view(300, order)
    assert (inside.sum(1) == 1).all()


@GROUPS
def test_the_nearest_equivalent_is_nearest_and_an_equivalent(
    anywhere: torch.Tensor, symmetry: str, order: int
) -> None:
    group, to = point_group(symmetry), anywhere.roll(1, 0)
    found = nearest_equivalent(anywhere, to, group)
    alike = quaternion_product(anywhere[:, None], group)
    distances = quaternion_distance(alike, to[:, None])
    torch.testing.assert_close(quaternion_distance(found, to), distances.min(1).values, atol=1e-6, rtol=0)
    assert quaternion_distance(alike, found[:, None]).min(1).values.max() < 1e-6
    # and the same for all equivalents
    again = nearest_equivalent(alike[:, -1], to, group)
    assert quaternion_distance(again, found).max() < 1e-6


def test_a_group_that_does_not_exist_is_refused() -> None:
    with pytest.raises(CryoANMError, match="symmetry 'X3' does not exist: choose C1"):
        point_group("X3")


@needs_relion
@pytest.mark.parametrize("symmetry", ["C3", "D2", "D5", "T", "O", "I", "I1", "I2", "I3", "I4"])
def test_groups_are_relions(tmp_path: Path, symmetry: str) -> None:
    """Poses to which it expands one by the symmetry are those that we take for equivalent."""
    for file in (DATA / "adk_particles.star", DATA / "adk_particles.mrcs"):
        shutil.copy(file, tmp_path)
    write_star(read_star(tmp_path / "adk_particles.star")[torch.arange(1)], tmp_path / "one.star")
    command = f"relion_particle_symmetry_expand --i one.star --o all.star --sym {symmetry}"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True, timeout=300)
    pose, group = read_star(tmp_path / "all.star").pose, point_group(symmetry)
    assert len(pose) == len(group)
    alike = quaternion_product(pose[:1], group)
    distance = quaternion_distance(pose[:, None], alike)
    assert distance.min(1).values.max() < 1e-3 and distance.min(0).values.max() < 1e-3
