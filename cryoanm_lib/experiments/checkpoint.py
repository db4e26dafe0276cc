"""Checkpoints of a training run, which run no code when read: safetensors, with JSON in the header.

Two are kept, the last and the one before: one of them is whole whatever happens to the other.
"""

import json
import os
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from cryoanm_lib.errors import ArtifactError
from cryoanm_lib.inference.training import Progress, Trainer
from cryoanm_lib.io.provenance import library_hash
from cryoanm_lib.io.storage import load_tensors, read_header, save_tensors, unusable


def save_checkpoint(path: Path, trainer: Trainer, config_hash: str) -> None:
    """Write all that `trainer` needs to go on as if it had never stopped, beside the last one."""
    tensors = {f"encoders.{k}": v for k, v in trainer.program.encoders.state_dict().items()}
    optimizers = {}
    # Pyro parks the state of a parameter that it has not met since it was loaded.
    parked = trainer.optimizer._state_waiting_to_be_consumed
    for name, state in {**parked, **trainer.optimizer.get_state()}.items():
        moments = state["state"].get(0, {})
        tensors |= {f"optimizer.{name}.{k}": v for k, v in moments.items() if isinstance(v, Tensor)}
        numbers = {k: v for k, v in moments.items() if not isinstance(v, Tensor)}
        optimizers[name] = {"numbers": numbers, "param_groups": state["param_groups"]}
    tensors |= flatten_snapshots(trainer.progress.snapshots)
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    written = path.with_name(f"{path.name}.new")
    save_tensors(
        written,
        tensors,
        config_hash=config_hash,
        library=library_hash(),
        progress=json.dumps(asdict(replace(trainer.progress, snapshots=[]))),
        optimizers=json.dumps(optimizers),
    )
    # The new one is on disk before the old one steps back.
    if path.is_file():
        os.replace(path, previous(path))
    os.replace(written, path)


def previous(path: Path) -> Path:
    """Where the checkpoint before the last one lies."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def remove_checkpoints(path: Path) -> None:
    """Both of them, and one that was being written."""
    for each in (path, previous(path), path.with_name(f"{path.name}.new")):
        each.unlink(missing_ok=True)


def resume(path: Path, trainer: Trainer, config_hash: str) -> bool:
    """Bring a fresh `trainer` to the last checkpoint that is whole, if there is one; say whether there was.

    A damaged checkpoint is passed over with a warning; one that other code has made is deleted with one.

    Raises
    ------
    ArtifactError
        If none is whole, or it belongs to another configuration.
    """
    library = library_hash()  # now: the files may be others by the time that a checkpoint is written
    found = [each for each in (path, previous(path)) if each.is_file()]
    for each in [each for each in found if _library_of(each) not in (library, None)]:
        warnings.warn(f"{each} was made by other code than this: starting without it", stacklevel=2)
        each.unlink()
        found.remove(each)
    for each in found:
        try:
            load_checkpoint(each, trainer, config_hash)
            return True
        except ArtifactError as error:
            if each == found[-1]:
                raise
            warnings.warn(f"{error}; going on from the checkpoint before it", stacklevel=2)
    return False


def _library_of(path: Path) -> str | None:
    """The hash of the library that wrote a checkpoint; none if it cannot be read."""
    try:
        return read_header(path).get("library")
    except ArtifactError:
        return None


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
    try:
        _restore(trainer, tensors, metadata)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise unusable(path, error) from error


def _restore(trainer: Trainer, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    weights = {k.removeprefix("encoders."): v for k, v in tensors.items() if k.startswith("encoders.")}
    trainer.program.encoders.load_state_dict(weights)
    trainer.progress = Progress(**json.loads(metadata["progress"]))
    trainer.progress.snapshots = read_snapshots(tensors)
    trainer.optimizer.set_state(_optimizer_state(tensors, json.loads(metadata["optimizers"])))
    torch.set_rng_state(tensors["random.cpu"])
    if torch.cuda.is_available() and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"])


def _optimizer_state(tensors: dict[str, Tensor], optimizers: dict[str, dict]) -> dict[str, dict]:
    """Pyro's state of one optimiser for each parameter."""
    states = {}
    for name, saved in optimizers.items():
        prefix = f"optimizer.{name}."
        moments = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        state = {0: saved["numbers"] | moments} if saved["numbers"] or moments else {}
        states[name] = {"state": state, "param_groups": saved["param_groups"]}
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
