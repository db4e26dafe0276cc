"""Particles as others have them: which images, through which optics, how turned; and the images on demand."""

import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from cryoanm_lib.errors import ParticleError
from cryoanm_lib.imaging.contrast_transfer import GIVEN_CTF
from cryoanm_lib.numerics.batching import machine_memory
from cryoanm_lib.particles.optics_group import OpticsGroup
from cryoanm_lib.particles.stacks import found, opened

#: Relative difference of pixel sizes of one image from which on they are not the same.
_SAME_PIXEL = 0.01
#: Bad images that a message names; and pixels of which a correction is undone at a time.
_NAMED, _AT_ONCE = 5, 2**21


def looked_in(source: Path, data: str | Path | None) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """`ParticleSet.folders` and `stripped`: what is said, or the file's own folder and those above it."""
    if data is not None:
        return (Path(data),), (Path(data),)
    return (source.parent, *source.absolute().parent.parents, Path()), (source.parent,)


def keys_of(names: Iterable[str]) -> Int64[Tensor, "names"]:
    """A number for each name, of 64 bits: of ten million names two have the same once in 400 000 tables.

    Examples
    --------
    >>> a, b, again = keys_of(["000001@one.mrcs", "000002@one.mrcs", "000001@one.mrcs"]).tolist()
    >>> a == again, a == b
    (True, False)
    """
    digests = (hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names)
    return torch.tensor(np.frombuffer(b"".join(digests), dtype=np.int64))


def found_among(
    keys: Int64[Tensor, "wanted"], known: Int64[Tensor, "known"]
) -> tuple[Int64[Tensor, "wanted"], Int64[Tensor, "wanted"]]:
    """Where among others numbers stand, the first place of each, and how often; anywhere where that is 0.

    Examples
    --------
    >>> found_among(torch.tensor([7, 5]), torch.tensor([5, 6, 7, 5]))
    (tensor([2, 0]), tensor([1, 2]))
    """
    order = known.argsort(stable=True)
    ordered = known[order]
    first, end = (torch.searchsorted(ordered, keys, right=right) for right in (False, True))
    return order[first.clamp(max=len(known) - 1)], end - first


class Images(NamedTuple):
    """Images that were read, and what is wrong with those that were not.

    Attributes
    ----------
    rows : Int64[Tensor, "read"]
        Which particles they are of.
    pixels : Float[Tensor, "read y x"]
        The images.
    bad : dict of int to str
        Of particles whose image is not usable: why.
    """

    rows: Int64[Tensor, "read"]
    pixels: Float[Tensor, "read y x"]
    bad: dict[int, str]


@dataclass(frozen=True, eq=False)
class ParticleSet:
    """A table of particles in our conventions, x' = R x + shift in Å; images are read when asked for.

    Attributes
    ----------
    source : Path
        The file that it was read from.
    folders, stripped : tuple of Path
        Below which stacks are looked for by their names, and by these less some leading folders.
    optics : tuple of OpticsGroup
        The optics groups.
    group : Int64[Tensor, "particles"]
        Of each particle, counted from 0 in `optics`.
    stacks : tuple of str
        Names of the stacks.
    stack, place : Int64[Tensor, "particles"]
        In which stack the image of each particle is, and as which, counted from 0.
    repeat : Int64[Tensor, "particles"]
        How often the image of a particle stands in the table before it, as where symmetry was expanded.
    pose : Float64[Tensor, "particles 4"] or None
        Unit quaternions of the active rotation.
    shift : Float64[Tensor, "particles 2"] or None
        x and y in Å.
    ctf : Float64[Tensor, "particles 5"] or None
        As of `given_ctf`.
    absent : dict of str to str
        Of pose, shift and ctf, where it is None: what the file lacks.
    pixel_size_stated : bool
        Whether the pixel size was stated when the table was read: then it holds, whatever headers say.
    """

    source: Path
    folders: tuple[Path, ...]
    stripped: tuple[Path, ...]
    optics: tuple[OpticsGroup, ...]
    group: Int64[Tensor, "particles"]
    stacks: tuple[str, ...]
    stack: Int64[Tensor, "particles"]
    place: Int64[Tensor, "particles"]
    repeat: Int64[Tensor, "particles"]
    pose: Float64[Tensor, "particles 4"] | None
    shift: Float64[Tensor, "particles 2"] | None
    ctf: Float64[Tensor, "particles 5"] | None
    absent: Mapping[str, str]
    pixel_size_stated: bool = False

    def __len__(self) -> int:
        """Number of particles."""
        return len(self.group)

    def __getitem__(self, which: Tensor | slice) -> "ParticleSet":
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: v[which] for name, v in values.items() if isinstance(v, Tensor)})

    @property
    def names(self) -> list[str]:
        """Of each image, as star files have them: its number in the stack from 1, and the stack."""
        return list(self._named())

    def _named(self) -> Iterator[str]:
        pairs = zip(self.place.tolist(), self.stack.tolist(), strict=True)
        return (f"{place + 1:06d}@{self.stacks[stack]}" for place, stack in pairs)

    @property
    def keys(self) -> Int64[Tensor, "particles"]:
        """A number by which the image of each particle is known in any table: of its name."""
        return keys_of(self._named())

    def latents(self) -> dict[str, Float64[Tensor, "particles ..."]]:
        """Pose, shift in pixels, and transfer, as a forward model takes them.

        Raises
        ------
        ParticleError
            Naming the labels that are missing.
        """
        pixel_size = torch.tensor([group.pixel_size for group in self.optics], dtype=torch.float64)
        pixels = self._known("shift") / pixel_size[self.group, None]
        return {"pose": self._known("pose"), "shift": pixels, GIVEN_CTF: self._known("ctf")}

    def _known(self, name: str) -> Float64[Tensor, "particles width"]:
        value = getattr(self, name)
        if value is None:
            raise ParticleError(f"{str(self.source)!r} {self.absent[name]}")
        return value

    def images(self, rows: Int64[Tensor, "rows"] | None = None, skip_bad: bool = False) -> Images:
        """Read the images of some particles, of one box, as their microscopes took them; default of all.

        What a program did to correct for the transfer is undone, where the table says that it was done.

        Parameters
        ----------
        rows : Int64[Tensor, "rows"], optional
            Which particles; the answer is in their order.
        skip_bad : bool
            Leave out images that are not usable, and say which, instead of refusing all.

        Raises
        ------
        ParticleError
            If an image is not there, not finite, or the same in all pixels; or of another pixel or box size
            than the table says; or if boxes differ, or none is left; or if images were corrected by a
            transfer that is not known.
        """
        rows = torch.arange(len(self)) if rows is None else rows
        if not len(rows):
            raise ParticleError("no particle is asked for: give at least one row")
        pixels, usable = torch.empty(0), torch.zeros(len(rows), dtype=torch.bool)
        bad: dict[int, str] = {}
        for stack in self.stack[rows].unique().tolist():
            here = torch.nonzero(self.stack[rows] == stack)[:, 0]
            try:
                file = opened(self._file(stack))
                self._require_size(rows[here], file.images.shape, file.pixel_size)
                if not len(pixels):
                    pixels = self._room(len(rows), file.images.shape[-1])
                if file.images.shape[-1] != pixels.shape[-1]:
                    raise ParticleError("its images are of another size: read those of one optics group")
            except ParticleError as error:
                bad |= dict.fromkeys(rows[here].tolist(), str(error))
                continue
            for at in here.tolist():
                row = int(rows[at])
                if wrong := file.read(int(self.place[row]), pixels[at]):
                    bad[row] = wrong
                else:
                    usable[at] = True
        if bad and (not skip_bad or not usable.any()):
            raise ParticleError(self._complaint(bad))
        rows, pixels = rows[usable], pixels if usable.all() else pixels[usable]
        return Images(rows, self._as_taken(rows, pixels), bad)

    def _as_taken(
        self, rows: Int64[Tensor, "rows"], pixels: Float[Tensor, "rows y x"]
    ) -> Float[Tensor, "rows y x"]:
        """Undo, in place, what was done to the images of some optics groups."""
        for number, optics in enumerate(self.optics):
            here = torch.nonzero(self.group[rows] == number)[:, 0]
            if len(here) and optics.was_corrected:
                for some in here.split(max(1, _AT_ONCE // pixels[0].numel())):
                    pixels[some] = optics.as_taken(pixels[some], self._known("ctf")[rows[some]])
        return pixels

    @staticmethod
    def _room(count: int, box_size: int) -> Float[Tensor, "images y x"]:
        """Memory for so many images."""
        needed, there = 4.0 * count * box_size**2, machine_memory()
        if needed > there:
            raise ParticleError(
                f"{count} images of {box_size} × {box_size} pixels take {needed / 1e9:.1f} GB, and this "
                f"machine has {there / 1e9:.1f}: read some rows at a time"
            )
        return torch.empty(count, box_size, box_size)

    @property
    def files(self) -> dict[str, Path | None]:
        """Where each stack is, by its name; None of one that is not there, or not told from another."""
        found = zip(self.stacks, self._files, strict=True)
        return {name: file if isinstance(file, Path) else None for name, file in found}

    def _file(self, stack: int) -> Path:
        """Where a stack is."""
        file = self._files[stack]
        if isinstance(file, ParticleError):
            raise file
        return file

    @functools.cached_property
    def _files(self) -> list[Path | ParticleError]:
        """Where each stack is, or that it is not there, or that it cannot be told from another."""
        files: list[Path | ParticleError] = []
        for name in self.stacks:
            try:
                files.append(found(name, self.folders, self.stripped))
            except ParticleError as error:
                files.append(error)
        names: dict[Path, list[str]] = {}
        for name, file in zip(self.stacks, files, strict=True):
            if isinstance(file, Path):
                names.setdefault(file, []).append(name)
        twice = {file: these for file, these in names.items() if len(these) > 1}
        return [
            ParticleError(f"{' and '.join(map(repr, twice[file]))} are both taken to be {str(file)!r}")
            if isinstance(file, Path) and file in twice
            else file
            for file in files
        ]

    def _require_size(
        self, rows: Int64[Tensor, "rows"], shape: tuple[int, ...], pixel_size: float | None
    ) -> None:
        """Refuse a stack whose images are not what the optics groups of these particles say."""
        _, height, width = shape
        if height != width:
            raise ParticleError(f"its images are of {width} × {height} pixels: they must be square")
        for number in self.group[rows].unique().tolist():
            group = self.optics[number]
            if width % 2 and group.box_size is None:
                raise ParticleError(
                    f"its images have {width} pixels along an edge, of which RELION's centre lies one "
                    f"further than ours: say so by override={{'rlnImageSize': {width}}}, read anew"
                )
            said = "" if pixel_size is None else f", and its header says {pixel_size:g} Å"
            other = pixel_size is not None and abs(pixel_size / group.pixel_size - 1) > _SAME_PIXEL
            if group.box_size not in (None, width) or (other and not self.pixel_size_stated):
                raise ParticleError(
                    f"optics group {group.name!r} has {group.box_size or 'some'} pixels of "
                    f"{group.pixel_size:g} Å, the stack {width} pixels{said}: {self._cause(group, width)}"
                )

    def _cause(self, group: OpticsGroup, width: int) -> str:
        """What is likely, and what to do."""
        if group.box_size in (None, width):
            return f"if the table is right, override={{'rlnImagePixelSize': {group.pixel_size:g}}} says so"
        factor = group.box_size / width
        told = f"the stack seems to have been scaled by {1 / factor:.3g} since the table was written: "
        size, pixel = f"'rlnImageSize': {width}", f"'rlnImagePixelSize': {factor * group.pixel_size:.5g}"
        if len(self.optics) == 1:
            return f"{told}override={{{pixel}, {size}}} says so"
        return f"{told}write {pixel} and {size} into its optics group"

    def _complaint(self, bad: Mapping[int, str]) -> str:
        """Which images are bad, by name, and why, those of one reason together."""
        rows = list(bad)
        names = self[torch.tensor(rows, dtype=torch.long)].names
        reasons: dict[str, list[str]] = {}
        for row, name in zip(rows, names, strict=True):
            reasons.setdefault(bad[row], []).append(name)
        told = [
            ", ".join(these[:_NAMED]) + (f" and {len(these) - _NAMED} more" if len(these) > _NAMED else "")
            for these in reasons.values()
        ]
        each = "; ".join(f"{which}: {why}" for which, why in zip(told, reasons, strict=True))
        return f"{len(bad)} images are not usable: {each}; skip_bad (--skip-bad) goes on without them"
