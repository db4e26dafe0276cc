"""Timing of things that do the same work, in turns: a slow minute of the machine slows them all."""

from collections.abc import Callable, Mapping

from cryoanm_lib.numerics.timing import calls_that_fill, seconds_each

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
        calls[name] = calls_that_fill(at_least, seconds_each(work[name], 1))
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds):
        for name in list(work)[:: -1 if number % 2 else 1]:
            seconds[name].append(seconds_each(work[name], calls[name]))
    return seconds


def ratios(seconds: Mapping[str, list[float]], slower: str, faster: str) -> list[float]:
    """How many times faster one is than the other, in every round."""
    return [a / b for a, b in zip(seconds[slower], seconds[faster], strict=True)]
