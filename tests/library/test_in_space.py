"""An experiment with poses in space from its configuration to its figures, from a small profile."""

import json
from pathlib import Path

import matplotlib
import pytest
import torch
from matplotlib.figure import Figure

from cryoanm_lib.__main__ import main
from cryoanm_lib.book import figures
from cryoanm_lib.book.tables import space_table
from cryoanm_lib.book.views import amplitude_limits, directions, find_rivals, globe
from cryoanm_lib.errors import ConfigurationError, ForwardModelError
from cryoanm_lib.experiments import weights
from cryoanm_lib.experiments.assess import Assessment, assess_or_load
from cryoanm_lib.experiments.datasets import draw_test_images
from cryoanm_lib.experiments.fit import Fit, fit_or_load, load_fit, make_trainer
from cryoanm_lib.experiments.profile import load_profile
from cryoanm_lib.inference.fisher import information_limit

matplotlib.use("Agg")

TINY = """
stride: 5
test_images: 12
window: 3
checks: {draws: 19, guide_images: 6, exact_images: 4}
experiments:
  space: &space
    title: In space
    infer: [pose, shift, amplitude, defocus]
    model: {modes: 2, box_size: 32, pixel_size: 2.6, cutoff: 25.0}
    prior: {pose: space, shift_scale: 0.5, temperature: 300.0}
    noise: [0.05, 0.2]
    test_noise: 0.05
    guide: {encoder: shared, image_size: 16, channels: [4, 8], components: 3}
    batch_size: 10
    stages:
      - {resolution: 16, steps: 4, objective: forward_kl, clip_norm: 1.0}
      - {resolution: 16, steps: 3}
  kept:
    <<: *space
    weights: space
    stages: []
assessments:
  space_refined: {of: space, title: Space, resolution: 32}
  space_noisier_refined: {of: space, title: Noisier, noise: 0.2, images: 5}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("space")
    (folder / "tiny.yaml").write_text(TINY)
    return folder


@pytest.fixture(scope="module")
def fitted(folder) -> Fit:
    return fit_or_load("space", folder / "tiny.yaml", results=folder)


@pytest.fixture(scope="module")
def assessments(folder, fitted) -> list[Assessment]:
    names = ("space_refined", "space_noisier_refined")
    return [assess_or_load(name, folder / "tiny.yaml", results=folder) for name in names]


def texts(figure: Figure) -> set[str]:
    figure.canvas.draw()
    found = {ax.get_title() for ax in figure.axes} | {ax.get_ylabel() for ax in figure.axes}
    return found | {ax.get_xlabel() for ax in figure.axes}


def test_an_experiment_has_a_model_of_its_own(folder) -> None:
    run = load_profile(folder / "tiny.yaml").run("space")
    model = run.model()
    assert (model.forward_model.n_modes, model.forward_model.box_size) == (2, 32)
    assert (model.noise.low, model.noise.high) == (0.05, 0.2)
    assert run.model(noise=0.1).noise.deviation == 0.1
    eigenvalues = run.model_section.normal_modes(run.profile.load_structure()).eigenvalues
    expected = (0.0019872041 * 300.0 / eigenvalues).sqrt()
    torch.testing.assert_close(torch.tensor(model.prior.amplitude_scale).double(), expected)


def test_the_fit_says_how_near_its_components_are(fitted) -> None:
    metrics = fitted.metrics
    assert 0 <= metrics["best_component_within_15deg"] <= 1
    assert metrics["pose_residual_median_deg"] > metrics["pose_residual_mean_deg_limit"] > 0
    assert {"shift_residual_mean_px", "amplitude_residual_mean", "defocus_residual_mean"} <= set(metrics)
    assert fitted.truth["pose"].shape == (12, 4)
    images = draw_test_images(fitted.run, 0.05)
    assert images.noise.deviation == 0.05
    limit = information_limit(fitted.model, images, 16)["pose"].mean().item()
    assert metrics["pose_residual_mean_deg_limit"] == pytest.approx(limit, rel=1e-5)


def test_refined_from_a_guide_that_knows_nothing(assessments) -> None:
    """Twelve images: most poses are found, though the guide has seen seventy."""
    metrics = assessments[0].metrics
    assert metrics["fraction_within_5_limits"] > 0.7
    assert metrics["guide_pose_residual_median_deg"] > 5 * metrics["pose_residual_median_deg"]
    for latent in ("pose", "shift", "amplitude", "defocus"):
        assert 0.4 < metrics[f"{latent}_residual_over_limit"] < 2.0
        assert 0.3 < metrics[f"{latent}_standardised_error"] < 2.0
    assert metrics["elbo_gap_median"] > 0


def test_an_assessment_can_have_noise_and_images_of_its_own(assessments) -> None:
    clear, noisier = (found.metrics for found in assessments)
    assert clear["images"] == 12 and noisier["images"] == 5
    assert clear["noise"] == 0.05 and noisier["noise"] == 0.2
    assert clear["snr"] / noisier["snr"] == pytest.approx(16.0, rel=0.3)
    json.dumps(clear, allow_nan=False)


def test_the_posterior_is_kept_with_its_widths(assessments) -> None:
    found = assessments[0].tested["refined"]
    assert found["deviation"].shape == (12, 3 + 2 + 2 + 1) and (found["deviation"] > 0).all()
    assert found["mean.pose"].shape == (12, 4) and found["mean.amplitude"].shape == (12, 2)


def test_weights_that_were_kept_need_no_training(folder, fitted, monkeypatch, capsys) -> None:
    monkeypatch.setattr(weights, "weights_path", lambda name: folder / f"{name}.safetensors")
    monkeypatch.setattr("cryoanm_lib.experiments.fit.weights_path", weights.weights_path)
    given = ["--profile", str(folder / "tiny.yaml"), "--results", str(folder)]
    assert main(["weights", "space", *given]) == 0
    made = weights.weights_made("space")
    assert made["made_by"].endswith("space") and int(made["steps"]) == 7
    kept = fit_or_load("kept", folder / "tiny.yaml", results=folder)
    assert kept.metrics["steps"] == 0 and kept.metrics["resolution"] == 32 and not kept.history
    for name, value in fitted.guide.encoders.state_dict().items():
        torch.testing.assert_close(kept.guide.encoders.state_dict()[name], value, rtol=1e-3, atol=1e-6)
    again = load_fit(load_profile(folder / "tiny.yaml"), "kept", folder)
    assert len(again.snapshots) == 1


def test_only_the_pose_is_learned_where_the_others_are_computed(folder) -> None:
    trainer = make_trainer(load_profile(folder / "tiny.yaml").run("space"))
    assert trainer._networks() == ("image", "pose")
    assert set(trainer.guide.encoders) == {"image", "pose"}


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("infer: [pose, shift,", "infer: [shift,", "leaves nothing to learn"),
        ("noise: [0.05, 0.2]", "noise: [0.2, 0.05]", "is no range"),
        ("shift_scale: 0.5, ", "", "names 'shift', which does not vary: give the prior a shift_scale"),
        ("infer: [pose, shift,", "infer: [pose, shift, shift,", "names a latent twice"),
        ("noise: 0.2, images: 5", "exact_images: 5", "no lattice covers poses in space"),
        (
            "stages: []",
            "stages: []\n    seed: 3\n  none: {title: None, infer: [pose], stages: []}",
            "at least one",
        ),
        ("pose: space, shift", "pose: everywhere, shift", "'plane' or 'space'"),
    ],
)
def test_a_setting_that_is_not_usable_is_named(tmp_path, before, after, message) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.replace(before, after))
    with pytest.raises(ConfigurationError, match=message):
        load_profile(path)


def test_separate_networks_do_not_infer_poses_in_space(tmp_path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.replace("encoder: shared, ", ""))
    with pytest.raises(ConfigurationError, match="'rings' does not infer a pose in space: choose 'shared'"):
        load_profile(path)


def test_a_molecule_that_fits_in_the_plane_only_is_refused(tmp_path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.replace("pixel_size: 2.6", "pixel_size: 2.05"))
    with pytest.raises(ForwardModelError, match="beyond half a box of 32 pixels"):
        load_profile(path).run("space").model()


def test_tables_and_figures_of_it(folder, fitted, assessments) -> None:
    table = space_table([found.metrics for found in assessments])
    heading, *rows = table.splitlines()
    assert heading.count("|") == 2 + len(assessments) and "within 5 limits" in table
    ratios = [float(cell) for cell in heading.strip("| ").split("|")[1:]]
    assert ratios == sorted(ratios, reverse=True) and "| inside 95 % |" in rows[-2]
    assert {"pose (°)", "shift (px)"} <= texts(figures.plot_beside_limit(assessments[0]))
    images = draw_test_images(fitted.run, 0.05)
    assert "SNR 1" in texts(figures.plot_particles({"SNR 1": images}, 32, count=3))
    assert "turn φ (°)" in texts(figures.plot_double_cover())
    assert "pose residual (°)" in texts(figures.plot_ways_to_train({"one": fitted.history}))


def test_figures_of_views(folder, fitted, assessments) -> None:
    model = fitted.run.model(noise=0.05)
    _, _, cells = globe(6)
    limits = amplitude_limits(model, cells, 32)
    refined = assessments[0].tested["refined"]
    claimed = refined["deviation"][:, 5:7].float()
    maps = figures.plot_view_maps(6, {"deviation (Å)": limits}, assessments[0].truth["pose"], claimed)
    assert {"limit", "mode 2\ndeviation (Å)"} <= texts(maps)
    assert "share in the image" in texts(figures.plot_in_plane(limits, model.forward_model, cells))
    error = refined["mean.amplitude"].float() - assessments[0].truth["amplitude"]
    assert "deviation claimed (Å)" in texts(figures.plot_knows(claimed, error, bins=2))
    rivals = {"K = 16": find_rivals(model, directions(10), 16)}
    assert "share of views" in texts(figures.plot_rivals(rivals))
