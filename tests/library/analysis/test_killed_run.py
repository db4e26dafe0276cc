"""A run that is killed, finds the disk full or another run in its folder ends as one that was left alone."""

import functools
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import cryoanm_lib
from cryoanm_lib import Plan, export, infer, read_star, write_report, write_star
from cryoanm_lib.errors import ArtifactError
from tests.killed import MANY, SIGNALS, log_of, must_end, must_run, must_succeed, outcome_of, started, until
from tests.sameness import differences

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system that forks processes")

DATA = Path(cryoanm_lib.__file__).parent / "data"

#: All that a run writes, in the order in which it does.
FILES = (
    "images.safetensors",
    "plan.json",
    "check.json",
    "learned/0.safetensors",
    *(f"shards/{number:05d}.safetensors" for number in range(3)),
    "population.safetensors",
    "shown.safetensors",
    "twin.json",
)

#: What is there before anything else.
LOCK = ".locks/run.lock"

#: Files that find the disk full; after the first two, a whole run is still to be made. Without a plan images
#: are written again too, and are the larger file.
FULL_AT = (
    *(pytest.param(n, marks=pytest.mark.thorough) for n in (FILES[0], FILES[2])),
    *(*FILES[3:5], *FILES[-2:]),
)

#: What the second of two runs says.
WAITS = "another run is making"

#: How often one run is killed, before the next is begun that is killed.
OF_ONE = 5

#: Begins work in a process of its own, as of `tests.killed.started`.
Start = Callable[..., int]


class Part(NamedTuple):
    """What a run does between two of its files, and the seconds that it takes."""

    after: str
    seconds: float


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """One that takes seconds: few particles, of which nothing fine is looked at."""
    folder = tmp_path_factory.mktemp("particles")
    write_star(read_star(DATA / "adk_particles.star")[torch.arange(60)], folder / "few.star")
    shutil.copy(DATA / "adk_particles.mrcs", folder)
    molecule = {"reference": "adk_open", "towards": "adk_closed", "beads": True, "modes": 1, "detail": 24.0}
    sizes = {"learn_from": 20, "shard": 20, "twin": 10, "nulls": 5}
    return Plan.model_validate({"particles": str(folder / "few.star"), **molecule, **sizes})


@pytest.fixture(scope="module")
def whole(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody disturbed; here, so that processes find loops compiled already."""
    return infer(plan, tmp_path_factory.mktemp("whole") / "run", progress=False).path


@pytest.fixture(scope="module")
def parts(plan: Plan, whole: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Part]:
    """Of a second one, in a process of its own as those that are killed."""
    folder = tmp_path_factory.mktemp("timed") / "run"
    must_succeed(started(inferring(plan), folder), folder)
    assert_ended(folder, whole)
    times = [(folder / name).stat().st_mtime for name in (LOCK, *FILES)]
    assert times == sorted(times), "files are written in another order"
    seconds = (after - before for before, after in pairwise(times))
    return [Part(*part) for part in zip((LOCK, *FILES), seconds, strict=False)]


def inferring(plan: Plan) -> Callable[[Path], object]:
    return functools.partial(infer, plan, progress=False)


def held(folder: Path) -> dict[str, int]:
    """Everything that lies in a folder, and when it was made."""
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def made(folder: Path) -> dict[str, int]:
    """What of a run is there already, and since when."""
    return {name: (folder / name).stat().st_mtime_ns for name in FILES if (folder / name).is_file()}


def assert_kept(before: dict[str, int], folder: Path) -> None:
    assert before.items() <= made(folder).items(), "what was there is lost or made again"


def assert_ended(folder: Path, whole: Path) -> None:
    """It holds what a run holds that nobody disturbed, and nothing that was written by half."""
    assert set(held(folder)) == {LOCK, *FILES}
    assert differences(folder, whole, FILES) == []


def killed(start: Start, plan: Plan, folder: Path, part: Part, source: random.Random) -> bool:
    """Go on with a run and kill it at a random moment of a part; whether it had not ended before."""
    before = made(folder)
    process = start(inferring(plan), folder)
    until(lambda: (folder / part.after).is_file() or must_run(process, folder))
    time.sleep(source.uniform(0.0, part.seconds))
    if (outcome := outcome_of(process)) is None:
        must_end(process, source.choice(SIGNALS))
        assert_kept(before, folder)
        return True
    # on a machine that is faster than it was when parts were timed
    assert outcome == 0, log_of(folder).read_text()
    return False


def kill(
    start: Start, plan: Plan, folder: Path, whole: Path, parts: list[Part], source: random.Random
) -> int:
    """Compare a run with one that is killed in some of its parts; how often it was."""
    kills = sum(killed(start, plan, folder, part, source) for part in parts)
    before = made(folder)
    must_succeed(start(inferring(plan), folder), folder)
    assert_kept(before, folder)
    assert_ended(folder, whole)
    return kills


def test_a_killed_run_ends_as_one_that_was_not(
    start: Start, plan: Plan, whole: Path, parts: list[Part], tmp_path: Path
) -> None:
    """While it learns, infers its second shard, and makes the twin."""
    some = [parts[FILES.index(name)] for name in (FILES[3], FILES[5], FILES[-1])]
    assert kill(start, plan, tmp_path / "run", whole, some, random.Random(3))


@pytest.mark.slow
def test_runs_killed_a_hundred_times_end_as_one_that_was_not(
    start: Start,
    plan: Plan,
    whole: Path,
    parts: list[Part],
    tmp_path: Path,
    count: Callable[[str, float], None],
) -> None:
    source, kills = random.Random(7), 0
    while kills < MANY:
        # in their order, so that each is still to come
        some = [parts[number] for number in sorted(source.sample(range(len(parts)), OF_ONE))]
        kills += kill(start, plan, tmp_path / f"run-{kills}", whole, some, source)
    count("kills of runs on particles, at random moments of each part, by three signals", kills)


def begun(whole: Path, folder: Path, before: str) -> Path:
    """A run that was killed before it wrote a certain file, and while it wrote others."""
    for name in FILES[: FILES.index(before)]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(whole / name, folder / name)
        (folder / name).with_name(f".{Path(name).name}.123").write_text("half")
    return folder


@pytest.mark.parametrize("full_at", FULL_AT)
def test_a_full_disk_ends_a_run_with_an_error_and_it_goes_on(
    start: Start, plan: Plan, whole: Path, tmp_path: Path, full_at: str
) -> None:
    """No file may grow beyond half of what the next one needs."""
    folder = begun(whole, tmp_path / "run", before=full_at)
    before = made(folder)
    full = start(inferring(plan), folder, largest_file=(whole / full_at).stat().st_size // 2)
    assert outcome_of(full, wait=300.0) == 1
    said = log_of(folder).read_text()
    assert said.startswith(f"ArtifactError: {folder / full_at} cannot be written (")
    assert "free some space" in said
    assert held(folder).keys() == {LOCK, *before}
    must_succeed(start(inferring(plan), folder), folder)
    assert_kept(before, folder)
    assert_ended(folder, whole)


def test_of_two_runs_at_once_the_second_finds_all_done(
    start: Start, plan: Plan, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    running = {start(inferring(plan), folder) for _ in range(2)}
    until(lambda: one_has_succeeded(running, folder))
    before = held(folder)
    until(lambda: one_has_succeeded(running, folder))
    assert held(folder) == before, "something was made twice"
    assert_ended(folder, whole)
    assert log_of(folder).read_text().count(WAITS) == 1


def one_has_succeeded(running: set[int], folder: Path) -> bool:
    """Whether one has ended, as it must: well; that one is looked at no more."""
    for process in list(running):
        if (outcome := outcome_of(process)) is not None:
            assert outcome == 0, log_of(folder).read_text()
            running.remove(process)
            return True
    return False


def test_a_run_that_waits_goes_on_where_the_other_was_killed(
    start: Start, plan: Plan, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    first = start(inferring(plan), folder)
    until(lambda: (folder / FILES[2]).is_file() or must_run(first, folder))
    second = start(inferring(plan), folder)
    until(lambda: (folder / FILES[4]).is_file() or must_run(first, folder))
    assert log_of(folder).read_text().count(WAITS) == 1
    must_end(first, signal.SIGKILL)
    before = made(folder)
    must_succeed(second, folder)
    assert_kept(before, folder)
    assert_ended(folder, whole)


@pytest.mark.parametrize("work", [write_report, export])
def test_of_a_run_without_answers_there_is_nothing_to_read(
    whole: Path, tmp_path: Path, work: Callable[[Path], object]
) -> None:
    for before in FILES[:5]:
        folder = begun(whole, tmp_path / Path(before).stem, before)
        found = "no run: begin one" if before in FILES[:2] else "no answers yet: run cryoanm infer to its end"
        with pytest.raises(ArtifactError, match=f"holds {found}"):
            work(folder)


def test_of_a_run_that_was_killed_there_are_the_answers_so_far(
    plan: Plan, whole: Path, tmp_path: Path
) -> None:
    folder = begun(whole, tmp_path / "run", before=FILES[5])
    text = write_report(folder).read_text()
    assert "20 of 60 particles have a posterior" in text and "not at its end" in text
    assert "not at its end" not in write_report(whole, tmp_path / "report.html").read_text()
    written = {path.name: path for path in export(folder, subsets=2)}
    assert read_star(written["posterior.star"]).names == read_star(plan.particles).names[:20]
