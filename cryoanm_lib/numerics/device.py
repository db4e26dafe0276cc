"""Where torch computes, and whether it must come to the same bits each time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cryoanm_lib.errors import ConfigurationError

#: What can be asked for.
DEVICES = ("auto", "cpu", "cuda")


def pick_device(device: str) -> torch.device:
    """The device to compute on; "auto" is CUDA where there is one.

    Raises
    ------
    ConfigurationError
        If it is none of `DEVICES`, or not there.
    """
    if device not in DEVICES:
        raise ConfigurationError(f"device = {device!r} is not usable: choose one of {', '.join(DEVICES)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("device = 'cuda', but torch finds no CUDA device: choose 'auto' or 'cpu'")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def announce_device() -> None:
    """Say where fits are trained when a profile leaves it open."""
    found = torch.cuda.get_device_name() if torch.cuda.is_available() else "the CPU; no GPU was found"
    print(f"This notebook computes on {found}.")


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """If wanted, torch refuses operations whose sums come in another order each time, or takes others.

    On a GPU it must be wanted from the first fit of a process on: cuBLAS is set up but once.
    """
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    # What cuBLAS asks for, before it is first called.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
