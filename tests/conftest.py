"""Programs small enough to test, on a cluster of atoms that needs no file."""

import time
from collections.abc import Callable

import pyro
import pytest
import torch

from cryoanm_lib.anm import normal_modes
from cryoanm_lib.encoders import Pixels, SharedEncoder
from cryoanm_lib.forward import ForwardModel
from cryoanm_lib.program import CryoProgram
from cryoanm_lib.rings import Rings


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
def tiny_program(tiny_forward) -> Callable[..., CryoProgram]:
    """Make a program with small networks; keywords as of `CryoProgram`.

    They see "rings" or "pixels", or are "shared", as they must be for a pose in space.
    """

    def make(encoder: str = "rings", **options) -> CryoProgram:
        seen = {
            "rings": lambda: Rings(16, references=4),
            "pixels": lambda: Pixels(16, channels=(2, 4)),
            "shared": lambda: SharedEncoder(16, channels=(2, 4)),
        }[encoder]()
        return CryoProgram(tiny_forward, **{"inferred": ("pose",), "representation": seen} | options)

    return make
