"""The likelihood: equal to that of the cropped pixels, best at the truth on average, and its landscapes."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from cryoanm_lib.errors import ForwardModelError
from cryoanm_lib.imaging.forward_model import ForwardModel
from cryoanm_lib.imaging.latents import Latents
from cryoanm_lib.imaging.likelihood import landscape, log_likelihood
from cryoanm_lib.imaging.noise import add_noise, cropped_noise
from cryoanm_lib.molecule.anm import normal_modes
from cryoanm_lib.molecule.structure import load_structure
from cryoanm_lib.numerics.fourier import coefficients_to_image, crop, highest_frequency, image_to_coefficients

torch.set_num_threads(1)
NOISE = 0.1
TRUTH = {"pose": 0.4, "amplitude": 1.5, "amplitude_2": -2.0, "defocus": 50.0, "shift_x": 0.5, "shift_y": -1.0}


@pytest.fixture(scope="module")
def forward() -> ForwardModel:
    reference = load_structure("adk_open").coordinates
    return ForwardModel(reference, normal_modes(reference, n_modes=2).vectors, pixel_size=1.5)


def latents_of(values: dict[str, float]) -> Latents:
    """By keyword, as `landscape` names them, and not by its own code."""
    number = {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
    return Latents.in_plane(
        number["pose"],
        torch.stack([number["amplitude"], number["amplitude_2"]]),
        number["defocus"],
        torch.stack([number["shift_x"], number["shift_y"]]),
    )


def observe(forward: ForwardModel, resolution: int = 32) -> Tensor:
    return forward.simulate(latents_of(TRUTH), NOISE, resolution, torch.Generator().manual_seed(0))


# Against pixels


@pytest.mark.parametrize(("box_size", "resolution"), [(32, 16), (32, 15), (31, 16), (31, 15), (32, 32)])
def test_it_is_the_density_of_the_cropped_pixels(box_size: int, resolution: int) -> None:
    """Exactly where K is odd. Where K is even the Nyquist row and column of the crop are zero.

    Then D = (K-1)² of its K² pixels are independent, and a sum over all pixels counts the normalisation
    log √(2π) σ a further K² - D = 2K - 1 times.
    """
    generator = torch.Generator().manual_seed(0)
    observed, predicted = torch.randn(2, 3, box_size, box_size, generator=generator, dtype=torch.float64)
    sigma = NOISE * resolution / box_size
    pixels = Normal(crop(predicted, resolution), sigma).log_prob(crop(observed, resolution)).sum(dim=(-2, -1))
    redundant = 0 if resolution % 2 else 2 * resolution - 1
    assert redundant == resolution**2 - (2 * highest_frequency(resolution) + 1) ** 2
    ours = log_likelihood(
        image_to_coefficients(observed, resolution),
        image_to_coefficients(predicted, resolution),
        NOISE,
        resolution,
        box_size,
    )
    constant = redundant * math.log(math.sqrt(2 * math.pi) * sigma)
    torch.testing.assert_close(ours, pixels + constant, rtol=1e-12, atol=0)


def test_at_the_whole_odd_box_it_is_the_density_of_the_pixels() -> None:
    generator = torch.Generator().manual_seed(1)
    observed, predicted = torch.randn(2, 15, 15, generator=generator, dtype=torch.float64)
    pixels = Normal(predicted, NOISE).log_prob(observed).sum()
    ours = log_likelihood(*(image_to_coefficients(i, 15) for i in (observed, predicted)), NOISE, 15, 15)
    torch.testing.assert_close(ours, pixels, rtol=1e-13, atol=0)


def test_batches_are_broadcast(forward: ForwardModel) -> None:
    observed = add_noise(observe(forward).expand(4, -1), NOISE, 64, torch.Generator().manual_seed(1))
    table = log_likelihood(observed[:, None], observed[None], NOISE, 32, 64)
    assert table.shape == (4, 4)
    alone = log_likelihood(observed[1], observed[2], NOISE, 32, 64)
    torch.testing.assert_close(table[1, 2], alone, rtol=1e-13, atol=0)
    assert (table.diagonal() > table - 1e-9).all()


# On average


@pytest.mark.parametrize("resolution", [8, 16, 32])
def test_the_truth_scores_best_in_expectation(forward: ForwardModel, resolution: int) -> None:
    """Other latents lose |Δŷ|² / 2σ², their divergence from the truth, on average over images.

    The loss of one image is normal with variance |Δŷ|² / σ²; the mean over 500 stays within 5 standard
    errors, which fails by chance with a rate of 6e-7 for each of the six latents.
    """
    n, sigma = 500, cropped_noise(NOISE, resolution, 64)
    at_truth = forward.coefficients(latents_of(TRUTH), resolution)
    observed = add_noise(at_truth.expand(n, -1), NOISE, 64, torch.Generator().manual_seed(2))
    best = log_likelihood(observed, at_truth, NOISE, resolution, 64)
    for name, step in dict.fromkeys(TRUTH, 0.2).items():
        elsewhere = forward.coefficients(latents_of(TRUTH | {name: TRUTH[name] + step}), resolution)
        difference = (elsewhere - at_truth).abs().square()
        # The kept half plane counts twice, but for k = 0.
        squared = resolution**2 * (2 * difference.sum() - difference[0]).item() / sigma**2
        loss = (best - log_likelihood(observed, elsewhere, NOISE, resolution, 64)).mean().item()
        assert squared > 0
        assert abs(loss - squared / 2) < 5 * math.sqrt(squared / n)


def test_the_likelihood_of_the_truth_is_what_noise_alone_allows(forward: ForwardModel) -> None:
    """Twice the gap to the highest possible value has a χ² distribution with D = 15² degrees of freedom.

    The sum over 1000 images stays within 5 standard deviations, a false-alarm rate of 6e-7.
    """
    n, resolution = 1000, 16
    at_truth = forward.coefficients(latents_of(TRUTH), resolution)
    observed = add_noise(at_truth.expand(n, -1), NOISE, 64, torch.Generator().manual_seed(3))
    highest = log_likelihood(observed, observed, NOISE, resolution, 64)
    chi_squared = 2 * (highest - log_likelihood(observed, at_truth, NOISE, resolution, 64)).sum().item()
    assert abs(chi_squared - n * 225) < 5 * math.sqrt(2 * n * 225)


def test_a_noise_free_image_has_no_slope_at_the_truth(forward: ForwardModel) -> None:
    pose = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    truth = latents_of(TRUTH)
    predicted = forward.coefficients(
        Latents.in_plane(pose, truth.amplitudes, truth.defocus, truth.shifts), 32
    )
    likelihood = log_likelihood(predicted.detach(), predicted, NOISE, 32, 64)
    (slope,) = torch.autograd.grad(likelihood, pose)
    assert slope.abs() < 1e-9


def test_noise_after_the_crop() -> None:
    assert cropped_noise(0.1, 32, 64) == pytest.approx(0.05)
    assert cropped_noise(0.3, 15, 45) == pytest.approx(0.1)


# Landscapes


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
    heights = landscape(forward, observed, at, along, NOISE, resolution)
    assert heights.shape == (3, 2)
    cropped = image_to_coefficients(coefficients_to_image(observed, 64), resolution)
    for row, x in enumerate(along[first].tolist()):
        for column, y in enumerate(along[second].tolist()):
            predicted = forward.coefficients(latents_of(TRUTH | {first: x, second: y}), resolution)
            expected = log_likelihood(cropped, predicted, NOISE, resolution, 64)
            torch.testing.assert_close(heights[row, column], expected, rtol=1e-12, atol=0)


def test_the_landscape_of_a_clean_image_peaks_at_the_truth(forward: ForwardModel) -> None:
    clean = forward.coefficients(latents_of(TRUTH), 32)
    grid = torch.linspace(-2, 2, 21, dtype=torch.float64)
    along = {"pose": TRUTH["pose"] + grid, "amplitude": TRUTH["amplitude"] + grid}
    heights = landscape(forward, clean, TRUTH, along, NOISE, 32)
    assert heights.argmax().item() == 10 * 21 + 10
    best = log_likelihood(clean, clean, NOISE, 32, 64)
    torch.testing.assert_close(heights[10, 10], best, rtol=1e-12, atol=0)


def test_latents_that_are_not_named_are_zero(forward: ForwardModel) -> None:
    observed, zeros = observe(forward), dict.fromkeys(TRUTH, 0.0) | {"defocus": 50.0}
    along = {name: torch.tensor([zeros[name]], dtype=torch.float64) for name in ("pose", "defocus")}
    expected = log_likelihood(observed, forward.coefficients(latents_of(zeros), 32), NOISE, 32, 64)
    assert landscape(forward, observed, {}, along, NOISE, 32).item() == pytest.approx(expected.item())


# Errors


@pytest.mark.parametrize("noise", [0.0, -0.1, math.nan])
def test_noise_that_gives_no_likelihood(noise: float) -> None:
    empty = torch.zeros(5, dtype=torch.complex64)
    with pytest.raises(ForwardModelError, match=f"noise = {noise:g} gives no likelihood: it must be greater"):
        log_likelihood(empty, empty, noise, 4, 8)


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
    message = r"varies two latents of \['pose', 'amplitude', 'amplitude_2', 'defocus', 'shift_x', 'shift_y'\]"
    with pytest.raises(ForwardModelError, match=message):
        landscape(forward, observe(forward), at, dict.fromkeys(along, torch.zeros(2).double()), NOISE, 32)


def test_a_landscape_cannot_be_finer_than_the_image(forward: ForwardModel) -> None:
    along = {"pose": torch.zeros(2).double(), "amplitude": torch.zeros(2).double()}
    with pytest.raises(ForwardModelError, match=r"K = 32 needs frequencies up to 15, but .* end at 7"):
        landscape(forward, observe(forward, resolution=16), {"defocus": 50.0}, along, NOISE, 32)
