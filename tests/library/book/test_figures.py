"""Figures of notebooks and of the report are drawn, say what their axes are, and leave nothing open."""

import math
import re
from collections.abc import Iterator

import matplotlib
import matplotlib.pyplot as plt
import pyro
import pytest
import torch
from matplotlib.figure import Figure

from cryoanm_lib.analysis.run_population import RunPopulation
from cryoanm_lib.book import figures
from cryoanm_lib.book.figures import own_particles
from cryoanm_lib.book.landscapes import landscape, pose_profiles
from cryoanm_lib.imaging.forward_model import ForwardModel
from cryoanm_lib.imaging.latents import Values, in_plane
from cryoanm_lib.imaging.noise import WhiteNoise
from cryoanm_lib.inference.population import Population
from cryoanm_lib.molecule.anm import NormalModes, hessian, normal_modes
from cryoanm_lib.molecule.structure import Structure, load_structure
from cryoanm_lib.particles.particles import Particles, Simulated
from cryoanm_lib.program.encoders import ConvolutionalEncoder
from cryoanm_lib.program.program import Guide, Model
from cryoanm_lib.program.rings import Rings

matplotlib.use("Agg")
torch.set_num_threads(1)
NOISE = 0.1


@pytest.fixture(scope="module", autouse=True)
def style() -> Iterator[None]:
    with matplotlib.rc_context():
        figures.set_style()
        # Drawing is what is tested here, not how fine.
        matplotlib.rcParams["figure.dpi"] = 50
        yield


@pytest.fixture(scope="module")
def structure() -> Structure:
    return load_structure("adk_open", stride=4)


@pytest.fixture(scope="module")
def modes(structure: Structure) -> NormalModes:
    return normal_modes(structure.coordinates, n_modes=4, cutoff=20.0)


@pytest.fixture(scope="module")
def forward(structure: Structure, modes: NormalModes) -> ForwardModel:
    return ForwardModel(structure.coordinates.float(), modes.vectors[:1].float())


@pytest.fixture(scope="module")
def latents() -> Values:
    return in_plane(torch.tensor(0.6), torch.tensor([4.0]), defocus=torch.tensor(50.0))


def guide_that_infers(forward: ForwardModel, *names: str, **options: object) -> tuple[Guide, Simulated]:
    model = Model(forward, noise=NOISE, inferred=names)
    return Guide(model, representation=Rings(16, 4), **options), model.simulate(2, 16)


def drawn(figure: Figure) -> set[str]:
    """All text of a figure after it has been drawn, which is when layout problems warn."""
    assert isinstance(figure, Figure)
    figure.canvas.draw()
    assert not plt.get_fignums(), "pyplot still holds the figure, so a notebook would show it twice"
    for ax in figure.axes:
        legend = ax.get_legend()
        assert legend is None or legend.get_texts(), "an empty legend"
    return {text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_visible()}


def test_modes_are_drawn_from_two_sides_with_their_rmsd(structure: Structure, modes: NormalModes) -> None:
    figure = figures.plot_modes(structure, modes, amplitude=30.0)
    text = drawn(figure)
    assert {"x (Å)", "z (Å)", f"arrows: α = 30 Å, RMSD {30 / len(structure) ** 0.5:.2f} Å"} <= text
    assert all(ax.get_aspect() == 1 for ax in figure.axes)


def test_swings_name_the_amplitude_of_each_mode(structure: Structure, modes: NormalModes) -> None:
    text = drawn(figures.plot_swings(structure, modes, torch.tensor([30.0, 20.0, 10.0])))
    assert {"mode 1\nα = 30 Å", "mode 3\nα = 10 Å", "reference"} <= text


def test_spectrum_counts_the_zero_modes(structure: Structure, modes: NormalModes) -> None:
    eigenvalues = torch.linalg.eigvalsh(hessian(structure.coordinates, modes.cutoff))
    text = drawn(figures.plot_spectrum(eigenvalues, modes.n_zero))
    assert {"6 rigid-body motions", "|λ| (γ)"} <= text


def test_spring_energy_has_both_scales(structure: Structure, modes: NormalModes) -> None:
    amplitudes = torch.linspace(-5, 5, 11)
    exact = 0.5 * modes.eigenvalues[:, None] * amplitudes**2
    text = drawn(figures.plot_spring_energy(amplitudes, exact, modes.eigenvalues, len(structure)))
    assert {"amplitude α (Å)", r"RMSD $\alpha/\sqrt{n}$ (Å)", "energy (γ Å²)"} <= text


def test_fluctuations_fit_their_panels(structure: Structure, modes: NormalModes) -> None:
    figure = figures.plot_fluctuations(structure, modes)
    assert {"residue number", "mode 3"} <= drawn(figure)
    highest = 100 * modes.vectors[:3].square().sum(-1).max().item()
    assert all(ax.get_ylim()[1] > highest for ax in figure.axes)


def test_transition_and_overlaps(structure: Structure) -> None:
    text = drawn(figures.plot_transition(structure.coordinates, structure.coordinates + 1, [0.8, 0.3]))
    assert {"open", "closed", "overlap with the motion"} <= text


def test_conformations_print_amplitude_and_rmsd(forward: ForwardModel, latents: Values) -> None:
    figure = figures.plot_conformations(forward, latents, 9.0, NOISE)
    rmsd = f"RMSD {9 / len(forward.reference) ** 0.5:.2f} Å"
    text = drawn(figure)
    assert {f"α = −9 Å\n{rmsd}", "α = 0 Å\nRMSD 0.00 Å", f"α = +9 Å\n{rmsd}", "bar: 20 Å"} <= text
    assert len(figure.axes) == 12


def test_noise_of_the_conformations_is_the_same(forward: ForwardModel, latents: Values) -> None:
    """The last column differs by what the amplitude does, and by nothing else."""
    unmoved = figures.plot_conformations(forward, latents, 0.0, NOISE)
    minus, _, plus = (torch.as_tensor(unmoved.axes[index].images[0].get_array()) for index in (3, 7, 11))
    torch.testing.assert_close(minus, plus)


def test_projection_steps(forward: ForwardModel, latents: Values) -> None:
    text = drawn(figures.plot_projection_steps(forward, latents, NOISE))
    assert {"projection", "+ contrast transfer", "+ noise", "frequency (1/px)", "contrast transfer"} <= text


def test_images_lie_where_the_atoms_are(forward: ForwardModel, latents: Values) -> None:
    """The brightest pixel of the projection, in the units of its axes, is close to an atom."""
    figure = figures.plot_projection_steps(forward, latents, NOISE)
    image = figure.axes[1].images[0]
    left, right, bottom, top = image.get_extent()
    values = image.get_array()
    row, column = divmod(int(values.argmax()), values.shape[1])
    x = left + (column + 0.5) * (right - left) / values.shape[1]
    y = bottom + (row + 0.5) * (top - bottom) / values.shape[0]
    atoms = forward.positions(latents) * forward.pixel_size
    assert (atoms - torch.tensor([x, y])).norm(dim=-1).min() < forward.pixel_size


def test_projector_agreement(forward: ForwardModel, latents: Values) -> None:
    roomy = ForwardModel(forward.reference, forward.modes, box_size=80)
    deviations = figures.projector_deviations(roomy, latents)
    assert deviations["float64"]["separable"] < 1e-12
    assert deviations["float64"]["fourier"] < 1e-12
    assert 1e-3 < deviations["float64"]["sparse"] < 0.1  # the paper's patch, some atoms on one pixel
    text = drawn(figures.plot_projector_agreement(deviations))
    assert {"sparse", "separable", "fourier", "float32", "float64"} <= text


def test_crop_levels_state_their_noise(forward: ForwardModel, latents: Values) -> None:
    figure = figures.plot_crop_levels(forward, latents, NOISE, resolutions=(64, 32, 16, 12))
    text = drawn(figure)
    assert {"x (Å)", "y (Å)", "noise in the crop: measured (predicted)"} <= text
    assert any(title.startswith("K = 32\n") and title.endswith("(0.0500)") for title in text)
    assert figure.axes[1].images[0].get_array().shape == (32, 32)


def test_model_graph_is_that_of_the_model(forward: ForwardModel) -> None:
    guide, particles = guide_that_infers(forward, "pose", "amplitude")
    graph = figures.model_graph(guide.model, particles, 16)
    assert set(graph.parents["image"]) == {"pose", "amplitude", "defocus"}
    assert graph.roles == {
        "pose": "inferred",
        "amplitude": "inferred",
        "defocus": "given",
        "image": "observed",
    }
    assert {"images", "pose\n~ projected\nnormal", "given"} <= drawn(figures.plot_graph(graph))


@pytest.mark.parametrize("upright", [True, False])
def test_guide_graph_shows_what_each_proposal_reads(forward: ForwardModel, upright: bool) -> None:
    guide, particles = guide_that_infers(forward, "pose", "amplitude", "defocus", upright=upright)
    graph = figures.guide_graph(guide, particles, 16)
    expected = ("image", "pose") if upright else ("image",)
    assert graph.parents == {"image": (), "pose": ("image",), "amplitude": expected, "defocus": expected}
    assert {"image", "amplitude\n~ normal", "observed"} <= drawn(figures.plot_graph(graph))


def test_guide_graph_marks_a_given_pose(forward: ForwardModel) -> None:
    graph = figures.guide_graph(*guide_that_infers(forward, "amplitude"), 16)
    assert graph.parents["amplitude"] == ("image", "pose")
    assert graph.roles == {"image": "observed", "pose": "given", "amplitude": "inferred"}
    drawn(figures.plot_graph(graph))


def test_encoder_layers_are_those_of_the_network() -> None:
    encoder = ConvolutionalEncoder(16, 6, channels=(4, 8)).train()
    layers = figures.encoder_layers(encoder)
    shapes = [layer.shape for layer in layers]
    assert shapes == [
        (16, 16),
        *[(4, 16, 16)] * 2,
        (4, 8, 8),
        *[(8, 8, 8)] * 2,
        (8, 4, 4),
        (128,),
        (512,),
        (512,),
        (6,),
    ]
    assert sum(layer.n_parameters for layer in layers) == sum(p.numel() for p in encoder.parameters())
    assert encoder.training
    assert not any(module._forward_hooks for module in encoder.modules())
    assert {"4 × 16 × 16", "512", "dense", "convolution 3 × 3"} <= drawn(figures.plot_encoder(encoder))


@pytest.fixture(scope="module")
def image(forward: ForwardModel, latents: Values) -> Particles:
    noise, clean = WhiteNoise(NOISE, forward.box_size), forward.coefficients(latents, 24)
    return Particles(noise.sample(clean, torch.Generator().manual_seed(0))[None], {}, noise)


TRUTH = {"pose": 0.6, "amplitude": 4.0, "defocus": 50.0}


def test_landscapes_mark_the_truth_in_degrees(forward: ForwardModel, image: Particles) -> None:
    along = {"amplitude": torch.linspace(-9, 9, 5), "pose": torch.linspace(-math.pi, math.pi, 25)}
    found = {k: landscape(forward, image, {"defocus": 50.0}, along, k) for k in (8, 16, 24)}
    figure = figures.plot_landscapes(found, along, TRUTH, len(forward.reference))
    text = drawn(figure)
    assert {"pose θ (°)", "amplitude α (Å)", r"RMSD $\alpha/\sqrt{n}$ (Å)"} <= text
    assert "log-likelihood, from its median (0) to its maximum (1)" in text
    marker = figure.axes[0].lines[0]
    assert [float(x[0]) for x in marker.get_data()] == pytest.approx([math.degrees(0.6), 4.0])


def test_planes(forward: ForwardModel, image: Particles) -> None:
    rows = []
    for pair in ({"amplitude": 4.0, "pose": 0.6}, {"amplitude": 4.0, "defocus": 50.0}):
        along = {name: centre + torch.linspace(-1, 1, 5) for name, centre in pair.items()}
        at = {name: value for name, value in TRUTH.items() if name not in pair}
        rows.append((along, {k: landscape(forward, image, at, along, k) for k in (8, 16)}))
    text = drawn(figures.plot_planes(rows, TRUTH))
    assert {"defocus z (px²)", "K = 8", "standard deviations from the maximum"} <= text


def test_profiles(forward: ForwardModel) -> None:
    guide, particles = guide_that_infers(forward, "pose")
    offsets = torch.linspace(-math.pi, math.pi, 61)[:-1]
    profiles = {k: pose_profiles(forward, particles, offsets, k) for k in (8, 12, 16)}
    figure = figures.plot_pose_profiles(offsets, profiles)
    assert {"K = 12", "angle from the true pose (°)"} <= drawn(figure)
    text = drawn(figures.plot_blurred_profiles(offsets, profiles, spread=20.0))
    assert "height seen by a guide of 20°" in text
    assert guide.model.inferred == ("pose",)


def test_difficulty() -> None:
    values = {8: 10.0, 16: 20.0, 32: 30.0}
    measures = dict.fromkeys(("half_width", "basin", "maxima", "gap"), values)
    text = drawn(figures.plot_difficulty(measures, values))
    assert {"resolution K (pixels)", "nats", "information limit", "share of the circle (%)"} <= text


def test_the_pipeline_counts_its_steps(tiny_model) -> None:
    model = tiny_model(inferred=("pose", "amplitude"))
    pyro.set_rng_seed(0)
    figure = figures.plot_pipeline(model, model.simulate(1, model.forward_model.box_size), 12, 16)
    text = drawn(figure)
    assert {f"{number}." for number in range(1, 9)} == {each[:2] for each in text if re.match(r"\d\. ", each)}
    assert {"θ (°)", "α (Å)"} <= text


def test_waves_that_no_pixel_tells_apart_meet_at_every_pixel() -> None:
    figure = figures.plot_aliases(0.8)
    assert {"0.15 / px", "1.15 / px", "frequency (1/px)"} <= drawn(figure)
    fast, slow, pixels = (line.get_ydata() for line in figure.axes[0].lines)
    assert abs(fast[::100] - pixels).max() < 1e-5 and abs(slow[::100] - pixels).max() < 1e-5


def test_defocus_turns_phase_into_counts() -> None:
    assert {"χ = 0°\ncount: 1.00", "χ = 90°\ncount: 0.50"} <= drawn(figures.plot_phase_contrast())


def test_a_turn_shifts_a_ring_and_keeps_its_waves(forward: ForwardModel, latents: Values) -> None:
    """By quarters, at which the square crop turns too."""
    figure = figures.plot_turned_ring(forward, latents, turn_in_degrees=90.0)
    assert {"turned by 90°", "φ along the ring (°)", "x (px)"} <= drawn(figure)
    (upright, turned), strengths = (
        [torch.as_tensor(line.get_ydata()) for line in ax.lines] for ax in figure.axes[2:]
    )
    torch.testing.assert_close(upright.roll(90), turned, rtol=0, atol=1e-4)
    torch.testing.assert_close(*strengths, rtol=0, atol=1e-4)


def test_two_amplitudes_together_have_a_contour_for_each_kt() -> None:
    places = torch.tensor([[-4.0, 0.0], [4.0, 1.0]]).double()
    both = Population(torch.tensor([0.4, 0.6]).double(), places, torch.eye(2).double().expand(2, 2, 2))
    figure = own_particles.plot_two_amplitudes(RunPopulation(1000, (), (), (), (), (), both))
    assert {"amplitude 1 (Å)", "amplitude 2 (Å)", "-log density (kT)"} <= drawn(figure)
    assert figure.axes[0].collections[0].levels.tolist() == list(range(7))


def test_a_moved_reference_is_drawn_residue_by_residue(structure: Structure) -> None:
    truth = structure.coordinates / 20
    figure = figures.plot_moved(structure.residue_numbers, truth, 1.1 * truth, 0.1 * truth.norm(dim=1))
    assert {"displacement (Å)", "error (Å)", "residue number", "found", "truth", "claimed", "left"} <= drawn(
        figure
    )
    found, _, left = (torch.as_tensor(line.get_ydata()) for ax in figure.axes for line in ax.lines)
    torch.testing.assert_close(left, found / 11)
