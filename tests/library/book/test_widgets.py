"""Widgets: what the browser computes is what the library computes."""

import base64
import json
import math
import re
import shutil
import subprocess

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.path import Path as MplPath

from cryoanm_lib.book.widgets import Breathing, Explorer, Landscape, Microscope, Sharpening
from cryoanm_lib.experiments.datasets import draw_test_images
from cryoanm_lib.experiments.profile import load_profile
from cryoanm_lib.imaging.contrast_transfer import ContrastTransfer, given_ctf
from cryoanm_lib.imaging.forward_model import ForwardModel
from cryoanm_lib.imaging.latents import in_plane
from cryoanm_lib.imaging.likelihood import log_likelihood
from cryoanm_lib.imaging.projection import PROJECTORS
from cryoanm_lib.inference.lattice_search import LatticeSearch
from cryoanm_lib.inference.refinement import refine
from cryoanm_lib.molecule.anm import normal_modes
from cryoanm_lib.molecule.structure import load_structure
from cryoanm_lib.numerics.fourier import coefficients_to_image, crop_coefficients
from cryoanm_lib.numerics.rotation import unit_vector_to_angle
from cryoanm_lib.program.prior import Prior

# Largest difference of a pixel, as a share of the brightest: coordinates have six decimals.
TOLERANCE = 1e-5

node = pytest.mark.skipif(shutil.which("node") is None, reason="no Node.js to run the script of a page")


def empty_still() -> Figure:
    figure, _ = plt.subplots()
    plt.close(figure)
    return figure


def explorer(box_size: int = 64, pixel_size: float = 1.0, name: str = "explorer") -> Explorer:
    reference = load_structure("adk_open").coordinates
    modes = normal_modes(reference).vectors
    model = ForwardModel(reference, modes, box_size=box_size, pixel_size=pixel_size)
    return Explorer(model, Prior(), 0.1, empty_still(), "an image", name)


def run_script(figure, ask: str) -> object:
    """What an expression is, in the page's own script, with its numbers in `model`."""
    html = figure._repr_html_()
    (script,) = re.findall(r"<script>\n\(\(\) => \{\n(.*?)const figure = ", html, flags=re.S)
    (model,) = re.findall(r"const figure = .*?, model = (\{.*?\});\n", html)
    program = f"{script}\nconst model = {model};\nconsole.log(JSON.stringify({ask}));"
    answer = subprocess.run(["node", "-"], input=program, capture_output=True, text=True, check=True)
    return json.loads(answer.stdout)


def by_script(figure: Explorer, latents: list[dict]) -> list[torch.Tensor]:
    """Images that the page's own script draws of latents."""
    images = f"{json.dumps(latents)}.map((each) => Array.from(projection.image(model, each)))"
    return [torch.tensor(pixels, dtype=torch.float64) for pixels in run_script(figure, images)]


@node
@pytest.mark.parametrize(("box_size", "pixel_size"), [(64, 1.0), (50, 1.4), (65, 1.0)])
def test_the_script_draws_the_library_s_images(box_size: int, pixel_size: float) -> None:
    figure = explorer(box_size, pixel_size)
    asked = [
        {"amplitude": amplitude, "pose": pose, "defocus": defocus, "noise": 0.0, "resolution": resolution}
        for amplitude, pose, defocus in ((0.0, 0.6, 50.0), (-9.0, 2.5, 57.0), (12.0, -3.0, 41.0))
        for resolution in (8, 32, box_size // 2 * 2)
    ]
    for latents, found in zip(asked, by_script(figure, asked), strict=True):
        values = [torch.tensor(latents[n], dtype=torch.float64) for n in ("pose", "amplitude", "defocus")]
        at = in_plane(values[0], values[1][None], defocus=values[2])
        expected = figure.model.images(at, latents["resolution"])
        assert (found.view_as(expected) - expected).abs().max() < TOLERANCE * expected.abs().max()


@node
def test_the_script_s_noise_is_white_and_the_same_at_every_resolution() -> None:
    """Of deviation σ_n (K-1)/N a pixel, as an even crop leaves it, within four standard errors."""
    figure = explorer()
    still = {"amplitude": 0.0, "pose": 0.0, "defocus": 50.0}
    asked = [still | {"noise": noise, "resolution": k} for k in (64, 32) for noise in (0.0, 0.2)]
    clean, noisy, clean_32, noisy_32 = by_script(figure, asked)
    for noise, k in ((noisy - clean, 64), (noisy_32 - clean_32, 32)):
        expected, n_values = 0.2 * (k - 1) / 64, (k - 1) ** 2
        assert abs(noise.std().item() / expected - 1) < 4 / (2 * n_values) ** 0.5
    fine, coarse = (noisy - clean).view(64, 64), (noisy_32 - clean_32).view(32, 32)
    fine, coarse = (torch.fft.fft2(torch.fft.ifftshift(x), norm="forward")[:16, :16] for x in (fine, coarse))
    torch.testing.assert_close(fine, coarse, rtol=0, atol=1e-9)


def microscope() -> Microscope:
    reference = load_structure("adk_open").coordinates
    optics = ContrastTransfer(3.0, spherical_aberration=2.0, amplitude_contrast=0.07, varies=())
    sizes = {"box_size": 48, "pixel_size": 3.0}
    model = ForwardModel(reference, normal_modes(reference).vectors, **sizes, transfer=optics)
    return Microscope(model, 8000.0, 0.1, empty_still(), "an image")


@node
def test_the_script_s_microscope_is_the_library_s() -> None:
    """Defocus, astigmatism, aberration, amplitude contrast, phase plate and envelope together."""
    figure = microscope()
    at = {
        **{"defocus": 0.8, "astigmatism": 600, "angle": 25, "aberration": 2.0, "contrast": 0.07},
        **{"phase": 40, "envelope": 90, "voltage": 300, "noise": 0.0},
    }
    passed = f"microscope.coefficients(model, {json.dumps(at)}).passed"
    found = run_script(figure, f"Array.from(projection.synthesis({passed}, 48))")
    u, v, angle, phase, b = torch.tensor([8600.0, 7400.0, 25.0, 40.0, 90.0], dtype=torch.float64)[:, None]
    latents = in_plane(torch.zeros(1).double(), torch.zeros(1, 1).double())
    expected = figure.model.images({**latents, "ctf": given_ctf(u, v, angle, phase, b)})
    away = torch.tensor(found, dtype=torch.float64).view_as(expected) - expected
    assert away.abs().max() < TOLERANCE * expected.abs().max()


def breathing() -> Breathing:
    structure = load_structure("adk_open")
    modes = normal_modes(structure.coordinates, n_modes=5)
    furthest = 30 * (modes.eigenvalues[0] / modes.eigenvalues).sqrt()
    return Breathing(
        structure.coordinates, modes.vectors, furthest, furthest / 10, empty_still(), "a molecule"
    )


@node
def test_the_script_bends_the_molecule_as_the_library_does() -> None:
    figure = breathing()
    model = ForwardModel(figure.reference, figure.modes)
    for mode, amplitude in ((0, 12.0), (3, -25.0)):
        bent = torch.tensor(
            run_script(figure, f"breathing.bent(model, {mode}, {amplitude})"), dtype=torch.float64
        )
        amplitudes = amplitude * torch.eye(5, dtype=torch.float64)[mode]
        torch.testing.assert_close(bent, model.deform(amplitudes), rtol=0, atol=1e-4)


@node
def test_the_script_turns_right_handed_and_keeps_lengths() -> None:
    turn = torch.tensor(run_script(breathing(), "breathing.turn(0.7, -1.1)"), dtype=torch.float64)
    torch.testing.assert_close(turn @ turn.T, torch.eye(3, dtype=torch.float64))
    assert turn.det() > 0


@node
def test_the_script_projects_the_molecule_as_it_is_seen() -> None:
    """Bent and turned in space, as the library would with pixels of that size, but with y upwards."""
    figure = breathing()
    model, turn = (
        ForwardModel(figure.reference, figure.modes),
        run_script(figure, "breathing.turn(0.7, -1.1)"),
    )
    state = {"mode": 1, "amplitude": 9.0, "rotation": turn}
    found = run_script(figure, f"Array.from(breathing.projected(model, {json.dumps(state)}))")
    pixel = 2 * run_script(figure, "model.reach") / 64
    amplitudes = 9.0 * torch.eye(5, dtype=torch.float64)[1]
    seen = model.deform(amplitudes) @ torch.tensor(turn, dtype=torch.float64).T
    places = seen[:, :2] / pixel * torch.tensor([1.0, -1.0])
    expected = coefficients_to_image(PROJECTORS["fourier"](places, 64, 0.8, 64), 64)
    found = torch.tensor(found, dtype=torch.float64).view_as(expected)
    assert (found - expected).abs().max() < 1e-4 * expected.max()


@node
def test_the_curve_passes_through_every_atom() -> None:
    curve = torch.tensor(run_script(breathing(), "breathing.smooth(model.reference)"), dtype=torch.float64)
    atoms = torch.tensor(run_script(breathing(), "model.reference"), dtype=torch.float64)
    torch.testing.assert_close(curve[::4], atoms)


@pytest.fixture(scope="module")
def sharpening() -> Sharpening:
    run = load_profile("smoke").run("pose_amplitude")
    images = draw_test_images(run)[:2]
    return Sharpening(run.guide(), images, [8, 32], empty_still(), "a posterior", louder=(1, 2))


@pytest.fixture(scope="module")
def frames(sharpening) -> list[list[dict]]:
    return sharpening.frames()


def test_peaks_hold_the_draws_that_they_should(frames) -> None:
    """Two deviations of a Gaussian in the plane hold 1 - e⁻² of the draws; five standard errors."""
    frame = frames[0][1]
    (outline,), draws = frame["peaks"], torch.tensor(frame["draws"])
    inside = MplPath(outline).contains_points(draws).mean()
    expected = 1 - math.exp(-2)
    assert abs(inside - expected) < 5 * (expected * (1 - expected) / len(draws)) ** 0.5


def test_a_map_is_darkest_where_the_posterior_is_highest(sharpening, frames) -> None:
    for frame, resolution in zip(frames[0], sharpening.resolutions, strict=True):
        panel = frame["near"]
        levels = np.frombuffer(base64.b64decode(panel["levels"]), np.uint8).reshape(48, 48)
        row, column = np.unravel_index(levels.argmax(), levels.shape)
        (left, right), (bottom, top) = panel["pose"], panel["amplitude"]
        step = (right - left) / 47, (top - bottom) / 47
        at = (left + column * step[0], top - row * step[1])
        model = sharpening.guide.model
        image = sharpening.images[:1]
        refined = refine(model, image, resolution, sharpening.guide, LatticeSearch(model, 8))
        best = refined.mean()
        peak = torch.rad2deg(unit_vector_to_angle(best["pose"]))[0], best["amplitude"][0, 0]
        for found, expected, size in zip(at, peak, step, strict=True):
            assert abs((found - expected + 180) % 360 - 180) < 4 * size
        assert left <= panel["truth"][0] <= right and bottom <= panel["truth"][1] <= top


def test_twice_the_noise_makes_a_narrow_posterior_twice_as_wide(frames) -> None:
    """At K = 32, where it is nearly a Gaussian: within a fifth, for two of a hundred draws' deviations."""
    for quiet, loud in (frames[:2], frames[2:]):
        for one, two in zip(quiet[1]["deviation"], loud[1]["deviation"], strict=True):
            assert two / one == pytest.approx(2, rel=0.2)


@node
def test_the_crop_shown_is_of_the_image_that_the_posterior_is_of(sharpening) -> None:
    crops = "model.images.flatMap((image) => model.louder.map((louder) => [image, louder]))"
    crops += ".map(([image, louder]) => Array.from(sharpening.crop(model, image, louder, 32)))"
    found = torch.tensor(run_script(sharpening, crops)).view(-1, 32, 32)
    expected = coefficients_to_image(crop_coefficients(sharpening.noisier().coefficients, 32), 32)
    assert (found - expected).abs().max() < 1e-3 * expected.abs().max()


@node
def test_ticks_are_round_and_within_the_axis(sharpening) -> None:
    axes = [[-180.0, 180.0], [41.23, 41.31], [-12.0, 3.0]]
    ticks = run_script(sharpening, f"{axes}.map(([low, high]) => panel.ticks(low, high, 4).found)")
    for (low, high), found in zip(axes, ticks, strict=True):
        assert 2 <= len(found) <= 5 and min(found) >= low and max(found) <= high


@pytest.fixture(scope="module")
def walked() -> Landscape:
    """One image of adenylate kinase, seen at two resolutions."""
    run = load_profile("smoke").run("pose_amplitude")
    return Landscape(run.model(), draw_test_images(run)[:1], [8, 32], empty_still(), "a landscape")


@node
def test_the_script_s_log_likelihood_is_the_library_s(walked: Landscape) -> None:
    """But for its constant; six decimals of the coefficients are worth a hundredth of a nat."""
    image, forward = walked.image, walked.model.forward_model
    defocus = image.truth["defocus"].item()
    for resolution in (8, 32, 64):
        asked = [(0.3, 0.0), (-2.0, 5.0), (3.0, -8.0)]
        latents = [
            {"pose": pose, "amplitude": amplitude, "defocus": defocus, "resolution": resolution}
            for pose, amplitude in asked
        ]
        found = run_script(
            walked, f"{json.dumps(latents)}.map((each) => landscape.logLikelihood(model, each))"
        )
        pose, amplitude = torch.tensor(asked).T
        at = in_plane(pose, amplitude[:, None], defocus=torch.full((3,), defocus))
        expected = log_likelihood(
            crop_coefficients(image.coefficients, resolution),
            forward.coefficients(at, resolution),
            image.noise,
            resolution,
        ) + image.noise.log_normaliser(resolution)
        torch.testing.assert_close(torch.tensor(found), expected.float(), rtol=1e-4, atol=0.1)


@node
def test_walking_uphill_at_low_resolution_leads_to_the_highest_point(walked: Landscape) -> None:
    """Step by step, none of them down, from half a radian beside the truth to the top of the map."""
    (frame, _), truth = walked.frames(), walked.image.truth
    start = {
        "pose": unit_vector_to_angle(truth["pose"]).item() + 0.5,
        "amplitude": 0.0,
        "defocus": truth["defocus"].item(),
        "resolution": 8,
    }
    walk = f"""(() => {{
        const heights = [];
        for (let at = {json.dumps(start)}; at; at = landscape.uphill(model, at, model.step)) {{
            heights.push(landscape.logLikelihood(model, at));
        }}
        return heights;
    }})()"""
    heights = run_script(walked, walk)
    assert len(heights) > 10 and heights == sorted(heights)
    assert heights[-1] == pytest.approx(frame["top"], abs=1.0)


@pytest.mark.parametrize("figure", [explorer, microscope, breathing, "sharpening", "walked"])
def test_a_page_needs_nothing_from_elsewhere(figure, request) -> None:
    html = (request.getfixturevalue(figure) if isinstance(figure, str) else figure())._repr_html_()
    assert not re.findall(r"https?://|src=\"(?!data:)|href=|import\s*\(", html)
    assert html.count('type="range"') == html.count("<output") == html.count("<label") >= 1
    assert re.search(r'<img class="still" src="data:[^"]+" alt="an? \w+"', html) and len(html) < 400_000
