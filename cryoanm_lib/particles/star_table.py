"""The tables of a star file of particles: found, quoted as its grammar asks, and read by label."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from cryoanm_lib.errors import ParticleError

if TYPE_CHECKING:  # its import takes longer than to read a small file
    import gemmi

#: Labels by which the two tables are known.
IMAGE, _GROUP, _VOLTAGE = "_rlnImageName", "_rlnOpticsGroup", "_rlnVoltage"
#: Of tomograms, whose particles are volumes or tilt series.
_TOMOGRAPHY = ("_rlnTomoParticleName", "_rlnTomoVisibleFrames", "_rlnTomoSubtomogramRot")
_DIMENSIONS = "_rlnImageDimensionality"
#: Words that begin something else in the grammar of star files, but not for RELION where they stand in a row.
_SPECIAL = r"(?:[_#$]|data_|loop_|global_|stop_|save_)"
#: Labels of a table; more than that is no table of particles.
_MOST_LABELS = 1000


class StarTable:
    """Columns of the particles, or of the optics groups that they are of, by label."""

    def __init__(
        self,
        path: Path,
        particles: "gemmi.cif.Block",
        optics: "gemmi.cif.Block | None",
        override: Mapping[str, float],
    ) -> None:
        self.path, self.particles, self.optics = path, particles, optics
        self.length = len(particles.find_loop(IMAGE))
        self._asked: set[str] = set()
        self.override: dict[str, float] = {}
        for label, value in override.items():
            try:
                self.override[label] = float(value)
            except (TypeError, ValueError):
                self.override[label] = math.nan
            if not math.isfinite(self.override[label]):
                raise ParticleError(f"override of {label[1:]} is {value!r}: give a finite number")
        self.group = torch.zeros(self.length, dtype=torch.long) if optics is None else self._groups()

    def _groups(self) -> Int64[Tensor, "particles"]:
        """The row of the optics table that each particle is of."""
        assert self.optics is not None
        labels = [str(value) for value in self.optics.find_values(_GROUP)]
        if len(set(labels)) < len(labels):
            raise ParticleError(f"{str(self.path)!r} has two optics groups of one number: number them anew")
        of_particles = [str(value) for value in self.particles.find_loop(_GROUP)]
        if len(labels) == 1 and not of_particles:
            of_particles = labels * self.length
        if len(of_particles) != self.length:
            raise ParticleError(f"{str(self.path)!r} has optics groups, and particles without {_GROUP[1:]}")
        number = {label: row for row, label in enumerate(labels)}
        if unknown := sorted(set(of_particles) - set(number)):
            raise ParticleError(
                f"{str(self.path)!r} has particles of optics group {unknown[0]}, which it lacks"
            )
        return torch.tensor([number[label] for label in of_particles])

    def texts(self, label: str) -> list[str]:
        """A column of the particles, or of the optics groups, as it stands there; none where it is not."""
        self._asked.add(label)
        own = [str(value) for value in self.particles.find_loop(label)]
        if own and len(own) != self.length:
            raise ParticleError(f"{str(self.path)!r} has {len(own)} {label[1:]} for {self.length} images")
        if own or self.optics is None:
            return own
        values = [str(value) for value in self.optics.find_values(label)]
        try:
            return [values[row] for row in self.group.tolist()] if values else []
        except IndexError:
            raise ParticleError(
                f"{str(self.path)!r} has {len(values)} {label[1:]} and more optics groups"
            ) from None

    def has(self, label: str) -> bool:
        """Whether there is such a column, or its values are stated for all."""
        return len(self.texts(label)) > 0 or label in self.override

    def numbers(
        self, label: str, default: float | None = None, as_filed: bool = False
    ) -> Float64[np.ndarray, "particles"]:
        """A column of finite numbers, as stated for all or as filed; the default where there is none."""
        stated, values = self.override.get(label), self.texts(label)
        if stated is not None and not (as_filed and values):
            return np.full(self.length, stated)
        if values:
            return _finite(self.path, label, values)
        if default is None:
            raise ParticleError(f"{str(self.path)!r} {lacking_labels([label])}")
        return np.full(self.length, default)

    def together(
        self, name: str, labels: Sequence[str], absent: dict[str, str]
    ) -> Float64[np.ndarray, "particles labels"] | None:
        """Columns that are there all; or it is told which are lacking."""
        if lacking := [label for label in labels if not self.has(label)]:
            absent[name] = lacking_labels(lacking)
            return None
        return np.stack([self.numbers(label) for label in labels], axis=-1)

    def require_all_used(self) -> None:
        """Refuse to override a label that nothing here asks for: it would be without effect."""
        if unused := sorted(set(self.override) - self._asked):
            raise ParticleError(
                f"override names {', '.join(unused)}, which is not used: {', '.join(sorted(self._asked))} are"
            )


def parsed(path: Path) -> "gemmi.cif.Document":
    """A star file as gemmi reads it.

    Raises
    ------
    ParticleError
        If it cannot be read.
    """
    import gemmi

    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ParticleError(f"{str(path)!r} cannot be read ({error.strerror}): give a star file") from error
    except UnicodeError as error:
        raise ParticleError(f"{str(path)!r} is not a readable star file ({error})") from error
    try:
        return gemmi.cif.read_string(_quoted(text))
    except (ValueError, RuntimeError, MemoryError) as error:
        foreign = next((line for line in text.splitlines() if not line.isascii()), "")
        hint = f"; star files are ASCII, and this one has {foreign.strip()[:60]!r}" if foreign else ""
        raise ParticleError(f"{str(path)!r} is not a readable star file ({error}{hint})") from error


def _quoted(text: str) -> str:
    """Words of a row that begin as something else does, such as a folder data_1/, put into quotes."""
    in_row = re.compile(rf"(?<=[ \t]){_SPECIAL}[^ \t\r\n]*", re.IGNORECASE)
    if not re.search(rf"^[^_#\n].*[ \t]{_SPECIAL}", text, re.IGNORECASE | re.MULTILINE):
        return text
    lines = text.split("\n")
    return "\n".join(
        line if line[:1] in ("", "_", "#") or "'" in line or '"' in line else in_row.sub(r"'\g<0>'", line)
        for line in lines
    )


def unquoted(text: str) -> str:
    """The same as RELION has them: it knows no quotes."""
    return re.sub(rf"'({_SPECIAL}[^ \t\r\n']*)'", r"\1", text, flags=re.IGNORECASE)


def blocks_of(
    document: "gemmi.cif.Document", path: Path
) -> tuple["gemmi.cif.Block", "gemmi.cif.Block | None"]:
    """The table of particles, and that of optics groups where there is one."""
    tables = [block for block in document if len(block.find_loop(IMAGE))]
    if len(tables) != 1:
        names = ", ".join(repr(block.name) for block in document)
        raise ParticleError(
            f"{str(path)!r} has {len(tables)} tables with {IMAGE[1:]}, among {names or 'none'}: give a star "
            "file of one table of particles"
        )
    loop = loop_of(tables[0], path)
    if loop.width() > _MOST_LABELS:
        raise ParticleError(f"{str(path)!r} has {loop.width()} columns: {_MOST_LABELS} at most are read")
    # Micrographs, which may stand beside, name optics groups too.
    others = [block for block in document if block is not tables[0] and len(block.find_values(_GROUP))]
    optics = [block for block in others if block.name == "optics" or len(block.find_values(_VOLTAGE))]
    flat = all(float(n) == 2 for block in optics for n in block.find_values(_DIMENSIONS) if is_number(n))
    if not flat or any(label in loop.tags for label in _TOMOGRAPHY):
        raise ParticleError(
            f"{str(path)!r} is of tomography, whose particles are volumes or tilt series: give one of images"
        )
    return tables[0], optics[0] if optics else None


def loop_of(block: "gemmi.cif.Block", path: Path) -> "gemmi.cif.Loop":
    loop = block.find_loop(IMAGE).get_loop()
    if loop is None or loop.length() == 0:
        raise ParticleError(f"{str(path)!r} holds no particles")
    return loop


def lacking_labels(labels: Sequence[str]) -> str:
    bare = [label.removeprefix("_") for label in labels]
    return f"has no {', '.join(bare)}: give what holds for all, such as override={{{bare[0]!r}: …}}"


def _finite(path: Path, label: str, values: Sequence[str]) -> Float64[np.ndarray, "values"]:
    """A column of finite numbers; refused by the row of what is none."""
    try:
        column = np.array(values, dtype=np.float64)
        wrong = np.flatnonzero(~np.isfinite(column)).tolist()
    except ValueError:
        column = np.empty(0)
        wrong = [row for row, value in enumerate(values) if not is_number(value)]
    if wrong:
        raise ParticleError(
            f"{str(path)!r} has {label[1:]} = {values[wrong[0]][:40]!r} in row {wrong[0] + 1}, which is no "
            "finite number"
        )
    return column


def is_number(value: str) -> bool:
    try:
        return math.isfinite(float(value))
    except ValueError:
        return False
