"""Two runs in one results folder: the second waits, and a run that was killed holds nobody up."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cryoanm_lib.errors import ArtifactError
from cryoanm_lib.experiments import fit as experiment
from cryoanm_lib.experiments.fit import fit
from cryoanm_lib.experiments.profile import load_profile
from cryoanm_lib.io.locks import alone

HOLD = """
import sys, time
from pathlib import Path
from cryoanm_lib.io.locks import alone
with alone(Path(sys.argv[1]), Path("fits/pose-1")):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""

TINY = """
model: {box_size: 24, pixel_size: 4.0}
test_images: 4
window: 2
experiments:
  pose:
    title: Pose
    infer: [pose]
    guide: {image_size: 16, references: 2}
    batch_size: 4
    stages: [{resolution: 12, steps: 2}]
"""


@contextmanager
def holder(results: Path, seconds: float) -> Iterator[subprocess.Popen]:
    """Another process that has the lock."""
    command = [sys.executable, "-c", HOLD, results, str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().strip() == "held"
        yield process


def test_the_second_waits_and_says_so(tmp_path, capsys) -> None:
    with holder(tmp_path, 0.5) as other, alone(tmp_path, Path("fits/pose-1")) as waited:
        assert waited and other.wait() == 0
    assert "another run is making" in capsys.readouterr().err
    with alone(tmp_path, Path("fits/pose-1")) as waited:
        assert not waited


def test_those_that_share_wait_for_nobody_but_the_one_who_does_not(tmp_path) -> None:
    """Read by a lock that does not wait: who shares one finds it taken by nobody who shares it too."""
    artifact, lock = Path("run"), tmp_path / ".locks" / "run.lock"
    with alone(tmp_path, artifact, shared=True) as first, alone(tmp_path, artifact, shared=True) as second:
        assert not first and not second
        with lock.open("a") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with alone(tmp_path, artifact), lock.open("a+") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)


def test_a_killed_run_lets_go(tmp_path) -> None:
    with holder(tmp_path, 60) as other:
        other.send_signal(signal.SIGKILL)
    with alone(tmp_path, Path("fits/pose-1")) as waited:
        assert not waited


def test_others_are_not_in_each_other_s_way(tmp_path) -> None:
    with alone(tmp_path, Path("fits/pose-1")), alone(tmp_path, Path("fits/pose-2")) as waited:
        assert not waited


def test_what_was_waited_for_is_not_made_again(tmp_path, monkeypatch) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    settings = load_profile(path)
    fit(settings, "pose", tmp_path, show_progress=False)
    made = []
    monkeypatch.setattr(experiment, "_fit", lambda *given: made.append(given))
    for waited, times in ((True, 0), (False, 1)):
        monkeypatch.setattr(experiment, "alone", lambda *given, waited=waited: _Waited(waited))
        fit(settings, "pose", tmp_path, show_progress=False)
        assert len(made) == times


class _Waited:
    def __init__(self, waited: bool) -> None:
        self.waited = waited

    def __enter__(self) -> bool:
        return self.waited

    def __exit__(self, *error: object) -> None:
        return None


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path) -> None:
    (tmp_path / "results").write_text("a file")
    with (
        pytest.raises(ArtifactError, match="cannot be written to"),
        alone(tmp_path / "results", Path("fits/pose-1")),
    ):
        pass


@pytest.mark.parametrize("missing", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_of_the_file_system_it_goes_on_and_says_so(tmp_path, monkeypatch, missing) -> None:
    def flock(*given: object) -> None:
        raise OSError(missing, os.strerror(missing))

    monkeypatch.setattr(fcntl, "flock", flock)
    for _ in range(2):  # nothing is left that the second would wait for
        with (
            pytest.warns(UserWarning, match="pose-1 cannot be locked .* start one at a time"),
            alone(tmp_path, Path("fits/pose-1")) as waited,
        ):
            assert not waited
