"""Measures of a profile: what a known shape must give, and that where the circle begins does not matter."""

import math

import pytest
import torch
from torch import Tensor

from cryoanm_lib.book.landscapes import (
    basin_of_attraction,
    blurred,
    far_half_mass,
    half_width,
    is_half_turn,
    is_local_maximum,
    peak_correlation,
    pose_profiles,
    relative_height,
    second_peak,
)
from cryoanm_lib.imaging.forward_model import ForwardModel
from cryoanm_lib.imaging.latents import in_plane
from cryoanm_lib.imaging.likelihood import log_likelihood
from cryoanm_lib.imaging.noise import WhiteNoise
from cryoanm_lib.molecule.anm import normal_modes
from cryoanm_lib.molecule.structure import load_structure
from cryoanm_lib.particles.particles import Simulated

torch.set_num_threads(1)
N_POSES = 360
ANGLES = torch.linspace(-math.pi, math.pi, N_POSES + 1, dtype=torch.float64)[:-1]


def bump(centre: float, width: float) -> Tensor:
    """A peak of height 1 at an angle, both in degrees."""
    return (((ANGLES - math.radians(centre)).cos() - 1) / math.radians(width) ** 2).exp()


def test_a_profile_peaks_at_the_truth_and_equals_the_likelihood_there() -> None:
    structure = load_structure("adk_open")
    modes = normal_modes(structure.coordinates).vectors
    forward = ForwardModel(structure.coordinates.float(), modes.float())
    pose, amplitude = torch.tensor([0.4, -2.0]), torch.tensor([[1.0], [-3.0]])
    truth = in_plane(pose, amplitude, defocus=torch.tensor([50.0, 47.0]))
    noise = WhiteNoise(0.1, forward.box_size)
    clean = Simulated(forward.coefficients(truth, 32), {}, noise, truth)
    profiles = pose_profiles(forward, clean, ANGLES.float(), resolution=16)
    assert profiles.shape == (2, N_POSES)
    assert (profiles.argmax(dim=-1) == N_POSES // 2).all()
    predicted = forward.coefficients(truth, 16)
    expected = log_likelihood(predicted, predicted, noise, 16)
    torch.testing.assert_close(profiles[:, N_POSES // 2], expected)


@pytest.mark.parametrize("turn", [0, 1, 100, 359])
def test_measures_do_not_depend_on_where_the_circle_begins(turn: int) -> None:
    profile = 100 * (bump(20, 8) + 0.5 * bump(-150, 12) + 0.1 * bump(90, 20))
    turned = profile.roll(turn)
    assert half_width(turned).item() == pytest.approx(half_width(profile).item())
    assert basin_of_attraction(turned) == basin_of_attraction(profile)
    torch.testing.assert_close(second_peak(turned), second_peak(profile))
    torch.testing.assert_close(blurred(turned, 15.0), blurred(profile, 15.0).roll(turn))
    assert is_local_maximum(turned).sum() == 3


@pytest.mark.parametrize("width", [4.0, 10.0])
def test_half_width_of_a_gaussian_peak(width: float) -> None:
    assert half_width(bump(0, width)).item() == pytest.approx(width * math.sqrt(2 * math.log(2)), rel=0.01)


def test_second_peak_is_the_rival_and_not_the_shoulder() -> None:
    profile = 100 * torch.maximum(bump(0, 5), torch.maximum(0.9 * bump(20, 3), 0.4 * bump(175, 5)))
    angle, gap = second_peak(profile)
    assert angle.item() == pytest.approx(175.0)
    assert gap.item() == pytest.approx(60.0, abs=0.1)
    assert is_half_turn(angle)


def test_one_peak_has_no_rival() -> None:
    angle, gap = second_peak(ANGLES.cos())
    assert angle.isnan()
    assert gap == math.inf
    assert basin_of_attraction(ANGLES.cos()) == 1


def test_relative_height_forgets_scale_and_offset() -> None:
    profile = bump(0, 10) + 0.3 * bump(100, 30)
    torch.testing.assert_close(relative_height(7 * profile - 1000), relative_height(profile))


def test_blurring_multiplies_a_harmonic_and_keeps_the_mean() -> None:
    profile = 3 + (2 * ANGLES).cos()
    found = blurred(profile, spread=5.0)
    # A normal of deviation s multiplies cos 2θ by exp(-2 s²); at 5° the von Mises is one to 1e-4.
    expected = 3 + math.exp(-2 * math.radians(5.0) ** 2) * (2 * ANGLES).cos()
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("correlation", [-0.6, 0.0, 0.9])
@pytest.mark.parametrize("centre", [0.0, 5.0], ids=["inside", "off the grid"])
def test_peak_correlation_of_a_gaussian(correlation: float, centre: float) -> None:
    a, b = torch.meshgrid(torch.linspace(-2, 2, 31), torch.linspace(-30, 30, 21), indexing="ij")
    a, b = a - centre, b / 10
    log_density = -(a**2 - 2 * correlation * a * b + b**2) / (2 * (1 - correlation**2))
    assert peak_correlation(log_density) == pytest.approx(correlation, abs=1e-3)


@pytest.mark.parametrize("share", [0.5, 0.2, 0.01, 0.0])
def test_the_far_half_has_the_mass_of_the_other_peak(share) -> None:
    """Two narrow peaks, half a turn apart, with known weights; where the circle begins does not matter."""
    density = (1 - share) * bump(40.0, 5.0) + share * bump(-140.0, 5.0)
    for shift in (0, 77):
        assert far_half_mass((density + 1e-30).log().roll(shift)) == pytest.approx(share, abs=1e-6)
