"""How long it takes to learn, and to answer: both latents of the paper's hardest task unknown."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.rows import Row
from cryoanm_lib.experiments.assess import timed_refinement
from cryoanm_lib.experiments.datasets import draw_test_images
from cryoanm_lib.experiments.fit import fit, load_fit, make_trainer
from cryoanm_lib.experiments.profile import Profile, load_profile
from cryoanm_lib.inference.training import Trainer

# Pose, uniform in the plane, and amplitude of the first mode.
_TASK = "pose_amplitude"

#: Residuals, of one draw an image, at which training counts as done: degrees, and amplitude.
DONE = {"pose": 1.0, "amplitude": 0.5}


class _Done(Exception):
    """Training is as far as asked."""


def learning(seeds: tuple[int, ...] = (1, 2, 3), profile: str = "laptop") -> Iterator[Row]:
    """Seconds until draws are as near the truth as asked, the tests on the way included."""
    settings = load_profile(profile)
    seconds = [seconds_to(DONE, settings.model_copy(update={"seed": seed})) for seed in seeds]
    asked = f"{DONE['pose']:g}° and {DONE['amplitude']:g}"
    yield Row.of(f"training to {asked}, pose and amplitude unknown", seconds, "s", 40, at_most=True)


def seconds_to(residuals: dict[str, float], settings: Profile) -> float:
    """Seconds of training until the residuals of a record are as small as these.

    Raises
    ------
    SystemExit
        If they are not when the schedule ends.
    """
    trainer = make_trainer(settings.run(_TASK))

    def stop_when_done(running: Trainer) -> None:
        record = running.progress.history[-1]
        if all(record[f"{name}_residual"] <= asked for name, asked in residuals.items()):
            raise _Done

    started = time.perf_counter()
    try:
        trainer.run(after_window=stop_when_done)
    except _Done:
        return time.perf_counter() - started
    raise SystemExit(f"training with seed {settings.seed} did not come to {residuals}")


def answering(rounds: int = 5, profile: str = "laptop") -> Iterator[Row]:
    """Images a second from image to refined posterior, by a guide that has learned; they must be right."""
    settings = load_profile(profile)
    with tempfile.TemporaryDirectory() as folder:
        fit(settings, _TASK, Path(folder), show_progress=False)
        guide = load_fit(settings, _TASK, Path(folder)).guide
    run = settings.run(_TASK)
    images = draw_test_images(run)
    speeds = []
    for _ in range(rounds):
        posterior, speed = timed_refinement(guide, images, run.last_resolution)
        speeds.append(speed)
    standard = posterior.standardised(images.truth).square().mean().sqrt().item()
    if not 0.9 < standard < 1.1:
        raise SystemExit(f"errors are {standard:.2f} of what the posteriors say: nothing to time")
    yield Row.of("amplitude and pose, amortised and refined", speeds, "images/s", 1500)
