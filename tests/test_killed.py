"""A fit that is killed at any moment goes on where it was, and ends as one that nobody killed."""

import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cryoanm_lib import experiment
from cryoanm_lib.checkpoint import load_checkpoint, previous
from cryoanm_lib.configuration import Profile, load_profile
from cryoanm_lib.experiment import fit, load_fit, make_trainer
from tests.sameness import differences

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system that forks processes")

#: How often the quick suite kills a fit, and the long one.
FEW, MANY = 3, 100

#: Within how many seconds of its start, or of its first save: each is every other kill's.
SOON, AFTER_SAVING = 1.0, 0.2

#: Ctrl-C, what a batch system sends, and what nobody can refuse.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)

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


def started(settings: Profile, results: Path, largest_file: int | None = None) -> int:
    """A process of its own that fits and saves at each window, as many times a second as it can."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    outcome = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(os.open(results.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        torch.set_num_threads(1)
        experiment.CHECKPOINT_INTERVAL = -1.0
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
        fit(settings, "both", results, show_progress=False)
        outcome = 0
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(outcome)


def ended(process: int) -> int | None:
    """The exit status of a process, minus the signal where one ended it; none while it runs."""
    found, status = os.waitpid(process, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def must_run(process: int, results: Path) -> None:
    outcome = ended(process)
    said = results.with_suffix(".log").read_text() if outcome else "too short for this test"
    assert outcome is None, f"the fit has ended: {said}"


def stamp(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.is_file() else None


def killed_and_resumed(settings: Profile, results: Path, kills: int, seed: int) -> int:
    """Fit to the end, killed so many times before; returns how many times a saved state was there."""
    source, resumed, done = random.Random(seed), 0, 0
    saved = results / settings.artifact_path("both") / "checkpoint.safetensors"
    while done < kills:
        resumed += saved.is_file()
        before = stamp(saved)
        process = started(settings, results)
        while done % 2 == 0 and stamp(saved) == before:
            must_run(process, results)
            time.sleep(0.005)
        time.sleep(source.uniform(0.0, SOON if done % 2 else AFTER_SAVING))
        must_run(process, results)
        os.kill(process, source.choice(SIGNALS))
        done += 1
        while ended(process) is None:
            time.sleep(0.005)
    last = started(settings, results)
    assert os.waitstatus_to_exitcode(os.waitpid(last, 0)[1]) == 0, results.with_suffix(".log").read_text()
    return resumed


def kill(settings: Profile, folder: Path, kills: int) -> int:
    """Compare a fit with one that is killed; returns how often the second one resumed."""
    whole = started(settings, folder / "whole")
    assert os.waitstatus_to_exitcode(os.waitpid(whole, 0)[1]) == 0, (folder / "whole.log").read_text()
    resumed = killed_and_resumed(settings, folder / "killed", kills, seed=5)
    assert differences(folder / "whole", folder / "killed") == []
    assert (
        load_fit(settings, "both", folder / "killed").metrics["steps"] == 2 * settings.stages("both")[0].steps
    )
    return resumed


def test_a_killed_fit_ends_as_one_that_was_not(profile, tmp_path) -> None:
    assert kill(profile(80), tmp_path, FEW) > 0


@pytest.mark.slow
def test_a_fit_killed_a_hundred_times_ends_as_one_that_was_not(profile, tmp_path, count) -> None:
    resumed = kill(profile(4000), tmp_path, MANY)
    assert resumed > MANY / 2
    count("kills of one fit, at random moments, each followed by going on", MANY)


def test_a_full_disk_ends_a_fit_with_an_error_and_its_last_state_stays(profile, tmp_path) -> None:
    """No file may grow beyond a limit that the last saved state kept, as where a disk is full."""
    settings, results = profile(80), tmp_path / "results"
    folder = results / settings.artifact_path("both")
    first = started(settings, results)
    while not (folder / "checkpoint.previous.safetensors").is_file():
        must_run(first, results)
        time.sleep(0.01)
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    saved = folder / "checkpoint.safetensors"
    before = saved.read_bytes()
    full = started(settings, results, largest_file=len(before) // 2)
    assert os.waitstatus_to_exitcode(os.waitpid(full, 0)[1]) == 1
    said = results.with_suffix(".log").read_text()
    assert "ArtifactError" in said and "cannot be written" in said and "free some space" in said
    assert saved.read_bytes() == before
    load_checkpoint(saved, make_trainer(settings, "both"), settings.config_hash("both"))
    assert {path.name for path in folder.iterdir()} == {saved.name, previous(saved).name}
