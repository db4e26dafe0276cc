"""Widgets: what the browser computes is what the library computes."""

import json
import re
import shutil
import subprocess

import matplotlib.pyplot as plt
import pytest
import torch

from cryoanm_lib.anm import normal_modes
from cryoanm_lib.forward import ForwardModel
from cryoanm_lib.latents import Latents
from cryoanm_lib.prior import Prior
from cryoanm_lib.structure import load_structure
from cryoanm_lib.widgets import Explorer

# Largest difference of a pixel, as a share of the brightest: coordinates have six decimals.
TOLERANCE = 1e-5

node = pytest.mark.skipif(shutil.which("node") is None, reason="no Node.js to run the script of a page")


def explorer(box_size: int = 64, pixel_size: float = 1.0, name: str = "explorer") -> Explorer:
    reference = load_structure("adk_open").coordinates
    modes = normal_modes(reference).vectors
    model = ForwardModel(reference, modes, box_size=box_size, pixel_size=pixel_size)
    figure, _ = plt.subplots()
    plt.close(figure)
    return Explorer(model, Prior(), 0.1, figure, "an image", name)


def by_script(figure: Explorer, latents: list[dict]) -> list[torch.Tensor]:
    """Images that the page's own script draws of latents."""
    html = figure._repr_html_()
    (script,) = re.findall(r"<script>\n\(\(\) => \{\n(.*?)explorer\.start", html, flags=re.S)
    images = f"{json.dumps(latents)}.map((each) => Array.from(explorer.image(model, each)))"
    ask = f"console.log(JSON.stringify({images}));"
    answer = subprocess.run(["node", "-e", script + ask], capture_output=True, text=True, check=True)
    return [torch.tensor(pixels, dtype=torch.float64) for pixels in json.loads(answer.stdout)]


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
        at = Latents.in_plane(values[0], values[1][None], values[2])
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


def test_a_page_needs_nothing_from_elsewhere() -> None:
    html = explorer()._repr_html_()
    assert not re.findall(r"https?://|src=\"(?!data:)|href=|import\s*\(", html)
    assert html.count('type="range"') == html.count("<output") == html.count("<label") == 5
    assert 'alt="an image"' in html and len(html) < 200_000


def test_every_slider_is_labelled_and_starts_within_its_reach() -> None:
    for slider in explorer().sliders():
        assert slider.low <= slider.value <= slider.high
        assert f'for="page-{slider.name}"' in slider.html("page")
