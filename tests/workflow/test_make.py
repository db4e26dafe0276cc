"""`make` hands on what it was given, finds a home to write to, and refuses what its tools cannot take."""

import os
import shutil
import subprocess

import pytest

from .conftest import ROOT

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="needs make")


@pytest.fixture
def make(tmp_path):
    """Run make in a folder of this name, with a Snakemake that prints its home and its arguments."""

    def run(folder, *arguments, **environment):
        checkout = tmp_path / folder
        checkout.mkdir()
        makefile = (ROOT / "Makefile").read_text()
        for target in ("book", "pdf"):  # neither installs nor computes here
            makefile = makefile.replace(f"\n{target}: $(BOOK_READY)", f"\n{target}:")
        tools = checkout / ".venv" / "bin"
        tools.mkdir(parents=True)
        (tools / "snakemake").write_text('#!/bin/sh\nprintf "%s\\n" "$HOME" "$@"\n')
        (tools / "snakemake").chmod(0o755)
        (checkout / "Makefile").write_text(makefile)
        alone = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
        command = ["make", "--silent", *arguments]
        return subprocess.run(
            command, cwd=checkout, env=alone | environment, capture_output=True, text=True, timeout=60
        )

    return run


@pytest.mark.parametrize("target", ["book", "pdf"])
def test_any_character_of_a_structure_is_handed_on(make, target):
    structure = """a "b" $HOME $(c) `d` it's {x}.pdb"""
    process = make("it's here", target, f"STRUCTURE={structure}")
    assert process.returncode == 0, process.stderr
    assert f"structure={structure}" in process.stdout.splitlines()


@pytest.mark.parametrize("character", ['"', "$", "`", "{", "}"])
def test_refuses_a_folder_that_its_tools_cannot_take(make, character):
    process = make(f"a {character}b", "book")
    assert process.returncode != 0 and not process.stdout
    assert f"has {character} in it" in process.stderr and "rename it" in process.stderr


@pytest.mark.parametrize("home", ["/nowhere", ""])
def test_a_user_without_a_home_is_given_one(make, tmp_path, home):
    process = make("a", "book", HOME=home)
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[0] == f"{tmp_path}/a/.venv/home"


def test_a_home_stays(make, tmp_path):
    assert make("a", "book", HOME=str(tmp_path)).stdout.splitlines()[0] == str(tmp_path)
