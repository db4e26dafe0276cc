"""Tables and figures of assessments and of a wrong model, from a small profile."""

from pathlib import Path

import matplotlib
import pytest
import torch
from matplotlib.figure import Figure

from cryoanm_lib.book import figures
from cryoanm_lib.book.tables import calibration_table, limit_table, refinement_table
from cryoanm_lib.book.transition import Explained, Transition, explain
from cryoanm_lib.experiments.assess import Assessment, assess_or_load
from cryoanm_lib.experiments.profile import load_profile
from cryoanm_lib.inference.lattice_search import LatticeSearch
from cryoanm_lib.inference.refinement import refine
from cryoanm_lib.molecule.structure import load_structure
from cryoanm_lib.program.program import Model

matplotlib.use("Agg")

TINY = """
test_images: 20
window: 4
checks: {draws: 19, guide_images: 10, exact_images: 8}
experiments:
  one: &one
    title: One
    infer: [pose, amplitude]
    guide: {image_size: 16, references: 4}
    batch_size: 10
    stages: [{resolution: 16, steps: 4}]
  noisy:
    <<: *one
    noise: 1.0
assessments:
  one_refined: {of: one, title: One}
  noisy_refined: {of: noisy, title: Noisy}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny.yaml").write_text(TINY)
    return folder


@pytest.fixture(scope="module")
def assessments(folder) -> dict[str, Assessment]:
    names = ("one_refined", "noisy_refined")
    return {name: assess_or_load(name, folder / "tiny.yaml", results=folder) for name in names}


@pytest.fixture(scope="module")
def model(folder) -> Model:
    return load_profile(folder / "tiny.yaml").run("one").model()


def texts(figure: Figure) -> set[str]:
    figure.canvas.draw()
    return {text.get_text() for text in figure.findobj(matplotlib.text.Text)}


def test_limit_table_has_a_column_for_each_unknown(model) -> None:
    lines = limit_table([model], model.simulate(3, 16), [8, 16]).splitlines()
    assert lines[0].count("unknown") == len(model.inferred)
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["8", "16"]


def test_tables_of_assessments(assessments) -> None:
    metrics = [assessment.metrics for assessment in assessments.values()]
    heading, _, first, _ = refinement_table(metrics).splitlines()
    assert "| pose |" in heading and "outliers" in heading
    assert first.startswith("| One | 16 |") and "→" in first
    rows = calibration_table(metrics).splitlines()
    assert "guide: 50 / 80 / 95 %" in rows[0] and "refined: 50 / 80 / 95 %" in rows[0]
    ratios = [float(row.split("|")[2]) for row in rows[2:]]
    assert ratios == sorted(ratios, reverse=True)


def test_figures_of_assessments_are_labelled(assessments) -> None:
    one, noisy = assessments.values()
    for figure, labels in [
        (
            figures.plot_coverage({"one": one, "other": noisy}),
            {"level of the region", "truths inside", "exact"},
        ),
        (figures.plot_ranks(one), {"pose", "amplitude", "rank of the truth among the draws"}),
        (figures.plot_elbo_gap({"guide": one}), {"log-evidence less ELBO (nats)"}),
        (
            figures.plot_against_signal([one.metrics, noisy.metrics]),
            {"signal-to-noise ratio", "limit", "guide"},
        ),
    ]:
        assert labels <= texts(figure)


def test_reach_shows_each_method(assessments) -> None:
    found = {
        "paper": {"pose": 33.0, "amplitude": 1.0},
        "ours": {"pose": 0.1},
        "limit": {"pose": 0.05, "amplitude": 0.2},
    }
    assert {"paper", "ours", "33", "0.1"} <= texts(figures.plot_reach(found))


def test_sharpening_and_referees(model) -> None:
    image = model.simulate(1, 16)
    assert any(text.startswith("K = 8") for text in texts(figures.plot_sharpening(model, image, [8, 16])))
    posterior = refine(model, image, 16, LatticeSearch(model, 16).starts(image))
    draws = {name: value[:, 0] for name, value in posterior.sample(50).items()}
    assert {"lattice", "NUTS"} <= texts(
        figures.plot_referees({"lattice": draws, "NUTS": draws}, posterior, 0)
    )


@pytest.fixture(scope="module")
def transition(model) -> Transition:
    return Transition(model, load_structure("adk_closed").coordinates)


@pytest.fixture(scope="module")
def explained(transition) -> dict[float, Explained]:
    torch.manual_seed(0)
    return {fraction: explain(transition, fraction, 8, 32) for fraction in (0.0, 1.0)}


def test_the_end_of_the_way_is_the_other_structure(transition) -> None:
    """Its length, the share of the mode and the rest are a right-angled triangle."""
    n_atoms = len(transition.displacement)
    spanned = transition.amplitudes[0].item()
    assert transition.length**2 == pytest.approx(spanned**2 + n_atoms * transition.unspanned**2, rel=1e-4)
    assert spanned / transition.length == pytest.approx(0.79, abs=0.02)
    latents = transition.model.simulate(2, 32).truth | {"amplitude": torch.full((2, 1), transition.length)}
    bent = transition.forward_model.deform(latents["amplitude"])[0]
    torch.testing.assert_close(bent, transition.model.forward_model.reference + transition.displacement)


def test_only_the_end_of_the_way_raises_the_alarm(explained) -> None:
    assert explained[0.0].alarm_fraction == 0.0 and explained[0.0].pooled_p > 1e-4
    assert explained[1.0].alarm_fraction == 1.0 and explained[1.0].pooled_p < 1e-4
    assert explained[1.0].coverage[0.95] < 0.5 and explained[1.0].truth > 50
    assert abs(explained[0.0].amplitude_median) < 1.0 < explained[1.0].pose_residual
    assert 0.1 < explained[0.0].amplitude_claimed < 0.4


def test_figures_of_a_wrong_model_are_labelled(model, explained) -> None:
    images = {f"t = {t:g}": case.images[:1] for t, case in explained.items()}
    draws = {f"t = {t:g}": case.draw(1) for t, case in explained.items()}
    assert {"image", "prediction", "what is left (σ)", "t = 1"} <= texts(
        figures.plot_explanations(model, images, draws, 32)
    )
    images = {f"t = {t:g}": case.images for t, case in explained.items()}
    draws = {f"t = {t:g}": case.draw() for t, case in explained.items()}
    assert {"spatial frequency (1/px)", "t = 0"} <= texts(figures.plot_ring_misfit(model, images, draws, 32))
    cases = [
        {
            "fraction": fraction,
            "noise": 0.1,
            "coverage_80": case.coverage[0.8],
            "alarm_fraction": case.alarm_fraction,
            "pooled_p": case.pooled_p,
        }
        for fraction, case in explained.items()
    ]
    assert {"much signal", "fraction of the way to the other structure"} <= texts(
        figures.plot_alarm(cases, {0.1: "much signal"})
    )
