"""Stacks of images in MRC files: found by the names that star files give them, and read in part."""

import math
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from cryoanm_lib.errors import ParticleError

#: Modes of MRC files that hold real numbers of one kind.
MODES = {0: "int8", 1: "int16", 2: "float32", 6: "uint16", 12: "float16"}
# Bytes of a header, where it tells the order of bytes, and what it says there of the one that is rare.
_HEADER, _BYTE_ORDER, _BIG_ENDIAN = 1024, 212, 0x11


@dataclass(frozen=True, eq=False)
class Stack:
    """An open stack, of which nothing but the header has been read.

    Attributes
    ----------
    images : np.ndarray
        (images, y, x), on disk.
    pixel_size : float or None
        Å, where the header says one: a size of 0, or of 1 Å, with which headers begin, says nothing.
    """

    images: np.ndarray
    pixel_size: float | None

    def read(self, place: int, into: Float32[Tensor, "y x"]) -> str:
        """Read one image, counted from 0; what is wrong with it, and nothing where it is usable."""
        if place >= len(self.images):
            return f"the stack holds {len(self.images)} images"
        # a copy in the machine's own order of bytes
        into.copy_(torch.from_numpy(self.images[place].astype(np.float32)))
        if not into.isfinite().all():
            return "it holds NaN or infinite values"
        return f"all of its pixels are {into[0, 0].item():g}" if into.min() == into.max() else ""


def opened(path: Path) -> Stack:
    """A stack of images of real numbers, on disk until they are read.

    The header is read here and not by mrcfile, which takes as much memory as a header asks for before it sees
    that the file is shorter.

    Raises
    ------
    ParticleError
        If the file cannot be read, is shorter than its header says, or holds no images of real numbers.
    """
    try:
        with open(path, "rb") as file:
            head, there = file.read(_HEADER), os.fstat(file.fileno()).st_size
    except OSError as error:
        raise ParticleError(f"{str(path)!r} cannot be read ({error.strerror})") from error
    if len(head) < _HEADER:
        raise ParticleError(f"{str(path)!r} is no MRC stack: it has {there} bytes, a header alone {_HEADER}")
    order = ">" if head[_BYTE_ORDER] == _BIG_ENDIAN else "<"
    width, height, count, mode = struct.unpack_from(f"{order}4i", head)
    samples, edge = struct.unpack_from(f"{order}i", head, 28)[0], struct.unpack_from(f"{order}f", head, 40)[0]
    (extended,) = struct.unpack_from(f"{order}i", head, 92)
    if mode not in MODES:
        raise ParticleError(
            f"{str(path)!r} is of mode {mode}: images of {', '.join(MODES.values())} (modes "
            f"{', '.join(map(str, MODES))}) can be read"
        )
    kind = np.dtype(MODES[mode]).newbyteorder(order)
    needed = _HEADER + extended + width * height * count * kind.itemsize
    if min(width, height, count) < 1 or extended < 0 or needed > there:
        raise ParticleError(
            f"{str(path)!r} has {there} bytes, and its header speaks of {count} images of {width} × {height} "
            f"pixels, {needed} bytes: it is cut short, or no MRC stack"
        )
    images = np.memmap(path, kind, "r", offset=_HEADER + extended, shape=(count, height, width))
    pixel_size = edge / samples if samples > 0 else 0.0
    says_one = math.isfinite(pixel_size) and pixel_size > 0 and pixel_size != 1
    return Stack(images, pixel_size if says_one else None)


def found(name: str, folders: Sequence[Path], stripped: Sequence[Path]) -> Path:
    """The file that a name stands for: below some folders as it is, or less leading folders below others.

    Raises
    ------
    ParticleError
        Naming where it was looked for, or what it may be if it is not clear.
    """
    parts = Path(name).parts
    for folder in folders:  # an absolute name stands for itself
        if _is_file(folder / name):
            return folder / name
    for start in range(1, len(parts)):
        there = [folder.joinpath(*parts[start:]) for folder in stripped]
        if candidates := [path for path in dict.fromkeys(there) if _is_file(path)]:
            if len(candidates) > 1:
                told = " or ".join(repr(str(path)) for path in candidates)
                raise ParticleError(
                    f"the stack {name!r} may be {told}: say by `data` (--data) in which folder"
                )
            return candidates[0]
    looked = ", ".join(dict.fromkeys(str(folder) for folder in folders))
    raise ParticleError(
        f"the stack {name!r} is not below {looked}, neither as it is named nor less its leading folders: say "
        "by `data` (--data) in which folder the stacks are"
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long, a folder that is not ours to read, a zero in it
        return False
