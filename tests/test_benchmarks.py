"""The bookkeeping of benchmarks; what they time is timed by `make bench`."""

import json

import pytest
import torch

from benchmarks import gpu
from benchmarks.projection import (
    against_matrix_products,
    against_the_paper,
    choices_between_projectors,
    require_equal,
)
from benchmarks.rows import Row
from benchmarks.side_by_side import WARM_UP, in_turns, ratios


def test_all_take_turns_as_often() -> None:
    calls = []
    work = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    seconds = in_turns(work, rounds=4, at_least=0.0)
    assert calls == ["a", "b"] * WARM_UP + ["a", "b", "b", "a"] * 2
    assert {name: len(found) for name, found in seconds.items()} == {"a": 4, "b": 4}
    assert ratios({"slow": [2.0, 6.0], "fast": [1.0, 2.0]}, "slow", "fast") == [2.0, 3.0]


def test_a_turn_lasts_long_enough(clock) -> None:
    """What takes a millisecond is called ten times; the seconds are those of one call."""
    calls = []
    work = {"a": lambda: (calls.append(0), clock(1 / 1024))}
    assert in_turns(work, rounds=1, at_least=10 / 1024)["a"] == [1 / 1024]
    assert len(calls) == WARM_UP + 10


def test_a_row_says_whether_it_reaches_its_target() -> None:
    assert Row.of("speed", [1.0, 3.0, 2.0], "×", 2.0).reached
    assert not Row.of("time", [50.0], "s", 40.0, at_most=True).reached
    record = Row.of("time", [30.0], "s", 40.0, at_most=True).record()
    assert json.loads(json.dumps(record))["reached"] is True
    assert "asked ≥ 2 reached" in str(Row.of("speed", [1.0, 3.0, 2.0], "×", 2.0))


def test_every_size_has_a_row() -> None:
    (row,) = choices_between_projectors([(32, 0.8, 16, 5000)])
    assert "N = 32, K = 16, 5000 atoms" in row.name


def test_unequal_answers_are_not_timed() -> None:
    ours = torch.ones(3)
    require_equal(ours, ours + 1e-6, "sums")
    with pytest.raises(SystemExit, match=r"sums: answers differ by 1\.0e-02"):
        require_equal(ours, ours / 0.99 + 0.0, "sums")


@pytest.mark.parametrize(
    ("benchmark", "sizes"), [(against_the_paper, {}), (against_matrix_products, {"size": 100})]
)
def test_benchmarks_compare_equal_work(benchmark, sizes) -> None:
    """On few images; the first refuses to start where answers differ."""
    rows = list(benchmark(n_images=2, **sizes))
    assert rows
    for row in rows:
        assert row.low <= row.value <= row.high and row.value > 0


@pytest.mark.thorough
def test_every_row_of_a_gpu_is_taken_or_says_why_not(tmp_path, capsys) -> None:
    """On the CPU, few and small ones, most of which their share of a few seconds stops."""
    gpu.main(["--quick", "--device", "cpu", "--minutes", "0.1", "--results", str(tmp_path)])
    found = json.loads((tmp_path / "gpu.json").read_text())
    told = capsys.readouterr().out
    for row in found["rows"]:
        assert (row["value"] is None and row["note"]) or row["value"] > 0, row
        assert row["name"] in told
    for name in (
        "step of joint",
        "guide in space",
        "log-likelihood",
        "N = 64",
        "SNR 2.6",
        "SNR 0.1",
        "recipe",
    ):
        assert any(name in row["name"] for row in found["rows"]), name
    assert any("used up" in row["note"] for row in found["rows"])
