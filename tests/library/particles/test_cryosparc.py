"""Tables of cryoSPARC beside star files that say the same; and those that are wrong or hostile."""

import math
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from cryoanm_lib import ParticleSet, Plan, particles_of, read_cs, read_star, write_cs
from cryoanm_lib.errors import CryoANMError, ParticleError
from cryoanm_lib.particles.cryosparc import CryosparcParticles, vectors_of_quaternions
from tests.library.particles.test_star import NEW, data_set, same

torch.set_num_threads(1)
FIELDS = [
    *(("uid", "<u8"), ("blob/path", "S40"), ("blob/idx", "<u4"), ("blob/shape", "<u4", 2)),
    *(("blob/psize_A", "<f4"), ("blob/sign", "<f4"), ("ctf/exp_group_id", "<u4")),
    *(("ctf/accel_kv", "<f4"), ("ctf/cs_mm", "<f4"), ("ctf/amp_contrast", "<f4")),
    *(("ctf/df1_A", "<f4"), ("ctf/df2_A", "<f4"), ("ctf/df_angle_rad", "<f4")),
    *(("ctf/phase_shift_rad", "<f4"), ("alignments3D/shift", "<f4", 2)),
    *(("alignments3D/pose", "<f4", 3), ("alignments3D/psize_A", "<f4")),
]


def table_of(particles: ParticleSet) -> np.ndarray:
    """What cryoSPARC would say of them, with shifts in pixels twice as large as those of the images."""
    table = np.zeros(len(particles), dtype=FIELDS)
    groups = [particles.optics[g] for g in particles.group.tolist()]
    table["uid"] = 2**63 + 11 * np.arange(1, 1 + len(particles), dtype=np.uint64)  # as most of cryoSPARC's
    table["blob/path"] = [f">{particles.stacks[s]}".encode() for s in particles.stack.tolist()]
    table["blob/idx"], table["blob/sign"] = particles.place, -1
    table["blob/shape"] = [[group.box_size] * 2 for group in groups]
    table["blob/psize_A"] = [group.pixel_size for group in groups]
    table["ctf/exp_group_id"] = particles.group
    table["ctf/accel_kv"] = [group.voltage for group in groups]
    table["ctf/cs_mm"] = [group.spherical_aberration for group in groups]
    table["ctf/amp_contrast"] = [group.amplitude_contrast for group in groups]
    mean, a1, a2, _, _ = particles.ctf.T.numpy()
    half = np.hypot(a1, a2)
    table["ctf/df1_A"], table["ctf/df2_A"] = mean + half, mean - half
    table["ctf/df_angle_rad"] = 0.5 * np.arctan2(a2, a1)
    table["alignments3D/psize_A"] = 2 * table["blob/psize_A"]
    table["alignments3D/shift"] = -particles.shift.numpy() / table["alignments3D/psize_A"][:, None]
    turns = Rotation.from_quat(particles.pose.numpy(), scalar_first=True)
    table["alignments3D/pose"] = turns.inv().as_rotvec()
    return table


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, np.ndarray, ParticleSet]:
    """A .cs file, what is in it, and the star file that says the same."""
    particles = read_star(data_set(tmp_path, NEW.replace("1.25 8 1", "1.25 8 0")))
    path = tmp_path / "particles.cs"
    return path, save(path, table_of(particles)), particles


def save(path: Path, table: np.ndarray) -> np.ndarray:
    with open(path, "wb") as file:
        np.save(file, table)
    return table


def test_it_says_what_the_star_file_says(written) -> None:
    path, _, expected = written
    found = read_cs(path)
    same(found, expected)
    assert [one.sign for one in found.optics] == [-1, -1]
    assert found.optics[0].transfer(varies=()).sign == -1
    for row in range(3):
        a, b = found.optics[found.group[row]], expected.optics[expected.group[row]]
        assert (a.voltage, a.pixel_size, a.box_size) == pytest.approx((b.voltage, b.pixel_size, b.box_size))
    rows = torch.tensor([1, 0])
    torch.testing.assert_close(found.images(rows).pixels, expected.images(rows).pixels)


@pytest.mark.parametrize("sign", [None, -1, 1])
def test_a_plan_may_say_that_the_molecule_is_dark(written, sign: int | None) -> None:
    """Where the file says so too, or nothing; not where it says the contrary."""
    path, table, _ = written
    table["blob/sign"] = sign or 0
    kept = [f for f in FIELDS if sign is not None or f[0] != "blob/sign"]
    save(path, np.array(table[[f[0] for f in kept]].tolist(), dtype=kept))
    plan = Plan(particles=str(path), reference="adk_open", dark=True)
    if sign == 1:
        with pytest.raises(
            ParticleError, match=r"dark \(--dark\) says .* blob/sign of '.*particles.cs' is 1"
        ):
            particles_of(plan)
        return
    particles = particles_of(plan)
    assert [group.sign for group in particles.optics] == [-1, -1]
    assert isinstance(particles, CryosparcParticles)  # which can be written back


def test_a_turn_about_the_beam_is_the_inverse_of_ours(written) -> None:
    """A vector of a quarter turn about z takes y to x."""
    path, table, _ = written
    table["alignments3D/pose"] = (0.0, 0.0, math.pi / 2)
    save(path, table)
    turned = Rotation.from_quat(read_cs(path).pose[0].numpy(), scalar_first=True).apply([0.0, 1.0, 0.0])
    np.testing.assert_allclose(turned, [1.0, 0.0, 0.0], atol=1e-7)


def test_what_a_file_leaves_out_is_taken_from_its_passthrough(written, tmp_path: Path) -> None:
    """Rows are matched by uid, and one that is not there is named."""
    path, table, expected = written
    own = [name for name in table.dtype.names if not name.startswith("ctf/")]
    save(path, np.array(table[own].tolist(), dtype=[f for f in FIELDS if f[0] in own]))
    with pytest.raises(ParticleError, match="has no ctf/accel_kv: it may be in the passthrough file"):
        read_cs(path)
    rest = [field for field in FIELDS if field[0] == "uid" or field[0].startswith("ctf/")]
    other = np.array(table[[field[0] for field in rest]].tolist(), dtype=rest)
    save(tmp_path / "passthrough.cs", other[[2, 0, 1]])
    same(read_cs(path, tmp_path / "passthrough.cs"), expected)
    save(tmp_path / "passthrough.cs", other[[2, 0]])
    with pytest.raises(ParticleError, match=r"lacks 1 particles, such as uid 9223372036854775830"):
        read_cs(path, tmp_path / "passthrough.cs")


def test_what_is_missing_is_asked_for_by_name(written) -> None:
    path, table, _ = written
    kept = [field for field in FIELDS if field[0] != "alignments3D/psize_A"]
    save(path, np.array(table[[field[0] for field in kept]].tolist(), dtype=kept))
    with pytest.raises(ParticleError, match="has no alignments3D/psize_A"):
        read_cs(path).latents()


@pytest.mark.parametrize(
    ("field", "value", "asked"),
    [
        ("ctf/accel_kv", 3e5, "give it as kV"),
        ("ctf/df1_A", 1.5, "give it in Å"),
        ("alignments3D/pose", math.nan, "alignments3D/pose that are not finite"),
        ("blob/shape", (8, 6), "not square"),
        ("blob/shape", (0, 0), "images of 0 pixels"),
        ("alignments3D/psize_A", 0.0, r"alignments3D/psize_A of 0: it must be above 0"),
        ("uid", 7, "has uid 7 3 times"),
    ],
)
def test_numbers_that_are_none_are_refused(written, field: str, value: float, asked: str) -> None:
    path, table, _ = written
    table[field] = value
    save(path, table)
    with pytest.raises(ParticleError, match=asked):
        read_cs(path)


def test_what_is_written_has_the_rows_of_the_file_and_ours(written, tmp_path: Path) -> None:
    """In the order that is asked for, all fields to the bit; ours of before make room for those of now."""
    path, table, _ = written
    particles, rows = read_cs(path), torch.tensor([2, 0])
    columns = {"amplitude1": torch.tensor([1.5, -2.0]), "shift": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}
    write_cs(particles[rows], tmp_path / "some.cs", columns)
    found = np.load(tmp_path / "some.cs", allow_pickle=False)
    assert found.dtype.names == (*table.dtype.names, "cryoanm/amplitude1", "cryoanm/shift")
    for name in table.dtype.names:
        np.testing.assert_array_equal(found[name], table[name][rows.numpy()])
    for name, column in columns.items():
        assert found[f"cryoanm/{name}"].dtype == np.float32
        np.testing.assert_array_equal(found[f"cryoanm/{name}"], column.numpy())
    again = read_cs(tmp_path / "some.cs")
    same(again, particles[rows])
    write_cs(again[torch.tensor([1])], tmp_path / "again.cs", {"amplitude1": torch.tensor([7.0])})
    found = np.load(tmp_path / "again.cs", allow_pickle=False)
    assert found.dtype.names == (*table.dtype.names, "cryoanm/amplitude1")
    assert (found["cryoanm/amplitude1"].item(), found["uid"].item()) == (7.0, table["uid"][0])


def test_what_is_written_fits_the_same_passthrough(written, tmp_path: Path) -> None:
    _, table, expected = written
    own = [f for f in FIELDS if not f[0].startswith(("ctf/", "blob/"))]
    rest = [f for f in FIELDS if f not in own or f[0] == "uid"]
    for name, fields in {"own.cs": own, "passthrough.cs": rest}.items():
        save(tmp_path / name, np.array(table[[f[0] for f in fields]].tolist(), dtype=fields))
    both = read_cs(tmp_path / "own.cs", tmp_path / "passthrough.cs")
    write_cs(both[torch.tensor([1])], tmp_path / "one.cs")
    same(read_cs(tmp_path / "one.cs", tmp_path / "passthrough.cs"), expected[torch.tensor([1])])


def test_poses_are_written_as_they_are_read(written) -> None:
    """Any turn, half turns and none among them, takes the place of the file's own."""
    path, table, _ = written
    turns = Rotation.random(3, rng=1)
    pose = torch.from_numpy(turns.as_quat(canonical=True, scalar_first=True))
    table["alignments3D/pose"] = vectors_of_quaternions(pose)
    save(path, table)
    torch.testing.assert_close(read_cs(path).pose, pose, rtol=0, atol=1e-6)
    special = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [-0.6, 0.0, 0.8, 0.0]])
    table["alignments3D/pose"] = vectors_of_quaternions(special)
    save(path, table)
    found = read_cs(path).pose
    torch.testing.assert_close((found * special).sum(1).abs(), torch.ones(3).double(), rtol=0, atol=1e-6)


def test_what_cannot_be_written_is_refused(written, tmp_path: Path) -> None:
    path, table, _ = written
    particles = read_cs(path)
    with pytest.raises(ParticleError, match=r"'cryoanm/x' has 2 numbers for 3 particles"):
        write_cs(particles, tmp_path / "some.cs", {"x": torch.zeros(2)})
    save(path, table[:2])
    with pytest.raises(
        ParticleError, match=rf"lacks 1 particles, such as uid {2**63 + 33}, .* read it again"
    ):
        write_cs(particles, tmp_path / "some.cs")
    assert not (tmp_path / "some.cs").exists()


def test_objects_are_never_loaded(tmp_path: Path) -> None:
    """Whose loading runs whatever code they bring."""
    ran = tmp_path / "ran"

    class Hostile:
        def __reduce__(self) -> tuple:
            return (Path.touch, (ran,))

    path = tmp_path / "hostile.cs"
    path.write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(ParticleError, match=r"is not a readable \.cs file"):
        read_cs(path)
    with open(path, "wb") as file:
        np.save(file, np.array([Hostile()], dtype=object), allow_pickle=True)
    with pytest.raises(ParticleError, match=r"is not a readable \.cs file"):
        read_cs(path)
    assert not ran.exists()
    with pytest.raises(ParticleError, match="cannot be read"):
        read_cs(tmp_path / "nowhere.cs")


@pytest.mark.parametrize("count", [300, pytest.param(100_000, marks=pytest.mark.slow)])
def test_no_damage_raises_an_error_of_others(written, count: int) -> None:
    path, _, _ = written
    rng, content, refused = random.Random(0), path.read_bytes(), 0
    for _ in range(count):
        damaged = bytearray(content)
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(len(damaged))
            change = rng.choice(("byte", "cut", "digits"))
            if change == "byte":
                damaged[place] = rng.randrange(256)
            elif change == "cut":
                del damaged[place : place + rng.randint(1, 60)]
            else:
                damaged[place : place + 9] = b"9" * 9
        path.write_bytes(bytes(damaged))
        try:
            read_cs(path).images(skip_bad=True)
        except CryoANMError:
            refused += 1
    assert refused > 0.1 * count
