"""The workflow is clean, refuses what it does not know, and plans exactly the files it should."""

import contextlib
import csv
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from cryoanm_lib.experiments.fit import load_profile

from .conftest import copy_checkout

PROFILES = ("smoke", "laptop", "full", "paper")
RECORDS = {"metrics.json", "provenance.json"}
ASSESSMENT_FILES = RECORDS | {"posteriors.safetensors"}
FIT_FILES = RECORDS | {"config.json", "history.json", "weights.safetensors", "predictions.safetensors"}


def planned(process):
    """Map each file that a `--summary` lists to the rule that makes it."""
    assert process.returncode == 0, process.stderr
    rows = csv.DictReader(process.stdout.splitlines(), delimiter="\t")
    return {row["output_file"]: row["rule"] for row in rows}


def made_by(rule, files):
    return {file for file, maker in files.items() if maker == rule}


def test_lint_finds_nothing(snakemake):
    process = snakemake("--lint")
    assert process.returncode == 0, process.stdout + process.stderr


@pytest.mark.parametrize(
    "name", [PROFILES[0], *(pytest.param(name, marks=pytest.mark.thorough) for name in PROFILES[1:])]
)
def test_plans_every_fit_notebook_and_page(snakemake, checkout, name):
    files = planned(snakemake("--summary", "--config", f"profile={name}"))

    profile = load_profile(name, structure="adk_open")
    folders = [f"results/{profile.run(name).path.as_posix()}" for name in profile.runs]
    fits = {f"{folder}/{file}" for folder in folders for file in FIT_FILES}
    folders = [f"results/{profile.assessed(name).path.as_posix()}" for name in profile.assessments]
    assessments = {f"{folder}/{file}" for folder in folders for file in ASSESSMENT_FILES}
    notebooks = {f"results/notebooks/{p.name}" for p in (checkout / "notebooks").glob("*.ipynb")}

    assert made_by("fit", files) == fits
    assert made_by("assess", files) == assessments
    assert made_by("notebook", files) == notebooks
    assert set(files) - fits - assessments - notebooks == {
        "results/metrics.json",
        "results/metrics_check.txt",
        "book/_build/html/index.html",
    }


def test_notebooks_open_what_the_workflow_gives_them(checkout):
    """A fit that a notebook opens and its row of the table lacks would be trained inside the notebook."""
    table = (checkout / "workflow/rules/common.smk").read_text()
    for path in sorted((checkout / "notebooks").glob("*.ipynb")):
        text = "".join("".join(cell["source"]) for cell in json.loads(path.read_text())["cells"])
        # Named in the call, or in a list that is gone through; a latent has the name of a run without "_".
        opened = set(re.findall(r'fit_or_load\(\s*"(\w+)"', text))
        opened |= {name for name in load_profile("laptop").runs if "_" in name and f'"{name}"' in text}
        if "fit_or_load" not in text:
            continue
        start = table.index(f'"{path.stem}"')
        row = table[start : table.index("\n    ]" if "[\n" in table[start : start + 40] else "],", start)]
        if "METRICS" not in row:
            assert opened == {name for name in load_profile("laptop").runs if f'"{name}"' in row}, path.stem


@pytest.mark.thorough
def test_structure_names_other_fits(snakemake):
    one, other = (
        made_by("fit", planned(snakemake("--summary", "--config", "profile=smoke", f"structure={structure}")))
        for structure in ("adk_open", "adk_closed")
    )
    assert len(one) == len(other) > 0
    assert not one & other


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("profile=laptpo", "unknown profile 'laptpo'; allowed: smoke, laptop, full, paper"),
        ("prfile=smoke", "unknown --config key 'prfile'; allowed: profile, structure"),
        ("structure=", "structure is ''; allowed: a name such as adk_open, a PDB ID, or a path"),
        ("structure=a {1}.pdb", "the path of the structure, a {1}.pdb, has '{' in it"),
    ],
)
def test_refuses_unknown_settings(snakemake, setting, message):
    process = snakemake("--dry-run", "--config", setting)
    assert process.returncode == 1
    assert message in process.stdout + process.stderr


PROBE = """
include: "workflow/rules/common.smk"
real_cores = lambda: {cores}
print("structure", repr(STRUCTURE), "threads", [torch_threads(n) for n in (1, 2)])
rule nothing:
"""


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("structure", "message"),
    [
        ("nowhere/model.pdb", "'nowhere/model.pdb' is neither a file nor a name"),
        ("Snakefile", "Snakefile"),
    ],
)
def test_refuses_a_structure_that_cannot_be_used_before_any_job(snakemake, checkout, structure, message):
    found = snakemake("--config", "profile=smoke", f"structure={structure}")
    assert found.returncode != 0
    assert f"profile smoke, structure {structure}" in found.stderr and message in found.stderr
    assert "Traceback" not in found.stderr and "rule fit" not in found.stderr
    assert not (checkout / "results").exists()


@pytest.fixture
def probe(snakemake, checkout):
    """Print what the workflow makes of its settings, on a machine of so many cores."""

    def run(cores, *arguments):
        (checkout / "Probe").write_text(PROBE.format(cores=cores))
        process = snakemake("--snakefile", "Probe", "--dry-run", *arguments)
        assert process.returncode == 0, process.stderr
        return process.stdout

    return run


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("real", "promised", "threads"),
    [
        (2, 4, [1, 1]),  # two jobs of two threads are admitted: one torch thread each fills both cores
        (2, 2, [1, 2]),
        (8, 4, [1, 2]),
        (1, 4, [1, 1]),
    ],
)
def test_jobs_never_share_a_core(probe, real, promised, threads):
    assert f"threads {threads}" in probe(real, "--cores", str(promised))


@pytest.mark.parametrize("pdb_id", ["1e10", "4ake"])
def test_a_pdb_id_that_looks_like_a_number_stays_text(probe, pdb_id, monkeypatch):
    # Handed down as to a job, the folders need no structure, hence no network.
    handed_down = json.dumps({"of": ["laptop", pdb_id], "fits": {}, "assessments": {}, "assessed": {}})
    monkeypatch.setenv("CRYOANM_ARTIFACTS", handed_down)
    assert f"structure '{pdb_id}'" in probe(2, "--config", f"structure={pdb_id}")


SLOW = """
include: "workflow/rules/common.smk"
rule slow:
    output: "slow.txt"
    shell: "{wait} && echo made > {{output}}"
"""


@pytest.fixture
def slow(checkout, monkeypatch):
    """Start Snakemake on one job that waits until it is let go, and return the process."""
    handed_down = {"of": ["laptop", "adk_open"], "fits": {}, "assessments": {}, "assessed": {}}
    monkeypatch.setenv("CRYOANM_ARTIFACTS", json.dumps(handed_down))
    for left in ("slow.txt", "go"):
        (checkout / left).unlink(missing_ok=True)
    (checkout / "Slow").write_text(SLOW.format(wait="while [ ! -e go ]; do sleep 0.05; done"))
    command = [sys.executable, "-m", "snakemake", "--nocolor", "--cores", "1", "--snakefile", "Slow"]
    running = []

    def start():
        process = subprocess.Popen(
            command, cwd=checkout, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip
        running.append(process)
        return process

    yield start
    for process in running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def wait_for_job(checkout, process):
    """Until the one job is at work, which its lock shows."""
    while not list((checkout / ".snakemake" / "incomplete").glob("*")):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    time.sleep(0.5)


@pytest.mark.thorough
def test_two_at_once_are_refused(slow, checkout):
    first = slow()
    wait_for_job(checkout, first)
    second = slow()
    said, _ = second.communicate(timeout=60)
    assert second.returncode != 0 and "cannot be locked" in said
    (checkout / "go").touch()
    assert first.wait(60) == 0


@pytest.mark.thorough
def test_after_a_kill_the_same_command_goes_on(slow, checkout):
    first = slow()
    wait_for_job(checkout, first)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert list((checkout / ".snakemake" / "locks").glob("*"))
    (checkout / "go").touch()
    again = slow()
    said, _ = again.communicate(timeout=60)
    assert again.returncode == 0, said
    assert (checkout / "slow.txt").read_text() == "made\n"


@pytest.mark.thorough
def test_a_job_that_outlives_its_snakemake_is_not_joined_by_another(slow, checkout):
    first = slow()
    wait_for_job(checkout, first)
    first.kill()
    first.wait()
    second = slow()
    said, _ = second.communicate(timeout=60)
    assert second.returncode != 0 and "cannot be locked" in said
    (checkout / "go").touch()
    patience = time.monotonic() + 60
    while not (checkout / "slow.txt").is_file():
        assert time.monotonic() < patience, "the job has died with its Snakemake"
        time.sleep(0.05)
    time.sleep(0.5)
    third = slow()
    said, _ = third.communicate(timeout=60)
    assert third.returncode == 0, said


def test_without_locks_of_the_file_system_it_goes_on_and_says_so(slow, checkout, machine_without):
    machine_without("fcntl", "flock", "OSError(38, 'Function not implemented')")
    first = slow()
    wait_for_job(checkout, first)
    second = slow()
    said, _ = second.communicate(timeout=60)
    assert second.returncode != 0 and "cannot be locked" in said  # Snakemake's own lock is a file
    (checkout / "go").touch()
    said, _ = first.communicate(timeout=60)
    assert first.returncode == 0, said
    assert "cannot hold a lock" in said and "snakemake --unlock" in said


def test_a_user_without_a_name(slow, checkout, machine_without, monkeypatch):
    machine_without("pwd", "getpwuid", "KeyError(given)")
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(checkout))
    process = slow()
    (checkout / "go").touch()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said


ECHO = """
include: "workflow/rules/common.smk"
rule echo:
    input: as_file(STRUCTURE)
    output: "echoed.txt"
    params: python=sys.executable, structure=STRUCTURE
    shell: "{params.python:q} -c 'import sys; print(sys.argv)' {params.structure:q} {input:q} > {output:q}"
"""


@pytest.fixture
def echo(tmp_path, monkeypatch):
    """Let a checkout in a folder of this name, with its own Python, print the structure that it is given."""

    def run(folder, structure):
        checkout = copy_checkout(tmp_path / folder)
        python = checkout / ".venv/bin/python"
        python.parent.mkdir(parents=True)
        python.symlink_to(sys.executable)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        handed_down = {"of": ["laptop", structure], "fits": {}, "assessments": {}, "assessed": {}}
        monkeypatch.setenv("CRYOANM_ARTIFACTS", json.dumps(handed_down))
        (checkout / "Echo").write_text(ECHO)
        (checkout / structure).touch()
        command = [python, "-m", "snakemake", "--nocolor", "--cores", "1", "--snakefile", "Echo"]
        command += ["--config", f"structure={structure}"]
        process = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=120)
        return process, checkout / "echoed.txt"

    return run


def test_odd_characters_of_paths_are_text(echo):
    structure = """the "new" $HOME d'"""
    process, echoed = echo("""a "b" $c `d` e'""", structure)
    assert process.returncode == 0, process.stderr
    assert echoed.read_text() == f"{['-c', structure, structure]}\n"


def test_braces_in_the_path_of_the_checkout_are_refused(echo):
    process, _ = echo("a {x}", "model.pdb")
    assert process.returncode == 1
    assert "the path of this checkout" in process.stderr and "has '{' in it" in process.stderr
    assert "rename it" in process.stderr and "Traceback" not in process.stderr
