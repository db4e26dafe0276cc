"""Which projector a device is given: the memory that each passes through, counted as torch computes."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cryoanm_lib.imaging import fourier_axis
from cryoanm_lib.imaging.gridded_projection import ACCURACY, Spreading
from cryoanm_lib.imaging.projection import PROJECTORS, _passes, fastest, project
from cryoanm_lib.numerics import compiled
from cryoanm_lib.numerics.fourier import highest_frequency
from tests.library.emulated import DEVICE, emulated

IMAGES = 4


class Traffic(TorchDispatchMode):
    """Bytes that operations read and write; views, and room that is only made, count for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        answer = func(*args, **(kwargs or {}))
        if not func.is_view and "empty" not in str(func):
            for x in tree_leaves((args, kwargs, answer)):
                if isinstance(x, torch.Tensor):
                    sizes = zip(x.shape, x.stride(), strict=True)
                    self.bytes += x.element_size() * math.prod(n for n, stride in sizes if stride)
        return answer


def some_positions(n_atoms: int, box_size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 0.7 * box_size * (torch.rand(IMAGES, n_atoms, 2, generator=generator) - 0.5)


@pytest.mark.parametrize(
    ("n_atoms", "box_size", "atom_width", "resolution"),
    [(133, 64, 0.8, 32), (133, 64, 0.8, 64), (1000, 64, 0.8, 32), (1000, 64, 0.8, 64), (1000, 128, 1.6, 128)],
)
def test_the_count_of_passes_is_what_the_formulas_of_torch_do(
    monkeypatch, n_atoms, box_size, atom_width, resolution
) -> None:
    """To a third: what is small beside the rest, such as tables of an axis, is left out of the count."""
    monkeypatch.setattr(compiled, "compiled_for", lambda tensor: False)
    fourier_axis._axis_of.cache_clear()
    positions, sizes = some_positions(n_atoms, box_size), (box_size, atom_width, resolution)
    grid = Spreading.chosen(*sizes, ACCURACY)
    rows, patch = 2 * highest_frequency(resolution) + 2, (2 * grid.radius + 1) ** 2
    for name, expected in _passes(n_atoms, rows, patch, grid.points**2).items():
        PROJECTORS[name](positions, *sizes)  # tables are made once
        with Traffic() as found:
            PROJECTORS[name](positions, *sizes)
        assert found.bytes / 4 / IMAGES == pytest.approx(expected, rel=0.34), name
    fourier_axis._axis_of.cache_clear()


def test_auto_takes_what_its_device_is_fastest_at() -> None:
    """On the device it is another projector at K = N, with the same image to the accuracy of both."""
    positions, sizes = some_positions(133, 64), (64, 0.8, 64)
    assert fastest(133, *sizes, ACCURACY, DEVICE) != fastest(133, *sizes, ACCURACY)
    with emulated():
        found = project(positions.to(DEVICE), *sizes).cpu()
        gridded = PROJECTORS["gridded"](positions.to(DEVICE), *sizes).cpu()
    assert torch.equal(found, gridded)
    expected = project(positions, *sizes)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
