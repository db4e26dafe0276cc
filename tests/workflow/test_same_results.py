"""One seed, one answer, whatever runs beside what and whoever is killed on the way (half an hour)."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from cryoanm_lib.imaging.latents import LATENTS
from cryoanm_lib.io.storage import load_json
from tests.sameness import OWN_TO_A_RUN, differences

from .conftest import ROOT, copy_checkout

pytestmark = pytest.mark.slow

#: How often the workflow is killed, and within how many seconds of its start.
KILLS, SOON = 20, 30.0

# How much a refined mean error may change with the number of threads, in its standard errors: an error of
# its own of this size would make the error bar 3 % longer. At the lowest signal, where some posteriors have
# two peaks half a turn apart, one draw of 39 that rounding sends to the other peak is a seventh of one.
SAME_BUT_FOR_ROUNDING = 0.25

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)

# Seconds that the longest job of a smoke book may take on a busy machine, and the book as a whole.
JOB, BOOK = 120, 3600


# The cores of a run. With more, --cores 4 would give jobs more threads than --cores 1 does.
TWO = set(sorted(os.sched_getaffinity(0))[:2]) if hasattr(os, "sched_setaffinity") else set()


def prepare() -> None:
    """Two cores, and an ear for Ctrl-C: a shell starts what runs in the background deaf to it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if TWO:
        os.sched_setaffinity(0, TWO)


class Copy:
    """A clean copy of the repository in which the smoke book is made."""

    def __init__(self, folder: Path, source: Path = ROOT):
        self.folder = copy_checkout(folder, source)
        self.results = self.folder / "results"

    def start(self, *arguments: str) -> subprocess.Popen:
        """Snakemake in a group of its own, as in a terminal."""
        command = [sys.executable, "-m", "snakemake", "--nocolor", *arguments, "--config", "profile=smoke"]
        with open(self.folder / "run.log", "a") as log:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=prepare,
            )

    def finish(self, *arguments: str) -> None:
        running = self.start(*arguments)
        try:
            assert running.wait(BOOK) == 0, (self.folder / "run.log").read_text()[-5000:]
        finally:  # whatever happens, it does not run on beside other tests
            end(running)

    def state(self) -> set[Path]:
        return {path for path in self.results.rglob("*") if path.is_file() and "locks" not in str(path)}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Copy:
    """The smoke book, two jobs at a time."""
    made = Copy(tmp_path_factory.mktemp("undisturbed"))
    made.finish("--cores", "4")
    return made


def end(running: subprocess.Popen) -> None:
    """Snakemake and its jobs, if they still run."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(running.pid, signal.SIGKILL)


def kill(running: subprocess.Popen, how: signal.Signals) -> None:
    """Ctrl-C reaches the whole group, as does the end of a machine; SIGTERM Snakemake alone."""
    if how == signal.SIGTERM:
        running.terminate()
    else:
        os.killpg(running.pid, how)
    try:
        running.wait(JOB)
    except subprocess.TimeoutExpired:
        end(running)
        running.wait(JOB)
        # Snakemake's handler of SIGTERM takes a lock; if the signal comes while that very thread holds it,
        # it waits for ever. Batch systems kill what does not end.
        if how != signal.SIGTERM:
            raise


def test_killed_twenty_times(undisturbed, tmp_path, count) -> None:
    source, copy, kills, killed_at = random.Random(2), Copy(tmp_path / "killed", undisturbed.folder), 0, []
    while kills < KILLS:
        running = copy.start("--cores", "4")
        try:
            assert running.wait(source.uniform(0.0, SOON)) == 0, (copy.folder / "run.log").read_text()[-5000:]
        except subprocess.TimeoutExpired:
            kill(running, source.choice(SIGNALS))
            kills += 1
            killed_at.append(len(copy.state()))
        else:  # made in spite of it all: compared, and begun anew
            assert differences(undisturbed.results, copy.results) == []
            shutil.rmtree(copy.folder)
            copy = Copy(tmp_path / f"after_{kills}", undisturbed.folder)
    copy.finish("--cores", "4")
    assert differences(undisturbed.results, copy.results) == []
    assert len(set(killed_at)) > KILLS / 4, "kills that all fall into one job show nothing"
    count("kills of the whole workflow, at random moments, by three signals", kills)


def test_two_clean_copies_one_of_them_job_by_job(undisturbed, tmp_path, count) -> None:
    copy = Copy(tmp_path / "one_by_one", undisturbed.folder)
    copy.finish("--cores", "1")
    assert differences(undisturbed.results, copy.results) == []
    files = sum(len(list(undisturbed.results.glob(kind))) for kind in ("fits/*/*", "assessments/*/*"))
    count("clean copies whose numbers, texts and figures were compared, one made job by job", 2)
    count("cells of notebooks that say that they show times or rounding, and were not compared", left_out())
    count("files of results that were equal to the bit in both", files)


def left_out() -> int:
    """Cells of notebooks whose tag says that they differ from run to run."""
    notebooks = [nbformat.read(path, as_version=4) for path in sorted(ROOT.glob("notebooks/*.ipynb"))]
    return sum(bool(OWN_TO_A_RUN & set(c.metadata.get("tags", []))) for book in notebooks for c in book.cells)


@pytest.mark.skipif(len(TWO) < 2, reason="needs two cores")
def test_more_threads_change_refined_answers_by_rounding_alone(undisturbed, tmp_path, count) -> None:
    """Networks that train by other roundings end elsewhere; what is refined from them must not."""
    copy = Copy(tmp_path / "two_threads", undisturbed.folder)
    copy.finish("--cores", "2", "results/metrics.json")
    one, two = (load_json(made.results / "metrics.json") for made in (undisturbed, copy))
    refined = [name for name, run in one.items() if run["recipe"] == "refined"]
    threads = [{run[name]["threads"] for name in refined} for run in (one, two)]
    assert threads == [{1}, {2}]
    changes = [
        (abs(two[name][key] - mean), mean, one[name][f"{key}_error"])
        for name in refined
        for key, mean in one[name].items()
        if key in {latent.metric for latent in LATENTS.values()}
    ]
    assert len(changes) >= 2 * len(refined)
    in_errors = max(change / error for change, _, error in changes)
    assert in_errors < SAME_BUT_FOR_ROUNDING
    relative = max(change / mean for change, mean, _ in changes)
    count("largest relative change of a refined mean error with two threads for one", relative)
    count("largest such change in standard errors of that mean error", in_errors)


def test_a_report_is_made(undisturbed) -> None:
    undisturbed.finish("--report", "report.html")
    report = (undisturbed.folder / "report.html").read_text()
    assert "headline numbers" in report and "metrics_check" in report
