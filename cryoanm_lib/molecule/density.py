"""Density maps in MRC files: cubic voxels of a stated edge, the origin at voxel (N//2, N//2, N//2)."""

import os
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cryoanm_lib.errors import StructureError
from cryoanm_lib.io.storage import write_atomically

#: Relative difference of a voxel's edges from which on it is no cube.
_CUBIC = 1e-3


@dataclass(frozen=True, eq=False)
class Density:
    """A map on a grid.

    Attributes
    ----------
    values : Float[Tensor, "z y x"]
        Density in the middle of each voxel.
    pixel_size : float
        Å an edge of a voxel.
    """

    values: Float[Tensor, "z y x"]
    pixel_size: float

    @property
    def places(self) -> Float[Tensor, "z y x 3"]:
        """Middle (x, y, z) of each voxel in Å."""
        lines = [(torch.arange(n, dtype=torch.float64) - n // 2) * self.pixel_size for n in self.values.shape]
        z, y, x = torch.meshgrid(*lines, indexing="ij")
        return torch.stack([x, y, z], dim=-1)


def read_density(path: str | Path) -> Density:
    """Read a map of real numbers in any mode, 0, 1, 2, 6 or 12, and any order of axes.

    Where the header puts the origin is not used: ours is voxel (N//2, N//2, N//2), about which a molecule is
    turned. A warning says where a cube is marked as a stack of images and read as a map.

    Raises
    ------
    StructureError
        If the file cannot be read or is no single map, a density is not finite, or voxels have no size or
        are not cubes.
    """
    import mrcfile  # loads warnings of its own

    label = repr(str(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # of a header that lies
            with mrcfile.open(os.fspath(path), permissive=False) as file:
                values, voxel = np.array(file.data), file.voxel_size
                header: Any = file.header
                axes = [int(header[name]) for name in ("maps", "mapr", "mapc")]
                # Programs older than the format of 2014 leave its mark out: a cube is a map.
                is_cube = len(set(values.shape)) == 1 and int(header.mz) == len(values)
                cube_of_images = file.is_image_stack() and is_cube
                is_stack = file.is_volume_stack() or (file.is_image_stack() and not is_cube)
    except OSError as error:
        raise StructureError(f"{label} cannot be read ({error.strerror or error}): give a map") from error
    except (ValueError, EOFError, zlib.error, RuntimeWarning) as error:
        raise StructureError(f"{label} is not a readable MRC map ({error}): give an intact file") from error
    if cube_of_images and not is_stack:
        warnings.warn(
            f"{label} is marked as a stack of images; being a cube, it is read as a map", stacklevel=2
        )
    if values.ndim != 3 or is_stack:
        raise StructureError(f"{label} is a stack of {len(values)} images and not a map: give one volume")
    if np.iscomplexobj(values):
        raise StructureError(f"{label} is a transform, mode 4, and not a map: give a map in real space")
    edges = [float(voxel[axis]) for axis in "xyz"]
    if not min(edges) > 0:
        raise StructureError(f"{label} does not say how large a voxel is: write its edge in Å in the header")
    if max(edges) > (1 + _CUBIC) * min(edges):
        raise StructureError(
            f"voxels of {label} are {' × '.join(f'{edge:g}' for edge in edges)} Å: resample them to cubes"
        )
    if sorted(axes) != [1, 2, 3]:
        raise StructureError(f"{label} names its axes {axes}: they must be 1, 2 and 3 in some order")
    # Sections, rows, columns may run along any of z (3), y (2), x (1).
    density = torch.from_numpy(values.transpose([axes.index(axis) for axis in (3, 2, 1)]).astype(np.float64))
    if broken := int((~density.isfinite()).sum()):
        raise StructureError(f"{label} has {broken} voxels that are not finite numbers: mask or repair them")
    return Density(density, edges[0])


def write_density(density: Density, path: str | Path) -> None:
    """Write a map in mode 2, with its origin where ours is, so that a viewer shows it on its molecule."""
    import mrcfile

    def write(beside: Path) -> None:
        with mrcfile.new(beside, density.values.numpy().astype(np.float32), overwrite=True) as file:
            file.voxel_size = density.pixel_size
            z, y, x = (-(n // 2) * density.pixel_size for n in density.values.shape)
            header: Any = file.header
            header.origin.x, header.origin.y, header.origin.z = x, y, z

    write_atomically(Path(path), write)
