"""A microscope in physical units: closed forms, slopes, wrong units, and the box that a defocus needs."""

import math
from dataclasses import replace

import pytest
import torch

from cryoanm_lib import (
    ContrastTransfer,
    Model,
    OpticsPrior,
    given_ctf,
    natural_defocus,
    physical_defocus,
    refine,
)
from cryoanm_lib.errors import ConfigurationError, CryoANMError, ForwardModelError
from cryoanm_lib.imaging.contrast_transfer import electron_wavelength
from cryoanm_lib.imaging.transfer import ctf
from cryoanm_lib.inference.peak_finding import Starts
from tests.all_the_way import adenylate_kinase, goes_all_the_way

torch.set_num_threads(1)
ALL = ("defocus", "astigmatism", "phase_shift", "b_factor")
PIXEL = 1.3


def random_frequencies(n: int = 300) -> torch.Tensor:
    """Uniform in the square up to the Nyquist frequency, in cycles per pixel."""
    return torch.rand(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5


def some_latents() -> dict[str, torch.Tensor]:
    """Of three images."""
    defocus = torch.tensor([9000.0, 12_000.0, -4000.0], dtype=torch.float64)
    astigmatism = torch.tensor([[300.0, -200.0], [0.0, 0.0], [-500.0, 100.0]], dtype=torch.float64)
    phase_shift, b_factor = torch.tensor([[0.0, 0.4, 1.5], [0.0, 80.0, 40.0]], dtype=torch.float64)
    return dict(zip(ALL, (defocus, astigmatism, phase_shift, b_factor), strict=True))


def test_the_papers_microscope_is_a_special_case() -> None:
    """No aberration, no amplitude contrast, a dark molecule; the defocus converted there and back."""
    papers = ContrastTransfer(PIXEL, spherical_aberration=0.0, amplitude_contrast=0.0, sign=-1)
    natural = torch.tensor([41.0, 50.0, 59.0], dtype=torch.float64)
    physical = torch.tensor([physical_defocus(z, PIXEL) for z in natural.tolist()], dtype=torch.float64)
    found = papers.values({"defocus": physical}, random_frequencies())
    torch.testing.assert_close(found, ctf(natural, random_frequencies()), rtol=0, atol=1e-12)
    back = torch.tensor([natural_defocus(z, PIXEL) for z in physical.tolist()], dtype=torch.float64)
    torch.testing.assert_close(back, natural, rtol=1e-14, atol=0)


def test_the_transfer_is_the_textbooks() -> None:
    """Written out once more for each image, with the angle as an angle."""
    microscope = ContrastTransfer(PIXEL, 200.0, 2.0, 0.07, varies=ALL)
    frequencies, latents = random_frequencies(), some_latents()
    x, y = (frequencies / PIXEL).T
    k, direction, wavelength = torch.hypot(x, y), torch.atan2(y, x), electron_wavelength(200.0)
    for image, found in enumerate(microscope.values(latents, frequencies)):
        defocus, astigmatism, phase, b_factor = (latents[name][image] for name in ALL)
        half, angle = astigmatism.norm(), 0.5 * torch.atan2(astigmatism[1], astigmatism[0])
        seen = defocus + half * (2 * (direction - angle)).cos()
        chi = math.pi * wavelength * seen * k**2 - 0.5 * math.pi * 2e7 * wavelength**3 * k**4
        chi = chi + math.atan(0.07 / math.sqrt(1 - 0.07**2)) + phase
        torch.testing.assert_close(found, (-b_factor * k**2 / 4).exp() * chi.sin(), rtol=0, atol=1e-11)


def test_opposite_frequencies_are_transferred_alike() -> None:
    """So that a real image stays real, however astigmatic."""
    microscope, frequencies = ContrastTransfer(PIXEL, varies=ALL), random_frequencies()
    both = [microscope.values(some_latents(), k) for k in (frequencies, -frequencies)]
    assert torch.equal(*both)


def test_the_slopes_agree_with_autograd() -> None:
    microscope = ContrastTransfer(PIXEL, varies=ALL, sign=-1)
    frequencies = random_frequencies(50)
    for image in range(3):
        latents = {name: value[image] for name, value in some_latents().items()}
        slopes = microscope.slopes(latents, frequencies)
        found = torch.func.jacrev(lambda given: microscope.values(given, frequencies))(latents)
        assert list(slopes) == list(ALL)
        for name, slope in slopes.items():
            torch.testing.assert_close(slope, found[name].reshape(50, -1).T, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("varies", [(), ("defocus",), ("astigmatism", "b_factor"), ALL])
def test_what_is_given_and_what_varies_add_up(varies: tuple[str, ...]) -> None:
    """In every split of the same numbers between the two."""
    latents, frequencies = some_latents(), random_frequencies()
    expected = ContrastTransfer(PIXEL, varies=ALL).values(latents, frequencies)
    given = torch.cat([value.reshape(3, -1) for value in latents.values()], dim=1)
    at, own = 0, {}
    for name in ALL:
        width = latents[name].reshape(3, -1).shape[1]
        if name in varies:
            own[name] = 0.25 * latents[name]
            given[:, at : at + width] *= 0.75
        at += width
    found = ContrastTransfer(PIXEL, varies=varies).values({**own, "ctf": given}, frequencies)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)


def test_a_step_moves_the_transfer_by_half_at_most() -> None:
    microscope = ContrastTransfer(PIXEL, varies=ALL)
    latents = {name: value[:1] for name, value in some_latents().items()}
    pose = torch.ones(1, 2, dtype=torch.float64)
    frequencies = random_frequencies(2000)
    frequencies = frequencies[frequencies.norm(dim=1) <= 0.2]
    start = microscope.values(latents, frequencies)
    for name, steps in microscope.steps({**latents, "pose": pose}, 0.2).items():
        for column, step in enumerate(torch.tensor(steps, dtype=torch.float64).flatten().tolist()):
            value = latents[name].clone()
            value.reshape(1, -1)[:, column] += step
            moved = microscope.values({**latents, name: value}, frequencies)
            assert (moved - start).abs().max() <= 0.55  # the slope changes a little on the way


@pytest.mark.parametrize(
    ("wrong", "asked"),
    [
        ({"voltage": 300_000.0}, "voltage = 300000 is not usable: give it as kV"),
        ({"voltage": math.nan}, "give it as kV"),
        ({"spherical_aberration": 2.7e7}, "as mm"),
        ({"amplitude_contrast": 10.0}, "between 0 and 1"),
        ({"sign": 0}, "sign = 0"),
        ({"varies": ("focus",)}, "choose from defocus"),
    ],
)
def test_a_number_in_the_wrong_unit_is_refused(wrong: dict, asked: str) -> None:
    with pytest.raises(ForwardModelError, match=asked):
        ContrastTransfer(PIXEL, **wrong)


@pytest.mark.parametrize(
    ("wrong", "asked"),
    [
        ({"defocus_u": torch.tensor([15_000.0, 1.5])}, "defocus_u = 1.5 of image 1 .* in Å"),
        ({"defocus_u": torch.tensor([1.5e7])}, "in Å"),
        ({"defocus_u": torch.tensor([math.nan])}, "in Å"),
        ({"defocus_v": torch.full((20,), 9000.0)}, "needs a defocus_angle"),
        (
            {"defocus_v": torch.full((20,), 9000.0), "defocus_angle": torch.linspace(0, math.pi, 20)},
            "radians",
        ),
        ({"phase_shift": torch.linspace(0, 1.5, 20)}, "phase_shift .* radians"),
        ({"phase_shift": torch.full((20,), 720.0)}, "phase_shift = 720"),
        ({"b_factor": torch.full((20,), -3.0)}, "b_factor = -3"),
    ],
)
def test_a_star_files_number_in_the_wrong_unit_is_refused(wrong: dict, asked: str) -> None:
    with pytest.raises(ForwardModelError, match=asked):
        given_ctf(**{"defocus_u": torch.full((20,), 10_000.0), **wrong})


def test_a_defocus_too_high_for_the_box_is_refused_with_the_box_that_would_do() -> None:
    """And in that box the phase of the transfer turns by π at most from each frequency to the next."""
    prior = OpticsPrior(defocus_mean=30_000.0, defocus_scale=300.0)
    with pytest.raises(ForwardModelError, match=r"at least (\d+) pixels") as refused:
        Model(adenylate_kinase(transfer=ContrastTransfer(1.0)), prior).simulate(1, 64)
    needed = int(str(refused.value).split("at least ")[1].split()[0])
    resolution = needed // 2 * 2
    Model(adenylate_kinase(box_size=needed, transfer=ContrastTransfer(1.0)), prior).simulate(1, resolution)
    wavelength, worst = electron_wavelength(300.0), 30_900.0
    k = torch.arange(needed // 2 + 1, dtype=torch.float64) / needed
    chi = math.pi * wavelength * worst * k**2 - 0.5 * math.pi * 2.7e7 * wavelength**3 * k**4
    assert 0.95 * math.pi < chi.diff().abs().max() <= math.pi
    # At a lower resolution the small box will do.
    Model(adenylate_kinase(transfer=ContrastTransfer(1.0)), prior).simulate(1, 6)


def test_a_microscope_of_which_nothing_is_given_is_not_taken_to_be_in_focus() -> None:
    """Images that say nothing of it are refused, whether to be drawn or to be refined."""
    model = Model(adenylate_kinase(transfer=ContrastTransfer(1.0)), OpticsPrior())
    with pytest.raises(ForwardModelError, match=r"no ctf .* between -900 and 900 Å, about focus"):
        model.simulate(2, 16)
    given = {"ctf": given_ctf(torch.tensor([3000.0, 4000.0]))}
    images = model.simulate(2, 16, given)
    assert images.given.keys() == {"ctf"}
    starts = Starts.of_each(model.unknowns.points(images.truth).double()[:, None])
    with pytest.raises(ForwardModelError, match="given_ctf"):
        refine(model, replace(images, given={}), 16, starts)
    fixed = adenylate_kinase(transfer=ContrastTransfer(1.0, varies=()))
    latents = {name: value for name, value in images.truth.items() if name != "defocus"}
    with pytest.raises(ForwardModelError, match="no defocus"):
        fixed.coefficients(latents, 16)


def test_images_are_drawn_with_what_is_given_of_them() -> None:
    """Poses and optics of a star file: not drawn, in the images, and given with them unless inferred."""
    forward = adenylate_kinase(transfer=ContrastTransfer(1.0))
    prior, defocus = OpticsPrior(), torch.tensor([3000.0, 4000.0])
    pose = torch.tensor([[0.6, 0.8], [1.0, 0.0]], dtype=torch.float64)
    known = {"ctf": given_ctf(defocus), "pose": pose}
    for inferred, left in (
        (("amplitude", "pose"), {"ctf", "defocus"}),
        (("amplitude",), {"ctf", "defocus", "pose"}),
    ):
        model = Model(forward, prior, 1e-6, inferred)
        images = model.simulate(2, 16, known)
        assert images.given.keys() == left
        torch.testing.assert_close(images.truth["pose"], pose)
        drawn = forward.coefficients({**known, **images.truth}, 16)
        torch.testing.assert_close(images.coefficients, drawn, rtol=0, atol=1e-4)
    starts = Starts.of_each(model.unknowns.points(images.truth).double()[:, None])
    with pytest.raises(CryoANMError, match=r"\['pose', 'defocus'\] vary and are not inferred"):
        refine(model, replace(images, given={"ctf": known["ctf"]}), 16, starts)


def test_pixels_of_two_sizes_are_refused() -> None:
    with pytest.raises(ForwardModelError, match=r"1.3 Å and the image of 1.5 Å"):
        adenylate_kinase(pixel_size=1.5, transfer=ContrastTransfer(1.3))


def test_a_prior_of_what_no_image_depends_on_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="astigmatism"):
        Model(adenylate_kinase(), OpticsPrior(astigmatism_scale=100.0))


def test_the_optics_are_found_with_honest_error_bars() -> None:
    """Every latent of the microscope at once, each held against the limit by differences."""
    optics = ContrastTransfer(2.0, spherical_aberration=2.7, amplitude_contrast=0.1, varies=ALL)
    scales = {"astigmatism_scale": 300.0, "phase_shift_scale": 0.2, "b_factor_scale": 20.0}
    prior = OpticsPrior(defocus_mean=9000.0, defocus_scale=300.0, **scales)
    model = Model(adenylate_kinase(pixel_size=2.0, transfer=optics), prior, noise=0.1)
    assert [latent.unit for latent in model.unknowns.latents] == ["°", "Å", "Å", "Å", "rad", "Å²"]
    torch.manual_seed(1)
    goes_all_the_way(model, model.simulate(200, 32))
