"""A fit that is killed at any moment goes on where it was, and ends as one that nobody killed."""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cryoanm_lib.experiments import fit as experiment
from cryoanm_lib.experiments.checkpoint import resume
from cryoanm_lib.experiments.fit import fit, load_fit, make_trainer
from cryoanm_lib.experiments.profile import Profile, load_profile
from cryoanm_lib.io.storage import load_json, read_header
from tests.killed import FEW, MANY, SIGNALS, log_of, must_end, must_run, must_succeed, outcome_of, until
from tests.sameness import differences

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system that forks processes")

#: Within how many seconds of its start, or of its first save: each is every other kill's.
SOON, AFTER_SAVING = 1.0, 0.2

PROFILE = """
stride: 6
test_images: 20
window: 4
model: {{box_size: 24, pixel_size: 4.0, cutoff: 40.0}}
experiments:
  both:
    title: Both
    infer: [pose, amplitude]
    guide: {{image_size: 12, references: 4, components: 2}}
    batch_size: 20
    stages:
      - {{resolution: 10, steps: {steps}}}
      - {{resolution: 12, steps: {steps}, learning_rate: 0.002, final_learning_rate: 0.0005}}
"""


@pytest.fixture
def profile(tmp_path) -> Callable[[int], Profile]:
    def write(steps: int) -> Profile:
        path = tmp_path / "killed.yaml"
        path.write_text(PROFILE.format(steps=steps))
        return load_profile(path)

    return write


def fitting(settings: Profile) -> Callable[[Path], None]:
    """A fit that saves at each window, as many times a second as it can."""

    def work(results: Path) -> None:
        experiment.CHECKPOINT_INTERVAL = -1.0
        fit(settings, "both", results, show_progress=False)

    return work


def steps_at(saved: Path) -> int:
    """Steps of training in the last saved state; 0 where there is none."""
    return json.loads(read_header(saved)["progress"])["total_steps"] if saved.is_file() else 0


def killed_and_resumed(
    start: Callable[..., int], settings: Profile, results: Path, kills: int, seed: int
) -> None:
    """Fit to the end, killed so many times before, half of them just after a save; it must get on."""
    source = random.Random(seed)
    saved = results / settings.run("both").path / "checkpoint.safetensors"
    before = 0
    for number in range(kills):
        process = start(fitting(settings), results)
        if number % 2 == 0:
            until_it_gets_on(process, results, saved, before)
        time.sleep(source.uniform(0.0, SOON if number % 2 else AFTER_SAVING))
        must_run(process, results)
        must_end(process, SIGNALS[number % 3])
        assert steps_at(saved) >= before, "a kill has cost what was saved"
        before = steps_at(saved)
    must_succeed(start(fitting(settings), results), results)


def until_it_gets_on(process: int, results: Path, saved: Path, before: int) -> None:
    """Wait for a state of more steps than the last; the first one shows that it did not begin anew."""
    until(lambda: must_run(process, results) or steps_at(saved) > before)


def kill(start: Callable[..., int], settings: Profile, folder: Path, kills: int) -> None:
    """Compare a fit with one that is killed."""
    must_succeed(start(fitting(settings), folder / "whole"), folder / "whole")
    killed_and_resumed(start, settings, folder / "killed", kills, seed=5)
    assert differences(folder / "whole", folder / "killed") == []
    made = folder / "killed" / settings.run("both").path
    assert load_json(made / "provenance.json")["resumed"]
    assert load_fit(settings, "both", folder / "killed").metrics["steps"] == steps_of(settings)


def steps_of(settings: Profile) -> int:
    return sum(stage.steps for stage in settings.run("both").stages)


@pytest.mark.thorough
def test_a_killed_fit_ends_as_one_that_was_not(start, profile, tmp_path) -> None:
    kill(start, profile(80), tmp_path, FEW)


@pytest.mark.slow
def test_a_fit_killed_a_hundred_times_ends_as_one_that_was_not(start, profile, tmp_path, count) -> None:
    # so many steps that a fast machine is not done before the last kill
    kill(start, profile(2000), tmp_path, MANY)
    count("kills of one fit, at random moments, by three signals, each followed by going on", MANY)


def test_a_full_disk_ends_a_fit_with_an_error_and_its_last_state_stays(start, profile, tmp_path) -> None:
    """No file may grow beyond a limit that the last saved state kept, as where a disk is full."""
    settings, results = profile(80), tmp_path / "results"
    folder = results / settings.run("both").path
    saved = folder / "checkpoint.safetensors"
    first = start(fitting(settings), results)
    until(lambda: must_run(first, results) or saved.is_file())
    os.kill(first, signal.SIGKILL)
    assert outcome_of(first, wait=60.0) == -signal.SIGKILL
    before = saved.read_bytes()
    full = start(fitting(settings), results, largest_file=len(before) // 2)
    assert outcome_of(full, wait=300.0) == 1
    said = log_of(results).read_text()
    assert "ArtifactError" in said and "cannot be written" in said and "free some space" in said
    assert saved.read_bytes() == before
    run = settings.run("both")
    assert resume(saved, make_trainer(run), run.config_hash)
    assert [path.name for path in folder.iterdir()] == [saved.name]
