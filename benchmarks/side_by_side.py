"""Timing of things that do the same work, in turns: a slow minute of the machine slows them all."""

import time
from collections.abc import Callable, Mapping

#: Rounds before the clock is read, in which compilers compile and caches fill.
WARM_UP = 3


def in_turns(work: Mapping[str, Callable[[], object]], rounds: int = 15) -> dict[str, list[float]]:
    """Seconds of each in every round; the order is reversed from one round to the next.

    Parameters
    ----------
    work : mapping of str to callable
        What is timed, by name. Each call must have finished its work when it returns.
    rounds : int
        How often.
    """
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for number in range(WARM_UP + rounds):
        for name in list(work)[:: 1 if number % 2 else -1]:
            started = time.perf_counter()
            work[name]()
            if number >= WARM_UP:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratios(seconds: Mapping[str, list[float]], slower: str, faster: str) -> list[float]:
    """How many times faster one is than the other, in every round."""
    return [a / b for a, b in zip(seconds[slower], seconds[faster], strict=True)]
