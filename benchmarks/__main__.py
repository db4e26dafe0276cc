"""Run every benchmark, print the table, and keep it in results/bench.json."""

import argparse
import importlib.metadata
import os
from datetime import date
from pathlib import Path

import torch

from benchmarks import inference, projection
from cryoanm_lib.experiments.reference import reference_path
from cryoanm_lib.io.provenance import commit, processor
from cryoanm_lib.io.storage import save_json

_COMPARED = ("torch", "jax", "jaxlib", "cryojax", "numpy", "pyro-ppl")

_BENCHMARKS = (
    projection.against_the_paper,
    projection.choices_between_projectors,
    projection.against_matrix_products,
    projection.against_cryojax,
    inference.learning,
    inference.answering,
)


def main() -> None:
    """Nothing else should run on the machine."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--keep", action="store_true", help="show these figures in the book from now on")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if hasattr(os, "sched_setaffinity"):  # not on macOS
        # JAX, which comes later, has as many threads as there are cores to run on.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.threads])
    rows = []
    for benchmark in _BENCHMARKS:
        for row in benchmark():
            print(row, flush=True)
            rows.append(row.record())
    versions = {name: importlib.metadata.version(name) for name in _COMPARED}
    made = {
        "date": date.today().isoformat(),
        "commit": commit(),
        "device": processor(),
        "threads": given.threads,
        "GOMP_SPINCOUNT": os.environ["GOMP_SPINCOUNT"],
    }
    found = {"made": made, "versions": versions, "rows": rows}
    save_json(given.results / "bench.json", found)
    if given.keep:
        save_json(reference_path("bench"), found)


if __name__ == "__main__":
    main()
