"""A notebook runs on this environment's kernel; a failed one leaves a report and no target."""

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from .conftest import ROOT


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Write a notebook with this last cell, run it, and return the process and both possible outputs."""
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")

    def run(source, failed="failed"):
        parameters = new_code_cell("profile = structure = results = None", metadata={"tags": ["parameters"]})
        metadata = {"kernelspec": {"name": "my-own-kernel", "display_name": "mine", "language": "python"}}
        notebook = new_notebook(cells=[parameters, new_code_cell(source)], metadata=metadata)
        nbformat.write(notebook, tmp_path / "source.ipynb")

        # A kernel of the same name that belongs to the user, and does not work.
        kernel = tmp_path / "jupyter" / "kernels" / "python3"
        kernel.mkdir(parents=True)
        (kernel / "kernel.json").write_text(
            json.dumps({"argv": ["false", "{connection_file}"], "display_name": "user", "language": "python"})
        )
        target, partial = tmp_path / "done" / "source.ipynb", tmp_path / failed / "source.ipynb"
        process = subprocess.run(
            [sys.executable, ROOT / "workflow/scripts/run_notebook.py", tmp_path / "source.ipynb", target,
             "--partial", partial, "--profile", "smoke", "--structure", "1e10", "--results", "results"],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        return process, target, partial

    return run


def test_uses_this_interpreter_and_passes_the_settings(run):
    process, target, partial = run("import sys\nprint([sys.executable, profile, structure, results])")
    assert process.returncode == 0, process.stderr
    shown = nbformat.read(target, as_version=4).cells[-1].outputs[0].text
    assert shown.strip() == str([sys.executable, "smoke", "1e10", "results"])
    assert not partial.exists()


def test_a_failed_notebook_leaves_a_report(run):
    process, target, partial = run("print('so far')\nraise ValueError('amplitude is NaN')")
    assert process.returncode == 1
    assert "ValueError: amplitude is NaN" in process.stderr
    assert str(partial) in process.stderr
    assert "so far" in partial.read_text()
    assert not target.exists()


def test_any_character_of_a_path_stands_for_itself(run):
    process, _, partial = run("raise ValueError", failed="""the "failed" $HOME {results} {1}'s""")
    assert "ValueError" in process.stderr
    assert partial.is_file()


def test_two_at_once_cannot_be_given_one_port(run):
    """A port that is free when a kernel is told of it may be taken when it listens; a file of its own not."""
    process, target, _ = run(
        "import ipykernel\nprint(ipykernel.get_connection_info(unpack=True)['transport'])"
    )
    assert process.returncode == 0, process.stderr
    assert nbformat.read(target, as_version=4).cells[-1].outputs[0].text.strip() == "ipc"


WHERE = "import ipykernel, pathlib\nprint(pathlib.Path(ipykernel.get_connection_file()).parent)"


def test_a_deep_temporary_folder_is_no_obstacle(run, tmp_path, monkeypatch):
    """The path of a socket has room for a hundred bytes."""
    deep = tmp_path / ("t" * 80)
    deep.mkdir()
    monkeypatch.setenv("TMPDIR", str(deep))
    process, target, _ = run(WHERE)
    assert process.returncode == 0, process.stderr
    used = Path(nbformat.read(target, as_version=4).cells[-1].outputs[0].text.strip())
    assert used.name.startswith("kernel-") and not used.exists()
    assert not list(deep.glob("kernel-*"))


def test_no_place_for_sockets_is_one_error(run, tmp_path, machine_without, monkeypatch):
    deep = tmp_path / ("t" * 80)
    deep.mkdir()
    monkeypatch.setenv("TMPDIR", str(deep))
    machine_without("tempfile", "mkdtemp", "PermissionError(13, 'Permission denied', '/tmp')")
    process, _, _ = run("pass")
    assert process.returncode == 1
    assert "set TMPDIR to a folder with a shorter path" in process.stderr
    assert "Traceback" not in process.stderr


def test_a_user_without_a_home(run, machine_without, monkeypatch):
    machine_without("pwd", "getpwuid", "KeyError(given)")
    for name in ("HOME", "JUPYTER_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    process, target, _ = run("print('done')")
    assert process.returncode == 0, process.stderr
    assert "done" in target.read_text()
