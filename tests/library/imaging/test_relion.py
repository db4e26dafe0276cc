"""Images that another program drew: RELION's projections, with its angles, shifts and contrast transfer."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cryoanm_lib import (
    ContrastTransfer,
    ForwardModel,
    Model,
    OpticsPrior,
    Particles,
    WhiteNoise,
    given_ctf,
    load_structure,
    normal_modes,
    refine,
)
from cryoanm_lib.checks.calibration import LEVELS, coverage, coverage_band, credible_level
from cryoanm_lib.inference.fisher import fisher_information
from cryoanm_lib.inference.peak_finding import Starts
from cryoanm_lib.numerics.fourier import image_to_coefficients
from tests.relion import gaussians_map, needs_relion, project, quaternions, random_particles

torch.set_num_threads(1)
OPTICS = {"voltage": 300.0, "spherical_aberration": 2.7, "amplitude_contrast": 0.1}
PIXEL, WIDTH = 1.5, 1.2
#: What interpolation in RELION's padded Fourier space costs, relative L2.
AGREEMENT = 0.006


def latents_of(columns: dict[str, torch.Tensor], box_size: int) -> dict[str, torch.Tensor]:
    """Our pose, shift and transfer of what a star file says."""
    origin = torch.stack([columns["OriginXAngst"], columns["OriginYAngst"]], dim=-1)
    # In an odd box, RELION's centre lies a pixel further than the middle one.
    shift = box_size % 2 - origin / PIXEL
    optics = [columns[name] for name in ("DefocusU", "DefocusV", "DefocusAngle", "PhaseShift")]
    return {"pose": quaternions(columns), "shift": shift, "ctf": given_ctf(*optics)}


@needs_relion
@pytest.mark.parametrize("box_size", [64, 63, 80])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("astigmatism", "phase"), [(0.0, 0.0), (1000.0, 0.0), (1000.0, 90.0)])
def test_our_images_are_relions(
    tmp_path: Path, box_size: int, sign: int, astigmatism: float, phase: float
) -> None:
    """Even and odd boxes, either contrast, with astigmatism and a phase plate; nothing is fitted."""
    rng = np.random.default_rng(box_size)
    positions = torch.tensor(rng.normal(0, 8, (60, 3)))
    volume = gaussians_map(positions, WIDTH, box_size, PIXEL)
    particles = random_particles(8, rng, (6000, 15_000), astigmatism, phase)
    theirs, columns = project(tmp_path, volume, PIXEL, particles, OPTICS)
    transfer = ContrastTransfer(PIXEL, **OPTICS, sign=sign, varies=())
    sizes = {"box_size": box_size, "pixel_size": PIXEL, "atom_width": WIDTH}
    forward = ForwardModel(positions, torch.zeros(1, 60, 3).double(), **sizes, transfer=transfer)
    latents = latents_of(columns, box_size) | {"amplitude": torch.zeros(8, 1).double()}
    # An atom of ours has a peak of 1, and one of the map an integral of 1; the map's sign is the data's.
    ours = sign * forward.images(latents) / (2 * torch.pi * WIDTH**2)
    error = (ours - theirs).flatten(1).norm(dim=1) / theirs.flatten(1).norm(dim=1)
    assert error.max() <= AGREEMENT
    mistaken = sign * forward.images(latents | {"shift": -latents["shift"]}) / (2 * torch.pi * WIDTH**2)
    assert ((mistaken - theirs).flatten(1).norm(dim=1) > 10 * AGREEMENT * theirs.flatten(1).norm(dim=1)).all()


@pytest.mark.thorough
@needs_relion
def test_posteriors_of_relions_images_are_honest(tmp_path: Path) -> None:
    """Nine latents of 150 images of 30 conformations: at the limit, with error bars that hold.

    Cα beads of adenylate kinase bent along three modes; noise at a signal-to-noise ratio of 0.1, starts two
    degrees off; the bounds are those of an honest posterior at a false-alarm rate of 1e-3 each.
    """
    n, box_size, k = 150, 64, 32
    structure = load_structure("adk_open", stride=2)
    modes = normal_modes(structure.coordinates, 3).vectors
    rng = np.random.default_rng(7)
    bends = torch.tensor(rng.normal(0, 3, (n // 5, 3)))
    images, tables = [], []
    for bend in bends:
        bent = structure.coordinates + torch.tensordot(bend, modes, dims=1)
        particles = random_particles(5, rng, (7000, 11_000), astigmatism=300.0)
        volume = gaussians_map(bent, WIDTH, box_size, PIXEL)
        drawn, table = project(tmp_path, volume, PIXEL, particles, OPTICS)
        images.append(drawn)
        tables.append(table)
    clean = 2 * torch.pi * WIDTH**2 * torch.cat(images)
    read = {label: torch.cat([table[label] for table in tables]) for label in tables[0]}
    truth = latents_of(read, box_size) | {"amplitude": bends.repeat_interleave(5, dim=0)}
    # What the star file says of the focus is off by some 300 Å, which is to be found.
    truth["defocus"] = torch.tensor(rng.normal(0, 300, n))
    truth["ctf"][:, 0] -= truth["defocus"]

    noise = WhiteNoise((clean.flatten(1).var(dim=1).mean() / 0.1).sqrt().item(), box_size)
    sizes = {"box_size": box_size, "pixel_size": PIXEL, "atom_width": WIDTH}
    transfer = ContrastTransfer(PIXEL, **OPTICS)
    forward = ForwardModel(structure.coordinates, modes, **sizes, transfer=transfer)
    prior = OpticsPrior(pose="space", shift_scale=2.0, amplitude_scale=3.0)
    model = Model(forward, prior, noise)
    generator = torch.Generator().manual_seed(3)
    given = {"ctf": truth.pop("ctf")}
    seen = Particles(noise.sample(image_to_coefficients(clean, k), generator), given, noise)

    unknowns, columns_of = model.unknowns, model.unknowns.points(truth)
    away = torch.deg2rad(torch.tensor(2.0)).double() * torch.eye(len(unknowns.columns))[0]
    starts = Starts.of_each(unknowns.moved(columns_of, away.expand(n, -1))[:, None])
    posterior = refine(model, seen, k, starts, generator=generator)
    error = posterior.standardised(truth)
    deviations = error.square().mean(0).sqrt()
    limit = torch.linalg.inv(fisher_information(model, seen, truth, k)).diagonal(dim1=1, dim2=2).sqrt()
    off = unknowns.offset(unknowns.points(posterior.mean()).double(), columns_of)
    of_limit = (off.square().mean(0) / limit.square().mean(0)).sqrt()
    draws = posterior.sample(199, generator)
    level = credible_level(posterior, draws, truth)
    inside = torch.tensor([coverage(level, nominal, 199) for nominal in LEVELS])
    band = coverage_band(n, torch.tensor(LEVELS), 1 - 1e-3)
    assert ((inside >= band[:, 0]) & (inside <= band[:, 1])).all()
    assert of_limit.max() <= 1.25
    assert ((deviations > 0.8) & (deviations < 1.2)).all()
