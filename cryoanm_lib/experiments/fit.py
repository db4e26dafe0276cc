"""One experiment from configuration to artifact: fitted once, then loaded."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pyro
import torch
from torch import Tensor

from cryoanm_lib.checks.residuals import FLIP_DEGREES, NEAR_DEGREES, RESIDUAL_KEYS, pose_distance, residuals
from cryoanm_lib.errors import ArtifactError
from cryoanm_lib.experiments.checkpoint import (
    flatten_snapshots,
    read_snapshots,
    remove_checkpoints,
    resume,
    save_checkpoint,
)
from cryoanm_lib.experiments.datasets import FixedSet, draw_test_images, training_images
from cryoanm_lib.experiments.device import deterministic, pick_device
from cryoanm_lib.experiments.profile import Profile, load_profile
from cryoanm_lib.experiments.weights import load_weights, weights_path, write_weights
from cryoanm_lib.inference.fisher import information_limit
from cryoanm_lib.inference.training import Trainer
from cryoanm_lib.io.locks import alone
from cryoanm_lib.io.provenance import beginning, circumstances, provenance
from cryoanm_lib.io.storage import load_json, load_tensors, save_json, save_tensors, sweep, unusable
from cryoanm_lib.program.program import CryoProgram

#: Seconds between two checkpoints of a running fit.
CHECKPOINT_INTERVAL = 20.0


@dataclass(frozen=True, eq=False)
class Fit:
    """A finished experiment.

    Attributes
    ----------
    name : str
        Of the experiment, in the profile.
    profile : Profile
        The configuration that it came from.
    program : CryoProgram
        Model and trained guide, on the CPU.
    metrics : dict
        Headline numbers; a key with `_limit` or `_paper` appended is what to compare it with. Beside them
        what tables say of the run, see `Profile.description`.
    history : list of dict
        Loss and residuals every window of steps.
    snapshots : list of dict of Tensor
        At the end of each stage, one draw from the guide for every test image; see
        `CryoProgram.sample_guide`.
    truth : dict of Tensor
        Latents that made the test images.
    """

    name: str
    profile: Profile
    program: CryoProgram
    metrics: dict
    history: list[dict]
    snapshots: list[dict[str, Tensor]]
    truth: dict[str, Tensor]


def fit_or_load(
    name: str, profile: str | Path = "laptop", structure: str | None = None, results: str | Path = "results"
) -> Fit:
    """The artifact of an experiment if there is one of this very configuration, else train it on the spot.

    Parameters
    ----------
    name : str
        An experiment of the profile.
    profile : str or Path
        Name or file of the profile.
    structure : str, optional
        Takes the place of the profile's structure.
    results : str or Path
        Folder of results; a relative one is looked up from the working directory and its parents.
    """
    settings, folder = load_profile(profile, structure), find_results(results)
    if not (folder / settings.artifact_path(name) / "metrics.json").is_file():
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
    settings.forward_model(experiment=name)  # a structure that cannot be used leaves nothing behind
    with alone(results, settings.artifact_path(name)) as waited:
        if not (waited and (results / settings.artifact_path(name) / "metrics.json").is_file()):
            _fit(settings, name, results, show_progress)


def _fit(settings: Profile, name: str, results: Path, show_progress: bool) -> None:
    begun, folder = beginning(), results / settings.artifact_path(name)
    checkpoint, digest = folder / "checkpoint.safetensors", settings.config_hash(name)
    trainer = make_trainer(settings, name, show_progress)
    sweep(folder)
    _require_writable(folder)
    resumed = resume(checkpoint, trainer, digest)
    with deterministic(settings.deterministic):
        trainer.run(after_window=_checkpointer(checkpoint, digest))
        headline = _headline(settings, name, trainer)
    device, seed = next(trainer.program.parameters()).device, settings.seed_of(name)
    metrics = {
        "profile": settings.name,
        "structure": settings.structure,
        "config_hash": digest,
        "seed": seed,
        **headline,
        "test_images": len(trainer.test),
        "train_seconds": trainer.progress.seconds,
        "steps": trainer.progress.total_steps,
        **circumstances(begun, device),
    }
    truth = {f"truth.{k}": v for k, v in trainer.truth.items()}
    # The metrics go first and come last: where they stand, the artifact is whole.
    (folder / "metrics.json").unlink(missing_ok=True)
    save_tensors(folder / "weights.safetensors", trainer.program.encoders.state_dict(), config_hash=digest)
    save_tensors(
        folder / "predictions.safetensors",
        truth | flatten_snapshots(trainer.progress.snapshots),
        config_hash=digest,
    )
    save_json(folder / "config.json", settings.model_dump(mode="json"))
    save_json(folder / "history.json", trainer.progress.history)
    of = {"fit": name, "config_hash": digest, "data": settings.data_hashes(name), "seed": seed}
    save_json(folder / "provenance.json", provenance(begun, device, **of, resumed=resumed))
    save_json(folder / "metrics.json", metrics)
    remove_checkpoints(checkpoint)


def load_fit(settings: Profile, name: str, results: Path) -> Fit:
    """Read the artifact of an experiment.

    Raises
    ------
    ArtifactError
        If it is missing, damaged, or belongs to another configuration.
    """
    folder, expected = results / settings.artifact_path(name), settings.config_hash(name)
    metrics, history = load_json(folder / "metrics.json"), load_json(folder / "history.json", list)
    weights, of_weights = load_tensors(folder / "weights.safetensors")
    predictions, of_predictions = load_tensors(folder / "predictions.safetensors")
    for found in (metrics, of_weights, of_predictions):
        if found.get("config_hash") != expected:
            raise ArtifactError(
                f"{folder} holds configuration {found.get('config_hash')}, not {expected}: delete the folder "
                "and run the experiment again"
            )
    program = settings.program(name)
    try:
        program.encoders.load_state_dict(weights)
    except RuntimeError as error:
        raise unusable(folder / "weights.safetensors", error) from error
    truth = {k.removeprefix("truth."): v for k, v in predictions.items() if k.startswith("truth.")}
    snapshots = read_snapshots(predictions)
    latents = set(truth) - {"noise"}
    if latents != set(program.prior.latents) or len(snapshots) != max(1, len(settings.stages(name))):
        raise unusable(folder / "predictions.safetensors", "tensors are missing")
    metrics |= settings.description(name)
    return Fit(name, settings, program.eval(), metrics, history, snapshots, truth)


def save_weights(finished: Fit, path: Path | None = None) -> Path:
    """Keep the networks of a finished fit with the library under its name, and return the file."""
    path = weights_path(finished.name) if path is None else path
    made = {
        "experiment": finished.name,
        "made_by": f"python -m cryoanm_lib fit --profile {finished.profile.name} {finished.name}",
        "date": date.today().isoformat(),
    }
    keys = ("config_hash", "commit", "device", "threads", "torch", "train_seconds", "steps", "seed")
    made |= {key: str(finished.metrics[key]) for key in keys}
    made["images"] = finished.profile.images_hash(finished.name)
    # How it descended, so that another training can be held against it.
    made["losses"] = json.dumps([(r["total_steps"], round(r["loss"], 4)) for r in finished.history])
    write_weights(finished.program, path, **made)
    return path


def make_trainer(settings: Profile, name: str, show_progress: bool = False) -> Trainer:
    """A trainer at its first step: seeded, with test images drawn and networks initialised.

    Images that are kept are drawn on the CPU at the size of the box from seeds of their own, so that both
    recipes of a task, on any device, are tested on the same ones.
    """
    section, seed = settings.experiment(name), settings.seed_of(name)
    device = pick_device(settings.device)
    pyro.set_rng_seed(seed)
    program = settings.program(name)
    if section.weights is not None:
        load_weights(program, section.weights, settings.images_hash(name))
    test = draw_test_images(settings, name, section.test_noise)
    draw = training_images(settings, name, program, device)
    window = settings.window if section.window is None else section.window
    return Trainer(program.to(device), settings.stages(name), draw, test.to(device), window, show_progress)


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


def _headline(settings: Profile, name: str, trainer: Trainer) -> dict[str, float]:
    """Residuals of the last stage, each beside its information limit."""
    section, truth, resolution = settings.experiment(name), trainer.truth, settings.last_resolution(name)
    found = residuals(trainer.progress.snapshots[-1], truth)
    # The networks look at no more than their own size: they cannot read better than this.
    seen = min(resolution, section.guide.image_size)
    program = settings.program(name)
    limits = {k: information_limit(program, truth, k) for k in {resolution, seen}}
    limit, limit_seen = limits[resolution], limits[seen]
    headline: dict[str, float] = {"resolution": resolution, "resolution_seen": seen}
    for latent in section.infer:
        key = RESIDUAL_KEYS[latent]
        headline[key] = found[latent].mean().item()
        headline[key.replace("mean", "median")] = found[latent].median().item()
        headline[f"{key}_limit"] = limit[latent].mean().item()
        headline[f"{key}_limit_seen"] = limit_seen[latent].mean().item()
    if isinstance(trainer.draw_batch, FixedSet):
        trained_on = trainer.draw_batch.particles
        known = {latent: value.cpu() for latent, value in trained_on.latents.items()}
        headline["epochs"] = trainer.progress.total_steps * section.batch_size / len(trained_on)
        recalled = residuals(trainer.program.sample_guide(trained_on, resolution), known)
        for latent in section.infer:
            headline[f"{RESIDUAL_KEYS[latent]}_training"] = recalled[latent].mean().item()
    if "pose" in found:
        headline["pose_flipped_fraction"] = (found["pose"] > FLIP_DEGREES).double().mean().item()
        middle = torch.nn.functional.normalize(trainer.progress.snapshots[-1]["pose_concentrations"], dim=-1)
        nearest = torch.rad2deg(pose_distance(middle, truth["pose"][:, None])).amin(1)
        headline["best_component_within_15deg"] = (nearest < NEAR_DEGREES).double().mean().item()
    return headline
