"""What programs do to images on account of their transfer, undone; with RELION as the program."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import cryoanm_lib
from cryoanm_lib import OpticsGroup, ParticleSet, read_star
from cryoanm_lib.errors import ParticleError
from cryoanm_lib.imaging.contrast_transfer import GIVEN_CTF
from cryoanm_lib.numerics.fourier import half_plane_frequencies, image_to_coefficients
from tests.relion import needs_relion

torch.set_num_threads(1)
DATA = Path(cryoanm_lib.__file__).parent / "data"
GROUP = OpticsGroup("one", 300.0, 2.7, 0.1, 2.0)
BOX = 48


def some_ctf(n: int) -> torch.Tensor:
    """Defocus of 1 to 2 µm, astigmatism, a phase plate and an envelope."""
    torch.manual_seed(0)
    columns = (1e4 + 1e4 * torch.rand(n), 300 * torch.randn(n), 300 * torch.randn(n))
    return torch.stack([*columns, 0.3 * torch.rand(n), 40 * torch.rand(n)], dim=1).double()


def test_phases_are_flipped_back_exactly() -> None:
    """But at |k| = N/2, where x and -x are one frequency, of two values of an astigmatic transfer."""
    group, ctf = replace(GROUP, phase_flipped=True), some_ctf(5)
    images = torch.randn(5, BOX, BOX)
    flipped = group.corrected(images, ctf)
    assert (flipped - images).abs().max() > 1
    before, again = (image_to_coefficients(i, BOX) for i in (images, group.as_taken(flipped, ctf)))
    torch.testing.assert_close(again, before, atol=1e-7, rtol=0)
    # of a dark molecule H has the other sign, and no program knows
    torch.testing.assert_close(replace(group, sign=-1).corrected(images, ctf), flipped)


@pytest.mark.parametrize("box", [BOX, BOX + 1])
def test_what_was_multiplied_is_divided_again(box: int) -> None:
    """Where the transfer leaves anything; elsewhere it becomes weaker and never stronger."""
    group, ctf = replace(GROUP, ctf_premultiplied=True), some_ctf(50)
    images = torch.randn(50, box, box)
    again = image_to_coefficients(group.as_taken(group.corrected(images, ctf), ctf), box)
    before = image_to_coefficients(images, box)
    h = GROUP.transfer(varies=()).values({GIVEN_CTF: ctf}, half_plane_frequencies(box).double() / box)
    there = h.abs() > 0.101
    assert 0.85 < there.double().mean() < 0.98
    torch.testing.assert_close(again[there], before[there], atol=2e-5, rtol=0)
    assert (again.abs() <= before.abs() + 2e-5).all()


def test_noise_is_white_again() -> None:
    """Its power in each shell, to what chance allows: five deviations of 23 shells, once in 10⁵ times."""
    group, ctf = replace(GROUP, ctf_premultiplied=True), some_ctf(400)
    images = group.as_taken(group.corrected(torch.randn(400, BOX, BOX), ctf), ctf)
    power = image_to_coefficients(images, BOX).abs().square() * BOX**2
    radius = half_plane_frequencies(BOX).norm(dim=1).round()
    for shell in range(1, BOX // 2):
        found = power[:, radius == shell]
        # what was lost for good is at most as much as lies below the threshold
        assert found.mean().item() == pytest.approx(1.0, abs=5 / found.numel() ** 0.5 + 0.09)


def stacked(folder: Path, **flags: float) -> ParticleSet:
    """The particles that come with the library, multiplied by RELION, and read with some flags."""
    for suffix in (".star", ".mrcs"):
        shutil.copy(DATA / f"adk_particles{suffix}", folder)
    command = "relion_ctf_toolbox --i adk_particles.star --o mult"
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True, timeout=300)
    return read_star(folder / "adk_particles_mult.star", override=flags)


@needs_relion
def test_what_relion_multiplies_is_undone(tmp_path: Path) -> None:
    given = read_star(DATA / "adk_particles.star")
    multiplied = stacked(tmp_path, rlnCtfDataAreCtfPremultiplied=1)
    before, after = (image_to_coefficients(each.images().pixels, BOX) for each in (given, multiplied))
    transfer, ctf = given.optics[0].transfer(varies=()), given.latents()[GIVEN_CTF]
    h = transfer.values({GIVEN_CTF: ctf}, half_plane_frequencies(BOX).double() / BOX)
    told = h.abs() > 0.11
    left = (after - before)[told].abs().square().mean() / before[told].abs().square().mean()
    assert left.sqrt() < 0.01
    # and taken as they are they are others
    raw = image_to_coefficients(stacked(tmp_path).images().pixels, BOX)
    assert (raw - before).abs().square().mean() > 0.1 * before.abs().square().mean()


def test_a_correction_by_an_unknown_transfer_is_refused() -> None:
    particles = read_star(DATA / "adk_particles.star", override={"rlnCtfDataArePhaseFlipped": 1})
    unknown = replace(particles, ctf=None, absent={"ctf": "says nothing of defocus"})
    with pytest.raises(ParticleError, match="says nothing of defocus"):
        unknown.images(torch.arange(3))
    with pytest.raises(ParticleError, match=r"and phase-flipped.*rlnCtfDataArePhaseFlipped"):
        read_star(
            DATA / "adk_particles.star",
            override={"rlnCtfDataArePhaseFlipped": 1, "rlnCtfDataAreCtfPremultiplied": 1},
        )
