import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILT = shutil.ignore_patterns("_build", "generated", "__pycache__", ".ipynb_checkpoints")


@pytest.fixture(scope="session")
def checkout(tmp_path_factory):
    """A copy of what the workflow reads, with no results in it."""
    copy = tmp_path_factory.mktemp("checkout")
    for folder in ("workflow", "profiles", "config", "notebooks", "cryoanm_lib", "book"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=BUILT)
    shutil.rmtree(copy / "book" / "notebooks", ignore_errors=True)
    for file in ("Snakefile", "_config.yml"):
        shutil.copy(ROOT / file, copy)
    return copy


@pytest.fixture(scope="session")
def snakemake(checkout):
    """Run Snakemake in the copy: `snakemake(*arguments)` returns the finished process."""

    def run(*arguments):
        command = [sys.executable, "-m", "snakemake", "--nocolor", "--cores", "4", *arguments]
        return subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=120)

    return run
