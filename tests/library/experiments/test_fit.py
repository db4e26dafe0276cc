"""Artifacts: fitted once, loaded after, refused when they are another's."""

import json
from pathlib import Path

import pytest
import torch

from cryoanm_lib.__main__ import main
from cryoanm_lib.errors import ArtifactError, ConfigurationError, StructureError
from cryoanm_lib.experiments import fit as module
from cryoanm_lib.experiments.fit import (
    find_results,
    fit,
    fit_or_load,
    load_fit,
    make_trainer,
)
from cryoanm_lib.experiments.metrics import check_metrics
from cryoanm_lib.experiments.profile import load_profile
from cryoanm_lib.inference.amortised import draw_from
from cryoanm_lib.io.storage import load_tensors, save_tensors, sweep
from cryoanm_lib.numerics.device import pick_device

TINY = """
test_images: 20
window: 4
experiments:
  both:
    title: Both
    infer: [pose, amplitude]
    guide: {image_size: 16, references: 4}
    batch_size: 10
    stages:
      - {resolution: 12, steps: 8}
      - {resolution: 16, steps: 8, learning_rate: 0.002}
    paper: {pose_residual_mean_deg: 33.0}
  fixed:
    title: A fixed set, by the paper's estimator
    infer: [pose]
    guide: {encoder: convolutional, image_size: 16, channels: [2, 4], stratified: false}
    training_images: 30
    batch_size: 10
    stages: [{resolution: 12, steps: 7}]
"""


@pytest.fixture
def profile(tmp_path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


def test_fit_then_load(profile, tmp_path) -> None:
    results = tmp_path / "results"
    first = fit_or_load("both", profile, results=results)
    assert first.metrics["pose_residual_mean_deg_paper"] == 33.0
    assert first.metrics["pose_residual_mean_deg_limit"] > 0
    assert first.metrics["steps"] == 16 and first.metrics["train_seconds"] > 0
    assert first.metrics["device"]
    assert first.metrics["config_hash"] == load_profile(profile).run("both").config_hash
    assert len(first.snapshots) == 2 and first.snapshots[0]["pose"].shape == (20, 2)
    folder = results / load_profile(profile).run("both").path
    stamp = (folder / "weights.safetensors").stat().st_mtime_ns
    second = fit_or_load("both", profile, results=results)
    assert (folder / "weights.safetensors").stat().st_mtime_ns == stamp
    assert second.metrics == first.metrics
    images = second.model.simulate(3, 16)
    torch.manual_seed(0)
    one = draw_from(first.guide, images, 16)
    torch.manual_seed(0)
    assert torch.equal(one["pose"], draw_from(second.guide, images, 16)["pose"])
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.json",
        "history.json",
        "metrics.json",
        "predictions.safetensors",
        "provenance.json",
        "weights.safetensors",
    ]


def test_a_deterministic_fit_asks_torch_for_it_and_leaves_torch_as_it_was(
    profile, tmp_path, monkeypatch
) -> None:
    seen = []
    run = module.Trainer.run

    def watched(self, **given):
        seen.append(torch.are_deterministic_algorithms_enabled())
        return run(self, **given)

    monkeypatch.setattr(module.Trainer, "run", watched)
    fits = []
    for text in (TINY, "deterministic: true\n" + TINY):
        profile.write_text(text)
        fit(settings := load_profile(profile), "both", tmp_path)
        fits.append(load_fit(settings, "both", tmp_path))
    assert seen == [False, True] and not torch.are_deterministic_algorithms_enabled()
    # Another artifact, since on a GPU it is: on a CPU the same numbers.
    assert fits[0].metrics["config_hash"] != fits[1].metrics["config_hash"]
    assert torch.equal(fits[0].snapshots[-1]["pose"], fits[1].snapshots[-1]["pose"])


def test_an_interrupted_fit_resumes_and_ends_the_same(profile, tmp_path, monkeypatch) -> None:
    settings = load_profile(profile)
    fit(settings, "both", tmp_path / "a", show_progress=False)
    monkeypatch.setattr(module, "CHECKPOINT_INTERVAL", -1.0)
    original, saves = module.save_checkpoint, []

    def save_and_stop(path, trainer, digest) -> None:
        original(path, trainer, digest)
        saves.append(trainer.progress.total_steps)
        if len(saves) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "save_checkpoint", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        fit(settings, "both", tmp_path / "b", show_progress=False)
    folder = settings.run("both").path
    left = {p.name for p in (tmp_path / "b" / folder).iterdir()}
    assert left == {"checkpoint.safetensors"}
    fit(settings, "both", tmp_path / "b", show_progress=False)
    assert saves[3:] and saves[3] > saves[2]
    first, second = (load_fit(settings, "both", tmp_path / x) for x in "ab")
    timed = {"train_seconds"}
    assert {k: v for k, v in first.metrics.items() if k not in timed} == {
        k: v for k, v in second.metrics.items() if k not in timed
    }


def test_a_fixed_training_set_is_seen_whole_each_epoch(profile) -> None:
    trainer = make_trainer(load_profile(profile).run("fixed"))
    epochs = []
    for epoch in range(2):
        seen = []
        for position in range(3):
            seen += trainer.source(12, 3 * epoch + position).truth["amplitude"].flatten().tolist()
        assert len(set(seen)) == 30
        epochs.append(seen)
    assert epochs[0] != epochs[1] and sorted(epochs[0]) == sorted(epochs[1])


def test_the_paper_recipe_runs(profile, tmp_path) -> None:
    fit(load_profile(profile), "fixed", tmp_path, show_progress=False)
    history = load_fit(load_profile(profile), "fixed", tmp_path).history
    assert [record["total_steps"] for record in history] == [4, 7]


@pytest.mark.parametrize(
    "file", ["metrics.json", "history.json", "weights.safetensors", "predictions.safetensors"]
)
def test_a_damaged_artifact_is_refused(profile, tmp_path, file) -> None:
    settings = load_profile(profile)
    fit(settings, "fixed", tmp_path, show_progress=False)
    path = tmp_path / settings.run("fixed").path / file
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ArtifactError, match="damaged"):
        load_fit(settings, "fixed", tmp_path)


def test_an_artifact_of_another_configuration_is_refused(profile, tmp_path) -> None:
    settings = load_profile(profile)
    fit(settings, "fixed", tmp_path, show_progress=False)
    path = tmp_path / settings.run("fixed").path / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"config_hash": "00000000"}))
    with pytest.raises(ArtifactError, match="holds configuration 00000000, not"):
        load_fit(settings, "fixed", tmp_path)


def test_a_fit_made_again_and_killed_is_no_fit(profile, tmp_path, monkeypatch) -> None:
    """What it had written of the new one stands beside what is left of the old one."""
    fit_or_load("both", profile, results=tmp_path)
    settings = load_profile(profile)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "provenance", killed)
    with pytest.raises(KeyboardInterrupt):
        fit(settings, "both", tmp_path, show_progress=False)
    with pytest.raises(ArtifactError, match=r"metrics\.json is missing"):
        load_fit(settings, "both", tmp_path)
    monkeypatch.undo()
    assert fit_or_load("both", profile, results=tmp_path).metrics["steps"] == 16


def test_what_killed_processes_left_half_written_is_swept_away(tmp_path) -> None:
    """And nothing else: editors and notebooks have hidden files and folders of their own."""
    (tmp_path / ".ipynb_checkpoints").mkdir()
    for name in (".weights.safetensors.123", ".probe.7", ".tmpOjHU0O", ".notes", "metrics.json"):
        (tmp_path / name).touch()
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".ipynb_checkpoints", ".notes", "metrics.json"}


@pytest.mark.parametrize("file", ["weights.safetensors", "predictions.safetensors"])
def test_tensors_of_another_configuration_or_too_few_are_refused(profile, tmp_path, file) -> None:
    settings = load_profile(profile)
    fit(settings, "fixed", tmp_path, show_progress=False)
    path = tmp_path / settings.run("fixed").path / file
    tensors, metadata = load_tensors(path)
    save_tensors(path, tensors, config_hash="deadbeef")
    with pytest.raises(ArtifactError, match="holds configuration deadbeef, not"):
        load_fit(settings, "fixed", tmp_path)
    tensors.popitem()
    save_tensors(path, tensors, **metadata)
    with pytest.raises(ArtifactError, match="damaged"):
        load_fit(settings, "fixed", tmp_path)


def test_a_missing_structure_leaves_nothing(profile, tmp_path, capsys) -> None:
    results = tmp_path / "results"
    with pytest.raises(StructureError):
        fit_or_load("both", profile, structure=str(tmp_path / "none.pdb"), results=results)
    assert not results.exists()
    arguments = [
        "fit",
        "--profile",
        str(profile),
        "--structure",
        "nothing",
        "--results",
        str(results),
        "both",
    ]
    assert main(arguments) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_cuda_without_a_device_is_an_error(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto").type == "cpu"
    with pytest.raises(ConfigurationError, match="finds no CUDA device: choose 'auto' or 'cpu'"):
        pick_device("cuda")


def test_results_are_found_from_a_subfolder(tmp_path, monkeypatch) -> None:
    (tmp_path / "Snakefile").touch()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert find_results("results") == tmp_path / "results"
    assert find_results(tmp_path / "elsewhere") == tmp_path / "elsewhere"


def test_metrics_and_their_check(profile, tmp_path, capsys) -> None:
    settings = load_profile(profile)
    for name in settings.experiments:
        fit(settings, name, tmp_path, show_progress=False)
    assert main(["metrics", "--profile", str(profile), "--results", str(tmp_path)]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert set(metrics) == {"both", "fixed"}
    assert check_metrics(metrics, {"both": {"pose_residual_mean_deg": [0, 180]}}) == []
    complaints = check_metrics(metrics, {"both": {"steps": [0, 1]}, "three": {"x": [0, 1]}})
    assert complaints == ["both.steps = 16 is outside 0 to 1", "three.x is missing; expected 0 to 1"]


def test_ranges_are_those_of_the_default_protein(tmp_path, capsys) -> None:
    (tmp_path / "metrics.json").write_text("{}")
    arguments = ["check", "--profile", "smoke", str(tmp_path / "metrics.json")]
    assert main(arguments) == 1
    assert (
        "pose_marching.pose_residual_mean_deg_limit is missing; expected 0.043 to 0.046"
        in capsys.readouterr().out
    )
    assert main([*arguments, "--structure", "adk_closed"]) == 0
    assert "no ranges are known for adk_closed" in capsys.readouterr().out


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ["both", "fixed"])
def test_an_experiment_runs_on_cuda_by_the_same_code(profile, tmp_path, name) -> None:
    profile.write_text(TINY + "device: cuda\n")
    settings = load_profile(profile)
    fit(settings, name, tmp_path / "cuda", show_progress=False)
    found = load_fit(settings, name, tmp_path / "cuda")
    assert "CPU" not in found.metrics["device"]
    on_cpu = make_trainer(settings.run(name), "cpu")
    assert all(torch.equal(found.truth[k], v) for k, v in on_cpu.truth.items())
