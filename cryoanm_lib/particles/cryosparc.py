"""Tables of particles as cryoSPARC writes them: `.cs` files, with what their passthrough file adds."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import scipy  # loads its rotations where they are first used
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from cryoanm_lib.errors import ParticleError
from cryoanm_lib.particles.optics_group import OpticsGroup, ctf_of, require_usable
from cryoanm_lib.particles.particle_set import ParticleSet, looked_in

_MICROSCOPE = ("ctf/accel_kv", "ctf/cs_mm", "ctf/amp_contrast")
_DEFOCUS = ("ctf/df1_A", "ctf/df2_A", "ctf/df_angle_rad")
_POSE, _SHIFT, _SHIFT_PIXEL = "alignments3D/pose", "alignments3D/shift", "alignments3D/psize_A"


def read_cs(
    path: str | Path, passthrough: str | Path | None = None, data: str | Path | None = None
) -> ParticleSet:
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
        If a file cannot be read, holds Python objects, which are never loaded, or lacks what nothing can do
        without; or a number is none in the unit of its field. Poses, shifts and defoci may be missing until
        they are asked for.
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
    return ParticleSet(
        path,
        *looked_in(path, data),
        *(optics, group, tuple(number), torch.tensor([number[name] for name in names])),
        *(place, torch.zeros_like(place)),
        pose=_quaternions(table) if has_pose else None,
        shift=_shift(table) if has_shift else None,
        ctf=_ctf(table) if has_ctf else None,
        absent=absent,
    )


class _Fields:
    """Columns of a table and of its passthrough file, in the order of the table."""

    def __init__(self, path: Path, passthrough: Path | None) -> None:
        self.path, self._tables = path, [_loaded(path)]
        if passthrough is not None:
            other = _loaded(passthrough)
            row_of = {uid: row for row, uid in enumerate(other["uid"].tolist())}
            missing = [uid for uid in self._tables[0]["uid"].tolist() if uid not in row_of]
            if missing:
                raise ParticleError(
                    f"{str(passthrough)!r} lacks {len(missing)} particles of {str(path)!r}, such as uid "
                    f"{missing[0]}: give the passthrough file of the same job"
                )
            self._tables.append(other[[row_of[uid] for uid in self._tables[0]["uid"].tolist()]])

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
    return table


def _optics(table: _Fields) -> tuple[tuple[OpticsGroup, ...], Int64[Tensor, "particles"]]:
    """Particles of one exposure group, microscope, pixel, box and sign."""
    size = table.numbers("blob/shape", 2)
    if not (size[:, 0] == size[:, 1]).all():
        raise ParticleError(f"{str(table.path)!r} has images that are not square")
    microscope = [table.numbers(field) for field in _MICROSCOPE]
    columns = [table.or_zero("ctf/exp_group_id"), *microscope, table.numbers("blob/psize_A"), size[:, 0]]
    columns.append(table.or_zero("blob/sign"))
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


def _shift(table: _Fields) -> Float64[Tensor, "particles 2"]:
    return -torch.from_numpy(table.numbers(_SHIFT, 2) * table.numbers(_SHIFT_PIXEL)[:, None])


def _ctf(table: _Fields) -> Float64[Tensor, "particles 5"]:
    first, second, angle = (table.numbers(field) for field in _DEFOCUS)
    phase, b_factor = table.or_zero("ctf/phase_shift_rad"), table.or_zero("ctf/bfactor")
    return ctf_of(table.path, first, second, np.degrees(angle), np.degrees(phase), b_factor)
