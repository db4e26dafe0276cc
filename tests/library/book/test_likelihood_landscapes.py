"""Landscapes of the likelihood: its height at each point of a grid, and highest at the truth."""

import pytest
import torch
from torch import Tensor

from cryoanm_lib.book.landscapes import landscape
from cryoanm_lib.errors import ForwardModelError
from cryoanm_lib.imaging.forward_model import ForwardModel
from cryoanm_lib.imaging.likelihood import log_likelihood
from cryoanm_lib.imaging.noise import WhiteNoise
from cryoanm_lib.numerics.fourier import coefficients_to_image, image_to_coefficients
from cryoanm_lib.particles.particles import Particles
from tests.library.two_modes import TRUTH, latents_of, two_modes

torch.set_num_threads(1)
WHITE = WhiteNoise(0.1, box_size=64)


@pytest.fixture(scope="module")
def forward() -> ForwardModel:
    return two_modes()


def image(coefficients: Tensor) -> Particles:
    return Particles(coefficients[None], {}, WHITE)


def observe(forward: ForwardModel, resolution: int = 32) -> Particles:
    clean = forward.coefficients(latents_of(TRUTH), resolution)
    return image(WHITE.sample(clean, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("pose", "amplitude"),
        ("defocus", "pose"),
        ("shift_x", "shift_y"),
        ("amplitude_2", "amplitude"),
        ("shift_y", "amplitude_2"),
    ],
)
@pytest.mark.parametrize("resolution", [16, 32])
def test_a_landscape_is_the_likelihood_at_each_point(
    forward: ForwardModel, first: str, second: str, resolution: int
) -> None:
    observed = observe(forward)
    offsets = torch.tensor([-0.7, 0.0, 0.4], dtype=torch.float64)
    along = {first: TRUTH[first] + offsets, second: TRUTH[second] + offsets[:2]}
    at = {name: value for name, value in TRUTH.items() if name not in along}
    heights = landscape(forward, observed, at, along, resolution)
    assert heights.shape == (3, 2)
    cropped = image_to_coefficients(coefficients_to_image(observed.coefficients[0], 64), resolution)
    for row, x in enumerate(along[first].tolist()):
        for column, y in enumerate(along[second].tolist()):
            predicted = forward.coefficients(latents_of(TRUTH | {first: x, second: y}), resolution)
            expected = log_likelihood(cropped, predicted, WHITE, resolution)
            torch.testing.assert_close(heights[row, column], expected, rtol=1e-12, atol=0)


def test_the_landscape_of_a_clean_image_peaks_at_the_truth(forward: ForwardModel) -> None:
    clean = forward.coefficients(latents_of(TRUTH), 32)
    grid = torch.linspace(-2, 2, 21, dtype=torch.float64)
    along = {"pose": TRUTH["pose"] + grid, "amplitude": TRUTH["amplitude"] + grid}
    heights = landscape(forward, image(clean), TRUTH, along, 32)
    assert heights.argmax().item() == 10 * 21 + 10
    best = log_likelihood(clean, clean, WHITE, 32)
    torch.testing.assert_close(heights[10, 10], best, rtol=1e-12, atol=0)


def test_latents_that_are_not_named_are_at_rest(forward: ForwardModel) -> None:
    """Zero, and a contrast of one."""
    observed, rest = observe(forward), dict.fromkeys(TRUTH, 0.0) | {"defocus": 50.0}
    along = {name: torch.tensor([rest[name]], dtype=torch.float64) for name in ("pose", "defocus")}
    predicted = forward.coefficients(latents_of(rest), 32)
    expected = log_likelihood(observed.coefficients[0], predicted, WHITE, 32)
    assert landscape(forward, observed, {}, along, 32).item() == pytest.approx(expected.item())


# Errors


@pytest.mark.parametrize(
    ("at", "along"),
    [
        ({}, ["pose"]),
        ({}, ["pose", "amplitude", "defocus"]),
        ({}, ["pose", "angle"]),
        ({"amplitude_3": 0.0}, ["pose", "amplitude"]),
        ({"amplitude_1": 0.0}, ["pose", "amplitude"]),
    ],
)
def test_a_landscape_varies_two_known_latents(forward: ForwardModel, at, along: list[str]) -> None:
    names = "'pose', 'shift_x', 'shift_y', 'amplitude', 'amplitude_2', 'defocus', 'contrast'"
    with pytest.raises(ForwardModelError, match=rf"varies two latents of \[{names}\]"):
        landscape(forward, observe(forward), at, dict.fromkeys(along, torch.zeros(2).double()), 32)


def test_a_landscape_cannot_be_finer_than_the_image(forward: ForwardModel) -> None:
    along = {"pose": torch.zeros(2).double(), "amplitude": torch.zeros(2).double()}
    with pytest.raises(ForwardModelError, match=r"K = 32 needs frequencies up to 15, but .* end at 7"):
        landscape(forward, observe(forward, resolution=16), {"defocus": 50.0}, along, 32)
