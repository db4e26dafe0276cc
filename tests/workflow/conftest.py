import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILT = shutil.ignore_patterns(
    "results", "_build", "generated", "build", "*.egg-info", "__pycache__", "*.log", ".*"
)


def copy_checkout(copy, source=ROOT):
    """A copy of the repository with nothing in it that was computed or installed."""
    shutil.copytree(source, copy, ignore=BUILT, dirs_exist_ok=True)
    shutil.rmtree(copy / "book" / "notebooks", ignore_errors=True)
    return copy


@pytest.fixture(scope="session")
def checkout(tmp_path_factory):
    return copy_checkout(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="session")
def snakemake(checkout):
    """Run Snakemake in the copy: `snakemake(*arguments)` returns the finished process."""

    def run(*arguments):
        command = [sys.executable, "-m", "snakemake", "--nocolor", "--cores", "4", *arguments]
        return subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=120)

    return run


@pytest.fixture
def machine_without(tmp_path, monkeypatch):
    """Replace a function of the operating system by an error, in every Python that a test starts."""

    def replace(module, function, error):
        folder = tmp_path / "without"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(
            f"import {module}\ndef missing(*given):\n    raise {error}\n{module}.{function} = missing\n"
        )
        monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)

    return replace
