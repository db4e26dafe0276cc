"""The built wheel stands alone: it carries its data, and needs nothing that only the book or the tests do."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[2]

#: What the extras of pyproject.toml install, by the name under which it is imported.
EXTRAS = (
    *("matplotlib", "seaborn", "pandas", "daft"),
    *("IPython", "ipykernel", "jupyter_book", "papermill", "snakemake", "sphinx"),
    *("axe_playwright_python", "basedpyright", "beartype", "hypothesis", "nbval"),
    *("playwright", "pytest", "ruff", "xdist"),
)


WITHOUT_EXTRAS = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {EXTRAS}:
            raise ModuleNotFoundError(f"{{name}} is an extra", name=name)

sys.meta_path.insert(0, Absent())
"""

LOADS_ITS_DATA = """
import json
from pathlib import Path

import torch
import cryoanm_lib
from cryoanm_lib.experiments import reference, weights
from cryoanm_lib.molecule.anm import normal_modes
from cryoanm_lib.experiments.profile import load_profile
from cryoanm_lib.experiments.profile_files import PROFILES, config_folder
from cryoanm_lib.molecule.structure import load_structure

home = Path(cryoanm_lib.__file__).parent
assert home == Path(HERE) / "cryoanm_lib", home
assert config_folder() == home / "config"
assert [load_profile(name).name for name in PROFILES] == list(PROFILES)

modes = normal_modes(load_structure("adk_open").coordinates)
assert len(load_structure("adk_closed").coordinates) == modes.vectors.shape[1]

settings = load_profile("laptop")
for name in ("so3_all_latents", "so3_any_noise"):
    run, kept = settings.run(name), settings.experiments[name].weights
    assert weights.load_weights(run.guide(), kept, run.images_hash)

assert reference.load_reference("full").metrics
assert reference.load_benchmarks()["rows"]

from matplotlib.figure import Figure
from cryoanm_lib.book.widgets import Breathing

reach = torch.ones(len(modes.vectors))
page = Breathing(load_structure("adk_open").coordinates, modes.vectors, reach, reach, Figure(), "it swings")
assert "<script" in page._repr_html_() and "<style" in page._repr_html_()
"""

COUNTS_SECONDS = """
import time
import cryoanm_lib
at_first = time.process_time()
import torch
of_torch = time.process_time()
import cryoanm_lib.experiments.fit
print(at_first, of_torch - at_first, time.process_time() - of_torch)
"""


def tracked(*folders: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z", *folders], cwd=ROOT, capture_output=True, check=True)
    return [path for path in map(Path, listed.stdout.decode().split("\0")[:-1]) if (ROOT / path).is_file()]


def pip(*arguments: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *map(str, arguments)], check=True)


def python(script: str, cwd: Path) -> str:
    """What a script prints that finds neither this checkout nor its settings."""
    done = subprocess.run([sys.executable, "-I", "-c", script], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """Built from the files that git has, in a copy, for a build leaves folders behind."""
    folder = tmp_path_factory.mktemp("wheel")
    for path in tracked():
        (folder / "source" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, folder / "source" / path)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, folder / "source")
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory) -> Path:
    """A folder that holds the library as the wheel has it, and nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    pip("install", "--no-deps", "--target", folder, wheel)
    return folder


@pytest.fixture
def from_wheel(installed, tmp_path):
    """Run a script with the installed library, in a folder that is empty."""

    def run(script: str) -> str:
        return python(f"import sys; HERE = {str(installed)!r}; sys.path.insert(0, HERE)\n{script}", tmp_path)

    return run


def test_wheel_has_every_file(wheel):
    outside = ("config", "profiles/slurm", "workflow/particles.smk")
    moved = {path: Path("cryoanm_lib") / path for path in tracked(*outside)}
    expected = {moved.get(path, path).as_posix() for path in tracked("cryoanm_lib", *outside)}
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == expected


def test_wheel_carries_the_licence(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]


def test_installed_library_finds_its_data(from_wheel):
    from_wheel(LOADS_ITS_DATA)


def test_library_needs_no_extra(from_wheel):
    paths = [path.with_suffix("") for path in tracked("cryoanm_lib") if path.suffix == ".py"]
    modules = [".".join(path.parts) for path in paths if not {"book", "data", "__main__"} & set(path.parts)]
    imports = "\n".join(f"import {name.removesuffix('.__init__')}" for name in modules)
    from_wheel(f"{WITHOUT_EXTRAS}\n{imports}\nfor name in {EXTRAS}: assert name not in sys.modules, name")


def test_command_line_needs_no_extra(from_wheel):
    called = "import runpy; sys.argv[1:] = ['--help']; runpy.run_module('cryoanm_lib', run_name='__main__')"
    assert "assess" in from_wheel(f"{WITHOUT_EXTRAS}\n{called}")


def test_library_is_imported_in_three_seconds_and_trains_soon_after(from_wheel):
    """Of processor time, in the best of three: what trains takes no longer than torch did before it."""
    runs = [[float(seconds) for seconds in from_wheel(COUNTS_SECONDS).split()] for _ in range(3)]
    assert min(at_first for at_first, _, _ in runs) < 3
    assert min(ours / of_torch for _, of_torch, ours in runs) < 1
