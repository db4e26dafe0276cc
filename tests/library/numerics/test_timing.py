"""Seconds of a call, by a clock that the work moves."""

from cryoanm_lib.numerics.timing import calls_that_fill, seconds_each, seconds_of


def test_seconds_are_those_of_one_call(clock) -> None:
    assert seconds_each(lambda: clock(0.25), calls=4) == 0.25


def test_what_is_short_is_repeated(clock) -> None:
    """Two calls first; then three rounds of as many as fill a second."""
    calls = []
    assert seconds_of(lambda: (calls.append(0), clock(0.25)), at_least=1.0, rounds=3) == 0.25
    assert len(calls) == 2 + 3 * 4


def test_the_first_call_is_free_and_a_long_second_one_the_last(clock) -> None:
    """As where a compiler works in the first."""
    times = iter([4.0, 3.0])
    assert seconds_of(lambda: clock(next(times))) == 3.0
    times = iter([4.0, *[0.5] * 4])
    assert seconds_of(lambda: clock(next(times)), at_least=0.1) == 0.5


def test_a_very_long_first_call_is_the_last(clock) -> None:
    times = iter([9.0])
    assert seconds_of(lambda: clock(next(times))) == 9.0


def test_at_least_one_call() -> None:
    assert [calls_that_fill(1.0, each) for each in (0.3, 1.0, 7.0)] == [4, 1, 1]
