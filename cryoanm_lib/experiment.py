"""One experiment from configuration to artifact: fitted once, then loaded."""

import json
import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyro
import torch
from torch import Tensor

from cryoanm_lib.checkpoint import (
    flatten_snapshots,
    load_checkpoint,
    load_tensors,
    read_snapshots,
    save_checkpoint,
    save_tensors,
    write_atomically,
)
from cryoanm_lib.configuration import Profile, load_profile
from cryoanm_lib.diagnostics import FLIP_DEGREES, information_limit, residuals
from cryoanm_lib.errors import ArtifactError, ConfigurationError
from cryoanm_lib.program import CryoProgram, Particles
from cryoanm_lib.training import Trainer

#: Seconds between two checkpoints of a running fit.
CHECKPOINT_INTERVAL = 20.0

#: The metric that stands for each latent, in results/metrics.json.
RESIDUAL_KEYS = {
    "pose": "pose_residual_mean_deg",
    "amplitude": "amplitude_residual_mean",
    "defocus": "defocus_residual_mean",
}


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
        Headline numbers; a key with `_limit` or `_paper` appended is what to compare it with.
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
    """Train an experiment, resuming from its checkpoint if there is one, and write its artifact."""
    folder = results / settings.artifact_path(name)
    checkpoint, digest = folder / "checkpoint.safetensors", settings.config_hash(name)
    trainer = make_trainer(settings, name, show_progress)
    if checkpoint.is_file():
        load_checkpoint(checkpoint, trainer, digest)
    trainer.run(after_window=_checkpointer(checkpoint, digest))
    metrics = {
        "profile": settings.name,
        "structure": settings.structure,
        "config_hash": digest,
        "seed": settings.seed_of(name),
        **_headline(settings, name, trainer),
        **_circumstances(trainer),
    }
    truth = {f"truth.{k}": v for k, v in trainer.test.latents.items()}
    save_tensors(folder / "weights.safetensors", trainer.program.encoders.state_dict(), config_hash=digest)
    save_tensors(
        folder / "predictions.safetensors",
        truth | flatten_snapshots(trainer.progress.snapshots),
        config_hash=digest,
    )
    save_json(folder / "config.json", settings.model_dump(mode="json"))
    save_json(folder / "history.json", trainer.progress.history)
    # The metrics come last: where they stand, the artifact is whole.
    save_json(folder / "metrics.json", metrics)
    checkpoint.unlink(missing_ok=True)


def load_fit(settings: Profile, name: str, results: Path) -> Fit:
    """Read the artifact of an experiment.

    Raises
    ------
    ArtifactError
        If it is missing, damaged, or belongs to another configuration.
    """
    folder = results / settings.artifact_path(name)
    metrics, history = load_json(folder / "metrics.json"), load_json(folder / "history.json")
    weights, weights_hash = load_tensors(folder / "weights.safetensors")
    predictions, _ = load_tensors(folder / "predictions.safetensors")
    expected = settings.config_hash(name)
    for found in (metrics.get("config_hash"), weights_hash.get("config_hash")):
        if found != expected:
            raise ArtifactError(
                f"{folder} holds configuration {found}, not {expected}: delete the folder and run again"
            )
    program = settings.program(name)
    program.encoders.load_state_dict(weights)
    program.eval()
    truth = {k.removeprefix("truth."): v for k, v in predictions.items() if k.startswith("truth.")}
    return Fit(name, settings, program, metrics, history, read_snapshots(predictions), truth)


def make_trainer(settings: Profile, name: str, show_progress: bool = False) -> Trainer:
    """A trainer at its first step: seeded, with test images drawn and networks initialised."""
    pyro.set_rng_seed(settings.seed_of(name))
    device = pick_device(settings.device)
    program, section = settings.program(name).to(device), settings.experiment(name)
    highest = max(max(stage.resolution for stage in section.stages), section.guide.image_size)
    test = program.simulate(settings.test_images, highest)
    draw = partial(_fresh_batch, program, section.batch_size, section.guide.image_size)
    trainer = Trainer(program, settings.stages(name), draw, test, settings.window, show_progress)
    if section.training_images is not None:
        fixed = program.simulate(section.training_images, highest)
        trainer.draw_batch = partial(_fixed_batch, trainer, fixed, section.batch_size, settings.seed_of(name))
    return trainer


def pick_device(device: str) -> torch.device:
    """The device to train on; "auto" is CUDA where there is one."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("device = 'cuda', but torch finds no CUDA device: choose 'auto' or 'cpu'")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def _fresh_batch(program: CryoProgram, batch_size: int, image_size: int, resolution: int) -> Particles:
    """New images each step, simulated up to what the likelihood or the networks look at."""
    return program.simulate(batch_size, max(resolution, image_size))


def _fixed_batch(
    trainer: Trainer, fixed: Particles, batch_size: int, seed: int, resolution: int
) -> Particles:
    """The next batch of a fixed set, shuffled anew each epoch by a seed that depends on the epoch alone."""
    epoch, position = divmod(trainer.progress.total_steps, len(fixed) // batch_size)
    shuffle = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(len(fixed), generator=shuffle)
    return fixed[order[position * batch_size :][:batch_size].to(fixed.coefficients.device)]


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
    """Residuals of the last stage, each beside its information limit and what the paper reports."""
    section, last = settings.experiment(name), trainer.stages[-1]
    truth = trainer.test.latents
    found = residuals(trainer.progress.snapshots[-1], truth)
    limit = information_limit(
        trainer.program.forward_model,
        truth,
        section.infer,
        trainer.program.prior,
        settings.noise,
        last.resolution,
    )
    headline: dict[str, float] = {"resolution": last.resolution}
    for latent in section.infer:
        key = RESIDUAL_KEYS[latent]
        headline[key] = found[latent].mean().item()
        headline[key.replace("mean", "median")] = found[latent].median().item()
        headline[f"{key}_limit"] = limit[latent].mean().item()
        headline[f"{key}_paper"] = section.paper.get(key)
    if "pose" in found:
        headline["pose_flipped_fraction"] = (found["pose"] > FLIP_DEGREES).double().mean().item()
    return headline


def _circumstances(trainer: Trainer) -> dict:
    """What the numbers cost, and where they were made."""
    device = next(trainer.program.parameters()).device
    cuda = device.type == "cuda"
    return {
        "test_images": len(trainer.test),
        "train_seconds": trainer.progress.seconds,
        "steps": trainer.progress.total_steps,
        "device": torch.cuda.get_device_name(device) if cuda else platform.machine() + " CPU",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def gather_metrics(settings: Profile, results: Path) -> dict[str, dict]:
    """The metrics of every experiment of a profile, by name."""
    return {
        name: load_json(results / settings.artifact_path(name) / "metrics.json")
        for name in settings.experiments
    }


def check_metrics(metrics: dict[str, dict], expected: dict[str, dict[str, list[float]]]) -> list[str]:
    """One line for each metric that is missing or outside its expected range; none if all is well."""
    complaints = []
    for name, ranges in expected.items():
        for key, (low, high) in ranges.items():
            value = metrics.get(name, {}).get(key)
            if value is None:
                complaints.append(f"{name}.{key} is missing; expected {low} to {high}")
            elif not low <= value <= high:
                complaints.append(f"{name}.{key} = {value:.4g} is outside {low} to {high}")
    return complaints


def save_json(path: Path, content: dict | list) -> None:
    """Write readable JSON, atomically."""
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(path, lambda beside: Path(beside).write_text(text, encoding="utf-8"))


def load_json(path: Path) -> dict | list:
    """Read JSON.

    Raises
    ------
    ArtifactError
        If the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{path} is missing or damaged ({error}): delete its folder and run again"
        ) from error


def remove_artifact(settings: Profile, name: str, results: Path) -> None:
    """Delete what an experiment has left in the results folder."""
    shutil.rmtree(results / settings.artifact_path(name), ignore_errors=True)
