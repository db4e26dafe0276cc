"""Loops compiled by Numba, run on tensors: where a CPU spends its time."""

import functools
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

_TYPES = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}

# Images for each thread that are worth waking it for.
_FEWEST = 8


def compiled_for(tensor: Tensor) -> bool:
    """Whether compiled loops take tensors like this one."""
    return tensor.device.type == "cpu" and tensor.dtype in _TYPES


def type_of(tensor: Tensor) -> np.dtype:
    """NumPy's name for the type of a tensor."""
    return _TYPES[tensor.dtype]


def run(kernel: Callable[..., None], shared: tuple[np.ndarray, ...], *tensors: Tensor) -> None:
    """Let a loop fill the last of some tensors, image by image, with as many threads as torch has."""
    arrays = [tensor.detach().resolve_conj().contiguous().numpy() for tensor in tensors]
    n_images = len(arrays[0])
    shares = max(1, min(torch.get_num_threads(), n_images // _FEWEST))
    ends = [n_images * share // shares for share in range(shares + 1)]
    parts = [[array[a:b] for array in arrays] for a, b in itertools.pairwise(ends)]
    waiting = [_helpers(shares - 1).submit(kernel, *shared, *part) for part in parts[1:]]
    kernel(*shared, *parts[0])
    for other in waiting:
        other.result()


@functools.cache
def _helpers(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="compiled")
