"""Work in parts: so few at a time that they stay near the processor, and fewer where memory is too small."""

import os
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch

_Answer = TypeVar("_Answer")

#: Bytes that may be in work at a time: about the second-level cache of two cores, and what keeps a GPU busy.
WORKING_SET = {"cpu": 2**21, "elsewhere": 2**28}

# Another device is given so many times as much at a time as a CPU. What one thing needs grows as K², and some
# are not halved where memory runs out: at K = 128 it is 8 GiB at most.
_WIDER = 16


def pieces(count: int, bytes_each: int, device: torch.device) -> list[slice]:
    """All of some things in order, as many at a time as the working set holds, and one at least.

    Parameters
    ----------
    count, bytes_each, device : int, int, torch.device
        How many there are, what one of them needs on the way, and where they are.

    Examples
    --------
    >>> pieces(5, bytes_each=2**20, device=torch.device("cpu"))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    allowed = WORKING_SET.get(device.type, WORKING_SET["elsewhere"])
    at_a_time = max(1, allowed // max(1, bytes_each))
    return [slice(start, min(start + at_a_time, count)) for start in range(0, count, at_a_time)]


def many(few: int, device: torch.device) -> int:
    """How many things a device is given at a time, of which a CPU does best with a few.

    Examples
    --------
    >>> many(256, torch.device("cpu")), many(256, torch.device("cuda"))
    (256, 4096)
    """
    return few if device.type == "cpu" else few * _WIDER


def machine_memory() -> float:
    """Bytes of memory that this machine has; infinite where it does not say."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError):  # Windows has no such call, some systems not these names
        return float("inf")


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that there was too little memory, on a CPU or a GPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def in_parts(work: Callable[[slice], _Answer], count: int, at_a_time: int) -> list[_Answer]:
    """What some work answers for all of some things, part by part in order.

    A part that does not fit into memory is done in halves, and so are all that follow. The work must leave
    nothing behind when it fails; random numbers that it drew are drawn again.

    Parameters
    ----------
    work : callable
        Given the slice that a part is.
    count, at_a_time : int
        How many things there are, and how many are tried first.

    Raises
    ------
    MemoryError, RuntimeError
        If a single one does not fit.

    Examples
    --------
    >>> in_parts(lambda part: (part.start, part.stop), count=5, at_a_time=2)
    [(0, 2), (2, 4), (4, 5)]
    """
    start, found = 0, []
    while start < count:
        part, state = slice(start, min(start + at_a_time, count)), torch.get_rng_state()
        try:
            found.append(work(part))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or at_a_time == 1:
                raise
            at_a_time = max(1, min(at_a_time, part.stop - part.start) // 2)
            torch.set_rng_state(state)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            warnings.warn(f"too little memory: going on with {at_a_time} at a time", stacklevel=2)
        else:
            start = part.stop
    return found
