"""Tables of particles as RELION writes them, of versions 3.0 to 5, read and written back."""

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import scipy  # loads its rotations where they are first used
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from cryoanm_lib.errors import ParticleError
from cryoanm_lib.io.storage import write_atomically
from cryoanm_lib.particles.optics_group import OpticsGroup, ctf_of, require_usable
from cryoanm_lib.particles.particle_set import ParticleSet, found_among, keys_of, looked_in
from cryoanm_lib.particles.star_table import IMAGE, StarTable, blocks_of, is_number, loop_of, parsed, unquoted

if TYPE_CHECKING:  # its import takes longer than to read a small file
    import gemmi

_GROUP_NAME = "_rlnOpticsGroupName"
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
#: Rows that are written together; and what stands for all of them meanwhile.
_AT_ONCE, _ROWS = 10_000, "cryoanm_rows"
#: A number from 1, and a stack.
_NAME = re.compile(r"0*([1-9][0-9]{0,8})@(.+)")


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
    document = parsed(path)
    table = StarTable(path, *blocks_of(document, path), {_full(k): v for k, v in (override or {}).items()})
    optics, group = _optics(table)
    stacks, stack, place, repeat = _stacks(table)
    absent: dict[str, str] = {}
    pose = table.together("pose", _ANGLES, absent)
    shift = _shift(table, optics, group, absent)
    defocus = table.together("ctf", _DEFOCUS, absent)
    others = [table.numbers(label, default=0.0) for label in _ZERO_IF_ABSENT]
    table.require_all_used()
    _warn_of_what_is_left_out(table)
    return ParticleSet(
        path,
        *looked_in(path, data),
        *(optics, group, stacks, stack, place, repeat),
        pose=None if pose is None else quaternions_of_euler(pose),
        shift=shift,
        ctf=None if defocus is None else ctf_of(path, *defocus.T, *others),
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


def euler_of_quaternions(quaternions: Float[Tensor, "particles 4"]) -> Float64[Tensor, "particles 3"]:
    """RELION's angles rot, tilt and psi in degrees, of active rotations: `quaternions_of_euler` undone.

    Examples
    --------
    >>> euler_of_quaternions(torch.tensor([[0.7071, 0.0, 0.0, -0.7071]])).round(decimals=2).abs()
    tensor([[90.0000,  0.0000,  0.0000]], dtype=torch.float64)
    """
    turns = scipy.spatial.transform.Rotation.from_quat(quaternions.double().numpy(), scalar_first=True)
    rot, tilt, psi = -turns.as_euler("zyz", degrees=True, suppress_warnings=True).T
    # RELION's tilt is from 0 to 180 degrees
    turned = tilt < 0
    rot, psi = (np.where(turned, angle + 180, angle) for angle in (rot, psi))
    rot, psi = ((angle + 180) % 360 - 180 for angle in (rot, psi))
    return torch.from_numpy(np.stack([rot, np.abs(tilt), psi], axis=1))


def write_star(
    particles: ParticleSet,
    path: str | Path,
    columns: Mapping[str, Float[Tensor, "particles"]] | None = None,
    names: Sequence[str] | None = None,
) -> None:
    """Write the rows of some particles as their star file has them, with columns of ours at the end.

    All tables and columns of the file are kept. Rows are found by the names of images, and where one stands
    there several times by how often it came before, never by their number.

    Parameters
    ----------
    particles, path : ParticleSet, str or Path
        Of `read_star`, or some of them in any order, and where to write.
    columns : mapping of str to Tensor, optional
        Numbers of each particle, by label; where it is none of RELION's, `cryoanm` is put before it. Columns
        of ours that are there already make room for them, whatever they are called.
    names : sequence of str, optional
        What to name the images, if not as the file does, such as of a stack of others in their place.

    Raises
    ------
    ParticleError
        If the source file has changed so that a particle is not there any more, has text of several lines in
        a row, a column has another length, or a label is no label or is there already.
    """
    columns = {_ours(label): column for label, column in (columns or {}).items()}
    document = parsed(particles.source)
    block, _ = blocks_of(document, particles.source)
    loop = loop_of(block, particles.source)
    for label, column in columns.items():
        if len(column) != len(particles) or not label.isidentifier():
            raise ParticleError(
                f"column {label!r} has {len(column)} numbers for {len(particles)} particles: give one of "
                "each, under a name of letters, digits and underscores"
            )
        if label in loop.tags and not label.startswith("_cryoanm"):
            raise ParticleError(f"{str(particles.source)!r} has a column {label!r}: choose another name")
    old = [at for at, tag in enumerate(loop.tags) if not (columns and tag.startswith("_cryoanm"))]
    tags = [*(loop.tags[place] for place in old), *columns]
    before, after = _around(document, loop, tags)
    rows, image = _rows_of(particles, block), old.index(loop.tags.index(IMAGE))

    def lines(some: Int64[Tensor, "some"]) -> Iterator[str]:
        added = zip(*(column[some].tolist() for column in columns.values()), strict=True)
        for number, row in zip(some.tolist(), rows[some].tolist(), strict=True):
            kept = [loop[row, place] for place in old]
            if names is not None:
                kept[image] = names[int(number)]
            line = " ".join([*kept, *(f"{x:.6g}" for x in next(added, ()))])
            if "\n" in line:
                raise ParticleError(
                    f"{str(particles.source)!r} has text of several lines beside {kept[image]}, which RELION "
                    "writes nowhere: put it on one"
                )
            yield f"{line}\n"

    def write(beside: Path) -> None:
        with open(beside, "w", encoding="ascii") as file:
            file.write(before)
            for some in torch.arange(len(particles)).split(_AT_ONCE):  # as texts all would fill the memory
                file.write(unquoted("".join(lines(some))))
            file.write(after)

    write_atomically(Path(path), write)


def _around(document: "gemmi.cif.Document", loop: "gemmi.cif.Loop", tags: Sequence[str]) -> tuple[str, str]:
    """All of a file before and after the rows of a loop, which has these tags now."""
    import gemmi

    shell = gemmi.cif.Document()
    for block in document:
        copied = shell.add_new_block(block.name)
        for item in block:
            if item.loop is not None and list(item.loop.tags) == list(loop.tags):
                copied.init_loop("", list(tags)).add_row([_ROWS] * len(tags))
            else:
                copied.add_item(item)
    before, after = unquoted(shell.as_string()).split(" ".join([_ROWS] * len(tags)) + "\n")
    return before, after


def _rows_of(particles: ParticleSet, block: "gemmi.cif.Block") -> Int64[Tensor, "particles"]:
    """Where in their file images are, each as often as it is there."""
    there = _named(block.find_loop(IMAGE))
    known, asked = _keys(there, _repeats(there)), _keys(particles.names, particles.repeat.tolist())
    rows, times = found_among(asked, known)
    if len(missing := torch.nonzero(times == 0)[:, 0]):
        name = particles[missing[:1]].names[0]
        raise ParticleError(f"{str(particles.source)!r} has no image {name!r} any more: read it again")
    return rows


def _keys(names: Iterable[str], repeats: Iterable[int]) -> Int64[Tensor, "images"]:
    return keys_of(f"{name} {repeat}" for name, repeat in zip(names, repeats, strict=True))


def _full(label: str) -> str:
    """A label of RELION's as files have it, with or without what stands before it."""
    return f"_rln{label.removeprefix('_').removeprefix('rln')}"


def _ours(label: str) -> str:
    """A label for a column of ours, or one of RELION's."""
    bare = label.removeprefix("_")
    return f"_{bare}" if bare.startswith(("rln", "cryoanm")) else f"_cryoanm{bare}"


def _optics(table: StarTable) -> tuple[tuple[OpticsGroup, ...], Int64[Tensor, "particles"]]:
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
        done = bool(multiplied), bool(flipped)
        one = OpticsGroup(name, voltage, aberration, contrast, pixel, round(box) or None, *done)
        require_usable(one, table.path)
        found.append(one)
    return tuple(found), torch.from_numpy(group.reshape(-1).astype(np.int64))


def _pixel_sizes(table: StarTable, as_filed: bool = False) -> Float64[np.ndarray, "particles"]:
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
    return [_normal(str(value).strip("'\"")) for value in values]


def _normal(name: str) -> str:
    matched = _NAME.fullmatch(name)
    return f"{int(matched[1]):06d}@{matched[2]}" if matched else name


def _repeats(names: Sequence[str]) -> Iterator[int]:
    """How often each name came before."""
    seen: dict[str, int] = {}
    for name in names:
        seen[name] = seen.get(name, -1) + 1
        yield seen[name]


def _stacks(table: StarTable) -> tuple[tuple[str, ...], Tensor, Tensor, Tensor]:
    """Names of the stacks; in which, and as which, each image is; and how often it came before."""
    names = _named(table.particles.find_loop(IMAGE))
    if wrong := [row for row, name in enumerate(names) if not _NAME.fullmatch(name)]:
        raise ParticleError(
            f"{str(table.path)!r} has the image {names[wrong[0]][:60]!r} in row {wrong[0] + 1}: a number "
            "from 1, @ and a stack are asked for, such as 000001@stack.mrcs"
        )
    number: dict[str, int] = {}
    stack, place = [], []
    for name in names:
        which, _, file = name.partition("@")
        stack.append(number.setdefault(file, len(number)))
        place.append(int(which) - 1)
    repeat = torch.tensor(list(_repeats(names)))
    return tuple(number), torch.tensor(stack), torch.tensor(place), repeat


def _shift(
    table: StarTable,
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


def _warn_of_what_is_left_out(table: StarTable) -> None:
    told = []
    for label, neutral in _NOT_MODELLED.items():
        words = {word for text in set(table.texts(label)) for word in re.split(r"[][,\s'\"]+", text) if word}
        if any(not is_number(word) or float(word) != neutral for word in words):
            told.append(label[1:])
    if told:
        warnings.warn(
            f"{str(table.path)!r} has {', '.join(told)}, which our microscope does not model: left out",
            stacklevel=3,
        )
