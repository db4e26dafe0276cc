"""Contrast transfer: its symmetries, its first zero, its slopes, and the textbook electron wavelength."""

import math

import pytest
import torch

from cryoanm_lib.imaging.contrast_transfer import natural_defocus
from cryoanm_lib.imaging.transfer import SineTransfer, Transfer, ctf
from tests.library.rotations import rotation_z

torch.set_num_threads(1)
DEFOCUS = torch.tensor([41.0, 50.0, 59.0], dtype=torch.float64)


def random_frequencies(n: int = 500) -> torch.Tensor:
    """Uniform in the square up to the Nyquist frequency, in cycles per pixel."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, 2, generator=generator, dtype=torch.float64) - 0.5


def test_nothing_is_transferred_at_the_origin() -> None:
    assert torch.equal(ctf(DEFOCUS, torch.zeros(1, 2, dtype=torch.float64)), -torch.zeros(3, 1).double())


def test_the_transfer_is_a_sine_of_the_squared_frequency() -> None:
    frequencies = random_frequencies()
    kx, ky = frequencies.T
    expected = torch.stack([-(z * (kx**2 + ky**2)).sin() for z in DEFOCUS])
    torch.testing.assert_close(ctf(DEFOCUS, frequencies), expected, rtol=0, atol=1e-14)
    assert ctf(DEFOCUS, frequencies).abs().max() <= 1


def test_the_transfer_is_even_and_radial() -> None:
    frequencies = random_frequencies()
    turned = frequencies @ rotation_z(torch.tensor(0.7, dtype=torch.float64))[:2, :2].T
    for equivalent in (-frequencies, frequencies.flip(-1), turned):
        torch.testing.assert_close(ctf(DEFOCUS, equivalent), ctf(DEFOCUS, frequencies), rtol=0, atol=1e-13)


def test_underfocus_inverts_contrast_up_to_the_first_zero() -> None:
    radius = (torch.linspace(0.01, 0.99, 50, dtype=torch.float64) * math.pi / DEFOCUS[:, None]).sqrt()
    for defocus, radii in zip(DEFOCUS, radius, strict=True):
        assert (ctf(defocus, torch.stack([radii, 0 * radii], dim=-1)) < 0).all()
        zero = torch.stack([(math.pi / defocus).sqrt(), 0 * defocus])
        assert ctf(defocus, zero[None]).abs().item() < 1e-14


def test_batch_dimensions_come_first() -> None:
    frequencies = random_frequencies(7)
    defocus = DEFOCUS.expand(4, 3)
    assert torch.equal(ctf(defocus, frequencies)[2, 1], ctf(DEFOCUS[1], frequencies))


def test_the_gradient_agrees_with_finite_differences() -> None:
    frequencies = random_frequencies(5)
    assert torch.autograd.gradcheck(ctf, (DEFOCUS.clone().requires_grad_(), frequencies.requires_grad_()))


def test_the_slopes_of_the_microscope_agree_with_autograd() -> None:
    """Derivatives of its values by each of its latents, frequency by frequency."""
    microscope, frequencies = SineTransfer(), random_frequencies()
    latents = {"defocus": DEFOCUS.clone()}
    slopes = microscope.slopes(latents, frequencies)
    assert list(slopes) == [latent.name for latent in microscope.latents]
    # In reverse: torch warns of a deprecation of its own on its way forward.
    found = torch.func.jacrev(lambda z: microscope.values({"defocus": z}, frequencies))(DEFOCUS)
    of_each = found.diagonal(dim1=0, dim2=2).T  # an image's transfer knows nothing of another's defocus
    torch.testing.assert_close(slopes["defocus"], of_each[:, None], rtol=0, atol=1e-14)


@pytest.mark.parametrize("highest", [0.1, 0.25, 0.5])
def test_a_step_moves_the_transfer_by_half_at_most(highest: float) -> None:
    """The microscope's own rule, and what any has from its slopes, which knows this image's defocus."""
    microscope = SineTransfer()
    latents = {"pose": torch.ones(1, 2, dtype=torch.float64), "defocus": DEFOCUS[:1]}
    (own,) = microscope.steps(latents, highest)["defocus"]
    by_slopes = Transfer.steps(microscope, latents, highest)["defocus"]
    frequencies = torch.tensor([[highest, 0.0]]) * torch.linspace(0, 1, 200)[:, None]
    start, end = (ctf(DEFOCUS[0] + step, frequencies.double()) for step in (0.0, own))
    assert (end - start).abs().max() <= 0.5
    assert own <= torch.tensor(by_slopes).min() <= 2 * own


@pytest.mark.parametrize(("voltage", "wavelength"), [(100, 0.0370), (200, 0.0251), (300, 0.0197)])
def test_the_wavelength_is_the_textbooks(voltage: float, wavelength: float) -> None:
    natural = natural_defocus(10_000, pixel_size=2.0, voltage=voltage)
    assert natural / (math.pi * 10_000) * 2.0**2 == pytest.approx(wavelength, abs=5e-5)


def test_natural_and_physical_defocus_agree_on_the_transfer() -> None:
    """sin(-π λ Δf f²) at f cycles per Å is sin(-z k²) at k = f s cycles per pixel."""
    wavelength, defocus, pixel_size = 0.0196875, 12_000.0, 3.2
    per_angstrom = random_frequencies() / pixel_size
    physical = torch.sin(-math.pi * wavelength * defocus * per_angstrom.square().sum(dim=-1))
    natural = torch.tensor(natural_defocus(defocus, pixel_size), dtype=torch.float64)
    torch.testing.assert_close(ctf(natural, per_angstrom * pixel_size), physical, rtol=0, atol=1e-4)


def test_natural_defocus_scales() -> None:
    reference = natural_defocus(10_000, pixel_size=1.0)
    assert natural_defocus(20_000, pixel_size=2.0) == pytest.approx(reference / 2)
    assert natural_defocus(-10_000, pixel_size=1.0) == pytest.approx(-reference)
