"""Star files of every version, read and written back, RELION as the referee; and those that are wrong."""

import random
import subprocess
import tracemalloc
import warnings
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch

from cryoanm_lib import ContrastTransfer, ForwardModel, read_star, write_star
from cryoanm_lib.errors import CryoANMError, ParticleError
from cryoanm_lib.particles import particle_set
from tests.relion import gaussians_map, needs_relion, project, random_particles

torch.set_num_threads(1)
OPTICS = {"voltage": 300.0, "spherical_aberration": 2.7, "amplitude_contrast": 0.1}
PIXEL, WIDTH = 1.5, 1.2
OLD = """
data_images

loop_
_rlnImageName #1
_rlnVoltage #2
_rlnSphericalAberration #3
_rlnAmplitudeContrast #4
_rlnMagnification #5
_rlnDetectorPixelSize #6
_rlnDefocusU #7
_rlnDefocusV #8
_rlnDefocusAngle #9
_rlnAngleRot #10
_rlnAngleTilt #11
_rlnAnglePsi #12
_rlnOriginX #13
_rlnOriginY #14
000002@a.mrcs 300 2.7 0.1 50000 7.5 12000 11000 30 10 20 30 2 -1
000001@a.mrcs 300 2.7 0.1 50000 7.5 13000 12500 60 40 50 60 0 1
1@sub/b.mrcs  200 2.0 0.07 60000 7.5 9000 9000 0 70 80 90 -3 0.5
"""
NEW = """
# version 50001

data_optics

loop_
_rlnOpticsGroup #1
_rlnOpticsGroupName #2
_rlnVoltage #3
_rlnSphericalAberration #4
_rlnAmplitudeContrast #5
_rlnImagePixelSize #6
_rlnImageSize #7
_rlnCtfDataAreCtfPremultiplied #8
4 second 200 2.0 0.07 1.25 8 1
1 first 300 2.7 0.1 1.5 8 0


# version 50001

data_particles

loop_
_rlnImageName #1
_rlnOpticsGroup #2
_rlnDefocusU #3
_rlnDefocusV #4
_rlnDefocusAngle #5
_rlnAngleRot #6
_rlnAngleTilt #7
_rlnAnglePsi #8
_rlnOriginXAngst #9
_rlnOriginYAngst #10
_rlnMicrographName #11
000002@a.mrcs 1 12000 11000 30 10 20 30 3 -1.5 "one micrograph.mrc"
000001@a.mrcs 1 13000 12500 60 40 50 60 0 1.5 two.mrc
1@sub/b.mrcs  4 9000 9000 0 70 80 90 -3.75 0.625 two.mrc
"""


def stack(path: Path, images: np.ndarray, pixel_size: float = PIXEL) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of NaN
        with mrcfile.new(path, images, overwrite=True) as file:
            file.set_image_stack()
            file.voxel_size = pixel_size


def data_set(folder: Path, text: str) -> Path:
    """A star file with its two stacks, of three images and of one."""
    rng = np.random.default_rng(0)
    stack(folder / "a.mrcs", rng.normal(size=(3, 8, 8)).astype(np.float32))
    stack(folder / "sub" / "b.mrcs", rng.normal(size=(1, 8, 8)).astype(np.float32), 1.25)
    path = folder / "particles.star"
    path.write_text(text, encoding="utf-8")
    return path


def same(one, other) -> None:
    for name in ("pose", "shift", "ctf"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-5, atol=1e-4)
    assert one.names == other.names


def test_the_versions_say_the_same(tmp_path: Path) -> None:
    """3.0 has no optics groups, and origins in pixels; later ones have groups in any order."""
    old, new = read_star(data_set(tmp_path, OLD)), read_star(data_set(tmp_path / "new", NEW))
    same(old, new)
    for row in range(3):
        a, b = old.optics[old.group[row]], new.optics[new.group[row]]
        assert (a.voltage, a.spherical_aberration, a.amplitude_contrast) == pytest.approx(
            (b.voltage, b.spherical_aberration, b.amplitude_contrast)
        )
        assert a.pixel_size == pytest.approx(b.pixel_size)
    assert [one.ctf_premultiplied for one in new.optics] == [True, False]
    assert new.shift is not None
    assert new.shift.tolist() == [[-3.0, 1.5], [0.0, -1.5], [3.75, -0.625]]
    assert new.latents()["shift"][:, 0].tolist() == pytest.approx([-2.0, 0.0, 3.0])
    images = old.images(torch.tensor([1, 0]))
    with mrcfile.open(tmp_path / "a.mrcs") as file:
        np.testing.assert_array_equal(images.pixels.numpy(), file.data[:2])


@needs_relion
def test_relion_converts_an_old_file_to_what_we_read(tmp_path: Path) -> None:
    path = data_set(tmp_path, OLD)
    command = "relion_convert_star --i particles.star --o converted.star"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True, timeout=60)
    same(read_star(path), read_star(tmp_path / "converted.star"))


@needs_relion
@pytest.mark.parametrize("box_size", [64, 63])
def test_what_relion_writes_is_read_and_explained(tmp_path: Path, box_size: int) -> None:
    """Its images, angles, origins and defoci in; our images out; nothing is fitted."""
    rng = np.random.default_rng(box_size)
    positions = torch.tensor(rng.normal(0, 8, (60, 3)))
    volume = gaussians_map(positions, WIDTH, box_size, PIXEL)
    project(tmp_path, volume, PIXEL, random_particles(8, rng, (6000, 15_000), 1000.0, 90.0), OPTICS)
    particles = read_star(tmp_path / "out.star")
    (group,) = particles.optics
    optics = {name: getattr(group, name) for name in OPTICS}
    transfer = ContrastTransfer(group.pixel_size, **optics, varies=())
    sizes = {"box_size": box_size, "pixel_size": group.pixel_size, "atom_width": WIDTH}
    forward = ForwardModel(positions, torch.zeros(1, 60, 3).double(), **sizes, transfer=transfer)
    latents = particles.latents() | {"amplitude": torch.zeros(8, 1).double()}
    ours = forward.images(latents) / (2 * torch.pi * WIDTH**2)
    theirs = particles.images().pixels.double()
    assert ((ours - theirs).flatten(1).norm(dim=1) / theirs.flatten(1).norm(dim=1)).max() <= 0.006


@needs_relion
def test_what_we_write_relion_reads(tmp_path: Path) -> None:
    """Rows in another order, with columns of ours: the images are the same, but for digits."""
    rng = np.random.default_rng(5)
    volume = gaussians_map(torch.tensor(rng.normal(0, 6, (30, 3))), WIDTH, 48, PIXEL)
    images, _ = project(tmp_path, volume, PIXEL, random_particles(6, rng, (6000, 15_000), 500.0), OPTICS)
    order = torch.tensor([4, 0, 5])
    chosen = read_star(tmp_path / "out.star")[order]
    write_star(chosen, tmp_path / "some.star", {"Amplitude1": torch.tensor([0.5, -1.0, 2e-7])})
    command = f"relion_project --i map.mrc --o again --ang some.star --angpix {PIXEL} --pad 4 --ctf"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True, timeout=60)
    with mrcfile.open(tmp_path / "again.mrcs") as file:
        np.testing.assert_allclose(file.data, images[order].numpy(), rtol=0, atol=2e-5 * images.abs().max())
    assert "_cryoanmAmplitude1" in (tmp_path / "some.star").read_text(encoding="utf-8")


def test_rows_are_written_back_by_the_names_of_images(tmp_path: Path) -> None:
    """Also where symmetry was expanded and a name stands twice; all else of the file is kept."""
    again = NEW.rstrip() + "\n000001@a.mrcs 1 13000 12500 60 41 50 60 0 1.5 two.mrc\n"
    particles = read_star(data_set(tmp_path, again))
    write_star(particles[torch.tensor([3, 0])], tmp_path / "two.star", {"ours": torch.tensor([7.0, 8.0])})
    text = (tmp_path / "two.star").read_text(encoding="utf-8")
    assert "one micrograph.mrc" in text
    assert "second" in text
    assert [line.split()[-1] for line in text.splitlines() if "@a.mrcs" in line] == ["7", "8"]
    found = read_star(tmp_path / "two.star")
    # Without the other one, that of the same name is the first.
    assert found.names == ["000001@a.mrcs", "000002@a.mrcs"]
    same(found, particles[torch.tensor([3, 0])])
    shorter = tmp_path / "particles.star"
    shorter.write_text(NEW, encoding="utf-8")
    with pytest.raises(ParticleError, match=r"no image '000001@a.mrcs' any more"):
        write_star(particles[torch.tensor([3, 1])], tmp_path / "three.star")
    with pytest.raises(ParticleError, match=r"has a column .*rlnDefocusU"):
        write_star(particles, tmp_path / "three.star", {"rlnDefocusU": torch.zeros(4)})
    with pytest.raises(ParticleError, match="3 numbers for 4 particles"):
        write_star(particles, tmp_path / "three.star", {"ours": torch.zeros(3)})
    several = NEW.replace('"one micrograph.mrc"', "\n;one\nmicrograph.mrc\n;")
    particles = read_star(data_set(tmp_path, several))
    with pytest.raises(ParticleError, match=r"text of several lines beside 000002@a.mrcs"):
        write_star(particles, tmp_path / "three.star")
    assert not (tmp_path / "three.star").exists()


@pytest.mark.parametrize(
    "kind", ["_rlnVoltage", "_rlnSphericalAberration", "_rlnAmplitudeContrast", "_rlnImagePixelSize"]
)
def test_what_nothing_can_do_without_is_asked_for_by_name(tmp_path: Path, kind: str) -> None:
    path = data_set(tmp_path, NEW.replace(kind, "_rlnSomethingElse"))
    with pytest.raises(ParticleError, match=rf"has no {kind[1:]}: .* override="):
        read_star(path)
    found = read_star(path, override={kind[1:]: {"_rlnVoltage": 300.0}.get(kind, 1.0)})
    assert len(found) == 3


@pytest.mark.parametrize(
    ("labels", "needed"),
    [("Angle", "rlnAngleRot"), ("Origin", "rlnOriginXAngst"), ("Defocus", "rlnDefocusU")],
)
def test_a_latent_that_is_not_there_is_never_zero(tmp_path: Path, labels: str, needed: str) -> None:
    """It may be missing, whole or in part, until it is asked for."""
    text = NEW
    for whole in (
        "AngleRot",
        "AngleTilt",
        "AnglePsi",
        "OriginXAngst",
        "OriginYAngst",
        "DefocusU",
        "DefocusV",
    ):
        text = text.replace(f"_rln{whole} ", f"_rlnNo{whole} ") if whole.startswith(labels) else text
    text = text.replace("_rlnDefocusAngle ", "_rlnNoDefocusAngle ") if labels == "Defocus" else text
    particles = read_star(data_set(tmp_path, text))
    with pytest.raises(ParticleError, match=f"has no {needed}"):
        particles.latents()
    with pytest.raises(ParticleError, match=f"has no {needed}: "):
        read_star(data_set(tmp_path, NEW.replace(f"_{needed} ", "_rlnOther "))).latents()
    with pytest.raises(ParticleError, match="override names _rlnTypo, which is not used"):
        read_star(data_set(tmp_path, NEW), override={"Typo": 1.0})


@pytest.mark.parametrize(
    ("old", "new", "asked"),
    [
        ("12000 11000", "1.2 1.1", r"give it in Å, such as 15000"),
        ("12000 11000", "twelve 11000", r"rlnDefocusU = 'twelve' in row 1"),
        ("40 50 60", "40 nan 60", r"rlnAngleTilt = 'nan' in row 2"),
        ("1@sub/b.mrcs  4", "1@sub/b.mrcs  3", r"particles of optics group 3"),
        ("000002@a.mrcs", "0@a.mrcs", r"a number from 1, @ and a stack"),
        ("4 second", "1 second", r"two optics groups of one number"),
        ("data_particles", "data_optics", "not a readable star file|duplicate"),
        ("_rlnImageName", "_rlnMicrograph", r"0 tables with rlnImageName"),
        ("loop_", "loop", "not a readable star file|0 tables"),
    ],
)
def test_a_table_that_is_wrong_is_refused(tmp_path: Path, old: str, new: str, asked: str) -> None:
    with pytest.raises(ParticleError, match=asked):
        read_star(data_set(tmp_path, NEW.replace(old, new))).latents()


def test_aberrations_that_are_not_modelled_are_told(tmp_path: Path) -> None:
    aberrant = NEW.replace("_rlnMicrographName", "_rlnBeamTiltX").replace('"one micrograph.mrc"', "0.3")
    with pytest.warns(UserWarning, match="rlnBeamTiltX, which our microscope does not model"):
        read_star(data_set(tmp_path, aberrant.replace("two.mrc", "0.0")))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_star(data_set(tmp_path, aberrant.replace("0.3", "0.0").replace("two.mrc", "0.0")))


def test_stacks_are_looked_for_and_their_images_checked(tmp_path: Path) -> None:
    particles = read_star(data_set(tmp_path, NEW))
    of_a = torch.tensor([0, 1])
    (tmp_path / "job" / "deeper").mkdir(parents=True)
    moved = tmp_path / "job" / "deeper" / "particles.star"
    moved.write_text(NEW, encoding="utf-8")
    assert len(read_star(moved).images(torch.tensor([2])).rows) == 1  # in a folder above
    moved.write_text(NEW.replace("sub/b.mrcs", "gone/away/sub/b.mrcs"), encoding="utf-8")
    with pytest.raises(ParticleError, match=r"'gone/away/sub/b.mrcs' is not below"):
        read_star(moved).images(torch.tensor([2]))  # a name in part would find anybody's stack there
    assert len(read_star(moved, data=tmp_path).images(torch.tensor([2])).rows) == 1
    with pytest.raises(ParticleError, match=r"'a.mrcs' is not below .*elsewhere.*\(--data\)"):
        read_star(moved, data=tmp_path / "elsewhere").images(of_a)
    stack(tmp_path / "a.mrcs", np.ones((2, 8, 8), np.float32))
    with pytest.raises(ParticleError, match=r"2 images .*000002@a.mrcs, 000001@a.mrcs: all .* are 1"):
        particles.images(of_a)
    images = np.random.default_rng(0).normal(size=(2, 8, 8)).astype(np.float32)
    images[1, 3, 3] = np.nan
    stack(tmp_path / "a.mrcs", images)
    kept = particles.images(of_a, skip_bad=True)
    assert kept.rows.tolist() == [1]
    assert kept.bad == {0: "it holds NaN or infinite values"}
    stack(tmp_path / "a.mrcs", images[:1])
    with pytest.raises(ParticleError, match=r"000002@a\.mrcs: the stack holds 1 images"):
        particles.images(of_a)
    stack(tmp_path / "a.mrcs", np.zeros((2, 8, 6), np.float32))
    with pytest.raises(ParticleError, match="6 × 8 pixels: they must be square"):
        particles.images(of_a)
    stack(tmp_path / "a.mrcs", np.zeros((2, 4, 4), np.float32), 3.0)
    asked = r"8 pixels of 1.5 Å, the stack 4 pixels, .* says 3 Å: .*scaled by 0.5 .*'rlnImagePixelSize': 3"
    with pytest.raises(ParticleError, match=asked):
        particles.images(of_a)
    with pytest.raises(ParticleError, match=r"of 1\.25 Å, the stack 8 pixels, and its header says 1\.5 Å"):
        stack(tmp_path / "a.mrcs", np.random.default_rng(0).normal(size=(2, 8, 8)).astype(np.float32))
        stack(tmp_path / "sub" / "b.mrcs", np.eye(8, dtype=np.float32)[None], 1.5)
        particles.images()


def test_a_stack_from_a_machine_of_the_other_byte_order_is_read(tmp_path: Path) -> None:
    particles = read_star(data_set(tmp_path, NEW))
    images = np.random.default_rng(0).normal(size=(3, 8, 8)).astype(">f4")
    stack(tmp_path / "a.mrcs", images)
    with mrcfile.open(tmp_path / "a.mrcs") as file:
        assert file.data.dtype == np.dtype(">f4")
    found = particles.images(torch.tensor([1, 0])).pixels
    np.testing.assert_array_equal(found.numpy(), images[:2].astype(np.float32))


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.float32, np.uint16, np.float16])
def test_images_of_every_mode_are_read(tmp_path: Path, kind: type) -> None:
    particles = read_star(data_set(tmp_path, NEW))
    images = (50 * np.random.default_rng(0).uniform(size=(3, 8, 8))).astype(kind)
    stack(tmp_path / "a.mrcs", images)
    found = particles.images(torch.tensor([1, 0])).pixels
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found.numpy(), images[:2].astype(np.float32))


def test_files_that_lie_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    particles, of_a = read_star(data_set(tmp_path, NEW)), torch.tensor([0, 1])
    whole = (tmp_path / "a.mrcs").read_bytes()
    tracemalloc.start()
    for damaged in (whole[:-40], whole[:800], b"", whole[:8] + b"\xff\xff\xff\x7f" + whole[12:], b"x" * 5000):
        (tmp_path / "a.mrcs").write_bytes(damaged)
        with pytest.raises(ParticleError, match=r"a\.mrcs"):
            particles.images(of_a)
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()
    stack(tmp_path / "a.mrcs", np.ones((2, 8, 8), np.complex64))
    with pytest.raises(ParticleError, match="mode 4"):
        particles.images(of_a)


@pytest.mark.parametrize("count", [300, pytest.param(100_000, marks=pytest.mark.slow)])
def test_no_damage_to_a_file_raises_an_error_of_others(tmp_path: Path, count: int) -> None:
    """Bytes changed, cut out and repeated at random: it is read, or refused by an error of ours."""
    rng = random.Random(0)
    star = data_set(tmp_path, NEW)
    stack_file = tmp_path / "a.mrcs"
    intact = {star: star.read_bytes(), stack_file: stack_file.read_bytes()}
    files = [*intact.items(), (star, OLD.encode())]
    refused = 0
    for _ in range(count):
        path, content = rng.choice(files)
        damaged = bytearray(content)
        for _ in range(rng.randint(1, 4)):
            # mostly in the header of the stack, since what follows is pixels
            place = rng.randrange(min(len(damaged), 1100) or 1) if damaged else 0
            change = rng.choice(("byte", "cut", "repeat", "number"))
            if change == "byte" and damaged:
                damaged[place] = rng.randrange(256)
            elif change == "number":
                damaged[place : place + 1] = rng.choice((b" 0 ", b" 1e30 ", b"9" * 30, b"x" * 300, b" -1 "))
            elif change == "cut":
                del damaged[place : place + rng.randint(1, 60)]
            else:
                damaged[place:place] = damaged[place : place + rng.randint(1, 60)]
        path.write_bytes(bytes(damaged))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            try:
                read_star(star).images(skip_bad=True)
            except CryoANMError:
                refused += 1
        path.write_bytes(intact[path])
    assert 0.1 * count < refused < count


def test_particles_of_tomograms_are_refused(tmp_path: Path) -> None:
    """Their names stand for volumes, of which a slice is no image, or for tilt series."""
    solid = NEW.replace("_rlnCtfDataAreCtfPremultiplied", "_rlnImageDimensionality")
    solid = solid.replace("1.25 8 1", "1.25 8 3").replace("1.5 8 0", "1.5 8 3")
    for text in (solid, NEW.replace("_rlnMicrographName", "_rlnTomoParticleName")):
        with pytest.raises(ParticleError, match="is of tomography"):
            read_star(data_set(tmp_path, text))
    with pytest.raises(ParticleError, match=r"the image 'volume.mrc' in row 1: a number from 1, @"):
        read_star(data_set(tmp_path, NEW.replace("000002@a.mrcs", "volume.mrc")))


def test_two_stacks_are_never_taken_to_be_one(tmp_path: Path) -> None:
    """Where names differ in their folders alone, and these are not there."""
    text = NEW.replace("000001@a.mrcs", "000001@job1/a.mrcs").replace("1@sub/b.mrcs", "1@job2/a.mrcs")
    path = data_set(tmp_path, text.replace("000002@a.mrcs", "000002@job1/a.mrcs"))
    with pytest.raises(ParticleError, match=r"'job1/a.mrcs' and 'job2/a.mrcs' are both taken to be"):
        read_star(path, data=tmp_path).images(torch.tensor([0]))


def test_pixels_of_origins_are_those_of_the_file(tmp_path: Path) -> None:
    """A stack that was scaled since: its own pixel size is stated, and shifts in Å stay what they are."""
    path = data_set(tmp_path, OLD)
    whole = read_star(path)
    stated = read_star(path, override={"rlnImagePixelSize": 3.0})
    assert {one.pixel_size for one in stated.optics} == {3.0}
    torch.testing.assert_close(stated.shift, whole.shift)


def test_an_odd_box_that_the_table_does_not_tell_is_asked_for(tmp_path: Path) -> None:
    path = data_set(tmp_path, OLD)
    stack(tmp_path / "a.mrcs", np.random.default_rng(0).normal(size=(3, 9, 9)).astype(np.float32))
    with pytest.raises(ParticleError, match="'rlnImageSize': 9"):
        read_star(path).images(torch.tensor([0]))
    told = read_star(path, override={"rlnImageSize": 9})
    assert len(told.images(torch.tensor([0])).rows) == 1
    torch.testing.assert_close(told.shift[0], read_star(path).shift[0] + PIXEL)


def test_optics_may_tell_of_the_transfer_and_particles_come_first(tmp_path: Path) -> None:
    """As in RELION: a phase plate of a group, and a voltage of each particle beside that of its group."""
    plate = NEW.replace("_rlnCtfDataAreCtfPremultiplied", "_rlnPhaseShift").replace("1.25 8 1", "1.25 8 90")
    found = read_star(data_set(tmp_path, plate))
    assert found.ctf[:, 3].tolist() == pytest.approx([0.0, 0.0, np.pi / 2])
    own = NEW.replace("_rlnMicrographName", "_rlnVoltage").replace('"one micrograph.mrc"', "120")
    found = read_star(data_set(tmp_path, own.replace("two.mrc", "300")))
    assert [found.optics[g].voltage for g in found.group.tolist()] == [120.0, 300.0, 300.0]
    weighed = NEW.replace("_rlnMicrographName", "_rlnCtfScalefactor").replace('"one micrograph.mrc"', "0.5")
    with pytest.warns(UserWarning, match="rlnCtfScalefactor, which our"):
        read_star(data_set(tmp_path, weighed.replace("two.mrc", "1.0")))


def test_micrographs_beside_the_particles_are_no_optics(tmp_path: Path) -> None:
    table = "\ndata_micrographs\n\nloop_\n_rlnMicrographName\n_rlnOpticsGroup\na.mrc 1\nb.mrc 1\n"
    same(read_star(data_set(tmp_path / "both", table + NEW)), read_star(data_set(tmp_path, NEW)))


def test_particles_that_name_no_group_are_of_the_only_one(tmp_path: Path) -> None:
    nameless = NEW.replace("_rlnOpticsGroup #2", "_rlnSomething #2")
    with pytest.raises(ParticleError, match="has optics groups, and particles without rlnOpticsGroup"):
        read_star(data_set(tmp_path, nameless))
    (group,) = read_star(data_set(tmp_path, nameless.replace("4 second 200 2.0 0.07 1.25 8 1\n", ""))).optics
    assert group.name == "first"


@pytest.mark.parametrize(
    ("old", "new", "asked"),
    [
        ("first 300", "first 300000", "give it as kV"),
        ("2.7 0.1 1.5", "2.7e7 0.1 1.5", "give it as mm"),
        ("2.7 0.1 1.5", "2.7 10 1.5", "give it as a share"),
        ("0.1 1.5 8", "0.1 -1.5 8", "a pixel size of -1.5"),
        ("000002@a.mrcs", "99999999999999999999@a.mrcs", "a number from 1, @"),
    ],
)
def test_optics_in_another_unit_are_refused(tmp_path: Path, old: str, new: str, asked: str) -> None:
    with pytest.raises(ParticleError, match=asked):
        read_star(data_set(tmp_path, NEW.replace(old, new)))


@pytest.mark.mistyped
def test_what_is_stated_must_be_a_number(tmp_path: Path) -> None:
    path = data_set(tmp_path, OLD)
    for value in ("x", float("nan"), None):
        with pytest.raises(ParticleError, match=r"override of rlnVoltage is .*: give a finite number"):
            read_star(path, override={"Voltage": value})
    with pytest.raises(ParticleError, match="a magnification that is not above 0"):
        read_star(data_set(tmp_path, OLD.replace("50000", "0")))


def test_a_header_that_is_out_of_date_yields_to_what_is_stated(tmp_path: Path) -> None:
    """As after a calibration of the pixel size."""
    path = data_set(tmp_path, NEW)
    stack(tmp_path / "a.mrcs", np.random.default_rng(0).normal(size=(3, 8, 8)).astype(np.float32), 1.4)
    with pytest.raises(ParticleError, match=r"if the table is right, override=\{'rlnImagePixelSize': 1.5\}"):
        read_star(path).images(torch.tensor([0]))
    found = read_star(path, override={"rlnImagePixelSize": 1.5}).images(torch.tensor([0]))
    assert len(found.rows) == 1


def test_words_that_begin_as_something_else_are_words(tmp_path: Path) -> None:
    """A folder data_1, as RELION and its users write it, is no new table."""
    path = data_set(tmp_path, NEW.replace("two.mrc", "data_1/two.mrc").replace("one micrograph", "#1 m"))
    particles = read_star(path)
    write_star(particles[torch.tensor([2])], tmp_path / "one.star")
    assert " data_1/two.mrc" in (tmp_path / "one.star").read_text(encoding="utf-8")
    same(read_star(tmp_path / "one.star"), particles[torch.tensor([2])])
    with pytest.raises(ParticleError, match=r"star files are ASCII, and this one has .*données"):
        read_star(data_set(tmp_path, NEW.replace("two.mrc", "données/two.mrc")))


def test_a_name_that_no_file_can_have_is_not_there(tmp_path: Path) -> None:
    particles = read_star(data_set(tmp_path, NEW.replace("sub/b.mrcs", "b" * 300 + ".mrcs")))
    with pytest.raises(ParticleError, match="is not below"):
        particles.images(torch.tensor([2]))
    with pytest.raises(ParticleError, match="at least one row"):
        particles.images(torch.tensor([], dtype=torch.long))


def test_more_images_than_memory_takes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    particles = read_star(data_set(tmp_path, NEW))
    monkeypatch.setattr(particle_set, "machine_memory", lambda: 500.0)
    with pytest.raises(ParticleError, match=r"2 images of 8 × 8 pixels .* read some rows at a time"):
        particles.images(torch.tensor([0, 1]))
