"""Shards as jobs of Snakemake: those of one machine, whatever fails or is killed on the way."""

import contextlib
import functools
import os
import random
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cryoanm_lib import RunFolder
from cryoanm_lib.io.storage import load_json, save_json
from tests.cluster.particles import CRYOANM, assert_same, environment, local, settings_of, snakemake
from tests.killed import SIGNALS

#: Those of the long test, and how often workers and Snakemake are killed meanwhile.
SHARDS, KILLS = 200, 20

#: A command that fails for one of the shards.
_FAILS = """#!/bin/sh
if [ "$1" = shard ] && [ -e "{broken}" ]; then
    for number in "$@"; do [ "$number" != 2 ] || {{ echo "error: no room left"; exit 1; }}; done
fi
exec {cryoanm} "$@"
"""


def workers_of(out: Path) -> list[int]:
    """Processes that infer shards of a run, whoever began them."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if words[2:5] == [b"cryoanm_lib.commands.cryoanm", b"shard", os.fsencode(out)]:
                found.append(int(entry.name))
    return found


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "run"
    for process in workers_of(tmp_path / "run"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


@pytest.mark.thorough
def test_a_shard_that_fails_is_named_and_made_by_the_same_command(tmp_path: Path, out: Path) -> None:
    """The other shards are there, and stay."""
    settings, broken = settings_of(tmp_path, particles=40, shard=10), tmp_path / "broken"
    wrapped = tmp_path / "cryoanm"
    wrapped.write_text(_FAILS.format(broken=broken, cryoanm=CRYOANM))
    wrapped.chmod(0o755)
    broken.touch()
    configuration = {**settings, "out": str(out), "shards_per_job": 1, "cryoanm": str(wrapped)}
    told = {"cwd": tmp_path, "env": environment(), "capture_output": True, "text": True, "timeout": 600}
    command = snakemake(tmp_path, configuration, "--cores", "2", "--keep-going", "--retries", "0")
    first = subprocess.run(command, **told)
    assert first.returncode == 1
    assert f"missing: cryoanm shard {shlex.quote(str(out))} 2\n  error: no room left" in first.stderr
    there = {path: path.stat().st_mtime_ns for path in out.glob("shards/0*")}
    assert [path.stem for path in sorted(there)] == ["00000", "00001", "00003"]
    broken.unlink()
    assert subprocess.run(command, **told).returncode == 0
    assert all(path.stat().st_mtime_ns == when for path, when in there.items())
    assert_same(out, local(settings, tmp_path / "local"))


@pytest.mark.slow
def test_two_hundred_shards_survive_random_kills(
    tmp_path: Path, out: Path, count: Callable[[str, float], None]
) -> None:
    """Of workers, and of Snakemake, whose jobs may live on: nothing is lost, nothing is there twice."""
    settings = settings_of(tmp_path, particles=SHARDS, shard=1)
    configuration = {**settings, "out": str(out), "shards_per_job": 10}
    chosen = ("--cores", "2", "--keep-going", "--rerun-incomplete", "--nolock", "--retries", "3")
    command, source, kills = snakemake(tmp_path, configuration, *chosen), random.Random(11), 0
    # what a shell begins in the background is deaf to Ctrl-C, and so would be all that it begins
    told = {
        "env": environment(),
        "preexec_fn": functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    }
    seen: set[Path] = set()
    for _ in range(2 * KILLS):
        with (tmp_path / "log").open("a") as log:
            running = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log, **told)
        try:
            while running.poll() is None and kills < KILLS:
                before = len(list(out.glob("shards/0*")))
                time.sleep(source.uniform(0.0, 5.0))
                workers = workers_of(out)
                if not workers or len(list(out.glob("shards/0*"))) == before:  # nothing is gained to be lost
                    continue
                kills += 1
                if source.random() < 0.25:
                    running.send_signal(source.choice(SIGNALS))
                    break
                with contextlib.suppress(ProcessLookupError):
                    os.kill(source.choice(workers), source.choice(SIGNALS))
            outcome = running.wait(timeout=1800)
        finally:
            running.kill()
            running.wait()
        now = set(out.glob("shards/0*"))
        assert seen <= now, "what was there is lost"
        seen = now
        if outcome == 0:
            break
    assert outcome == 0 and kills >= KILLS / 2, (tmp_path / "log").read_text()[-3000:]
    assert load_json(RunFolder(out).asked)["shards"] == SHARDS and RunFolder(out).missing() == []
    assert RunFolder(out).answers().row.tolist() == list(range(SHARDS))
    assert_same(out, local(settings, tmp_path / "local"))
    count("kills of workers and of Snakemake in a run of 200 shards", kills)


def test_a_setting_of_0_is_asked_for_and_marks_of_what_is_gone_are_forgotten(
    tmp_path: Path, out: Path
) -> None:
    """0 is a number and not nothing; and a shard that somebody deleted is made again."""
    settings = settings_of(tmp_path, particles=20, shard=10) | {"twin": 0, "dark": False}
    command = snakemake(tmp_path, {**settings, "out": str(out), "shards_per_job": 1}, "-n", "-p")
    told = {"cwd": tmp_path, "env": environment(), "capture_output": True, "text": True, "timeout": 300}
    asked = subprocess.run(command, **told).stdout
    assert "--twin=0" in asked and "--dark" not in asked
    for mark in ("prepared", "00000-00000", "00001-00001", "finished"):
        (out / "jobs").mkdir(parents=True, exist_ok=True)
        (out / "jobs" / mark).touch()
    save_json(out / "plan.json", {"shards": 2})
    (out / "learned").mkdir()
    (out / "shards").mkdir()
    (out / "shards" / "00001.safetensors").touch()
    planned = subprocess.run(command, **told).stdout
    assert "shard " + str(out) + " 0" in planned
    assert "shard " + str(out) + " 1" not in planned


def test_jobs_of_a_gpu_ask_for_one(tmp_path: Path, out: Path) -> None:
    """Each is told to compute there; without it none asks."""
    settings = settings_of(tmp_path, particles=20, shard=10)
    told = {"cwd": tmp_path, "env": environment(), "capture_output": True, "text": True, "timeout": 300}
    for device, gpus in (("cpu", 0), ("cuda", 1)):
        configuration = {**settings, "out": str(out), "device": device}
        planned = subprocess.run(snakemake(tmp_path, configuration, "-n", "-p"), **told).stdout
        assert f"--device {device}" in planned and f"gpu={gpus}" in planned
