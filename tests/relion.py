"""RELION as a referee: images that it projects from maps, with its angles, shifts and contrast transfer."""

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import gemmi
import mrcfile
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from cryoanm_lib import Scattering

needs_relion = pytest.mark.skipif(
    shutil.which("relion_project") is None, reason="relion_project is not there: apt-get install relion"
)

#: One optics group, as RELION 3.1 and later write it; the pixel and the box are filled in.
OPTICS_TABLE = """
data_optics

loop_
_rlnOpticsGroup
_rlnOpticsGroupName
_rlnVoltage
_rlnSphericalAberration
_rlnAmplitudeContrast
_rlnImagePixelSize
_rlnImageSize
_rlnImageDimensionality
1 group1 {voltage} {spherical_aberration} {amplitude_contrast} {pixel_size} {box_size} 2

data_particles

loop_
"""


def project(
    folder: Path,
    volume: np.ndarray,
    pixel_size: float,
    particles: Mapping[str, np.ndarray],
    optics: Mapping[str, float],
    ctf: bool = True,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Images by RELION of a map (z, y, x), and the columns of the star file that it wrote beside them.

    Particles are columns without `rln`; optics are a voltage in kV, spherical_aberration in mm and
    amplitude_contrast, which are left out of the images without `ctf`.
    """
    box_size = len(volume)
    with mrcfile.new(folder / "map.mrc", volume.astype(np.float32), overwrite=True) as written:
        written.voxel_size = pixel_size
    labels = [*particles, "OpticsGroup", "ImageName"]
    lines = [f"_rln{label}" for label in labels]
    for number, row in enumerate(zip(*particles.values(), strict=True), start=1):
        lines.append(" ".join([*(f"{value:.6f}" for value in row), "1", f"{number:06d}@none.mrcs"]))
    head = OPTICS_TABLE.format(pixel_size=pixel_size, box_size=box_size, **optics)
    (folder / "in.star").write_text(head + "\n".join(lines) + "\n", encoding="ascii")
    command = f"relion_project --i map.mrc --o out --ang in.star --angpix {pixel_size} --pad 4"
    command += " --ctf" if ctf else ""
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True, timeout=300)
    with mrcfile.open(folder / "out.mrcs") as stack:
        images = torch.tensor(stack.data, dtype=torch.float64).view(-1, box_size, box_size)
    table = gemmi.cif.read_file(str(folder / "out.star")).find_block("particles")
    columns = {label: [float(value) for value in table.find_loop(f"_rln{label}")] for label in particles}
    return images, {label: torch.tensor(column, dtype=torch.float64) for label, column in columns.items()}


def gaussians_map(positions: torch.Tensor, width: float, box_size: int, pixel_size: float) -> np.ndarray:
    """Density (z, y, x) of unit Gaussians of a width in pixels, at positions in Å about pixel N // 2."""
    grid = torch.arange(box_size, dtype=torch.float64) - box_size // 2
    away = grid - positions[..., None].double() / pixel_size
    along = (-0.5 * (away / width).square()).exp() / (width * (2 * torch.pi) ** 0.5)
    return torch.einsum("az,ay,ax->zyx", along[:, 2], along[:, 1], along[:, 0]).numpy()


def atoms_map(
    positions: torch.Tensor, scattering: Scattering, box_size: int, pixel_size: float
) -> np.ndarray:
    """Potential (z, y, x) of atoms at positions in Å about pixel N // 2, up to the grid's own resolution.

    By their transform, as the Gaussians of atoms are too narrow to be sampled. Summed along z and times the
    pixel it is a projection.
    """
    line = torch.fft.fftfreq(box_size, dtype=torch.float64)
    half = torch.fft.rfftfreq(box_size, dtype=torch.float64)
    squared = line[:, None, None] ** 2 + line[:, None] ** 2 + half**2
    transform = torch.zeros(box_size, box_size, len(half), dtype=torch.complex64)
    for kind in range(len(scattering.amplitudes)):
        at = positions[scattering.kinds == kind].double() / pixel_size
        x, y, z = (
            torch.polar(torch.ones(()).double(), -2 * torch.pi * at[:, i, None] * k).to(torch.complex64)
            for i, k in ((0, half), (1, line), (2, line))
        )
        radial = torch.stack([squared.flatten().sqrt(), torch.zeros(squared.numel())], dim=1)
        factor = scattering.factors(radial, pixel_size)[kind].view(squared.shape).float()
        transform += factor * torch.einsum("azy,ax->zyx", z[:, :, None] * y[:, None], x)
    density = torch.fft.irfftn(transform, s=(box_size,) * 3) / pixel_size**3
    return torch.fft.fftshift(density).numpy()


def quaternions(columns: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The active rotation that RELION's Euler angles stand for, x' = R x, as unit quaternions."""
    angles = torch.stack([columns[f"Angle{name}"] for name in ("Rot", "Tilt", "Psi")], dim=-1)
    turns = Rotation.from_euler("zyz", -angles.numpy(), degrees=True)
    return torch.tensor(turns.as_quat(canonical=True, scalar_first=True))


def random_particles(
    n: int,
    rng: np.random.Generator,
    defocus: tuple[float, float],
    astigmatism: float = 0.0,
    phase: float = 0.0,
) -> dict[str, np.ndarray]:
    """Columns of so many particles: poses anywhere, shifts of 3 Å, defocus in a range of Å."""
    middle, half = rng.uniform(*defocus, n), rng.uniform(0, astigmatism, n)
    return {
        "AngleRot": rng.uniform(-180, 180, n),
        "AngleTilt": np.degrees(np.arccos(rng.uniform(-1, 1, n))),
        "AnglePsi": rng.uniform(-180, 180, n),
        "OriginXAngst": rng.normal(0, 3, n),
        "OriginYAngst": rng.normal(0, 3, n),
        "DefocusU": middle + half,
        "DefocusV": middle - half,
        "DefocusAngle": rng.uniform(0, 180, n),
        "PhaseShift": rng.uniform(0, phase, n),
    }


def coloured_noise(n: int, rng: np.random.Generator, box: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels of noise whose power falls sixfold from the centre of Fourier space, and that power."""
    k = np.arange(box // 2 + 1) / box
    power = 1 + 5 / (1 + (k / 0.08) ** 2)
    line = np.fft.fftfreq(box, 1 / box)
    radius = np.hypot(line[:, None], line[None]).clip(max=box // 2)
    filtered = np.fft.fft2(rng.normal(size=(n, box, box))) * np.interp(radius, box * k, power) ** 0.5
    return torch.from_numpy(np.fft.ifft2(filtered).real), torch.from_numpy(power)
