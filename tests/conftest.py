"""Programs small enough to test, on a cluster of atoms that needs no file."""

import contextlib
import functools
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyro
import pytest
import torch
from hypothesis import HealthCheck, settings

from cryoanm_lib.imaging.forward_model import ForwardModel
from cryoanm_lib.io.provenance import commit, now, processor
from cryoanm_lib.io.storage import load_json, save_json
from cryoanm_lib.molecule.anm import normal_modes
from cryoanm_lib.program.encoders import Pixels, SharedEncoder
from cryoanm_lib.program.program import Guide, Model
from cryoanm_lib.program.rings import Rings
from tests.killed import started

#: To look for examples in it would be to load it, and it changes all that is loaded after it.
collect_ignore = ["typechecked.py"]

#: What the long tests have counted, which the book shows.
COUNTS = Path(__file__).with_name("counts.json")

# Properties are tried on the same examples each time, and for as long as a busy machine takes. For many and
# for new ones: HYPOTHESIS_PROFILE=many, or --hypothesis-profile=many; they say how to repeat a failure.
untimed = settings(deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("quick", untimed, max_examples=50, derandomize=True)
settings.register_profile("many", untimed, max_examples=2000, derandomize=False, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--keep-counts", action="store_true", help=f"write what tests count to {COUNTS.name}")


@pytest.fixture(autouse=True)
def _one_thread_and_an_empty_store():
    """Small tensors are fastest on one thread; Pyro's parameters are global."""
    torch.set_num_threads(1)
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


@pytest.fixture
def clock(monkeypatch) -> Callable[[float], None]:
    """Time that passes only where it is told to: call with seconds."""
    now = 0.0

    def passes(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    return passes


@pytest.fixture
def start() -> Iterator[Callable[..., int]]:
    """Begin work in processes of its own, as of `started`, none of which outlives the test."""
    begun = []

    def of(work: Callable[[Path], object], folder: Path, largest_file: int | None = None) -> int:
        begun.append(started(work, folder, largest_file))
        return begun[-1]

    yield of
    for process in begun:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)


@pytest.fixture
def cluster() -> torch.Tensor:
    """Twelve atoms in a lopsided cloud that fits a box of 32 pixels."""
    generator = torch.Generator().manual_seed(7)
    points = torch.randn(12, 3, generator=generator, dtype=torch.float64) * torch.tensor([5.0, 2.5, 3.0])
    return points - points.mean(0)


@pytest.fixture
def tiny_forward(cluster) -> ForwardModel:
    """A forward model of the cluster with one mode."""
    modes = normal_modes(cluster, n_modes=1, cutoff=30.0)
    return ForwardModel(cluster.float(), modes.vectors.float(), box_size=32)


@pytest.fixture
def tiny_model(tiny_forward) -> Callable[..., Model]:
    """Make a model of which the pose is inferred, or what is named; keywords as of `Model`."""
    return lambda **options: Model(**{"forward_model": tiny_forward, "inferred": ("pose",)} | options)


@pytest.fixture
def tiny_guide(tiny_model) -> Callable[..., Guide]:
    """Make a guide with small networks; keywords as of `Guide` and, of its model, of `Model`.

    They see "rings" or "pixels", or are "shared", as they must be for a pose in space.
    """

    def make(encoder: str = "rings", **options) -> Guide:
        seen = {
            "rings": lambda: Rings(16, references=4),
            "pixels": lambda: Pixels(16, channels=(2, 4)),
            "shared": lambda: SharedEncoder(16, channels=(2, 4)),
        }[encoder]()
        of_model = {"forward_model", "prior", "noise", "inferred"}
        model = tiny_model(**{name: value for name, value in options.items() if name in of_model})
        own = {name: value for name, value in options.items() if name not in of_model}
        return Guide(model, **{"representation": seen} | own)

    return make


#: As it was at the first figure: keeping that one changes a file.
_tested_commit = functools.cache(commit)


@pytest.fixture
def count(request) -> Callable[[str, float], None]:
    """Say at a test's end how many of something it has tried: `count("kills of a fit", 20)`."""

    def keep(what: str, number: float) -> None:
        if request.config.getoption("keep_counts"):
            before = load_json(COUNTS) if COUNTS.is_file() else {}
            made = {"commit": _tested_commit(), "date": now().date().isoformat(), "machine": processor()}
            # Named by the test, so that one that is gone takes its figures with it.
            of_test = before.get(request.node.nodeid, {}) | {what: {"number": number, **made}}
            save_json(COUNTS, before | {request.node.nodeid: of_test})

    return keep
