"""Residuals by hand, and the information limit against a posterior computed on a grid."""

import math

import pyro
import pytest
import torch

from cryoanm_lib.diagnostics import information_limit, opposite_weight, residuals, turning_error
from cryoanm_lib.forward import Latents
from cryoanm_lib.likelihood import log_likelihood
from cryoanm_lib.program import Prior
from cryoanm_lib.rotation import angle_to_unit_vector, unit_vector_to_angle


def test_residuals_by_hand() -> None:
    sampled = {
        "pose": angle_to_unit_vector(torch.deg2rad(torch.tensor([179.0, 10.0]))),
        "amplitude": torch.tensor([[1.0, 3.0], [0.0, 0.0]]),
        "defocus": torch.tensor([51.0, 50.0]),
    }
    truth = {
        "pose": angle_to_unit_vector(torch.deg2rad(torch.tensor([-179.0, -170.0]))),
        "amplitude": torch.tensor([[0.0, 1.0], [0.0, 0.0]]),
        "defocus": torch.tensor([49.5, 50.0]),
    }
    found = residuals(sampled, truth)
    torch.testing.assert_close(found["pose"], torch.tensor([2.0, 180.0]), rtol=0, atol=1e-4)
    torch.testing.assert_close(found["amplitude"], torch.tensor([1.5, 0.0]))
    torch.testing.assert_close(found["defocus"], torch.tensor([1.5, 0.0]))


@pytest.mark.parametrize("resolution", [8, 16, 32])
def test_quarter_turns_are_exact_on_rings(tiny_program, resolution) -> None:
    """The square crop maps onto itself; in between it does not, and less so the less it holds."""
    program = tiny_program()
    assert turning_error(program, resolution, 90.0) < 1e-5
    assert turning_error(program, resolution, 180.0) < 1e-5
    assert turning_error(program, resolution, 45.0) > 1e-3


def test_what_is_seen_turns_where_the_spectrum_has_faded(tiny_program) -> None:
    """With atoms of 3 px nothing is left at the edge of the crop, so that its shape does not matter."""
    program = tiny_program()
    program.forward_model.atom_width = 3.0
    program.forward_model.reference *= 0.4
    assert turning_error(program, 32, 45.0) < 0.01


def test_opposite_weight_by_hand() -> None:
    """Two components: opposite, side by side, and opposite with the heavier one second."""
    answer = {
        "pose_logits": torch.tensor([[0.7, 0.3], [0.7, 0.3], [0.1, 0.9]]).log(),
        "pose_concentrations": torch.tensor(
            [[[3.0, 0.0], [-9.0, 0.5]], [[3.0, 0.0], [2.0, 1.0]], [[0.0, 1.0], [0.0, -1.0]]]
        ),
    }
    torch.testing.assert_close(opposite_weight(answer), torch.tensor([0.3, 0.0, 0.1]))


def test_residuals_of_some_latents_only() -> None:
    assert set(residuals({"defocus": torch.zeros(2)}, {"defocus": torch.ones(2)})) == {"defocus"}


def test_information_limit_is_the_spread_of_the_grid_posterior(tiny_forward) -> None:
    """Pose alone: 2/√π times the deviation of the posterior on a fine grid, averaged over 60 images, to 5 %.

    The two differ by the noise in each image's own curvature, about 1 % here after averaging.
    """
    pyro.set_rng_seed(0)
    n, resolution, noise = 60, 24, 0.02
    pose = torch.rand(n) * 2 * math.pi - math.pi
    amplitude, defocus = 3 * torch.randn(n, 1), 50 + 3 * torch.randn(n)
    truth = {"pose": angle_to_unit_vector(pose), "amplitude": amplitude, "defocus": defocus}
    observed = tiny_forward.simulate(Latents.in_plane(pose, amplitude, defocus), noise, resolution)
    limit = information_limit(tiny_forward, truth, ("pose",), Prior(), noise, resolution)["pose"]

    width = torch.deg2rad(limit.mean())
    offsets = torch.linspace(-8, 8, 401)[:, None] * width
    angles = unit_vector_to_angle(truth["pose"]) + offsets
    grid = Latents.in_plane(angles, amplitude.expand(401, n, 1), defocus.expand(401, n))
    log_density = log_likelihood(observed, tiny_forward.coefficients(grid, resolution), noise, resolution, 32)
    weights = log_density.softmax(0)
    mean = (weights * offsets).sum(0)
    deviation = (weights * (offsets - mean) ** 2).sum(0).sqrt()
    expected = torch.rad2deg(2 * deviation / math.sqrt(math.pi)).mean()
    assert abs(limit.mean() / expected - 1) < 0.05


def test_more_unknowns_and_fewer_frequencies_never_help(tiny_forward) -> None:
    truth = {
        "pose": angle_to_unit_vector(torch.linspace(-3, 3, 20)),
        "amplitude": torch.linspace(-4, 4, 20)[:, None],
        "defocus": torch.linspace(45, 55, 20),
    }
    alone = information_limit(tiny_forward, truth, ("pose",), Prior(), 0.1, 24)
    together = information_limit(tiny_forward, truth, ("pose", "amplitude", "defocus"), Prior(), 0.1, 24)
    coarse = information_limit(tiny_forward, truth, ("pose",), Prior(), 0.1, 12)
    assert (together["pose"] >= alone["pose"] * (1 - 1e-5)).all()
    assert (coarse["pose"] >= alone["pose"] * (1 - 1e-5)).all()


def test_without_information_the_limit_is_the_prior(tiny_forward) -> None:
    truth = {
        "pose": angle_to_unit_vector(torch.zeros(3)),
        "amplitude": torch.zeros(3, 1),
        "defocus": torch.full((3,), 50.0),
    }
    limit = information_limit(tiny_forward, truth, ("amplitude", "defocus"), Prior(), 1e4, 16)
    torch.testing.assert_close(limit["amplitude"], torch.full((3,), 2 * 3.0 / math.sqrt(math.pi)).double())
    torch.testing.assert_close(limit["defocus"], torch.full((3,), 2 * 3.0 / math.sqrt(math.pi)).double())


def test_an_informative_prior_of_the_pose_counts(tiny_forward) -> None:
    """A concentrated prior bounds the limit by its own width, and a uniform one changes nothing."""
    angle = 0.4
    truth = {
        "pose": angle_to_unit_vector(torch.full((4,), angle)),
        "amplitude": torch.zeros(4, 1),
        "defocus": torch.full((4,), 50.0),
    }
    concentration = 200.0
    direction = (concentration * math.cos(angle), concentration * math.sin(angle))
    limit = information_limit(tiny_forward, truth, ("pose",), Prior(pose_concentration=direction), 1e6, 16)
    expected = math.degrees(2 / concentration / math.sqrt(math.pi))
    torch.testing.assert_close(limit["pose"], torch.full((4,), expected).double(), rtol=1e-3, atol=0)
