"""Compiled loops are kept where there is a folder for them, and nowhere else."""

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import numba
import numpy as np
import pytest

from cryoanm_lib.numerics import compiled

LOOP = """
def double(given, doubled):
    for n in range(len(given)):
        doubled[n] = 2 * given[n]
"""


@pytest.fixture
def double(tmp_path, monkeypatch) -> Callable[..., None]:
    """A function whose module has no folder beside it that could be written to."""
    (tmp_path / "__pycache__").touch()
    (tmp_path / "loops.py").write_text(LOOP)
    specification = importlib.util.spec_from_file_location("loops", tmp_path / "loops.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    return module.double


@pytest.mark.parametrize("home", ["home", "home/that/is/a/file", "~"])
def test_makes_no_folder_of_its_own(double, monkeypatch, tmp_path, home) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "that").touch()
    monkeypatch.setattr(os.path, "expanduser", lambda path: path.replace("~", home))
    loop, doubled = compiled.loop(double), np.zeros(3)
    loop(np.arange(3.0), doubled)
    assert (doubled == [0, 2, 4]).all()
    assert bool(list(tmp_path.glob("home/.cache/numba/*"))) == (home == "home")
    assert not Path("~").exists()
