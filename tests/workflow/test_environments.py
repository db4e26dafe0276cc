"""What is installed is pinned and hashed; Binder and the pinned environment install the same versions."""

import os
import re
import shutil
import subprocess
import tomllib
from itertools import chain
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
CONDA_NAMES = {"pytorch": "torch"}
LISTS = ("build", "torch", "book", "test")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def pins(path):
    """Pins of a file, by name; where markers say which counts, there are several."""
    found = {}
    for line in (ROOT / path).read_text().splitlines():
        if line[:1].isalnum():
            pin = Requirement(line.removesuffix(" \\"))
            found.setdefault(canonicalize_name(pin.name), []).append(pin)
    return found


def constraints():
    return pins("constraints.txt")


def hashed():
    return {name: found for file in LISTS for name, found in pins(f"requirements/{file}.txt").items()}


def environment():
    entries = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda = [entry for entry in entries if isinstance(entry, str)]
    (pip,) = (entry["pip"] for entry in entries if isinstance(entry, dict))
    return conda, pip


def test_constraints_are_exact_public_versions():
    every = chain.from_iterable(constraints().values())
    assert not [pin for pin in every if not re.fullmatch(r"==[\w.!]+", str(pin.specifier))]


def test_every_requirement_is_pinned_and_admitted():
    tables = [PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"].values()]
    lists = [*tables, PROJECT["build-system"]["requires"]]
    requirements = [r for r in map(Requirement, chain(*lists)) if r.name != PROJECT["project"]["name"]]
    listed = hashed()
    for requirement in requirements:
        found = listed.get(canonicalize_name(requirement.name))
        assert found, f"{requirement.name} is in no file of requirements/: run `make lock`"
        for pin in found:
            version = str(pin.specifier).removeprefix("==")
            assert requirement.specifier.contains(version), f"{requirement} excludes its pin {pin}"


def test_constraints_are_the_hashed_requirements():
    cuda = pins("requirements/torch.txt").keys() - {"torch"}
    own = {"setuptools", "wheel"} | cuda  # of an environment, and of its torch
    expected = {name: found for name, found in hashed().items() if name not in own}
    assert cuda < hashed().keys()
    assert {n: sorted(map(str, p)) for n, p in constraints().items()} == {
        n: sorted(map(str, p)) for n, p in expected.items()
    }


@pytest.mark.parametrize("file", [*LISTS, "torch_cpu"])
def test_every_requirement_has_a_hash(file):
    text = (ROOT / "requirements" / f"{file}.txt").read_text()
    entry = r"[a-z0-9-]+==[\w.+]+(?: ; [^\\\n]+)?(?: \\\n    --hash=sha256:[0-9a-f]{64})+\n"
    assert re.fullmatch(rf"(?:#.*\n)+(?:{entry})+", text)  # and nothing of where they came from


def test_no_package_is_listed_twice():
    names = [name for file in LISTS for name in pins(f"requirements/{file}.txt")]
    assert len(names) == len(set(names))


def test_the_cpu_build_of_torch_is_of_the_same_version():
    ((public,), (build,)) = (pins(f"requirements/{file}.txt")["torch"] for file in ("torch", "torch_cpu"))
    assert str(build.specifier) == f"{public.specifier}+cpu"


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_installs_nothing_without_a_hash():
    command = ["make", "--dry-run", "--always-make", ".venv/.ready-test"]
    alone = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    said = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True, check=True).stdout
    installed = re.findall(r"pip install (.*?)(?:$| \|\||;)", said.replace("\\\n", ""), re.MULTILINE)
    unchecked = [options for options in installed if "--require-hashes" not in options]
    assert len(installed) == 2 + len(LISTS)
    assert unchecked == ["--quiet --no-deps --no-build-isolation --editable ."]


def test_every_package_is_installed():
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    found = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "cryoanm_lib").rglob("*.py")}
    assert {folder.replace("/", ".") for folder in found} <= listed


def test_binder_installs_the_pinned_versions():
    conda, pip = environment()
    pinned = constraints()
    for entry in conda:
        name, _, version = entry.partition("=")
        if name in ("python", "pip"):
            continue
        (pin,) = pinned[CONDA_NAMES.get(name, name)]
        assert str(pin.specifier) == f"=={version.split('=')[0]}", entry
    assert "python=3.11" in conda
    assert "-c constraints.txt" in pip
    assert any(line.endswith(".[book]") for line in pip)


def test_binder_takes_the_cpu_build_of_torch():
    conda, _ = environment()
    assert any(entry.startswith("pytorch=") and entry.endswith("=cpu*") for entry in conda)


def test_the_workflow_runs_what_is_there():
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    commands = {step["run"].split()[0] for job in jobs.values() for step in job["steps"] if "run" in step}
    assert commands == {".ci/run", ".ci/dependencies"}
    assert all(os.access(ROOT / command, os.X_OK) for command in commands)
    oldest, *_ = jobs["dependencies"]["strategy"]["matrix"]["include"]
    assert f">={oldest['python']}" == PROJECT["project"]["requires-python"]


@pytest.mark.parametrize("form", ["bug", "question"])
def test_a_form_asks_each_thing_once(form):
    fields = yaml.safe_load((ROOT / f".github/ISSUE_TEMPLATE/{form}.yml").read_text())["body"]
    assert all(field["attributes"]["label"] for field in fields)
    assert len({field["id"] for field in fields}) == len(fields)


def test_hooks_download_nothing():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    assert {hook["language"] for hook in repository["hooks"]} == {"system"}
