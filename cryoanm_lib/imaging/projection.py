"""Projection of pseudo-atoms to an image (Eq. 11): one signature, four ways, and which of them is fastest.

A pseudo-atom is an isotropic Gaussian of width σ_a. Its integral along the viewing direction is again a
Gaussian, so no integral is computed: the image is

    I(r) = Σ_p exp(-|r - x_p|² / (2 σ_a²)),

sampled at the pixel centres r. The peak of an atom is 1: with this scale, and no other common one, the
paper's noise of 0.1 gives its signal-to-noise ratio of 2.6. All lengths here are in pixels, and the origin
is pixel (N//2, N//2).
"""

import math
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryoanm_lib.imaging.fourier_projection import fourier_coefficients
from cryoanm_lib.imaging.gridded_projection import ACCURACY, Spreading, gridded_coefficients
from cryoanm_lib.imaging.spatial_projection import PAPER_REACH, separable_image, sparse_image
from cryoanm_lib.numerics.fourier import highest_frequency, image_to_coefficients

# Nanoseconds of one thread of a CPU for a value of the factors, a product of two of them, the Gaussians of
# an atom, a value of its patch, and a point of a grid times the logarithm of their number. `make bench` shows
# how good the choice is.
_NS_A_FACTOR, _NS_A_PRODUCT = 0.67, 0.023
_NS_AN_ATOM, _NS_A_PATCH_VALUE, _NS_A_POINT = 57.0, 0.17, 0.27

# Off the CPU every operation is a pass through memory. Values of 4 bytes that torch's formulas read and write
# for a value of the factors, a value of a patch and a point of a grid: a test counts them. No GPU was timed.
_PASSES_A_FACTOR, _PASSES_A_PATCH_VALUE, _PASSES_A_POINT = 34, 11, 8


@runtime_checkable
class Projector(Protocol):
    """Fourier coefficients of the crop Π_K of the projection of atoms."""

    def __call__(
        self,
        positions: Float[Tensor, "*batch atoms 2"],
        box_size: int,
        atom_width: float,
        resolution: int,
        accuracy: float | None = None,
    ) -> Complex[Tensor, "*batch kept"]:
        """See `fourier_coefficients`."""
        ...


def fastest(
    n_atoms: int,
    box_size: int,
    atom_width: float,
    resolution: int,
    accuracy: float,
    device: torch.device | str = "cpu",
) -> str:
    """Which projector takes least time for an image of P atoms, by the operations that each asks for.

    On a CPU they are weighed by the time that each takes there, elsewhere by the memory that each passes
    through. Sizes as of `fourier_coefficients`; the accuracy is the gridded one's, the other has that of
    rounding.

    Examples
    --------
    >>> fastest(107, box_size=64, atom_width=0.8, resolution=32, accuracy=1e-6)
    'fourier'
    >>> fastest(100_000, box_size=512, atom_width=3.0, resolution=512, accuracy=1e-6)
    'gridded'
    >>> sizes = {"box_size": 64, "atom_width": 0.8, "resolution": 64, "accuracy": 1e-6}
    >>> [fastest(133, **sizes, device=device) for device in ("cpu", "cuda")]
    ['fourier', 'gridded']
    """
    costs = _nanoseconds if torch.device(device).type == "cpu" else _passes
    grid = Spreading.chosen(box_size, atom_width, resolution, accuracy)
    found = costs(n_atoms, 2 * highest_frequency(resolution) + 2, (2 * grid.radius + 1) ** 2, grid.points**2)
    return min(found, key=lambda name: found[name])


def _nanoseconds(n_atoms: int, rows: int, patch: int, points: int) -> dict[str, float]:
    """Of one thread of a CPU, whose loops keep what they work on near the processor."""
    return {
        "fourier": n_atoms * rows * (_NS_A_FACTOR + _NS_A_PRODUCT * rows),
        "gridded": n_atoms * (_NS_AN_ATOM + patch * _NS_A_PATCH_VALUE)
        + points * math.log2(points) * _NS_A_POINT,
    }


def _passes(n_atoms: int, rows: int, patch: int, points: int) -> dict[str, float]:
    """Values that go through the memory of a device."""
    return {
        "fourier": _PASSES_A_FACTOR * n_atoms * rows,
        "gridded": _PASSES_A_PATCH_VALUE * n_atoms * patch + _PASSES_A_POINT * points,
    }


def project(
    positions: Float[Tensor, "*batch atoms 2"],
    box_size: int,
    atom_width: float,
    resolution: int,
    accuracy: float | None = None,
) -> Complex[Tensor, "*batch kept"]:
    """Coefficients by whichever projector is `fastest`."""
    sizes = (positions.shape[-2], box_size, atom_width, resolution)
    name = fastest(*sizes, ACCURACY if accuracy is None else accuracy, positions.device)
    return PROJECTORS[name](positions, box_size, atom_width, resolution, accuracy)


def separable_coefficients(
    positions: Float[Tensor, "*batch atoms 2"],
    box_size: int,
    atom_width: float,
    resolution: int,
    accuracy: float | None = None,
) -> Complex[Tensor, "*batch kept"]:
    """Coefficients by way of `separable_image`, to rounding."""
    return image_to_coefficients(separable_image(positions, box_size, atom_width), resolution)


def sparse_coefficients(
    positions: Float[Tensor, "*batch atoms 2"],
    box_size: int,
    atom_width: float,
    resolution: int,
    accuracy: float | None = None,
) -> Complex[Tensor, "*batch kept"]:
    """Coefficients by way of `sparse_image`, by the paper's patch or one that reaches an accuracy."""
    reach = PAPER_REACH if accuracy is None else math.sqrt(-2 * math.log(accuracy))
    return image_to_coefficients(sparse_image(positions, box_size, atom_width, reach), resolution)


PROJECTORS: dict[str, Projector] = {
    "auto": project,
    "fourier": fourier_coefficients,
    "gridded": gridded_coefficients,
    "separable": separable_coefficients,
    "sparse": sparse_coefficients,
}
