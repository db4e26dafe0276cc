"""Checkpoints of a training run, without pickle: tensors in safetensors, all else as JSON in its header."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cryoanm_lib.errors import ArtifactError
from cryoanm_lib.training import Progress, Trainer


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write(temporary path)`, flush to disk, then rename to `path`: all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(beside)
        with open(beside, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def save_tensors(path: Path, tensors: dict[str, Tensor], **metadata: str) -> None:
    """Write tensors and text to a safetensors file, atomically."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, lambda beside: save_file(contiguous, beside, metadata))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and text of a safetensors file.

    Raises
    ------
    ArtifactError
        If the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ArtifactError(
            f"{path.name} in {path.parent} is missing or damaged ({error}): delete it and run again"
        ) from error


def save_checkpoint(path: Path, trainer: Trainer, config_hash: str) -> None:
    """Write all that `trainer` needs to go on as if it had never stopped."""
    tensors = {f"encoders.{k}": v for k, v in trainer.program.encoders.state_dict().items()}
    optimizers = {}
    for name, state in trainer.optimizer.get_state().items():
        moments = state["state"].get(0, {})
        tensors |= {f"optimizer.{name}.{k}": v for k, v in moments.items() if isinstance(v, Tensor)}
        numbers = {k: v for k, v in moments.items() if not isinstance(v, Tensor)}
        optimizers[name] = {"numbers": numbers, "param_groups": state["param_groups"]}
    tensors |= flatten_snapshots(trainer.progress.snapshots)
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    save_tensors(
        path,
        tensors,
        config_hash=config_hash,
        progress=json.dumps(asdict(replace(trainer.progress, snapshots=[]))),
        optimizers=json.dumps(optimizers),
    )


def load_checkpoint(path: Path, trainer: Trainer, config_hash: str) -> None:
    """Bring a fresh `trainer` to where `save_checkpoint` left the other.

    Raises
    ------
    ArtifactError
        If the file is damaged or belongs to another configuration.
    """
    tensors, metadata = load_tensors(path)
    if metadata.get("config_hash") != config_hash:
        raise ArtifactError(
            f"{path.name} in {path.parent} belongs to configuration {metadata.get('config_hash')}, not to "
            f"{config_hash}: delete it, or use the configuration that made it"
        )
    weights = {k.removeprefix("encoders."): v for k, v in tensors.items() if k.startswith("encoders.")}
    trainer.program.encoders.load_state_dict(weights)
    trainer.progress = Progress(**json.loads(metadata["progress"]))
    trainer.progress.snapshots = read_snapshots(tensors)
    trainer.optimizer.set_state(_optimizer_state(tensors, json.loads(metadata["optimizers"]), trainer))
    torch.set_rng_state(tensors["random.cpu"])
    if torch.cuda.is_available() and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"])


def _optimizer_state(
    tensors: dict[str, Tensor], optimizers: dict[str, dict], trainer: Trainer
) -> dict[str, dict]:
    """Pyro's state of one optimiser for each parameter, with the learning rate of the next step."""
    finished = trainer.progress.stage == len(trainer.stages)
    rate = {} if finished else {"lr": trainer.stage.learning_rate_at(trainer.progress.step)}
    states = {}
    for name, saved in optimizers.items():
        prefix = f"optimizer.{name}."
        moments = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        state = {0: saved["numbers"] | moments} if saved["numbers"] or moments else {}
        states[name] = {"state": state, "param_groups": [group | rate for group in saved["param_groups"]]}
    return states


def flatten_snapshots(snapshots: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """One flat table of tensors, "snapshots.<stage>.<name>"."""
    return {
        f"snapshots.{i}.{name}": v for i, snapshot in enumerate(snapshots) for name, v in snapshot.items()
    }


def read_snapshots(tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The inverse of `flatten_snapshots`; other tensors of the table are left out."""
    found: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("snapshots."):
            _, index, name = key.split(".", 2)
            found.setdefault(int(index), {})[name] = tensor
    return [found[index] for index in sorted(found)]
