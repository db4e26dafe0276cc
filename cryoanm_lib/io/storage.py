"""Files of results: tensors as safetensors and records as JSON, written whole or not at all."""

import hashlib
import json
import os
import platform
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cryoanm_lib.errors import ArtifactError

_Kind = TypeVar("_Kind", dict, list)

#: What a file is called while it is written, by us and by safetensors.
HALF_WRITTEN = re.compile(r"\..+\.[0-9]+|\.tmp[A-Za-z0-9]{6}")

#: What safetensors calls some types.
_KINDS = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64"}

# Key of the checksum among the texts of a file.
_CHECKSUM = "checksum"


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary path)`, flush to disk, then rename to `path`: all of it or nothing.

    Raises
    ------
    ArtifactError
        If the folder cannot be written to, or the disk is full; what stood at `path` is still there.
    """
    # numbers of processes repeat from machine to machine, some of which may share a folder; see HALF_WRITTEN
    beside = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(beside)
        with open(beside, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(beside, path)
        _flush_folder(path.parent)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(
            f"{path} cannot be written ({error}): free some space, or choose another results folder"
        ) from error
    finally:
        if beside.parent.is_dir():
            beside.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what processes that were killed left half-written; for nobody but the one who writes here.

    Raises
    ------
    ArtifactError
        If the folder cannot be written to.
    """
    try:
        for left in folder.glob(".*"):
            if HALF_WRITTEN.fullmatch(left.name):
                left.unlink(missing_ok=True)
    except OSError as error:
        raise ArtifactError(f"{folder} cannot be written ({error}): choose another results folder") from error


def _flush_folder(folder: Path) -> None:
    """A new name in a folder lasts when the folder is on disk too; Windows opens no folders."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def save_tensors(path: Path, tensors: dict[str, Tensor], **metadata: str) -> None:
    """Write tensors and text to a safetensors file with their checksum, atomically."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {key: value for key, value in metadata.items() if key != _CHECKSUM}
    metadata[_CHECKSUM] = _checksum(contiguous, metadata)
    write_atomically(path, lambda beside: save_file(contiguous, beside, metadata))


def save_made(path: Path, like: Mapping[str, Tensor], make: Callable[[str], Tensor]) -> None:
    """Write tensors that are made one at a time, of shapes and types like those given, which need no data.

    Raises
    ------
    ArtifactError
        As of `write_atomically`.
    """
    names = sorted(like, key=lambda name: (-like[name].element_size(), name))  # so that all are aligned
    header, end = {}, 0
    for name in names:
        kind, start, end = _KINDS[like[name].dtype], end, end + like[name].nbytes
        header[name] = {"dtype": kind, "shape": list(like[name].shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)

    def write(beside: Path) -> None:
        with open(beside, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in names:
                make(name).contiguous().numpy().tofile(file)

    write_atomically(path, write)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and text of a safetensors file.

    Raises
    ------
    ArtifactError
        If the file is missing or damaged.
    """
    with _opened(path) as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    expected = metadata.pop(_CHECKSUM, None)
    if expected is not None and expected != _checksum(tensors, metadata):
        raise unusable(path, "its checksum does not fit")
    return tensors, metadata


def flat(groups: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Groups of tensors as one table, "<group>.<name>"."""
    return {f"{group}.{name}": value for group, found in groups.items() for name, value in found.items()}


def grouped(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The inverse of `flat`; a group that is missing is empty."""
    groups: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, value in tensors.items():
        group, _, name = key.partition(".")
        groups[group][name] = value
    return groups


def _checksum(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """SHA-256 of all names, texts, shapes and bytes."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # what has one element counts as contiguous with any stride, and cannot be viewed as bytes with all
        line = tensor.as_strided((tensor.numel(),), (1,))
        digest.update(line.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_header(path: Path) -> dict[str, str]:
    """The text of a safetensors file alone; errors as of `load_tensors`."""
    with _opened(path) as file:
        return {key: value for key, value in (file.metadata() or {}).items() if key != _CHECKSUM}


def read_tensor(path: Path, name: str) -> Tensor:
    """One tensor of a safetensors file alone, whose checksum is of all; errors as of `load_tensors`."""
    with _opened(path) as file:
        return file.get_tensor(name)


def read_shape(path: Path, name: str) -> tuple[int, ...]:
    """The shape of one tensor of a safetensors file; errors as of `load_tensors`."""
    with _opened(path) as file:
        return tuple(file.get_slice(name).get_shape())


@contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise unusable(path, error) from error


def save_json(path: Path, content: dict | list) -> None:
    """Write readable JSON, atomically."""
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def load_json(path: Path, kind: type[_Kind] = dict) -> _Kind:
    """Read JSON whose outermost element is of the given kind; errors as of `load_tensors`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise unusable(path, error) from error
    if not isinstance(content, kind):
        raise unusable(path, f"it holds a {type(content).__name__} and not a {kind.__name__}")
    return content


def unusable(path: Path, why: object) -> ArtifactError:
    """The error for a file that is missing, damaged, or not what it should be."""
    if not path.exists():
        return ArtifactError(f"{path} is missing: run the experiment that makes it")
    return ArtifactError(f"{path} is damaged ({why}): delete it and run the experiment again")
