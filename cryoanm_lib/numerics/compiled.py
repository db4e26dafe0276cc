"""Loops compiled by Numba, run on tensors: where a CPU spends its time."""

import functools
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import numpy as np
import torch
from torch import Tensor

_TYPES = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}

# Images for each thread that are worth waking it for.
_FEWEST = 8


def loop(function: Callable[..., None]) -> Callable[..., None]:
    """Compile a loop that runs beside others, and keep it for later where there is a folder for it."""
    settings = {
        "nogil": True,
        "fastmath": {"contract", "reassoc", "nsz", "arcp", "afn"},
        "error_model": "numpy",
    }
    try:
        return numba.njit(cache=_has_folder(function), **settings)(function)
    except RuntimeError:  # Numba finds no such folder
        return numba.njit(**settings)(function)


def _has_folder(function: Callable[..., None]) -> bool:
    """Whether Numba may look for a folder: for a user without a home it would make one that is called `~`."""
    beside = Path(function.__code__.co_filename).with_name("__pycache__")
    has_home = os.path.expanduser("~") != "~"
    named = numba.config.CACHE_DIR  # pyright: ignore[reportPrivateImportUsage, reportAttributeAccessIssue]
    return has_home or bool(named) or os.access(beside, os.W_OK | os.X_OK)


def compiled_for(tensor: Tensor) -> bool:
    """Whether compiled loops take tensors like this one."""
    return tensor.device.type == "cpu" and tensor.dtype in _TYPES


def type_of(tensor: Tensor) -> np.dtype:
    """NumPy's name for the type of a tensor."""
    return _TYPES[tensor.dtype]


def run(kernel: Callable[..., None], shared: tuple[np.ndarray, ...], *tensors: Tensor) -> None:
    """Let a loop fill the last of some tensors, image by image, with as many threads as torch has."""
    arrays = [tensor.detach().resolve_conj().resolve_neg().contiguous().numpy() for tensor in tensors]
    n_images = len(arrays[0])
    shares = max(1, min(torch.get_num_threads(), n_images // _FEWEST))
    ends = [n_images * share // shares for share in range(shares + 1)]
    parts = [[array[a:b] for array in arrays] for a, b in itertools.pairwise(ends)]
    waiting = [_helpers().submit(kernel, *shared, *part) for part in parts[1:]]
    kernel(*shared, *parts[0])
    for other in waiting:
        other.result()


@functools.cache
def _helpers() -> ThreadPoolExecutor:
    """Threads that wait for work; what is not asked for is not started."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="compiled")


# A process that was forked has none of its parent's threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_helpers.cache_clear)
