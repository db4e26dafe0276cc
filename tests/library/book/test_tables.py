"""Tables and figures of finished fits, and the reference made of them, from one small profile."""

import json
import types
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from cryoanm_lib.book import figures
from cryoanm_lib.book.tables import (
    coverage_table,
    headline_table,
    markdown_table,
    older_runs,
    population_table,
    reach_table,
    stage_table,
    tasks_of,
    two_digits,
)
from cryoanm_lib.errors import ArtifactError
from cryoanm_lib.experiments.assess import Assessment
from cryoanm_lib.experiments.datasets import draw_test_images
from cryoanm_lib.experiments.fit import Fit, fit_or_load, load_fit
from cryoanm_lib.experiments.metrics import gather_metrics
from cryoanm_lib.experiments.profile import load_profile
from cryoanm_lib.experiments.reference import Reference, load_reference, save_reference
from cryoanm_lib.imaging.latents import LATENTS

TINY = """
test_images: 40
window: 4
experiments:
  all:
    title: All three
    paper_says: not reached
    more_seeds: [2]
    infer: [pose, amplitude, defocus]
    guide: {image_size: 16, references: 4}
    batch_size: 10
    stages:
      - {resolution: 12, steps: 8, objective: forward_kl}
      - {resolution: 16, steps: 6}
    paper: {pose_residual_mean_deg: 33.0}
  all_paper:
    title: All three, by the paper
    task: all
    recipe: paper
    infer: [pose, amplitude, defocus]
    guide: {encoder: convolutional, image_size: 16, channels: [2, 4], stratified: false}
    training_images: 20
    batch_size: 10
    stages: [{resolution: 16, steps: 4}]
  less:
    title: one change
    task: all
    recipe: between
    infer: [pose, amplitude, defocus]
    guide: {image_size: 16, references: 4}
    batch_size: 10
    stages: [{resolution: 16, steps: 4}]
"""


METRICS = [latent.metric for latent in LATENTS.values()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A results folder with the profile beside it, and every run of it done."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny.yaml").write_text(TINY)
    for name in load_profile(folder / "tiny.yaml").runs:
        fit_or_load(name, folder / "tiny.yaml", results=folder)
    return folder


@pytest.fixture(scope="module")
def metrics(folder) -> dict:
    return gather_metrics(load_profile(folder / "tiny.yaml"), folder)


@pytest.fixture(scope="module")
def tiny_fit(folder) -> Fit:
    return fit_or_load("all", folder / "tiny.yaml", results=folder)


def test_stage_table_has_a_row_for_each_stage(tiny_fit) -> None:
    lines = stage_table(tiny_fit).splitlines()
    assert len(lines) == 2 + 2
    assert lines[2].startswith("| 1 | 12 | forward kl | 8 |")
    assert lines[3].startswith("| 2 | 16 | elbo | 6 |")
    assert lines[0].count("|") == lines[3].count("|")


def test_runs_of_a_task_are_together(metrics) -> None:
    runs = tasks_of(metrics)
    assert list(runs) == ["all"]
    assert [run["seed"] for run in runs["all"]["ours"]] == [1, 2]
    assert len(runs["all"]["paper"]) == 1
    assert not tasks_of(metrics, [])


def test_headline_table_sets_both_recipes_beside_paper_and_limit(metrics) -> None:
    lines = headline_table(metrics).splitlines()
    assert len(lines) == 2 + 3
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    key = "pose_residual_mean_deg"
    ours = sorted(metrics[name][key] for name in ("all", "all_seed_2"))
    assert cells[:2] == ["All three (paper: pose 33°, not reached)", "pose"]
    assert cells[2] == two_digits(metrics["all_paper"][key], "°")
    assert cells[3] == f"**{two_digits(sum(ours) / 2, '°')} ({two_digits(ours[1], '°')})**"
    assert "refined" not in lines[0]
    assert cells[4] == two_digits(metrics["all"][f"{key}_limit"], "°")
    assert lines[3].startswith("|  | amplitude |")


def test_reach_is_guide_refined_and_limit(metrics) -> None:
    """Refined at the run's own K before any other; the limit is that of the images that were refined."""
    key = "pose_residual_mean_deg"
    plain = reach_table(metrics, ["all"]).splitlines()
    assert len(plain) == 2 + 3
    cells = [cell.strip() for cell in plain[2].strip("|").split("|")]
    assert cells[:2] == ["All three (paper: pose 33°, not reached)", "pose"] and cells[3] == "—"
    assert cells[4] == two_digits(metrics["all"][f"{key}_limit"], "°")
    told = {"recipe": "refined", "task": "all", "of": "all"}
    finer = told | {"resolution": 32} | {k: 0.01 for key in METRICS for k in (key, f"{key}_limit")}
    refined = told | {"resolution": 16} | {k: 0.012 for key in METRICS for k in (key, f"{key}_limit")}
    both = {"all_finer": finer, "all_refined": refined}
    for added, value in (({"all_finer": finer}, 0.01), (both, 0.012)):
        cells = reach_table(metrics | added, ["all"]).splitlines()[2].split("|")
        assert [cell.strip() for cell in cells[4:6]] == [
            f"**{two_digits(value, '°')}**",
            two_digits(value, "°"),
        ]


def test_a_refined_run_stands_beside_ours_at_its_own_resolution(metrics) -> None:
    """Not beside the paper's, and not if it was refined at another K."""
    refined = dict.fromkeys(METRICS, 0.012)
    refined |= {"recipe": "refined", "task": "all", "resolution": 16}
    others = {
        "all_refined": refined | {"of": "all"},
        "all_refined_24": refined | {"of": "all", "resolution": 24},
        "all_paper_refined": refined | {"of": "all_paper"},
    }
    assert tasks_of(metrics | others)["all"]["refined"] == [others["all_refined"]]
    assert "| 0.012° |" in headline_table(metrics | others).splitlines()[2]


def test_a_fixed_training_set_has_a_residual_of_its_own(metrics) -> None:
    assert metrics["all_paper"]["pose_residual_mean_deg_training"] > 0
    assert metrics["all_paper"]["epochs"] == 2.0
    assert not {"pose_residual_mean_deg_training", "epochs"} & set(metrics["all"])


def test_a_reference_run_is_kept_and_found_again(folder, metrics, monkeypatch) -> None:
    settings = load_profile(folder / "tiny.yaml")
    path = save_reference(settings, folder, folder / "reference.json")
    monkeypatch.setattr(
        "cryoanm_lib.experiments.reference.reference_path", lambda profile: folder / f"{profile}.json"
    )
    reference = load_reference("reference")
    assert isinstance(reference, Reference) and path.is_file()
    assert reference.metrics == metrics
    assert set(reference.histories) == set(settings.runs)
    assert reference.histories["less"][-1]["pose_residual"] == pytest.approx(
        metrics["less"]["pose_residual_mean_deg"], abs=1e-4
    )
    assert {"commit", "date", "torch", "device", "threads"} <= set(reference.made)
    with pytest.raises(ArtifactError, match="no reference run of profile 'other'"):
        load_reference("other")
    (folder / "damaged.json").write_text('{"made": {}}')
    with pytest.raises(ArtifactError, match="keys are missing"):
        load_reference("damaged")


def test_what_was_not_run_again_stays_in_the_reference(folder, metrics, tmp_path) -> None:
    """Unless its configuration has changed: then it is missing."""
    settings, path = load_profile(folder / "tiny.yaml"), tmp_path / "reference.json"
    save_reference(settings, folder, path)
    before = path.read_text()
    save_reference(settings, tmp_path / "nothing", path)
    after, reference = json.loads(path.read_text()), json.loads(before)
    assert after["metrics"] == reference["metrics"] and after["histories"] == reference["histories"]
    with pytest.raises(ArtifactError, match="is missing"):
        save_reference(settings.model_copy(update={"seed": 99}), tmp_path / "nothing", path)


def test_a_partial_reference_keeps_what_there_is(folder, metrics, tmp_path) -> None:
    """Runs of an earlier configuration, which it names; of new ones those that were made."""
    settings, path = load_profile(folder / "tiny.yaml"), tmp_path / "reference.json"
    save_reference(settings, folder, path)
    changed = settings.model_copy(update={"seed": 99})
    save_reference(changed, tmp_path / "nothing", path, partial=True)
    reference = Reference(**json.loads(path.read_text()))
    assert reference.metrics == metrics and reference.older(settings) == []
    assert {"all", "less"} <= {*reference.older(changed)} and "all_seed_2" not in reference.older(changed)
    assert older_runs(reference, settings) == ""
    assert "*all*" in older_runs(reference, changed, {"all"})
    assert "less" not in older_runs(reference, changed, {"all"})
    path.unlink()
    save_reference(settings, tmp_path / "nothing", path, partial=True)
    assert json.loads(path.read_text())["metrics"] == {}


def test_a_guide_s_coverage_stands_in_a_table(folder) -> None:
    fits = [load_fit(load_profile(folder / "tiny.yaml"), name, folder) for name in ("all", "less")]
    *_, first, second = coverage_table(fits).splitlines()
    assert f"| {100 * fits[0].metrics['coverage_80']:.1f} |" in first
    assert fits[1].metrics["title"] in second and ("ELBO" in second or "forward KL" in second)


@pytest.mark.mistyped  # a namespace stands for the configuration
def test_a_population_is_as_wide_as_what_made_the_images(folder) -> None:
    """Under a prior of 3 Å and with an error of 4 Å means scatter by 1.8 Å, and the population by 3 Å.

    The width of 4000 amplitudes so seen is within 0.4 Å of that but once in 10⁴ times. An image that is not
    explained says nothing, though it says it loudly.
    """
    settings = load_profile(folder / "tiny.yaml")
    generator = torch.Generator().manual_seed(5)
    true, noise = torch.randn(2, 4000, generator=generator).double()
    shrunk, columns = 9 / (9 + 16), settings.run("all").model().unknowns.columns
    mean = shrunk * (3 * true + 4 * noise)
    mean[0] = 1e3
    surprise = torch.ones(4000)
    surprise[0] = 0.0
    refined = {
        "surprise": surprise,
        "mean.amplitude": mean[:, None].float(),
        "deviation": torch.full((4000, len(columns)), 4 * shrunk**0.5),
    }
    run = types.SimpleNamespace(run=settings.run("all"))
    made = Assessment(
        run,  # pyright: ignore[reportArgumentType] all that is asked of it
        {"title": "far", "snr": 0.1},
        {"amplitude": 3 * true[:, None].float()},
        {},
        {"refined": refined},
    )
    row = population_table([made]).splitlines()[-1]
    _, title, snr, count, gaussians, *widths, _ = (cell.strip() for cell in row.split("|"))
    assert (title, snr, count, gaussians) == ("far", "0.10", "3999", "1")
    population, own, means = (float(width.removesuffix(" Å")) for width in widths)
    assert abs(population - 3) < 0.4 and abs(own - 3) < 0.15 and abs(means - 1.8) < 0.1


def test_a_reference_run_is_of_the_books_protein(folder) -> None:
    settings = load_profile(folder / "tiny.yaml", structure="adk_closed")
    with pytest.raises(ArtifactError, match="of adk_open, the protein of the book, not of adk_closed"):
        save_reference(settings, folder, folder / "other.json")


def test_the_reference_run_of_the_book_is_whole() -> None:
    """Every run of the profile is there, in the words of today, and every curve that a notebook draws."""
    reference, settings = load_reference("full"), load_profile("full")
    assert set(reference.metrics) == {*settings.runs, *settings.assessments}
    for name in settings.runs:
        assert settings.run(name).description.items() <= reference.metrics[name].items()
    for name in settings.assessments:
        assert settings.assessed(name).description.items() <= reference.metrics[name].items()
    drawn = {name for name, run in settings.runs.items() if run.task == "pose_amplitude"}
    assert drawn <= set(reference.histories)


def test_markdown_table() -> None:
    assert markdown_table(["a", "b"], [[1, 2]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


@pytest.mark.parametrize(
    ("function", "labels"),
    [
        (figures.plot_pose_stages, {"K = 12, simulations", "K = 16"}),
        (figures.plot_joint, {"true pose θ (°)", "true amplitude α (Å)", "true defocus z (px²)"}),
        (figures.plot_residuals, {"pose (°)", "amplitude (Å)", "defocus (px²)", "training time (s)"}),
        (figures.plot_components, {"weight of second component", "angle between the two means (°)"}),
        (figures.plot_residual_distributions, {"pose (°)", "fraction of images below"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_posterior_figures_are_labelled(tiny_fit, function, labels) -> None:
    figure = function(tiny_fit)
    figure.canvas.draw()
    assert isinstance(figure, Figure)
    assert labels <= _texts(figure)


def test_headline_figure_shows_each_task(metrics) -> None:
    figure = figures.plot_headline(metrics)
    figure.canvas.draw()
    assert {"all", "pose (°)"} <= _texts(figure)


def test_recipes_are_drawn_side_by_side(tiny_fit, folder) -> None:
    papers = fit_or_load("all_paper", folder / "tiny.yaml", results=folder)
    figure = figures.plot_recipes(tiny_fit, papers)
    figure.canvas.draw()
    assert {"pose (°)", "amplitude (Å)", "training time (s)"} <= _texts(figure)
    assert [text.get_text() for text in figure.legends[0].get_texts()][:2] == ["our recipe", "paper's recipe"]


def test_each_change_of_recipe_is_a_curve(tiny_fit) -> None:
    histories = {"first": tiny_fit.history, "second": tiny_fit.history}
    figure = figures.plot_ablation(histories, {"pose": 0.05, "amplitude": 0.2})
    figure.canvas.draw()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["0  first", "1  second", "limit"]


def test_generalisation_figure(metrics) -> None:
    figure = figures.plot_generalisation(metrics)
    figure.canvas.draw()
    assert len(figure.axes[0].collections[0].get_offsets()) == 1  # the one run with a fixed training set
    assert {"trained on", "fresh"} <= _texts(figure)


def test_two_sidedness_is_drawn_beside_the_exact_one(tiny_fit) -> None:
    exact = {12: torch.tensor([0.0, 0.2]), 16: torch.tensor([0.0, 0.0])}
    figure = figures.plot_two_sidedness(exact, {"guide": tiny_fit})
    figure.canvas.draw()
    truth, guide = figure.axes[0].lines
    assert (guide.get_ydata() >= 0).all()
    assert truth.get_ydata().tolist() == pytest.approx([0.1, 0.0])
    assert list(guide.get_xdata()) == [12, 16]


def test_sides_are_drawn_along_the_training(tiny_fit) -> None:
    figure = figures.plot_sides({"guide": tiny_fit, "again": tiny_fit})
    figure.canvas.draw()
    assert {"guide", "again", "steps; K on top"} <= _texts(figure)


def test_disagreements_show_image_crop_and_densities(tiny_fit) -> None:
    images = draw_test_images(tiny_fit.run)
    torch.testing.assert_close(images.truth["pose"], tiny_fit.truth["pose"])
    figure = figures.plot_disagreements(images, {"guide": tiny_fit}, stage=0, count=3)
    figure.canvas.draw()
    (density,) = figure.axes[6].lines
    assert density.get_ydata().sum() == pytest.approx(1.0, abs=0.02)
    assert {"image", "at K = 12", "density"} <= _texts(figure)


def test_offsets_are_drawn_below_the_landscape(tiny_fit) -> None:
    figure = figures.plot_offsets([tiny_fit], resolution=16, count=5)
    figure.canvas.draw()
    (profile,) = figure.axes[0].lines
    peak = profile.get_xdata()[profile.get_ydata().argmax()]
    assert abs(peak) < 2
    assert {"the landscape at K = 16", "predicted less true pose (°)"} <= _texts(figure)


def test_rings_figure(tiny_fit) -> None:
    figure = figures.plot_rings(tiny_fit.guide, draw_test_images(tiny_fit.run))
    figure.canvas.draw()
    assert {"unrolled", "where each component attends"} <= _texts(figure)


def test_projected_normal_figure() -> None:
    assert "direction (°)" in _texts(figures.plot_projected_normal())


def _texts(figure: Figure) -> set[str]:
    """Every label and title in a figure."""
    found = set()
    for axes in figure.axes:
        found |= {axes.get_xlabel(), axes.get_ylabel(), axes.get_title()}
        found |= {text.get_text() for text in (*axes.get_xticklabels(), *axes.get_yticklabels())}
        found |= {child.get_title() for child in axes.child_axes}
    return found
