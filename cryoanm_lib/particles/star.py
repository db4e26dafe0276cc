"""Tables of particles as RELION writes them, of versions 3.0 to 5, read and written back."""

import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import scipy  # loads its rotations where they are first used
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from cryoanm_lib.errors import ForwardModelError, ParticleError
from cryoanm_lib.imaging.contrast_transfer import given_ctf
from cryoanm_lib.io.storage import write_atomically
from cryoanm_lib.particles.particle_set import PIXEL_RANGE, OpticsGroup, ParticleSet

if TYPE_CHECKING:  # its import takes longer than to read a small file
    import gemmi

_IMAGE, _GROUP, _GROUP_NAME = "_rlnImageName", "_rlnOpticsGroup", "_rlnOpticsGroupName"
_ANGLES = ("_rlnAngleRot", "_rlnAngleTilt", "_rlnAnglePsi")
_ORIGINS = ("_rlnOriginXAngst", "_rlnOriginYAngst")
_ORIGINS_IN_PIXELS = ("_rlnOriginX", "_rlnOriginY")  # of version 3.0
_DEFOCUS = ("_rlnDefocusU", "_rlnDefocusV", "_rlnDefocusAngle")
#: Without these columns there is no phase plate and no envelope, as in RELION.
_ZERO_IF_ABSENT = ("_rlnPhaseShift", "_rlnCtfBfactor")
_MICROSCOPE = ("_rlnVoltage", "_rlnSphericalAberration", "_rlnAmplitudeContrast")
_PIXEL, _BOX = ("_rlnImagePixelSize", "_rlnPixelSize"), "_rlnImageSize"
#: Whose quotient is the pixel size in version 3.0, in µm.
_MAGNIFIED = ("_rlnDetectorPixelSize", "_rlnMagnification")
_CORRECTED = ("_rlnCtfDataAreCtfPremultiplied", "_rlnCtfDataArePhaseFlipped")
#: What our model of the microscope leaves out, and what it is where there is nothing to leave out.
_NOT_MODELLED = {"_rlnBeamTiltX": 0.0, "_rlnBeamTiltY": 0.0, "_rlnOddZernike": 0.0, "_rlnEvenZernike": 0.0}
_NOT_MODELLED |= {"_rlnMagMat00": 1.0, "_rlnMagMat01": 0.0, "_rlnMagMat10": 0.0, "_rlnMagMat11": 1.0}
_NOT_MODELLED |= {"_rlnCtfScalefactor": 1.0}
#: Of tomograms, whose particles are volumes or tilt series.
_TOMOGRAPHY = ("_rlnTomoParticleName", "_rlnTomoVisibleFrames", "_rlnTomoSubtomogramRot")
_DIMENSIONS = "_rlnImageDimensionality"
#: A number from 1, and a stack.
_NAME = re.compile(r"0*([1-9][0-9]{0,8})@(.+)")
#: Words that begin something else in the grammar of star files, but not for RELION where they stand in a row.
_SPECIAL = r"(?:[_#$]|data_|loop_|global_|stop_|save_)"
#: Labels of a table; more than that is no table of particles.
_MOST_LABELS = 1000


def read_star(
    path: str | Path, data: str | Path | None = None, override: Mapping[str, float] | None = None
) -> ParticleSet:
    """Read a star file of particles, with a table of optics groups (version 3.1 and later) or without.

    RELION has x' = R x - origin, with R of its Euler angles. In an odd box its centre lies one pixel further
    than ours along x and y, which the shift here takes up.

    Parameters
    ----------
    path : str or Path
        The star file.
    data : str or Path, optional
        Folder below which the stacks are; by default that of the star file, those above it, and where Python
        runs. A stack is looked for by its name as it is, and less some leading folders.
    override : mapping of str to float, optional
        Labels, with `rln` or without, and what they are of all particles, whether the file has them or not.

    Raises
    ------
    ParticleError
        If the file cannot be read, holds no particles, or lacks a label that nothing can do without: those of
        the microscope, the pixel size, and the names of the images; or a value is no number, or none in the
        unit of its label. Angles, origins and defocus may be missing until they are asked for.
    """
    path = Path(path)
    document = _parsed(path)
    table = _Table(path, *_blocks(document, path), {_full(k): v for k, v in (override or {}).items()})
    optics, group = _optics(table)
    stacks, stack, place, repeat = _stacks(table)
    absent: dict[str, str] = {}
    pose = table.together("pose", _ANGLES, absent)
    shift = _shift(table, optics, group, absent)
    defocus = table.together("ctf", _DEFOCUS, absent)
    others = [table.numbers(label, default=0.0) for label in _ZERO_IF_ABSENT]
    table.require_all_used()
    _warn_of_what_is_left_out(table)
    above = (path.parent, *path.absolute().parent.parents, Path())
    return ParticleSet(
        path,
        *((above, (path.parent,)) if data is None else ((Path(data),), (Path(data),))),
        *(optics, group, stacks, stack, place, repeat),
        pose=None if pose is None else quaternions_of_euler(pose),
        shift=shift,
        ctf=None if defocus is None else _ctf(path, defocus, others),
        absent=absent,
        pixel_size_stated=any(label in table.override for label in _PIXEL),
    )


def quaternions_of_euler(
    degrees: Float[np.ndarray, "particles three"],
) -> Float64[Tensor, "particles 4"]:
    """The active rotation that RELION's angles rot, tilt and psi stand for, as unit quaternions.

    Examples
    --------
    >>> quaternions_of_euler(np.array([[0.0, 0.0, 90.0]])).round(decimals=3)
    tensor([[ 0.7070,  0.0000,  0.0000, -0.7070]], dtype=torch.float64)
    """
    turns = scipy.spatial.transform.Rotation.from_euler("zyz", -np.asarray(degrees), degrees=True)
    return torch.from_numpy(turns.as_quat(canonical=True, scalar_first=True))


def write_star(
    particles: ParticleSet,
    path: str | Path,
    columns: Mapping[str, Float[Tensor, "particles"]] | None = None,
) -> None:
    """Write the rows of some particles as their star file has them, with columns of ours at the end.

    All tables and columns of the file are kept. Rows are found by the names of images, and where one stands
    there several times by how often it came before, never by their number.

    Parameters
    ----------
    particles, path : ParticleSet, str or Path
        Of `read_star`, or some of them in any order, and where to write.
    columns : mapping of str to Tensor, optional
        Numbers of each particle, by label; where it is none of RELION's, `cryoanm` is put before it.

    Raises
    ------
    ParticleError
        If the source file has changed so that a particle is not there any more, a column has another length,
        or a label is no label or is there already.
    """
    columns = {_ours(label): column for label, column in (columns or {}).items()}
    document = _parsed(particles.source)
    block, _ = _blocks(document, particles.source)
    loop = _loop(block, particles.source)
    for label, column in columns.items():
        if len(column) != len(particles) or not label.isidentifier():
            raise ParticleError(
                f"column {label!r} has {len(column)} numbers for {len(particles)} particles: give one of "
                "each, under a name of letters, digits and underscores"
            )
        if label in loop.tags:
            raise ParticleError(f"{str(particles.source)!r} has a column {label!r}: choose another name")
    names = _named(block.find_loop(_IMAGE))
    row_of = {key: row for row, key in enumerate(zip(names, _repeats(names), strict=True))}
    width, values = loop.width(), loop.values
    added = [column.tolist() for column in columns.values()]
    kept: list[str] = []
    for number, key in enumerate(zip(particles.names, particles.repeat.tolist(), strict=True)):
        if (row := row_of.get(key)) is None:
            raise ParticleError(f"{str(particles.source)!r} has no image {key[0]!r} any more: read it again")
        kept += values[row * width : (row + 1) * width]
        kept += [f"{column[number]:.6g}" for column in added]
    tags = [*loop.tags, *columns]
    fresh = block.init_loop("", tags)  # in place of the one that has these tags
    fresh.set_all_values([kept[start :: len(tags)] for start in range(len(tags))])
    text = _unquoted(document.as_string())
    write_atomically(Path(path), lambda beside: beside.write_text(text, encoding="ascii"))


class _Table:
    """Columns of the particles, or of the optics groups that they are of, by label."""

    def __init__(
        self,
        path: Path,
        particles: "gemmi.cif.Block",
        optics: "gemmi.cif.Block | None",
        override: Mapping[str, float],
    ) -> None:
        self.path, self.particles, self.optics = path, particles, optics
        self.length = len(particles.find_loop(_IMAGE))
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
            raise ParticleError(f"{str(self.path)!r} {_lacking([label])}")
        return np.full(self.length, default)

    def together(
        self, name: str, labels: Sequence[str], absent: dict[str, str]
    ) -> Float64[np.ndarray, "particles labels"] | None:
        """Columns that are there all; or it is told which are lacking."""
        if lacking := [label for label in labels if not self.has(label)]:
            absent[name] = _lacking(lacking)
            return None
        return np.stack([self.numbers(label) for label in labels], axis=-1)

    def require_all_used(self) -> None:
        """Refuse to override a label that nothing here asks for: it would be without effect."""
        if unused := sorted(set(self.override) - self._asked):
            raise ParticleError(
                f"override names {', '.join(unused)}, which is not used: {', '.join(sorted(self._asked))} are"
            )


def _parsed(path: Path) -> "gemmi.cif.Document":
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


def _unquoted(text: str) -> str:
    """The same as RELION has them: it knows no quotes."""
    return re.sub(rf"'({_SPECIAL}[^ \t\r\n']*)'", r"\1", text, flags=re.IGNORECASE)


def _blocks(document: "gemmi.cif.Document", path: Path) -> tuple["gemmi.cif.Block", "gemmi.cif.Block | None"]:
    """The table of particles, and that of optics groups where there is one."""
    tables = [block for block in document if len(block.find_loop(_IMAGE))]
    if len(tables) != 1:
        names = ", ".join(repr(block.name) for block in document)
        raise ParticleError(
            f"{str(path)!r} has {len(tables)} tables with {_IMAGE[1:]}, among {names or 'none'}: give a star "
            "file of one table of particles"
        )
    loop = _loop(tables[0], path)
    if loop.width() > _MOST_LABELS:
        raise ParticleError(f"{str(path)!r} has {loop.width()} columns: {_MOST_LABELS} at most are read")
    # Micrographs, which may stand beside, name optics groups too.
    others = [block for block in document if block is not tables[0] and len(block.find_values(_GROUP))]
    optics = [block for block in others if block.name == "optics" or len(block.find_values(_MICROSCOPE[0]))]
    flat = all(float(n) == 2 for block in optics for n in block.find_values(_DIMENSIONS) if _is_number(n))
    if not flat or any(label in loop.tags for label in _TOMOGRAPHY):
        raise ParticleError(
            f"{str(path)!r} is of tomography, whose particles are volumes or tilt series: give one of images"
        )
    return tables[0], optics[0] if optics else None


def _loop(block: "gemmi.cif.Block", path: Path) -> "gemmi.cif.Loop":
    loop = block.find_loop(_IMAGE).get_loop()
    if loop is None or loop.length() == 0:
        raise ParticleError(f"{str(path)!r} holds no particles")
    return loop


def _full(label: str) -> str:
    """A label of RELION's as files have it, with or without what stands before it."""
    return f"_rln{label.removeprefix('_').removeprefix('rln')}"


def _ours(label: str) -> str:
    """A label for a column of ours, or one of RELION's."""
    bare = label.removeprefix("_")
    return f"_{bare}" if bare.startswith(("rln", "cryoanm")) else f"_cryoanm{bare}"


def _lacking(labels: Sequence[str]) -> str:
    bare = [label.removeprefix("_") for label in labels]
    return f"has no {', '.join(bare)}: give what holds for all, such as override={{{bare[0]!r}: …}}"


def _finite(path: Path, label: str, values: Sequence[str]) -> Float64[np.ndarray, "values"]:
    """A column of finite numbers; refused by the row of what is none."""
    try:
        column = np.array(values, dtype=np.float64)
        wrong = np.flatnonzero(~np.isfinite(column)).tolist()
    except ValueError:
        column = np.empty(0)
        wrong = [row for row, value in enumerate(values) if not _is_number(value)]
    if wrong:
        raise ParticleError(
            f"{str(path)!r} has {label[1:]} = {values[wrong[0]][:40]!r} in row {wrong[0] + 1}, which is no "
            "finite number"
        )
    return column


def _is_number(value: str) -> bool:
    try:
        return math.isfinite(float(value))
    except ValueError:
        return False


def _optics(table: _Table) -> tuple[tuple[OpticsGroup, ...], Int64[Tensor, "particles"]]:
    """The optics groups: particles of one row of their table, and of one microscope, pixel and box."""
    pixel_size, size = _pixel_sizes(table), table.numbers(_BOX, default=0.0)
    columns = [table.group.double().numpy(), *map(table.numbers, _MICROSCOPE), pixel_size, size]
    columns += [table.numbers(label, default=0.0) for label in _CORRECTED]
    rows, group = np.unique(np.stack(columns, axis=-1), axis=0, return_inverse=True)
    texts = [] if table.optics is None else [str(v) for v in table.optics.find_values(_GROUP_NAME)]
    found = []
    for number, values in enumerate(rows.tolist(), start=1):
        row, voltage, aberration, contrast, pixel, box, multiplied, flipped = values
        name = texts[int(row)].strip("'\"") if int(row) < len(texts) else f"group{number}"
        if not PIXEL_RANGE[0] <= pixel <= PIXEL_RANGE[1]:
            raise ParticleError(f"{str(table.path)!r} has a pixel size of {pixel:g}: it must be in Å")
        done = bool(multiplied), bool(flipped)
        one = OpticsGroup(name, voltage, aberration, contrast, pixel, round(box) or None, *done)
        try:
            one.transfer()
        except ForwardModelError as error:
            raise ParticleError(f"{str(table.path)!r}, optics group {name!r}: {error}") from error
        found.append(one)
    return tuple(found), torch.from_numpy(group.reshape(-1).astype(np.int64))


def _pixel_sizes(table: _Table, as_filed: bool = False) -> Float64[np.ndarray, "particles"]:
    """In Å; of version 3.0 by magnification."""
    here = [label for label in _PIXEL if table.has(label)]
    magnified = [table.has(label) for label in _MAGNIFIED]
    if all(magnified) and (not here or (as_filed and not table.texts(here[0]))):
        edge, factor = (table.numbers(label) for label in _MAGNIFIED)
        if not (factor > 0).all():
            raise ParticleError(f"{str(table.path)!r} has a magnification that is not above 0")
        return 1e4 * edge / factor
    return table.numbers(here[0] if here else _PIXEL[0], as_filed=as_filed)


def _named(values: "gemmi.cif.Column") -> list[str]:
    """Names of images in one form, a number of six digits and the stack; others as they are."""
    texts = [str(value).strip("'\"") for value in values]
    matched = [_NAME.fullmatch(text) for text in texts]
    return [f"{int(m[1]):06d}@{m[2]}" if m else text for m, text in zip(matched, texts, strict=True)]


def _repeats(names: Sequence[str]) -> Iterator[int]:
    """How often each name came before."""
    seen: dict[str, int] = {}
    for name in names:
        seen[name] = seen.get(name, -1) + 1
        yield seen[name]


def _stacks(table: _Table) -> tuple[tuple[str, ...], Tensor, Tensor, Tensor]:
    """Names of the stacks; in which, and as which, each image is; and how often it came before."""
    names = _named(table.particles.find_loop(_IMAGE))
    if wrong := [row for row, name in enumerate(names) if not _NAME.fullmatch(name)]:
        raise ParticleError(
            f"{str(table.path)!r} has the image {names[wrong[0]][:60]!r} in row {wrong[0] + 1}: a number "
            "from 1, @ and a stack are asked for, such as 000001@stack.mrcs"
        )
    pairs = [name.split("@", 1) for name in names]
    number = {stack: place for place, stack in enumerate(dict.fromkeys(stack for _, stack in pairs))}
    stack = torch.tensor([number[stack] for _, stack in pairs])
    place = torch.tensor([int(place) - 1 for place, _ in pairs])
    return tuple(number), stack, place, torch.tensor(list(_repeats(names)))


def _shift(
    table: _Table,
    optics: tuple[OpticsGroup, ...],
    group: Int64[Tensor, "particles"],
    absent: dict[str, str],
) -> Float64[Tensor, "particles 2"] | None:
    """Minus the origin, in Å; of version 3.0 it is in pixels of the size that the file says."""
    in_pixels = not any(map(table.has, _ORIGINS)) and any(map(table.has, _ORIGINS_IN_PIXELS))
    origin = table.together("shift", _ORIGINS_IN_PIXELS if in_pixels else _ORIGINS, absent)
    if origin is None:
        return None
    if in_pixels:
        origin = origin * _pixel_sizes(table, as_filed=True)[:, None]
    centre = torch.tensor([(one.box_size or 0) % 2 * one.pixel_size for one in optics], dtype=torch.float64)
    return centre[group, None] - torch.from_numpy(origin)


def _ctf(
    path: Path,
    defocus: Float64[np.ndarray, "particles three"],
    others: Sequence[Float64[np.ndarray, "particles"]],
) -> Float64[Tensor, "particles 5"]:
    try:
        return given_ctf(*torch.from_numpy(defocus.T.copy()), *map(torch.from_numpy, others))
    except ForwardModelError as error:
        raise ParticleError(f"{str(path)!r}: {error}") from error


def _warn_of_what_is_left_out(table: _Table) -> None:
    told = []
    for label, neutral in _NOT_MODELLED.items():
        words = {word for text in set(table.texts(label)) for word in re.split(r"[][,\s'\"]+", text) if word}
        if any(not _is_number(word) or float(word) != neutral for word in words):
            told.append(label[1:])
    if told:
        warnings.warn(
            f"{str(table.path)!r} has {', '.join(told)}, which our microscope does not model: left out",
            stacklevel=3,
        )
