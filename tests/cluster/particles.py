"""A run on few particles by Snakemake, and the same run on one machine."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

import cryoanm_lib
from cryoanm_lib import read_star, write_star
from tests.sameness import differences

ROOT = Path(__file__).parents[2]
DATA = Path(cryoanm_lib.__file__).parent / "data"
CRYOANM = f"{sys.executable} -m cryoanm_lib.commands.cryoanm"

#: Nothing fine is looked at, so that a shard takes a second.
_SETTINGS = {
    **{"reference": "adk_open", "towards": "adk_closed", "beads": True, "modes": 1, "detail": 24.0},
    **{"learn_from": 20, "twin": 10, "nulls": 5},
}


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}


def settings_of(folder: Path, particles: int, shard: int) -> dict:
    """Write a table of some particles, beside their stack; and what is asked of them."""
    write_star(read_star(DATA / "adk_particles.star")[torch.arange(particles)], folder / "few.star")
    shutil.copy(DATA / "adk_particles.mrcs", folder)
    return {"particles": str(folder / "few.star"), "shard": shard, **_SETTINGS}


def local(settings: dict, out: Path) -> Path:
    """The folder of a run on one machine."""
    told = [
        f"--{k.replace('_', '-')}" if v is True else f"--{k.replace('_', '-')}={v}"
        for k, v in settings.items()
    ]
    asked = [word for word in told if not word.startswith("--particles")]
    command = [*CRYOANM.split(), "infer", settings["particles"], *asked, "--out", str(out), "--quiet"]
    subprocess.run(command, env=environment(), check=True, timeout=900)
    return out


def snakemake(folder: Path, configuration: dict, *arguments: str) -> list[str]:
    """The command for a run, in a folder that is not the repository's."""
    (folder / "run.json").write_text(json.dumps({"cryoanm": CRYOANM, **configuration}))
    smk = ROOT / "workflow" / "particles.smk"
    chosen = ["--snakefile", str(smk), "--configfile", "run.json", "--nocolor", *arguments]
    return [sys.executable, "-m", "snakemake", *chosen]


def assert_same(out: Path, whole: Path) -> None:
    """All that a run holds is the same to the bit, and nothing is half-written."""
    names = sorted(
        str(p.relative_to(whole)) for p in whole.rglob("*") if p.is_file() and ".locks" not in p.parts
    )
    there = sorted(
        str(p.relative_to(out))
        for p in out.rglob("*")
        if p.is_file() and not {".locks", "jobs"} & set(p.relative_to(out).parts)
    )
    assert there == names
    assert differences(out, whole, names) == []
