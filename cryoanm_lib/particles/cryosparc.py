"""Tables of particles as cryoSPARC writes them: `.cs` files and what their passthrough files add."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import scipy  # loads its rotations where they are first used
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from cryoanm_lib.errors import ParticleError
from cryoanm_lib.io.storage import write_atomically
from cryoanm_lib.particles.optics_group import OpticsGroup, ctf_of, require_usable
from cryoanm_lib.particles.particle_set import ParticleSet, found_among, looked_in

_MICROSCOPE = ("ctf/accel_kv", "ctf/cs_mm", "ctf/amp_contrast")
_DEFOCUS = ("ctf/df1_A", "ctf/df2_A", "ctf/df_angle_rad")
_POSE, _SHIFT, _SHIFT_PIXEL = "alignments3D/pose", "alignments3D/shift", "alignments3D/psize_A"
_SIGN = "blob/sign"


@dataclass(frozen=True, eq=False)
class CryosparcParticles(ParticleSet):
    """Particles of a `.cs` file.

    Attributes
    ----------
    uid : Int64[Tensor, "particles"]
        The bits of cryoSPARC's number of each particle, which has no sign.
    shift_pixel : Float64[Tensor, "particles"]
        Å of the pixels in which the file has shifts; those of the images, where it has none.
    said_bright : bool
        Whether the file says of any, and does not just leave it open, that the molecule is bright.
    """

    uid: Int64[Tensor, "particles"] = field(kw_only=True)
    shift_pixel: Float64[Tensor, "particles"] = field(kw_only=True)
    said_bright: bool = field(kw_only=True)

    @property
    def keys(self) -> Int64[Tensor, "particles"]:
        """A number by which each particle is known in any table: its `uid`."""
        return self.uid


def read_cs(
    path: str | Path, passthrough: str | Path | None = None, data: str | Path | None = None
) -> CryosparcParticles:
    """Read particles of cryoSPARC.

    A pose is a rotation vector, of the inverse of our rotation; a shift is minus ours, in pixels of its own,
    `alignments3D/psize_A`, which may be larger than those of the images. `blob/sign` is -1 where the molecule
    is dark.

    Parameters
    ----------
    path, passthrough : str or Path
        A `.cs` file, and the one with what it does not repeat; rows are matched by their `uid`.
    data : str or Path, optional
        Folder below which the stacks are, such as the project's; default that of the file, and those above.

    Raises
    ------
    ParticleError
        If a file cannot be read, holds Python objects, which are never loaded, names two particles alike, or
        lacks what nothing can do without; or a number is none in the unit of its field. Poses, shifts and
        defoci may be missing until they are asked for.
    """
    path = Path(path)
    table = _Fields(path, None if passthrough is None else Path(passthrough))
    optics, group = _optics(table)
    names = [_text(value).lstrip(">") for value in table["blob/path"]]
    number = {name: place for place, name in enumerate(dict.fromkeys(names))}
    absent: dict[str, str] = {}
    has_pose = table.has("pose", (_POSE,), absent)
    has_shift = table.has("shift", (_SHIFT, _SHIFT_PIXEL), absent)
    has_ctf = table.has("ctf", _DEFOCUS, absent)
    place = torch.from_numpy(table.numbers("blob/idx")).long()
    if (place < 0).any():
        raise ParticleError(f"{str(path)!r} has blob/idx below 0")
    shift_pixel = _shift_pixel(table) if has_shift else torch.from_numpy(table.numbers("blob/psize_A"))
    return CryosparcParticles(
        path,
        *looked_in(path, data),
        *(optics, group, tuple(number), torch.tensor([number[name] for name in names])),
        *(place, torch.zeros_like(place)),
        pose=_quaternions(table) if has_pose else None,
        shift=-shift_pixel[:, None] * torch.from_numpy(table.numbers(_SHIFT, 2)) if has_shift else None,
        ctf=_ctf(table) if has_ctf else None,
        absent=absent,
        uid=_uids(table),
        shift_pixel=shift_pixel,
        said_bright=bool((table.or_zero(_SIGN) > 0).any()),
    )


def vectors_of_quaternions(quaternions: Float[Tensor, "particles 4"]) -> Float64[Tensor, "particles 3"]:
    """Rotation vectors in radians as cryoSPARC has them, of active rotations.

    Examples
    --------
    >>> vectors_of_quaternions(torch.tensor([[0.7071, 0.0, 0.0, -0.7071]])).round(decimals=3)
    tensor([[-0.0000, -0.0000, 1.5710]], dtype=torch.float64)
    """
    turns = scipy.spatial.transform.Rotation.from_quat(quaternions.double().numpy(), scalar_first=True)
    return torch.from_numpy(-turns.as_rotvec())


def write_cs(
    particles: CryosparcParticles,
    path: str | Path,
    columns: Mapping[str, Float[Tensor, "particles ..."]] | None = None,
) -> None:
    """Write the rows of some particles as their `.cs` file has them, with fields of ours at the end.

    All fields of the file are kept, those of its passthrough file are left there, and rows are found by their
    `uid`: who reads the file again gives the same passthrough file.

    Parameters
    ----------
    particles, path : CryosparcParticles, str or Path
        Of `read_cs`, or some of them in any order, and where to write.
    columns : mapping of str to Tensor, optional
        Numbers of each particle, or some numbers of each, by what they are called after `cryoanm/`. Fields of
        ours that are there already make room for them, whatever they are called.

    Raises
    ------
    ParticleError
        If the source file cannot be read any more, or has changed so that a particle is not there; or a
        column has another length.
    """
    columns = {f"cryoanm/{name}": column for name, column in (columns or {}).items()}
    for name, column in columns.items():
        if len(column) != len(particles):
            raise ParticleError(
                f"{name!r} has {len(column)} numbers for {len(particles)} particles: give those of each"
            )
    source = _loaded(particles.source)
    rows = _rows(source, particles.source, particles.uid, "that were read from it: read it again")
    kept = [name for name in source.dtype.names if not (columns and name.startswith("cryoanm/"))]
    ours = [(name, "<f4", tuple(column.shape[1:])) for name, column in columns.items()]
    written = np.empty(len(rows), [*((name, source.dtype[name]) for name in kept), *ours])
    for name in kept:
        written[name] = source[name][rows]
    for name, column in columns.items():
        written[name] = column.numpy()

    def write(beside: Path) -> None:
        with open(beside, "wb") as file:  # given a name, NumPy would end it in .npy
            np.save(file, written, allow_pickle=False)

    write_atomically(Path(path), write)


class _Fields:
    """Columns of a table and of its passthrough file, in the order of the table."""

    def __init__(self, path: Path, passthrough: Path | None) -> None:
        self.path, self._tables = path, [_loaded(path)]
        if passthrough is not None:
            other, uids = _loaded(passthrough), _uids(self._tables[0])
            remedy = f"of {str(path)!r}: give the passthrough file of the same job"
            self._tables.append(other[_rows(other, passthrough, uids, remedy)])

    def __contains__(self, field: str) -> bool:
        return any(field in (table.dtype.names or ()) for table in self._tables)

    def __getitem__(self, field: str) -> np.ndarray:
        """A column as it is filed."""
        for table in self._tables:
            if field in (table.dtype.names or ()):
                return np.asarray(table[field])
        raise ParticleError(f"{str(self.path)!r} {self._lacking([field])}")

    def numbers(self, field: str, *shape: int) -> Float64[np.ndarray, "particles ..."]:
        """A column of finite numbers, or of so many."""
        column = self[field]
        wrong = "that are no numbers" if column.dtype.kind not in "fiu" else ""
        with np.errstate(invalid="ignore"):  # of what is not finite, which is refused below
            column = column.astype(np.float64) if not wrong else column
        if not wrong and not np.isfinite(column).all():
            wrong = "that are not finite"
        if not wrong and column.shape[1:] != shape:
            wrong = f"of shape {column.shape[1:]}, where {shape} is asked for"
        if wrong:
            raise ParticleError(f"{str(self.path)!r} has {field} {wrong}")
        return column

    def or_zero(self, field: str) -> Float64[np.ndarray, "particles"]:
        """A column that may be missing."""
        return self.numbers(field) if field in self else np.zeros(len(self._tables[0]))

    def has(self, name: str, fields: tuple[str, ...], absent: dict[str, str]) -> bool:
        """Whether columns are there all; or it is told which are lacking."""
        if lacking := [field for field in fields if field not in self]:
            absent[name] = self._lacking(lacking)
        return not lacking

    @staticmethod
    def _lacking(fields: list[str]) -> str:
        return f"has no {', '.join(fields)}: it may be in the passthrough file of the job, so give that too"


def _loaded(path: Path) -> Any:
    """A structured array on disk: a file that is shorter than it says is refused before memory is taken."""
    try:
        table = np.load(os.fspath(path), mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise ParticleError(f"{str(path)!r} cannot be read ({error.strerror or error})") from error
    except Exception as error:  # of damaged headers NumPy lets those of Python's own parser escape
        raise ParticleError(f"{str(path)!r} is not a readable .cs file ({error})") from error
    names = getattr(getattr(table, "dtype", None), "names", None)
    if names is None or "uid" not in names or table.ndim != 1 or not len(table):
        raise ParticleError(f"{str(path)!r} holds no table of particles with their uid")
    uid = table["uid"]
    if uid.dtype.kind != "u" or uid.ndim != 1:
        raise ParticleError(
            f"{str(path)!r} has uid of type {uid.dtype}{uid.shape[1:]}: whole numbers are asked for"
        )
    found, count = np.unique(uid, return_counts=True)
    if len(found) < len(uid):
        raise ParticleError(
            f"{str(path)!r} has uid {found[count.argmax()]} {count.max()} times, by which particles are told "
            "apart: remove what is there twice, or import the particles anew"
        )
    return table


def _uids(table: Any) -> Int64[Tensor, "particles"]:
    """Their bits: tensors are searched by numbers with a sign."""
    return torch.from_numpy(table["uid"].astype(np.uint64).view(np.int64))


def _rows(
    table: Any, path: Path, uids: Int64[Tensor, "particles"], whose: str
) -> Int64[np.ndarray, "particles"]:
    """Where in a table some particles are; or it is told whose particles it lacks, and what to do."""
    rows, times = found_among(uids, _uids(table))
    if len(missing := uids[times == 0]):
        uid = missing[:1].numpy().view(np.uint64).item()
        raise ParticleError(f"{str(path)!r} lacks {len(missing)} particles, such as uid {uid}, {whose}")
    return rows.numpy()


def _optics(table: _Fields) -> tuple[tuple[OpticsGroup, ...], Int64[Tensor, "particles"]]:
    """Particles of one exposure group, microscope, pixel, box and sign."""
    size = table.numbers("blob/shape", 2)
    if not (size[:, 0] == size[:, 1]).all():
        raise ParticleError(f"{str(table.path)!r} has images that are not square")
    microscope = [table.numbers(field) for field in _MICROSCOPE]
    columns = [table.or_zero("ctf/exp_group_id"), *microscope, table.numbers("blob/psize_A"), size[:, 0]]
    columns.append(table.or_zero(_SIGN))
    rows, group = np.unique(np.stack(columns, axis=-1), axis=0, return_inverse=True)
    found = []
    for number, voltage, aberration, contrast, pixel, box, bright in rows.tolist():
        one = OpticsGroup(
            *(f"exposure group {number:.0f}", voltage, aberration, contrast, pixel, round(box)),
            sign=-1 if bright < 0 else 1,
        )
        require_usable(one, table.path)
        found.append(one)
    return tuple(found), torch.from_numpy(group.reshape(-1).astype(np.int64))


def _text(value: Any) -> str:
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)


def _quaternions(table: _Fields) -> Float64[Tensor, "particles 4"]:
    turns = scipy.spatial.transform.Rotation.from_rotvec(-table.numbers(_POSE, 3))
    return torch.from_numpy(turns.as_quat(canonical=True, scalar_first=True))


def _shift_pixel(table: _Fields) -> Float64[Tensor, "particles"]:
    column = table.numbers(_SHIFT_PIXEL)
    if not (column > 0).all():
        raise ParticleError(f"{str(table.path)!r} has {_SHIFT_PIXEL} of {column.min():g}: it must be above 0")
    return torch.from_numpy(column)


def _ctf(table: _Fields) -> Float64[Tensor, "particles 5"]:
    first, second, angle = (table.numbers(field) for field in _DEFOCUS)
    phase, b_factor = table.or_zero("ctf/phase_shift_rad"), table.or_zero("ctf/bfactor")
    return ctf_of(table.path, first, second, np.degrees(angle), np.degrees(phase), b_factor)
