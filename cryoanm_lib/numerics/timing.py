"""Timing: seconds of a call, by repeating what is short."""

import math
import statistics
import time
from collections.abc import Callable

# Seconds from which on a second call counts by itself, and from which on the first one does.
_LONG, _VERY_LONG = 0.5, 5.0


def seconds_each(work: Callable[[], object], calls: int) -> float:
    """Of one call among several."""
    started = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - started) / calls


def calls_that_fill(seconds: float, each: float) -> int:
    """How many calls take so long, one at least, where each takes some seconds."""
    return max(1, math.ceil(seconds / each))


def seconds_of(work: Callable[[], object], at_least: float = 0.05, rounds: int = 3) -> float:
    """Median time of a call, over rounds of as many calls as fill some seconds.

    The first call, in which compilers compile and caches fill, is free, unless it is very long itself.

    Parameters
    ----------
    work : callable
        What is timed. It must have finished when it returns.
    at_least, rounds : float, int
        Seconds of a round, and how many there are.
    """
    first = seconds_each(work, 1)
    if first > _VERY_LONG:
        return first
    second = seconds_each(work, 1)
    if second > _LONG:
        return second
    calls = calls_that_fill(at_least, second)
    return statistics.median(seconds_each(work, calls) for _ in range(rounds))
