"""Images by RELION in coloured noise, as their table has them and with each of the usual mistakes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch

import cryoanm_lib
from cryoanm_lib import Atoms, ParticleSet, Scattering, check_particles, load_atoms, read_star
from cryoanm_lib.checks.consistency import MISTAKES
from cryoanm_lib.commands.cryoanm import main
from cryoanm_lib.errors import CryoANMError
from cryoanm_lib.particles.stacks import opened
from tests.relion import (
    OPTICS_TABLE,
    atoms_map,
    coloured_noise,
    needs_relion,
    project,
    random_particles,
)

torch.set_num_threads(1)
OPTICS = {"voltage": 300.0, "spherical_aberration": 2.7, "amplitude_contrast": 0.1}
BOX, PIXEL, B_FACTOR = 64, 3.0, 50.0


@pytest.fixture(scope="module")
def molecule() -> Atoms:
    atoms = load_atoms("adk_open")
    return replace(atoms, b_factors=torch.full((len(atoms),), B_FACTOR, dtype=torch.float64))


def data_set(folder: Path, atoms: Atoms, kind: str, snr: float = 0.1, n: int = 120) -> ParticleSet:
    """Poses known to 2°, shifts to a pixel; and one mistake in how the table, or the images, are written."""
    rng = np.random.default_rng(3)
    volume = atoms_map(atoms.coordinates, Scattering.of_elements(atoms.elements, B_FACTOR), BOX, PIXEL)
    if kind == "mirrored":
        volume = np.roll(volume[::-1], 1, axis=0)
    table = random_particles(n, rng, (8000, 20_000), astigmatism=500.0)
    origins = ("OriginXAngst", "OriginYAngst")
    table |= {name: 3 * table[name] for name in origins}  # three pixels
    made = table | {name: 0 * table[name] for name in origins} if kind == "no_shifts" else table
    clean, _ = project(folder, volume, PIXEL, made, OPTICS, ctf=kind != "no_ctf")
    noise, _ = coloured_noise(n, rng, BOX)
    images = clean + (clean.flatten(1).var(dim=1).mean() / snr / noise.var()).sqrt() * noise
    images = {"inverted_contrast": -images, "no_signal": noise}.get(kind, images)
    table = table | {name: table[name] + rng.normal(0, PIXEL, n) for name in origins}
    angles = [table[f"Angle{name}"] + rng.normal(0, 2 / 3**0.5, n) for name in ("Rot", "Tilt", "Psi")]
    if kind == "transposed_rotation":
        angles = [-angle for angle in reversed(angles)]
    table |= dict(zip(("AngleRot", "AngleTilt", "AnglePsi"), angles, strict=True))
    if kind == "shift_sign":
        table |= {name: -table[name] for name in origins}
    with mrcfile.new(folder / "stack.mrcs", images.numpy().astype(np.float32), overwrite=True) as file:
        file.set_image_stack()
        file.voxel_size = PIXEL
    rows = [
        " ".join([*(f"{value:.6f}" for value in row), "1", f"{number:06d}@stack.mrcs"])
        for number, row in enumerate(zip(*table.values(), strict=True), start=1)
    ]
    labels = [f"_rln{label}" for label in (*table, "OpticsGroup", "ImageName")]
    head = OPTICS_TABLE.format(pixel_size=PIXEL, box_size=BOX, **OPTICS)
    path = folder / "particles.star"
    path.write_text(head + "\n".join([*labels, *rows]) + "\n", encoding="ascii")
    return read_star(path)


@needs_relion
@pytest.mark.parametrize("kind", ["consistent", "no_signal", *MISTAKES])
def test_every_mistake_is_told(tmp_path: Path, molecule: Atoms, kind: str) -> None:
    """By what explains the images better; the margin is told in standard errors."""
    found = check_particles(data_set(tmp_path, molecule, kind), molecule)
    assert found.verdict == kind
    assert found.sign == (-1 if kind == "inverted_contrast" else 1) or kind == "no_signal"
    assert found.images == 120
    record = found.as_dict()
    assert record["verdict"] == kind
    assert {f"correlation_{name}" for name in MISTAKES} <= set(record)
    if kind == "consistent":
        assert max(found.difference.values()) < 0
        assert 0.05 < found.snr < 0.3


@needs_relion
def test_another_molecule_is_told_and_another_state_is_not(tmp_path: Path, molecule: Atoms) -> None:
    """A molecule of the same atoms at random places within its own shape; and the closed form."""
    particles = data_set(tmp_path, molecule, "consistent")
    generator = torch.Generator().manual_seed(0)
    away = torch.randn(molecule.coordinates.shape, generator=generator, dtype=torch.float64)
    blurred = replace(molecule, coordinates=molecule.coordinates[:, [1, 2, 0]] + away)
    assert check_particles(particles, blurred).verdict == "wrong_molecule"
    closed = load_atoms("adk_closed")
    found = check_particles(particles, replace(closed, b_factors=molecule.b_factors[: len(closed)]))
    assert found.verdict in ("consistent", "wrong_molecule")
    assert found.correlation["as_is"] < check_particles(particles, molecule).correlation["as_is"]


@needs_relion
def test_the_command_says_the_same(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """To the eye, and as one object; mistakes of its user in one line."""
    atoms = load_atoms("adk_open")
    data_set(tmp_path, atoms, "inverted_contrast", n=40)
    asked = ["check", str(tmp_path / "particles.star"), "--reference", "adk_open"]
    assert main(asked) == 0
    told = capsys.readouterr().out
    assert "verdict: inverted contrast" in told
    assert "40 images, 300 kV, C_s 2.7 mm" in told
    assert main([*asked, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["verdict"] == "inverted_contrast"
    assert (record["images"], record["box_size"], record["pixel_size"], record["sign"]) == (
        40,
        BOX,
        PIXEL,
        -1,
    )
    assert main([*asked, "--override", "rlnVoltage"]) == 1
    assert "give LABEL=NUMBER" in capsys.readouterr().err
    assert main(["check", str(tmp_path / "no.star"), "--reference", "adk_open"]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_a_dark_molecule_is_said_to_be_dark(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The particles that come with the library, inverted: by an option they are consistent again."""
    shipped = Path(cryoanm_lib.__file__).parent / "data" / "adk_particles.star"
    shutil.copy(shipped, tmp_path)
    with mrcfile.new(tmp_path / "adk_particles.mrcs") as file:
        file.set_data(-opened(shipped.with_suffix(".mrcs")).images.astype(np.float32))
        file.voxel_size = 4.0
    asked = ["--reference", "adk_open", "--images", "100"]
    inverted = ["check", str(tmp_path / "adk_particles.star"), *asked]
    for arguments, verdict, remedy in (
        (inverted, "inverted contrast", "remedy: --dark; "),
        ([*inverted, "--dark"], "consistent", None),
        (["check", str(shipped), *asked, "--dark"], "inverted contrast", "remedy: leave out --dark; "),
    ):
        assert main(arguments) == 0
        told = capsys.readouterr().out
        assert f"verdict: {verdict}\n" in told
        assert ("remedy" in told) == (remedy is not None) and (remedy or "") in told
        assert f"molecule: {'bright' if arguments[1] == str(shipped) else 'dark'};" in told


@needs_relion
def test_a_map_will_do_for_a_molecule(tmp_path: Path, molecule: Atoms, capsys: pytest.CaptureFixture) -> None:
    """That from which RELION drew the images; its pseudo-atoms are where the map has them."""
    data_set(tmp_path, molecule, "consistent")
    asked = ["check", str(tmp_path / "particles.star"), "--reference", str(tmp_path / "map.mrc")]
    assert main(asked) == 1
    assert "a map needs a --threshold" in capsys.readouterr().err
    assert main([*asked, "--threshold", "0.05", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "consistent"


@needs_relion
def test_some_images_are_chosen_and_bad_ones_left_out(tmp_path: Path, molecule: Atoms) -> None:
    particles = data_set(tmp_path, molecule, "consistent", n=30)
    with mrcfile.open(tmp_path / "stack.mrcs", mode="r+") as file:
        file.data[4] = 0.0
    with pytest.raises(CryoANMError, match=r"000005@stack\.mrcs: all of its pixels are 0"):
        check_particles(particles, molecule)
    assert check_particles(particles, molecule, skip_bad=True).images == 29
    with pytest.raises(CryoANMError, match="give two or more"):
        check_particles(particles[torch.arange(5, 6)], molecule)
    few = check_particles(particles[torch.arange(5, 30)], molecule, images=10)
    assert few.images == 10
