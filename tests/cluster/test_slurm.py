"""Shards through SLURM end as a run on one machine does, though a job fails and the node is lost."""

import contextlib
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.particles import CRYOANM, ROOT, assert_same, environment, local, settings_of, snakemake
from tests.cluster.slurm import Slurm, why_not
from tests.killed import until

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(why_not()), reason=why_not() or "it is there")]

#: Fails the first time that it is asked for one of the shards.
_FAILS_ONCE = """#!/bin/sh
if [ "$1" = shard ] && [ "$3" = 5 ] && [ ! -e "{mark}" ]; then
    touch "{mark}"; echo "error: this node has no such thing"; exit 1
fi
exec {cryoanm} "$@"
"""


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Slurm]:
    with Slurm(tmp_path / "slurm") as started:
        yield started


def test_eight_shards_on_a_cluster_are_those_of_one_machine(slurm: Slurm, tmp_path: Path) -> None:
    settings = settings_of(tmp_path, particles=64, shard=8)
    failing = tmp_path / "cryoanm"
    failing.write_text(_FAILS_ONCE.format(mark=tmp_path / "failed", cryoanm=CRYOANM))
    failing.chmod(0o755)
    out, log = tmp_path / "run", tmp_path / "snakemake.log"
    configuration = {**settings, "out": str(out), "shards_per_job": 1, "cryoanm": str(failing)}
    chosen = ["--profile", str(ROOT / "profiles" / "slurm"), "--slurm-status-command", "squeue"]
    chosen += ["--slurm-init-seconds-before-status-checks", "5", "--seconds-between-status-checks", "5"]
    chosen += [
        "--latency-wait",
        "5",
        "--set-resources",
        "shards:mem_mb=500",
        "prepare:mem_mb=500",
        "finish:mem_mb=500",
    ]
    command = snakemake(tmp_path, configuration, *chosen)
    with log.open("w") as told:
        running = subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=told, stderr=told)
    try:
        until(lambda: len(list(out.glob("shards/0*"))) >= 2 or running.poll() is not None, 300.0)
        assert running.poll() is None, log.read_text()[-3000:]
        before = {path: path.stat().st_mtime_ns for path in out.glob("shards/0*")}
        slurm.kill_node()
        time.sleep(5.0)
        slurm.start_node()
        assert running.wait(timeout=900) == 0, log.read_text()[-3000:]
    finally:
        with contextlib.suppress(ProcessLookupError):
            running.send_signal(signal.SIGKILL)
        running.wait()
    assert (tmp_path / "failed").exists()
    assert all(path.stat().st_mtime_ns == when for path, when in before.items()), "something was made twice"
    assert len(list(out.glob("shards/0*"))) == 8
    assert_same(out, local(settings, tmp_path / "local"))
