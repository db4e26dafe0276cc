"""Timing of things that do the same work, in turns: a slow minute of the machine slows them all."""

import math
import time
from collections.abc import Callable, Mapping

#: Rounds before the clock is read, in which compilers compile and caches fill.
WARM_UP = 3


def in_turns(
    work: Mapping[str, Callable[[], object]], rounds: int = 15, at_least: float = 0.1
) -> dict[str, list[float]]:
    """Seconds that a call of each takes in every round; the order is reversed from one round to the next.

    Parameters
    ----------
    work : mapping of str to callable
        What is timed, by name. Each call must have finished its work when it returns.
    rounds : int
        How often.
    at_least : float
        Seconds that a turn lasts: what takes less is called again and again, and none pays more than the
        others for what the one before it has left in the caches.
    """
    calls = {}
    for name in [*work] * WARM_UP:
        calls[name] = max(1, math.ceil(at_least / _seconds(work[name], 1)))
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds):
        for name in list(work)[:: -1 if number % 2 else 1]:
            seconds[name].append(_seconds(work[name], calls[name]))
    return seconds


def _seconds(work: Callable[[], object], calls: int) -> float:
    """Of one call among several."""
    started = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - started) / calls


def ratios(seconds: Mapping[str, list[float]], slower: str, faster: str) -> list[float]:
    """How many times faster one is than the other, in every round."""
    return [a / b for a, b in zip(seconds[slower], seconds[faster], strict=True)]
