"""Every figure that a GPU is asked for, in six minutes at most:  python -m benchmarks.gpu.

A row has a share of the time, and stops when that is used up, which it then says. On a CPU: --quick.
"""

import argparse
import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks.projection import OneTask
from cryoanm_lib.experiments.fit import make_trainer
from cryoanm_lib.experiments.profile import load_profile
from cryoanm_lib.inference.lattice_search import LatticeSearch
from cryoanm_lib.inference.peak_finding import Starts
from cryoanm_lib.inference.refinement import refine
from cryoanm_lib.inference.training import Trainer
from cryoanm_lib.io.provenance import commit, processor
from cryoanm_lib.io.storage import save_json
from cryoanm_lib.numerics.device import pick_device
from cryoanm_lib.program.program import Guide, Model

#: Images of a likelihood, and of a posterior.
MANY, REFINED = (500, 5000, 50_000), 2000
#: Noise of the nine latents at the two signal-to-noise ratios.
NOISES = {2.6: 0.084, 0.1: 0.43}


@dataclass(frozen=True)
class Figure:
    """A row of the table; the note says where its share of the time was used up."""

    name: str
    value: float | None
    unit: str
    note: str = ""

    def __str__(self) -> str:
        found = "nothing" if self.value is None else f"{self.value:.4g} {self.unit}"
        return f"{self.name}: {found}" + (f" ({self.note})" if self.note else "")


@dataclass(frozen=True)
class Place:
    """Where figures are taken, and whether they are those of a test, few and small."""

    device: torch.device
    quick: bool

    def finish(self) -> None:
        """Wait for what the device still has to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds_of(self, work: Callable[[], object], share: float) -> float:
        """Seconds of a call, by as many as fill a share of the time; the first is free."""
        began = time.perf_counter()
        work()
        self.finish()
        calls, started = 0, time.perf_counter()
        while not calls or time.perf_counter() - began < share:
            work()
            self.finish()
            calls += 1
        return (time.perf_counter() - started) / calls


def a_trainer(place: Place, profile: str, experiment: str) -> Trainer:
    """Of an experiment; for a test, by the smallest profile if it has stages there, and by short windows."""
    run = load_profile(profile).run(experiment)
    if place.quick and (small := load_profile("smoke").run(experiment)).stages:
        run = small
    trainer = make_trainer(run, place.device.type)
    trainer.window = 1 if place.quick else trainer.window
    return trainer


def step(place: Place, share: float, profile: str, experiment: str, name: str) -> Iterator[Figure]:
    """Milliseconds of a step at each resolution of a schedule, by windows as they are run."""
    trainer = a_trainer(place, profile, experiment)
    stages = {stage.resolution: number for number, stage in enumerate(trainer.stages)}
    for resolution, number in stages.items():
        trainer.progress.stage, trainer.progress.step = number, 0
        steps = 1 if place.quick else min(trainer.window, trainer.stage.steps // 2)
        seconds = place.seconds_of(partial(trainer.take_steps, steps), share / len(stages))
        yield Figure(f"{name}, K = {resolution}", 1e3 * seconds / steps, "ms")


def training(place: Place, share: float, profile: str, experiment: str, name: str) -> Iterator[Figure]:
    """Seconds of a whole schedule, and the residuals that it comes to."""
    started = time.perf_counter()
    trainer = a_trainer(place, profile, experiment)
    asked = sum(stage.steps for stage in trainer.stages)

    def stop_when_used_up(running: Trainer) -> None:
        if time.perf_counter() - started > share:
            raise TimeoutError

    note = ""
    try:
        trainer.run(after_window=stop_when_used_up)
    except TimeoutError:
        done = trainer.progress.total_steps
        note = f"share of {share:g} s used up" if done < asked else note
    seconds, done = time.perf_counter() - started, trainer.progress.total_steps
    yield Figure(f"{name}, {done} of {asked} steps", seconds, "s", note)
    for latent in trainer.guide.model.unknowns.latents:
        residual = trainer.progress.history[-1][f"{latent.name}_residual"]
        yield Figure(f"{name}, residual of the {latent.name}", residual, latent.unit, note)


def likelihoods(place: Place, share: float, resolution: int = 32) -> Iterator[Figure]:
    """Images a second: log-likelihood with gradient at K, and images with contrast transfer, N = 64."""
    counts = MANY[:1] if place.quick else MANY
    rivals = {"cryoJAX"} if importlib.util.find_spec("cryojax") and not place.quick else set()
    each = share / len(counts) / 2 / (1 + len(rivals))
    for count in counts:
        task = OneTask(count, place.device)
        observed = task.observed(resolution)
        works = {
            f"log-likelihood with gradient, K = {resolution}": lambda task=task, observed=observed: (
                task.log_likelihood_gradient(observed, resolution)
            ),
            "images with contrast transfer, N = 64": task.images,
        }
        theirs = _of_cryojax(task, observed, resolution) if rivals else {}
        for what, work in works.items():
            yield Figure(f"{what}, {count} images", count / place.seconds_of(work, each), "images/s")
            if what in theirs:
                speed = count / place.seconds_of(theirs[what], each)
                yield Figure(f"{what}, {count} images, cryoJAX", speed, "images/s")
        if not rivals:
            yield Figure(f"cryoJAX, {count} images", None, "images/s", "not installed, or left out")


def _of_cryojax(task: OneTask, observed: torch.Tensor, resolution: int) -> dict[str, Callable[[], object]]:
    """The same by cryoJAX, on the device that JAX takes; each waits until it has finished."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # or torch finds no memory afterwards
    from benchmarks.with_cryojax import WithCryoJAX, to_jax

    theirs = WithCryoJAX(task.model.cpu(), n_spread=None)
    task.model.to(task.pose.device)
    numbers = [to_jax(x.cpu()) for x in (task.pose, task.amplitude, task.defocus)]
    score, seen = theirs.log_likelihood_slopes(observed.cpu(), resolution)
    sigma = task.noise.cropped(resolution).item()

    def scored() -> None:
        value, slopes = score(*numbers, seen, sigma)
        for found in (value, *slopes):
            found.block_until_ready()

    return {
        f"log-likelihood with gradient, K = {resolution}": scored,
        "images with contrast transfer, N = 64": lambda: theirs.images(*numbers).block_until_ready(),
    }


def posteriors(place: Place, share: float) -> Iterator[Figure]:
    """Refined posteriors a second: pose and amplitude from templates, nine latents from a guide."""
    smallest = load_profile("smoke" if place.quick else "laptop")
    count, each = (4 if place.quick else REFINED), share / (1 + len(NOISES))
    model = smallest.run("pose_amplitude").model().to(place.device)
    search = LatticeSearch(model, 32)
    yield _refined(place, model, lambda images: search.starts(images), count, each, "pose and amplitude")
    guide = make_trainer(smallest.run("so3_any_noise"), place.device.type).guide
    for ratio, noise in NOISES.items():
        own = Model(guide.model.forward_model, guide.model.prior, noise, guide.model.inferred)
        name = f"nine latents, SNR {ratio:g}"
        yield _refined(place, own, lambda images: guide, count, each, name, guide.model)


def _refined(
    place: Place,
    makes: Model,
    starts: Callable[..., Starts | Guide],
    count: int,
    share: float,
    name: str,
    model: Model | None = None,
) -> Figure:
    """Batch after batch, each twice as large, as long as the next should still fit into the share."""
    began, done, size = time.perf_counter(), 0.0, min(count, 50)
    while True:
        images = makes.simulate(size, 32)
        started = time.perf_counter()
        refine(makes if model is None else model, images, 32, starts(images))
        place.finish()
        seconds = time.perf_counter() - started
        done, last = size / seconds, size
        if size == count or time.perf_counter() - began + 2 * seconds > share:
            break
        size = min(count, 2 * size)
    note = "" if last == count else f"of {last} images: share of {share:.0f} s used up"
    return Figure(f"refined posteriors, {name}", done, "images/s", note)


#: Each row, and its share of the minutes.
ROWS: dict[Callable[..., Iterator[Figure]], float] = {
    partial(step, profile="laptop", experiment="joint", name="step of joint, batch 100"): 0.05,
    partial(step, profile="full", experiment="so3_all_latents", name="step of the guide in space"): 0.05,
    partial(training, profile="laptop", experiment="joint", name="joint"): 0.15,
    partial(training, profile="full", experiment="so3_all_latents", name="guide in space"): 0.25,
    likelihoods: 0.15,
    posteriors: 0.25,
    partial(step, profile="paper", experiment="pose_marching_paper", name="step of the paper's recipe"): 0.1,
}


def main(arguments: list[str] | None = None) -> None:
    """Nothing else should run on the machine."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--minutes", type=float, default=6.0, help="in all; default %(default)s")
    parser.add_argument("--quick", action="store_true", help="a few small ones of each, to see that it runs")
    parser.add_argument("--results", type=Path, default=Path("results"))
    given = parser.parse_args(arguments)
    place = Place(pick_device(given.device), given.quick)
    name = torch.cuda.get_device_name() if place.device.type == "cuda" else processor()
    print(f"on {name}", flush=True)
    rows, began = [], time.perf_counter()

    def keep(figure: Figure) -> None:
        print(figure, flush=True)
        rows.append(asdict(figure))
        made = {"commit": commit(), "device": name, "seconds": time.perf_counter() - began}
        save_json(given.results / "gpu.json", {"made": made, "rows": rows})

    for row, part in ROWS.items():
        try:
            for figure in row(place, 60 * part * given.minutes):
                keep(figure)
        except Exception as error:  # a row that fails costs no other
            called = row.keywords["name"] if isinstance(row, partial) else row.__name__
            keep(Figure(called, None, "", f"{type(error).__name__}: {error}"))


if __name__ == "__main__":
    main()
