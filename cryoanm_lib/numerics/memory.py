"""Work that may not fit into memory: taken in parts, and in smaller ones where a part turns out too large."""

import warnings
from collections.abc import Callable
from typing import TypeVar

import torch

_Answer = TypeVar("_Answer")


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
    count : int
        How many things there are.
    at_a_time : int
        How many are tried first.

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
