"""Tables and posterior figures of a finished fit, from one small run."""

import pytest
from matplotlib.figure import Figure

from cryoanm_lib import plots
from cryoanm_lib.experiment import Fit, fit_or_load
from cryoanm_lib.tables import headline_table, markdown_table, stage_table

TINY = """
test_images: 40
window: 4
experiments:
  all:
    title: All three
    infer: [pose, amplitude, defocus]
    guide: {image_size: 16, references: 4}
    batch_size: 10
    stages:
      - {resolution: 12, steps: 8, objective: forward_kl}
      - {resolution: 16, steps: 6}
    paper: {pose_residual_mean_deg: 33.0}
"""


@pytest.fixture(scope="module")
def tiny_fit(tmp_path_factory) -> Fit:
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny.yaml").write_text(TINY)
    return fit_or_load("all", folder / "tiny.yaml", results=folder)


def test_stage_table_has_a_row_for_each_stage(tiny_fit) -> None:
    lines = stage_table(tiny_fit).splitlines()
    assert len(lines) == 2 + 2
    assert lines[2].startswith("| 1 | 12 | forward kl | 8 |")
    assert lines[3].startswith("| 2 | 16 | elbo | 6 |")
    assert lines[0].count("|") == lines[3].count("|")


def test_headline_table_sets_paper_run_and_limit_side_by_side(tiny_fit) -> None:
    lines = headline_table({"all": tiny_fit.metrics}, {"all": "All three"}).splitlines()
    assert len(lines) == 2 + 3
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells[:3] == ["All three", "pose", "33°"]
    assert cells[3] == f"**{tiny_fit.metrics['pose_residual_mean_deg']:.2g}°**"
    assert cells[4] == f"{tiny_fit.metrics['pose_residual_mean_deg_limit']:.2g}°"
    assert lines[3].split("|")[3].strip() == "—"


def test_markdown_table() -> None:
    assert markdown_table(["a", "b"], [[1, 2]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


@pytest.mark.parametrize(
    ("function", "labels"),
    [
        (plots.plot_pose_stages, {"K = 12, simulations", "K = 16"}),
        (plots.plot_joint, {"true pose θ (°)", "true amplitude α (Å)", "true defocus z (px²)"}),
        (plots.plot_residuals, {"pose (°)", "amplitude (Å)", "defocus (px²)", "training time (s)"}),
        (plots.plot_components, {"weight of second component", "angle between the two means (°)"}),
        (plots.plot_residual_distributions, {"pose (°)", "fraction of images below"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_posterior_figures_are_labelled(tiny_fit, function, labels) -> None:
    figure = function(tiny_fit)
    figure.canvas.draw()
    assert isinstance(figure, Figure)
    assert labels <= _texts(figure)


def test_headline_figure_shows_each_experiment(tiny_fit) -> None:
    figure = plots.plot_headline({"all": tiny_fit.metrics})
    figure.canvas.draw()
    assert {"all", "pose (°)"} <= _texts(figure)


def test_projected_normal_figure() -> None:
    assert "direction (°)" in _texts(plots.plot_projected_normal())


def _texts(figure: Figure) -> set[str]:
    """Every label and title in a figure."""
    found = set()
    for axes in figure.axes:
        found |= {axes.get_xlabel(), axes.get_ylabel(), axes.get_title()}
        found |= {text.get_text() for text in (*axes.get_xticklabels(), *axes.get_yticklabels())}
        found |= {child.get_title() for child in axes.child_axes}
    return found
