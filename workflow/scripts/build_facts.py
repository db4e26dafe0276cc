"""What pages say of this very build: the pipeline in a picture, the headline numbers, and what it took."""

import argparse
import csv
import math
from collections.abc import Mapping
from pathlib import Path

from cryoanm_lib.book import figures
from cryoanm_lib.book.tables import markdown_table, reach_table
from cryoanm_lib.errors import CryoANMError
from cryoanm_lib.experiments.datasets import draw_test_images
from cryoanm_lib.experiments.profile import Profile, load_profile
from cryoanm_lib.io.storage import load_json

_SHOWN = ("pose_then_amplitude", "pose_amplitude", "joint", "so3_all_latents")
_EXPERIMENT = "pose_amplitude"  # whose images and unknowns are in the picture
_CANDIDATES = 100

#: Measured on two virtual cores of an AMD EPYC without AVX-512: 2000 images of nine latents at 128 pixels,
#: with 500 of a twin and 400 nulls, in 297 s on both; what a job takes before it reads; and for each row.
_CORE_SECONDS, _START, _READ = 2 * 297 / 2900, 10.0, 30e-6
#: Particles of a job, by the defaults of plan and workflow.
_PER_JOB = 500 * 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("metrics", type=Path)
    parser.add_argument("benchmarks", type=Path, help="where Snakemake keeps time and memory of each job")
    parser.add_argument("--profile", required=True)
    parser.add_argument("--structure", required=True)
    args = parser.parse_args()
    try:
        write(args.folder, load_profile(args.profile, args.structure), load_json(args.metrics))
        (args.folder / "times.md").write_text(times(args.benchmarks) + "\n", encoding="utf-8")
        (args.folder / "particles.md").write_text(core_hours() + "\n", encoding="utf-8")
    except CryoANMError as error:
        raise SystemExit(f"error: {error}") from None


def write(folder: Path, settings: Profile, metrics: Mapping[str, Mapping]) -> None:
    """Write `pipeline.svg` and `headline.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    figures.set_style()
    run = settings.run(_EXPERIMENT)
    images = draw_test_images(run)[:_CANDIDATES]
    most = images.truth["amplitude"][:, 0].abs().argmax()  # bent so far that one sees it
    figure = figures.plot_pipeline(run.model(), images[most[None]], 16, settings.model.box_size // 2 * 2)
    figure.savefig(folder / "pipeline.svg")
    made, structure = next(iter(metrics.values())), settings.load_structure().name
    caption = (
        "*Mean residual of a draw from the posterior, by the guide alone and after refining each image, over "
        f"{made['test_images']} images: pose in degrees, amplitude in Å over all atoms, defocus in px². "
        f"Profile {settings.name}, {structure}, {made['device']}, torch {made['torch']}.*"
    )
    text = f"{reach_table(metrics, _SHOWN)}\n\n{caption}\n"
    (folder / "headline.md").write_text(text, encoding="utf-8")


def core_hours(price: float = 0.04) -> str:
    """What numbers of particles cost, at so much for an hour of a core.

    h = (n t + m s) / 3600, of n images that take t seconds each, in m jobs that take s to begin.
    """
    rows = []
    for images in (10**5, 10**6, 10**7):
        jobs = math.ceil(images / _PER_JOB)
        begun = jobs * (_START + _READ * images)
        hours = (images * _CORE_SECONDS + begun) / 3600
        cells = (f"{hours:,.0f}", f"{100 * begun / (3600 * hours):.0f} %", f"{60 * hours / 100:,.0f} min")
        rows.append([f"{images:,}", f"{jobs:,}", *cells, f"{price * hours:,.2f}"])
    header = ["particles", "jobs", "core-hours", "of them to begin", "on 100 cores", f"at {price:g} each"]
    return markdown_table(header, rows)


def times(benchmarks: Path) -> str:
    """Jobs of each kind: how many, their seconds together, the longest, and the most memory."""
    rows = []
    for kind in ("fit", "assess", "notebook"):
        jobs = {}
        for path in sorted((benchmarks / kind).glob("*.tsv")):
            with path.open(encoding="utf-8") as table:
                jobs[path.stem] = list(csv.DictReader(table, delimiter="\t"))[-1]
        if jobs:
            seconds = {name: float(job["s"]) for name, job in jobs.items()}
            longest = max(seconds, key=seconds.get)
            memory = max(float(job["max_rss"]) for job in jobs.values() if job["max_rss"] != "NA") / 1024
            slowest = f"{longest.rpartition('-')[0] or longest}, {seconds[longest]:.0f} s"
            rows.append([kind, len(jobs), f"{sum(seconds.values()):.0f} s", slowest, f"{memory:.1f} GiB"])
    return markdown_table(["jobs", "how many", "together", "the longest", "most memory"], rows)


if __name__ == "__main__":
    main()
