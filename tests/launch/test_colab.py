"""A notebook alone, opened in Colab: its first cell finds out, installs the library, and the rest runs.

Colab is a fresh environment that has torch and a kernel; this checkout answers at the repository's address.
"""

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

pytestmark = pytest.mark.launch

ROOT = Path(__file__).parents[2]

#: Bytes that Binder grants.
MEMORY = 2 * 2**30

#: Where the notebooks are told that the library is.
ADDRESS = "https://github.com/some-one/some-thing"

#: What Colab has before the first cell is run.
GIVEN = ("torch", "numpy", "ipykernel", "nbclient")

EXECUTE = """
import sys, nbformat, nbclient
notebook = nbformat.read(sys.argv[1], as_version=4)
try:
    nbclient.NotebookClient(notebook, timeout=1200, kernel_name="python3").execute()
finally:
    nbformat.write(notebook, sys.argv[1])
"""


def run(command, **options):
    process = subprocess.run([*map(str, command)], capture_output=True, text=True, **options)
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-4000:]
    return process.stdout


@pytest.fixture(scope="module")
def colab(tmp_path_factory):
    """The interpreter of a fresh environment, and what stands around it."""
    folder = tmp_path_factory.mktemp("colab")
    run([sys.executable, "-m", "venv", folder / "venv"])
    python = folder / "venv" / "bin" / "python"
    run([python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", *GIVEN])
    startup = folder / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    pretend = "import sys, types\nsys.modules['google.colab'] = types.ModuleType('colab')\n"
    (startup / "colab.py").write_text(pretend)
    checkout = folder / "checkout"
    files = run(["git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard"]).splitlines()
    for path in (path for path in files if (ROOT / path).is_file()):
        (checkout / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, checkout / path)
    run(["git", "init", "--quiet", checkout])
    run(["git", "-C", checkout, "add", "--all"])
    someone = ["-c", "user.name=t", "-c", "user.email=t@t"]
    run(["git", "-C", checkout, *someone, "commit", "--quiet", "--message", "as it is"])
    inherited = {k: value for k, value in os.environ.items() if not k.startswith(("PYTHON", "JUPYTER"))}
    surroundings = inherited | {
        "IPYTHONDIR": str(folder / "ipython"),
        "PATH": os.pathsep.join([str(python.parent), inherited["PATH"]]),
        "JUPYTER_PREFER_ENV_PATH": "1",
        "PIP_CONSTRAINT": str(ROOT / "constraints.txt"),  # so that a test is about this checkout alone
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{checkout}.insteadOf",
        "GIT_CONFIG_VALUE_0": ADDRESS,
    }
    return python, surroundings


def test_a_notebook_that_is_told_no_address_installs_nothing(colab, tmp_path):
    python, surroundings = colab
    before = run([python, "-m", "pip", "freeze"])
    shutil.copy(ROOT / "notebooks" / "01_anm.ipynb", tmp_path)
    command = [str(python), "-c", EXECUTE, "01_anm.ipynb"]
    stopped = subprocess.run(command, cwd=tmp_path, env=surroundings, capture_output=True, text=True)
    assert stopped.returncode != 0 and "write above from which copy to install" in stopped.stderr
    assert run([python, "-m", "pip", "freeze"]) == before


@pytest.mark.parametrize("name", ["04_frequency_marching", "10_three_dimensions"])
def test_a_notebook_alone_installs_what_it_needs_and_runs(colab, tmp_path, name):
    python, surroundings = colab
    versions = "import torch, numpy; print(torch.__version__, numpy.__version__)"
    before = run([python, "-c", versions])
    opened = (ROOT / "notebooks" / f"{name}.ipynb").read_text()
    (tmp_path / f"{name}.ipynb").write_text(
        opened.replace('repository = \\"\\"', f'repository = \\"{ADDRESS}\\"')
    )
    run([python, "-c", EXECUTE, tmp_path / f"{name}.ipynb"], cwd=tmp_path, env=surroundings)
    assert run([python, "-c", versions]) == before, "Colab's own torch or numpy was replaced"
    where = run([python, "-c", "import cryoanm_lib; print(cryoanm_lib.__file__)"], cwd=tmp_path).strip()
    assert not Path(where).is_relative_to(ROOT)

    first = nbformat.read(tmp_path / f"{name}.ipynb", as_version=4).cells[1]
    said = "".join(output.get("text", "") for output in first.outputs)
    assert "computes on" in said.lower()
    # Of the largest process among all that have run: the kernel.
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 < MEMORY
