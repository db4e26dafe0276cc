"""The particles that come with the library, by RELION:  python -m tests.make_particles.

Adenylate kinase with all its atoms on the straight way from the open form to the closed one, bent besides
along its two softest modes, in front of 300 kV. The table's poses are off by 2°, its shifts by half a
pixel, its defoci by 200 Å, contrast varies by a tenth, and coloured noise is ten times as strong as the
signal.
"""

import csv
import tempfile
from collections.abc import Sequence
from pathlib import Path

import mrcfile
import numpy as np
import torch
from scipy.spatial.transform import Rotation

import cryoanm_lib
from cryoanm_lib import Plan, Scattering, molecule_of
from tests.relion import OPTICS_TABLE, atoms_map, coloured_noise, project, random_particles

BOX, PIXEL, B_FACTOR, SNR = 48, 4.0, 50.0, 0.1
STATES, EACH = 20, 18
BENDS = (40.0, 30.0)  # Å over all atoms
OPTICS = {"voltage": 300.0, "spherical_aberration": 2.7, "amplitude_contrast": 0.1}
POSE, SHIFT, DEFOCUS, CONTRAST = np.radians(2.0) / 3**0.5, 0.5 * PIXEL, 200.0, 0.1


def make(
    folder: Path,
    seed: int = 5,
    states: Sequence[float] = tuple(np.linspace(0, 1, STATES)),
    each: Sequence[int] = (EACH,) * STATES,
    box: int = BOX,
    pixel: float = PIXEL,
) -> None:
    """Write adk_particles.star, .mrcs and, what nobody would be told, _truth.csv.

    Of so many particles in each state, from the open form, 0, to the closed one, 1.
    """
    rng = np.random.default_rng(seed)
    plan = Plan(particles="", reference="adk_open", towards="adk_closed", modes=3)
    molecule = molecule_of(plan)
    scattering = Scattering.of_elements(molecule.source.elements, B_FACTOR)
    images, tables, truths = [], [], []
    for state, count in zip(states, each, strict=True):
        amplitudes = torch.tensor([state * molecule.scales[0], *rng.normal(0, BENDS)])
        places = molecule.coordinates + torch.tensordot(amplitudes, molecule.directions, dims=1)
        table = random_particles(count, rng, (8000, 20_000), astigmatism=500.0)
        table |= {name: 2 * table[name] for name in ("OriginXAngst", "OriginYAngst")}
        with tempfile.TemporaryDirectory() as work:
            volume = atoms_map(places, scattering, box, pixel)
            images.append(project(Path(work), volume, pixel, table, OPTICS)[0])
        tables.append(table)
        truths += [[state, *amplitudes.tolist()]] * count
    clean = torch.cat(images)
    n = len(clean)
    table = {name: np.concatenate([each[name] for each in tables]) for name in tables[0]}
    contrast, off = rng.normal(1, CONTRAST, n), rng.normal(0, DEFOCUS, n)
    noise, _ = coloured_noise(n, rng, box)
    strength = (clean.flatten(1).var(1).mean() / SNR / noise.var()).sqrt()
    seen = torch.from_numpy(contrast)[:, None, None] * clean + strength * noise
    order = rng.permutation(n)
    _write(
        folder,
        seen[order],
        pixel,
        {k: v[order] for k, v in _mistaken(table, off, SHIFT * pixel / PIXEL, rng).items()},
    )
    rows = np.column_stack([truths, contrast, off, *table.values()])[order]
    with open(folder / "adk_particles_truth.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        names = ("state", "amplitude_1", "amplitude_2", "amplitude_3", "contrast", "defocus", *table)
        writer.writerows([names, *([f"{x:.6g}" for x in row] for row in rows)])


def _mistaken(
    table: dict[str, np.ndarray], off: np.ndarray, shift: float, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """What a program would have found."""
    n, angles = len(off), ("AngleRot", "AngleTilt", "AnglePsi")
    true = Rotation.from_euler("zyz", -np.stack([table[a] for a in angles], axis=1), degrees=True)
    found = Rotation.from_rotvec(rng.normal(0, POSE, (n, 3))) * true
    wrong = table | dict(zip(angles, -found.as_euler("zyz", degrees=True).T, strict=True))
    for name in ("OriginXAngst", "OriginYAngst"):
        wrong[name] = table[name] + rng.normal(0, shift, n)
    return wrong | {name: table[name] - off for name in ("DefocusU", "DefocusV")}


def _write(folder: Path, images: torch.Tensor, pixel: float, table: dict[str, np.ndarray]) -> None:
    """Pixels as 16-bit integers, which any program reads."""
    scaled = (images * (8000 / images.abs().max())).round().numpy().astype(np.int16)
    with mrcfile.new(folder / "adk_particles.mrcs", scaled, overwrite=True) as file:
        file.set_image_stack()
        file.voxel_size = pixel
    labels = [f"_rln{label}" for label in (*table, "OpticsGroup", "ImageName")]
    rows = [
        " ".join([*(f"{value:.4f}" for value in row), "1", f"{number:06d}@adk_particles.mrcs"])
        for number, row in enumerate(zip(*table.values(), strict=True), start=1)
    ]
    head = OPTICS_TABLE.format(pixel_size=pixel, box_size=images.shape[-1], **OPTICS).lstrip()
    (folder / "adk_particles.star").write_text(head + "\n".join([*labels, *rows]) + "\n", encoding="ascii")


if __name__ == "__main__":
    torch.set_num_threads(1)
    make(Path(cryoanm_lib.__file__).parent / "data")
