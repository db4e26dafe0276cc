"""Binder and the pinned environment install the same versions."""

import re
import tomllib
from itertools import chain
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
CONDA_NAMES = {"pytorch": "torch"}


def constraints():
    lines = (line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    pins = (Requirement(line) for line in lines if line)
    return {canonicalize_name(pin.name): str(pin.specifier) for pin in pins}


def environment():
    entries = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda = [entry for entry in entries if isinstance(entry, str)]
    (pip,) = (entry["pip"] for entry in entries if isinstance(entry, dict))
    return conda, pip


def test_constraints_are_exact_public_versions():
    loose = {name: pin for name, pin in constraints().items() if not re.fullmatch(r"==[\w.!]+", pin)}
    assert not loose


def test_every_requirement_is_pinned_and_admitted():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    requirements = [r for r in map(Requirement, chain(*lists)) if r.name != project["name"]]
    pins = constraints()
    for requirement in requirements:
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin, f"{requirement.name} is not in constraints.txt"
        assert requirement.specifier.contains(pin.removeprefix("==")), f"{requirement} excludes its pin {pin}"


def test_every_package_is_installed():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "cryoanm_lib").rglob("*.py")}
    assert {folder.replace("/", ".") for folder in found} <= listed


def test_binder_installs_the_pinned_versions():
    conda, pip = environment()
    pins = constraints()
    for entry in conda:
        name, _, version = entry.partition("=")
        if name in ("python", "pip"):
            continue
        assert pins[CONDA_NAMES.get(name, name)] == f"=={version.split('=')[0]}", entry
    assert "python=3.11" in conda
    assert "-c constraints.txt" in pip
    assert any(line.endswith(".[book]") for line in pip)


def test_binder_takes_the_cpu_build_of_torch():
    conda, _ = environment()
    assert any(entry.startswith("pytorch=") and entry.endswith("=cpu*") for entry in conda)
