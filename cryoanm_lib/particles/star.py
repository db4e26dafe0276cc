"""Tables of particles as RELION writes them, of versions 3.0 to 5, read and written back."""

import math
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
from cryoanm_lib.particles.particle_set import OpticsGroup, ParticleSet

if TYPE_CHECKING:  # its import takes longer than to read a small file
    import gemmi

_IMAGE, _GROUP = "_rlnImageName", "_rlnOpticsGroup"
_ANGLES = ("_rlnAngleRot", "_rlnAngleTilt", "_rlnAnglePsi")
_ORIGINS = ("_rlnOriginXAngst", "_rlnOriginYAngst")
_ORIGINS_IN_PIXELS = ("_rlnOriginX", "_rlnOriginY")  # of version 3.0
_DEFOCUS = ("_rlnDefocusU", "_rlnDefocusV", "_rlnDefocusAngle")
#: Without these columns there is no phase plate and no envelope, as in RELION.
_ZERO_IF_ABSENT = ("_rlnPhaseShift", "_rlnCtfBfactor")
_MICROSCOPE = ("_rlnVoltage", "_rlnSphericalAberration", "_rlnAmplitudeContrast")
_PIXEL = ("_rlnImagePixelSize", "_rlnPixelSize")
#: Whose quotient is the pixel size in version 3.0, in µm.
_MAGNIFIED = ("_rlnDetectorPixelSize", "_rlnMagnification")
_PREMULTIPLIED, _FLIPPED = "_rlnCtfDataAreCtfPremultiplied", "_rlnCtfDataArePhaseFlipped"
#: What our model of the microscope leaves out, where it is not zero.
_NOT_MODELLED = ("_rlnBeamTiltX", "_rlnBeamTiltY", "_rlnOddZernike", "_rlnEvenZernike")
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

    Examples
    --------
    >>> read_star("particles.star")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    cryoanm_lib.errors.ParticleError: 'particles.star' cannot be read ...
    """
    path = Path(path)
    document = _parsed(path)
    overriding = {_full(label): float(value) for label, value in (override or {}).items()}
    particles = _Table(path, *_blocks(document, path), overriding)
    optics, group = _optics(particles)
    stacks, stack, place, repeat = _stacks(particles)
    absent: dict[str, str] = {}
    pose = particles.together("pose", _ANGLES, absent)
    shift = _shift(particles, optics, group, absent)
    defocus = particles.together("ctf", _DEFOCUS, absent)
    others = [particles.numbers(label, default=0.0) for label in _ZERO_IF_ABSENT]
    particles.require_all_used()
    _warn_of_what_is_left_out(particles)
    above = (Path(data),) if data is not None else (path.parent, *path.absolute().parent.parents, Path())
    return ParticleSet(
        *(path, above, optics, group, stacks, stack, place, repeat),
        pose=None if pose is None else quaternions_of_euler(pose),
        shift=shift,
        ctf=None if defocus is None else _ctf(path, defocus, others),
        absent=absent,
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
    write_atomically(Path(path), lambda beside: document.write_file(str(beside)))


class _Table:
    """The particles' columns, and those of the optics group that each is of, by label."""

    def __init__(
        self,
        path: Path,
        particles: "gemmi.cif.Block",
        optics: "gemmi.cif.Block | None",
        override: Mapping[str, float],
    ) -> None:
        self.path, self.particles, self.optics, self.override = path, particles, optics, override
        self.length = len(particles.find_loop(_IMAGE))
        self._asked: set[str] = set()

    def has(self, label: str) -> bool:
        """Whether there is such a column."""
        self._asked.add(label)
        return label in self.override or len(self.particles.find_loop(label)) > 0

    def numbers(self, label: str, default: float | None = None) -> Float64[np.ndarray, "particles"]:
        """A column; the default in all rows where there is none."""
        if not self.has(label) and default is None:
            raise ParticleError(f"{str(self.path)!r} {_lacking([label])}")
        if label in self.override or not self.has(label):
            return np.full(self.length, self.override.get(label, default))
        return numbers(self.path, label, list(self.particles.find_loop(label)))

    def together(
        self, name: str, labels: Sequence[str], absent: dict[str, str]
    ) -> Float64[np.ndarray, "particles labels"] | None:
        """Columns that are there all, or none of them; then it is told what is lacking."""
        lacking = [label for label in labels if not self.has(label)]
        if len(lacking) == len(labels):
            absent[name] = _lacking(labels)
            return None
        if lacking:
            raise ParticleError(f"{str(self.path)!r} {_lacking(lacking)}")
        return np.stack([self.numbers(label) for label in labels], axis=-1)

    def require_all_used(self) -> None:
        """Refuse to override a label that nothing here asks for: it would be without effect."""
        if unused := sorted(set(self.override) - self._asked):
            raise ParticleError(
                f"override names {', '.join(unused)}, which is not used: {', '.join(sorted(self._asked))} are"
            )


def _parsed(path: Path) -> "gemmi.cif.Document":
    import gemmi

    if not path.is_file():
        raise ParticleError(f"{str(path)!r} cannot be read (there is no such file): give a star file")
    try:
        return gemmi.cif.read_file(str(path))
    except (OSError, ValueError, RuntimeError, UnicodeError, MemoryError) as error:
        raise ParticleError(f"{str(path)!r} is not a readable star file ({error})") from error


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
    optics = [block for block in document if block is not tables[0] and len(block.find_values(_GROUP))]
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


def numbers(path: Path, label: str, values: Sequence[str]) -> Float64[np.ndarray, "values"]:
    """A column of finite numbers.

    Raises
    ------
    ParticleError
        Naming the row of what is none.
    """
    try:
        column = np.array(values, dtype=np.float64)
        wrong = np.flatnonzero(~np.isfinite(column))
    except ValueError:
        wrong = np.array([row for row, value in enumerate(values) if not _is_number(value)])
    if len(wrong):
        raise ParticleError(
            f"{str(path)!r} has {label.removeprefix('_')} = {str(values[wrong[0]])[:40]!r} in row "
            f"{wrong[0] + 1}, which is no finite number"
        )
    return column  # pyright: ignore[reportPossiblyUnbound]  # there is one where nothing is wrong


def _is_number(value: str) -> bool:
    try:
        return math.isfinite(float(value))
    except ValueError:
        return False


def _optics(table: _Table) -> tuple[tuple[OpticsGroup, ...], Int64[Tensor, "particles"]]:
    """The optics groups, from their table or from what particles of version 3.0 have in common."""
    if table.optics is None:
        return _optics_of_particles(table)
    labels = [str(value) for value in table.optics.find_values(_GROUP)]
    if len(set(labels)) < len(labels):
        raise ParticleError(f"{str(table.path)!r} has two optics groups of one number: number them anew")
    own = _OpticsTable(table, len(labels))
    names = own.texts("_rlnOpticsGroupName", labels)
    sizes = own.numbers("_rlnImageSize", math.nan)
    flags = [own.numbers(label, 0.0) for label in (_PREMULTIPLIED, _FLIPPED)]
    each = zip(
        names,
        *(own.numbers(label) for label in _MICROSCOPE),
        own.pixel_sizes(),
        (None if math.isnan(size) else int(size) for size in sizes),
        *([bool(value) for value in flag] for flag in flags),
        strict=True,
    )
    number = {label: place for place, label in enumerate(labels)}
    of_particles = [str(value) for value in table.particles.find_loop(_GROUP)]
    if not of_particles:
        raise ParticleError(f"{str(table.path)!r} has optics groups, and particles without {_GROUP[1:]}")
    if unknown := sorted(set(of_particles) - set(number)):
        raise ParticleError(f"{str(table.path)!r} has particles of optics group {unknown[0]}, which it lacks")
    return tuple(OpticsGroup(*one) for one in each), torch.tensor([number[label] for label in of_particles])


class _OpticsTable:
    """Columns of the optics groups."""

    def __init__(self, table: _Table, length: int) -> None:
        self.table, self.length = table, length

    def texts(self, label: str, default: list[str]) -> list[str]:
        """A column, or the default."""
        assert self.table.optics is not None
        return [str(value).strip("'\"") for value in self.table.optics.find_values(label)] or default

    def numbers(self, label: str, default: float | None = None) -> Float64[np.ndarray, "groups"]:
        """A column of the optics groups, or one of the particles that is the same in all rows."""
        self.table.has(label)  # asked for, whether it is there or not
        assert self.table.optics is not None
        values = [str(value) for value in self.table.optics.find_values(label)]
        if label in self.table.override or not values:
            found = self.table.numbers(label, default)
            if not (found == found[0]).all() and not np.isnan(found).any():
                raise ParticleError(
                    f"{str(self.table.path)!r} has {label[1:]} of each particle, and optics groups too: move "
                    "it to the optics groups"
                )
            return np.full(self.length, found[0])
        return numbers(self.table.path, label, values)

    def pixel_sizes(self) -> Float64[np.ndarray, "groups"]:
        """In Å."""
        assert self.table.optics is not None
        for label in _PIXEL:
            if len(self.table.optics.find_values(label)) or label in self.table.override:
                return self.numbers(label)
        return self.numbers(_PIXEL[0])  # which says that it is missing


def _optics_of_particles(table: _Table) -> tuple[tuple[OpticsGroup, ...], Int64[Tensor, "particles"]]:
    """Those of version 3.0, whose particles repeat what is theirs."""
    if any(table.has(label) for label in _PIXEL):
        pixel_size = table.numbers(next(label for label in _PIXEL if table.has(label)))
    elif all([table.has(label) for label in _MAGNIFIED]):
        pixel_size = 1e4 * table.numbers(_MAGNIFIED[0]) / table.numbers(_MAGNIFIED[1])
    else:
        raise ParticleError(f"{str(table.path)!r} {_lacking([_PIXEL[0]])}")
    size = table.numbers("_rlnImageSize", math.nan)
    columns = [*(table.numbers(label) for label in _MICROSCOPE), pixel_size, np.nan_to_num(size)]
    columns += [table.numbers(label, 0.0) for label in (_PREMULTIPLIED, _FLIPPED)]
    rows, group = np.unique(np.stack(columns, axis=-1), axis=0, return_inverse=True)
    optics = [
        OpticsGroup(f"group{n}", voltage, aberration, contrast, pixel, int(size) or None, *map(bool, flags))
        for n, (voltage, aberration, contrast, pixel, size, *flags) in enumerate(rows.tolist(), start=1)
    ]
    return tuple(optics), torch.from_numpy(group.reshape(-1).astype(np.int64))


def _named(values: "gemmi.cif.Column") -> list[str]:
    """Names of images in one form: a number of six digits, and the stack; a file alone is its first image."""
    texts = [str(value).strip("'\"") for value in values]
    parts = [text.rpartition("@") for text in texts]
    return [f"{int(number or 1) if not number or number.isdigit() else 0:06d}@{s}" for number, _, s in parts]


def _repeats(names: Sequence[str]) -> Iterator[int]:
    """How often each name came before."""
    seen: dict[str, int] = {}
    for name in names:
        seen[name] = seen.get(name, -1) + 1
        yield seen[name]


def _stacks(table: _Table) -> tuple[tuple[str, ...], Tensor, Tensor, Tensor]:
    """Names of the stacks; in which, and as which, each image is; and how often it came before."""
    names = _named(table.particles.find_loop(_IMAGE))
    if wrong := [row for row, name in enumerate(names) if name.startswith("000000@")]:
        told = str(table.particles.find_loop(_IMAGE)[wrong[0]])[:60]
        raise ParticleError(
            f"{str(table.path)!r} has the image {told!r} in row {wrong[0] + 1}: a number from 1, @ and a "
            "stack are asked for, such as 000001@stack.mrcs"
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
    """Minus the origin, in Å; of version 3.0 it is in pixels."""
    pixel_size = torch.tensor([one.pixel_size for one in optics], dtype=torch.float64)[group, None]
    in_pixels = not any(table.has(label) for label in _ORIGINS) and any(
        table.has(label) for label in _ORIGINS_IN_PIXELS
    )
    origin = table.together("shift", _ORIGINS_IN_PIXELS if in_pixels else _ORIGINS, absent)
    if origin is None:
        return None
    odd = torch.tensor([(one.box_size or 0) % 2 for one in optics], dtype=torch.float64)[group, None]
    away = torch.from_numpy(origin)
    return odd * pixel_size - (away * pixel_size if in_pixels else away)


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
    for label in _NOT_MODELLED:
        of_groups = [] if table.optics is None else [str(value) for value in table.optics.find_values(label)]
        values = of_groups or [str(value) for value in table.particles.find_loop(label)]
        if any(part not in "0." for value in values for part in value.strip("[]'\" ").replace(",", "")):
            told.append(label[1:])
    if told:
        warnings.warn(
            f"{str(table.path)!r} has {', '.join(told)}, which our microscope does not model: left out",
            stacklevel=3,
        )
