"""Checkpoints of a training run, which run no code when read: safetensors, with JSON in the header."""

import json
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from cryoanm_lib.errors import ArtifactError
from cryoanm_lib.inference.training import Progress, Trainer
from cryoanm_lib.io.provenance import library_hash
from cryoanm_lib.io.storage import flat, grouped, load_tensors, save_tensors, unusable


def save_checkpoint(path: Path, trainer: Trainer, config_hash: str) -> None:
    """Write all that `trainer` needs to go on as if it had never stopped, in place of the last one."""
    tensors = flat({"encoders": trainer.guide.encoders.state_dict()})
    state = trainer.optimizer.state_dict()
    numbers: dict[str, dict] = {}
    for parameter, moments in state["state"].items():
        tensors |= {f"optimizer.{parameter}.{k}": v for k, v in moments.items() if isinstance(v, Tensor)}
        numbers[parameter] = {k: v for k, v in moments.items() if not isinstance(v, Tensor)}
    tensors |= flatten_snapshots(trainer.progress.snapshots)
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    save_tensors(
        path,
        tensors,
        config_hash=config_hash,
        library=library_hash(),
        progress=json.dumps(asdict(replace(trainer.progress, snapshots=[]))),
        optimizer=json.dumps({"numbers": numbers, "param_groups": state["param_groups"]}),
    )


def resume(path: Path, trainer: Trainer, config_hash: str) -> bool:
    """Bring a fresh `trainer` to its last checkpoint, if there is one; say whether there was.

    One that is damaged, or that other code has made, is deleted with a warning: training begins anew.

    Raises
    ------
    ArtifactError
        If it belongs to another configuration.
    """
    library = library_hash()  # now: the files may be others by the time that a checkpoint is written
    if not path.is_file():
        return False
    try:
        tensors, metadata = load_tensors(path)
        if metadata.get("library") != library:
            raise ArtifactError(f"{path} was made by other code than this")
    except ArtifactError as error:
        warnings.warn(f"{error}; starting without it", stacklevel=2)
        path.unlink()
        return False
    if metadata.get("config_hash") != config_hash:
        raise ArtifactError(
            f"{path.name} in {path.parent} belongs to configuration {metadata.get('config_hash')}, not to "
            f"{config_hash}: delete it, or use the configuration that made it"
        )
    try:
        _restore(trainer, tensors, metadata)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise unusable(path, error) from error
    return True


def _restore(trainer: Trainer, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    groups = grouped(tensors)
    trainer.guide.encoders.load_state_dict(groups["encoders"])
    trainer.progress = Progress(**json.loads(metadata["progress"]))
    trainer.progress.snapshots = read_snapshots(tensors)
    saved = json.loads(metadata["optimizer"])
    state = {int(parameter): dict(numbers) for parameter, numbers in saved["numbers"].items()}
    for parameter, moments in grouped(groups["optimizer"]).items():
        state[int(parameter)] |= moments
    trainer.optimizer.load_state_dict({"state": state, "param_groups": saved["param_groups"]})
    torch.set_rng_state(tensors["random.cpu"])
    if torch.cuda.is_available() and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"])


def flatten_snapshots(snapshots: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """One flat table of tensors, "snapshots.<stage>.<name>"."""
    return flat({f"snapshots.{i}": snapshot for i, snapshot in enumerate(snapshots)})


def read_snapshots(tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The inverse of `flatten_snapshots`; other tensors of the table are left out."""
    stages = grouped(grouped(tensors)["snapshots"])
    return [stages[stage] for stage in sorted(stages, key=int)]
