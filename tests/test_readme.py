"""The example that the README opens with runs as it stands there, and is right."""

import re
from pathlib import Path

import pyro

README = Path(__file__).parents[1] / "README.md"


def test_the_first_example_runs_and_is_right(capsys) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(example.splitlines()) <= 12
    pyro.set_rng_seed(0)
    exec(compile(example, README.name, "exec"), {})
    mean, deviation, truth = map(float, re.findall(r"-?[0-9.]+", capsys.readouterr().out))
    # Five deviations, and what rounding to a decimal takes: missed once in a million seeds.
    assert abs(mean - truth) < 5 * deviation + 0.1
    assert 0 < deviation < 1
