"""One experiment from configuration to artifact: fitted once, then loaded."""

import copy
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pyro
import torch
from torch import Tensor

from cryoanm_lib.checks.calibration import LEVELS, coverage, credible_level
from cryoanm_lib.checks.residuals import FLIP_DEGREES, NEAR_DEGREES, pose_distance, residuals
from cryoanm_lib.errors import ArtifactError
from cryoanm_lib.experiments.checkpoint import flatten_snapshots, read_snapshots, resume, save_checkpoint
from cryoanm_lib.experiments.datasets import draw_test_images, training_images
from cryoanm_lib.experiments.profile import Profile, load_profile
from cryoanm_lib.experiments.run import Run
from cryoanm_lib.experiments.weights import load_weights, weights_path, write_weights
from cryoanm_lib.imaging.noise import WhiteNoise
from cryoanm_lib.inference.amortised import GuidePosterior, draw_from, together
from cryoanm_lib.inference.fisher import information_limit
from cryoanm_lib.inference.training import Trainer
from cryoanm_lib.io.locks import alone
from cryoanm_lib.io.provenance import beginning, circumstances, provenance
from cryoanm_lib.io.storage import load_json, load_tensors, save_json, save_tensors, sweep, unusable
from cryoanm_lib.numerics.batching import in_parts
from cryoanm_lib.numerics.device import deterministic, pick_device
from cryoanm_lib.particles.particles import Particles, Simulated
from cryoanm_lib.particles.source import FixedSet
from cryoanm_lib.program.program import Guide, Model

#: Seconds between two checkpoints of a running fit.
CHECKPOINT_INTERVAL = 20.0

# Draws an image for a guide's coverage, the fewest that are exact at all `LEVELS`, and what draws them.
_COVERAGE_DRAWS, _COVERAGE_SEED = 19, 4_000_000_007


@dataclass(frozen=True, eq=False)
class Fit:
    """A finished experiment.

    Attributes
    ----------
    run, guide : Run, Guide
        The configuration that it came from, and what was trained, on the CPU, with its model.
    metrics : dict
        Headline numbers; a key with `_limit` or `_paper` appended is what to compare it with. Beside them
        what tables say of the run, see `Run.description`.
    history : list of dict
        Loss and residuals every window of steps.
    snapshots : list of dict of Tensor
        At the end of each stage, one draw from the guide for every test image; see `amortised.draw_from`.
    truth : dict of Tensor
        Latents that made the test images; "noise" where each image has its own.
    """

    run: Run
    guide: Guide
    metrics: dict
    history: list[dict]
    snapshots: list[dict[str, Tensor]]
    truth: dict[str, Tensor]

    @property
    def model(self) -> Model:
        """What was fitted."""
        return self.guide.model


def fit_or_load(
    name: str, profile: str | Path = "laptop", structure: str | None = None, results: str | Path = "results"
) -> Fit:
    """The artifact of an experiment if there is one of this very configuration, else train it on the spot.

    Parameters
    ----------
    name, profile : str, str or Path
        An experiment, and the name or file of the profile that it is of.
    structure : str, optional
        Takes the place of the profile's structure.
    results : str or Path
        Folder of results; a relative one is looked up from the working directory and its parents.
    """
    settings, folder = load_profile(profile, structure), find_results(results)
    if not (folder / settings.run(name).path / "metrics.json").is_file():
        fit(settings, name, folder)
    return load_fit(settings, name, folder)


def find_results(results: str | Path) -> Path:
    """The results folder, also for a notebook that runs in `notebooks/`; it need not exist yet."""
    path = Path(results)
    if path.is_absolute() or path.is_dir():
        return path
    root = next((p for p in (Path.cwd(), *Path.cwd().parents) if (p / "Snakefile").is_file()), Path.cwd())
    return root / path


def fit(settings: Profile, name: str, results: Path, show_progress: bool = True) -> None:
    """Train an experiment, resuming from its checkpoint if there is one, and write its artifact.

    If another process is at it, wait, and take what it has made.
    """
    run = settings.run(name)
    run.forward_model()  # a structure that cannot be used leaves nothing behind
    with alone(results, run.path) as waited:
        if not (waited and (results / run.path / "metrics.json").is_file()):
            _fit(settings, run, results, show_progress)


def _fit(settings: Profile, run: Run, results: Path, show_progress: bool) -> None:
    begun, folder, digest = beginning(), results / run.path, run.config_hash
    checkpoint = folder / "checkpoint.safetensors"
    trainer = make_trainer(run, settings.device, show_progress)
    sweep(folder)
    _require_writable(folder)
    resumed = resume(checkpoint, trainer, digest)
    with deterministic(settings.deterministic):
        trainer.run(after_window=_checkpointer(checkpoint, digest))
        headline = _headline(run, trainer)
    device = next(trainer.guide.parameters()).device
    metrics = {
        "profile": run.profile.name,
        "structure": run.profile.structure,
        "config_hash": digest,
        "seed": run.seed,
        **headline,
        "test_images": len(trainer.test),
        "train_seconds": trainer.progress.seconds,
        "steps": trainer.progress.total_steps,
        **circumstances(begun, device),
    }
    # The metrics go first and come last: where they stand, the artifact is whole.
    (folder / "metrics.json").unlink(missing_ok=True)
    save_tensors(folder / "weights.safetensors", trainer.guide.encoders.state_dict(), config_hash=digest)
    predictions = {f"truth.{k}": v for k, v in {**trainer.truth, **own_noise(trainer.test)}.items()}
    predictions |= flatten_snapshots(trainer.progress.snapshots)
    save_tensors(folder / "predictions.safetensors", predictions, config_hash=digest)
    save_json(folder / "config.json", settings.model_dump(mode="json"))
    save_json(folder / "history.json", trainer.progress.history)
    of = {"fit": run.name, "config_hash": digest, "data": run.data_hashes, "seed": run.seed}
    save_json(folder / "provenance.json", provenance(begun, device, **of, resumed=resumed))
    save_json(folder / "metrics.json", metrics)
    checkpoint.unlink(missing_ok=True)


def load_fit(settings: Profile, name: str, results: Path) -> Fit:
    """Read the artifact of an experiment.

    Raises
    ------
    ArtifactError
        If it is missing, damaged, or belongs to another configuration.
    """
    run = settings.run(name)
    folder, expected = results / run.path, run.config_hash
    metrics, history = load_json(folder / "metrics.json"), load_json(folder / "history.json", list)
    weights, of_weights = load_tensors(folder / "weights.safetensors")
    predictions, of_predictions = load_tensors(folder / "predictions.safetensors")
    require_configuration(folder, expected, metrics, of_weights, of_predictions)
    guide = run.guide()
    try:
        guide.encoders.load_state_dict(weights)
    except RuntimeError as error:
        raise unusable(folder / "weights.safetensors", error) from error
    truth = {k.removeprefix("truth."): v for k, v in predictions.items() if k.startswith("truth.")}
    snapshots = read_snapshots(predictions)
    if truth.keys() - {"noise"} != set(guide.model.prior.names) or len(snapshots) != max(1, len(run.stages)):
        raise unusable(folder / "predictions.safetensors", "tensors are missing")
    return Fit(run, guide.eval(), metrics | run.description, history, snapshots, truth)


def require_configuration(folder: Path, expected: str, *found: Mapping[str, str]) -> None:
    """Refuse an artifact of which a part belongs to another configuration.

    Raises
    ------
    ArtifactError
        If one does.
    """
    for part in found:
        if part.get("config_hash") != expected:
            raise ArtifactError(
                f"{folder} holds configuration {part.get('config_hash')}, not {expected}: delete the folder "
                "and run what makes it again"
            )


def own_noise(images: Particles) -> dict[str, Tensor]:
    """The deviation of each image's white noise, where each has its own."""
    if isinstance(images.noise, WhiteNoise) and images.noise.deviation.ndim:
        return {"noise": images.noise.deviation.cpu()}
    return {}


def save_weights(finished: Fit, path: Path | None = None) -> Path:
    """Keep the networks of a finished fit with the library under its name, and return the file."""
    run = finished.run
    path = weights_path(run.name) if path is None else path
    made = {
        "experiment": run.name,
        "made_by": f"python -m cryoanm_lib fit --profile {run.profile.name} {run.name}",
        "date": date.today().isoformat(),
    }
    keys = ("config_hash", "commit", "device", "threads", "torch", "train_seconds", "steps", "seed")
    made |= {key: str(finished.metrics[key]) for key in keys}
    made["images"] = run.images_hash
    # How it descended, so that another training can be held against it.
    made["losses"] = json.dumps([(r["total_steps"], round(r["loss"], 4)) for r in finished.history])
    write_weights(finished.guide, path, **made)
    return path


def make_trainer(run: Run, device: str = "auto", show_progress: bool = False) -> Trainer:
    """A trainer at its first step: seeded, with test images drawn and networks initialised.

    Images that are kept are drawn on the CPU at the size of the box from seeds of their own, so that both
    recipes of a task, on any device, are tested on the same ones.
    """
    where = pick_device(device)
    pyro.set_rng_seed(run.seed)
    guide = run.guide()
    if run.section.weights is not None:
        load_weights(guide, run.section.weights, run.images_hash)
    test = draw_test_images(run, run.section.test_noise)
    source = training_images(run, guide.model, where)
    window = run.section.window or run.profile.window
    return Trainer(guide.to(where), run.stages, source, test.to(where), window, show_progress)


def _require_writable(folder: Path) -> None:
    """Find out before training, not after, that results cannot be written."""
    probe = folder / f".probe.{os.getpid()}"  # swept away by the next one if this process is killed here
    save_json(probe, {})
    probe.unlink()


def _checkpointer(path: Path, digest: str) -> Callable[[Trainer], None]:
    """Writes a checkpoint when the last one is old enough."""
    last = time.monotonic()

    def after_window(trainer: Trainer) -> None:
        nonlocal last
        if time.monotonic() - last > CHECKPOINT_INTERVAL:
            save_checkpoint(path, trainer, digest)
            last = time.monotonic()

    return after_window


def _headline(run: Run, trainer: Trainer) -> dict[str, float]:
    """Residuals of the last stage, each beside its information limit."""
    truth, resolution, latents = trainer.truth, run.last_resolution, trainer.guide.model.unknowns.latents
    found = residuals(trainer.progress.snapshots[-1], truth)
    # The networks cannot read better than what they look at lets them.
    seen = trainer.guide.resolution_seen(resolution)
    model, images = run.model(), trainer.test.to("cpu")
    limits = {k: information_limit(model, images, k) for k in {resolution, seen}}
    headline: dict[str, float] = {"resolution": resolution, "resolution_seen": seen}
    for latent in latents:
        headline[latent.metric] = found[latent.name].mean().item()
        headline[latent.metric.replace("mean", "median")] = found[latent.name].median().item()
        headline[f"{latent.metric}_limit"] = limits[resolution][latent.name].mean().item()
        headline[f"{latent.metric}_limit_seen"] = limits[seen][latent.name].mean().item()
    trained_on = trainer.source.particles if isinstance(trainer.source, FixedSet) else None
    if isinstance(trained_on, Simulated):
        known = {latent: value.cpu() for latent, value in trained_on.truth.items()}
        headline["epochs"] = trainer.progress.total_steps * run.section.batch_size / len(trained_on)
        recalled = residuals(draw_from(trainer.guide, trained_on, resolution), known)
        for latent in latents:
            headline[f"{latent.metric}_training"] = recalled[latent.name].mean().item()
    if "pose" in found:
        headline["pose_flipped_fraction"] = (found["pose"] > FLIP_DEGREES).double().mean().item()
        middle = torch.nn.functional.normalize(trainer.progress.snapshots[-1]["pose_concentrations"], dim=-1)
        nearest = torch.rad2deg(pose_distance(middle, truth["pose"][:, None])).amin(1)
        headline["best_component_within_15deg"] = (nearest < NEAR_DEGREES).double().mean().item()
    return headline | _coverage(trainer, resolution)


def _coverage(trainer: Trainer, resolution: int) -> dict[str, float]:
    """For how many test images the guide's regions of all latents together hold the truth.

    Not where the model computes what the guide says, image by image: assessments do that for a few.
    """
    guide = copy.deepcopy(trainer.guide).cpu()
    if set(guide.family.learned) != set(guide.model.inferred):
        return {}
    images = trainer.test.to("cpu")

    def level_of(rows: slice) -> Tensor:
        posterior = GuidePosterior(guide, images[rows], resolution)
        generator = torch.Generator().manual_seed(_COVERAGE_SEED + rows.start)
        draws = posterior.sample(_COVERAGE_DRAWS, generator)
        return credible_level(posterior, draws, {name: value[rows] for name, value in trainer.truth.items()})

    level = torch.cat(in_parts(level_of, len(images), together(guide, images.device)))
    return {f"coverage_{100 * of:.0f}": coverage(level, of, _COVERAGE_DRAWS) for of in LEVELS}
