"""Whether two runs of the workflow say the same: every tensor, number, text and figure, times aside.

A cell of a notebook that shows other things in another run says so by a tag.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import nbformat
import torch

from cryoanm_lib.io.storage import load_tensors

#: What no two runs share: how long they took, when, and in how many pieces.
TIMES = {"train_seconds", "images_per_second", "seconds", "started", "finished", "resumed"}

#: Tags of cells that show how long something took, or rounding itself: the last bits of a sum depend on
#: where in memory its terms happen to lie.
OWN_TO_A_RUN = {"timed", "rounding"}

#: Files of a workflow's `results/`.
WORKFLOW = ("fits/*/*", "assessments/*/*", "notebooks/*.ipynb", "metrics.json")

# When matplotlib has drawn a figure.
_DATE = re.compile(r"<dc:date>[^<]*</dc:date>")


def differences(one: Path, other: Path, kinds: Sequence[str] = WORKFLOW) -> list[str]:
    """Each file, or cell of a notebook, below two `results/` that only one has or that differs."""
    found = []
    for kind in kinds:
        names = [{path.relative_to(root) for path in root.glob(kind)} for root in (one, other)]
        found += [str(name) for name in sorted(names[0] ^ names[1])]
        for name in sorted(names[0] & names[1]):
            read = {".json": _record, ".ipynb": _shown}.get(name.suffix, _tensors)
            first, second = (read(root / name) for root in (one, other))
            found += [
                f"{name}: {key}" for key in first.keys() | second.keys() if not _same(first, second, key)
            ]
    return found


def _same(first: dict, second: dict, key: str) -> bool:
    if not (key in first and key in second):
        return False
    values = first[key], second[key]
    return torch.equal(*values) if isinstance(values[0], torch.Tensor) else values[0] == values[1]


def _record(path: Path) -> dict:
    return _without_times({"": json.loads(path.read_text(encoding="utf-8"))})


def _without_times(content: object) -> object:
    if isinstance(content, dict):
        return {key: _without_times(value) for key, value in content.items() if key not in TIMES}
    return [_without_times(each) for each in content] if isinstance(content, list) else content


def _tensors(path: Path) -> dict:
    tensors, texts = load_tensors(path)
    return tensors | texts


def _shown(path: Path) -> dict:
    """Everything that a notebook shows, cell by cell, but for what is its own."""
    cells = nbformat.read(path, as_version=4).cells
    return {
        f"cell {number}": _DATE.sub("", json.dumps([_content(output) for output in cell.get("outputs", [])]))
        for number, cell in enumerate(cells)
        if not OWN_TO_A_RUN & set(cell.metadata.get("tags", []))
    }


def _content(output: dict) -> object:
    return output.get("text", output.get("data", output.get("evalue")))
