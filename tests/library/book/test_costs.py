"""Costs: what curves and shares say of work whose cost is known."""

import math
import subprocess
import sys
import time

import pytest
import torch

from cryoanm_lib.book.costs import (
    KINDS,
    OPTIMISER,
    OTHERS,
    PYTHON,
    SIMULATION,
    Growth,
    Limits,
    Throughput,
    globule,
    grow,
    one_image,
    step_shares,
)
from cryoanm_lib.inference.training import Stage, Trainer
from cryoanm_lib.particles.source import FreshImages

torch.set_num_threads(1)


def test_a_power_law_has_its_exponent() -> None:
    sizes = [10, 20, 40, 80]
    cubic = Growth("cubic", sizes, [5.0 + 1e-6 * n**3 for n in sizes[:1]] + [1e-6 * n**3 for n in sizes[1:]])
    assert cubic.exponent == pytest.approx(3.0)
    assert math.isnan(Growth("short", [1, 2], [1.0, 2.0]).exponent)


def test_what_takes_too_long_is_not_tried_at_the_next_size(clock) -> None:
    ways = {"slow": lambda size: lambda: clock(size / 4), "fast": lambda size: lambda: clock(1 / 8)}
    slow, fast = grow(ways, [1, 2, 3, 4], longest=0.4)
    assert (slow.sizes, slow.seconds) == ([1, 2], [0.25, 0.5])
    assert (fast.sizes, fast.seconds) == ([1, 2, 3, 4], [0.125] * 4)


def test_a_globule_is_as_dense_as_a_protein() -> None:
    """Cα of a protein are about 5 Å apart on average, and none is alone."""
    atoms = globule(500)
    assert atoms.shape == (500, 3)
    nearest = torch.cdist(atoms, atoms).fill_diagonal_(math.inf).amin(1)
    assert 2.0 < nearest.min() and nearest.max() < 6.0


@pytest.mark.parametrize("projector", ["sparse", "separable", "fourier", "gridded", "auto"])
def test_every_projector_does_the_same_work(projector: str) -> None:
    """The sparse one up to what its patch leaves out, a hundredth of an atom's peak and its slope."""
    found, expected = (one_image(name, 50, 32, 16)() for name in (projector, "fourier"))
    allowed = 0.05 * expected.abs().max().item() if projector == "sparse" else 1e-5
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=allowed)


def test_shares_are_of_what_the_device_can_do() -> None:
    cpu = torch.device("cpu")
    limits = Limits.of(cpu, size=256, copied=2**20)
    found = Throughput.of(limits, cpu, resolution=16, n_atoms=20, n_images=10)
    coefficients = (15**2 + 1) / 2
    operations = found.images_per_second * 8 * 20 * coefficients
    assert found.of_product_rate == pytest.approx(operations / limits.product_rate)
    moved = found.images_per_second * (20 * 2 * 4 + coefficients * 8)
    assert found.of_copy_rate == pytest.approx(moved / limits.copy_rate)


def test_a_training_step_is_the_sum_of_its_parts(tiny_guide) -> None:
    stages = [Stage(resolution=12, steps=5), Stage(resolution=16, steps=100)]
    guide = tiny_guide()
    draw = FreshImages(guide.model, 10)
    trainer = Trainer(guide, stages, draw, guide.model.simulate(4, 16), show_progress=False)
    started = time.perf_counter()
    shares = step_shares(trainer, steps=4)
    elapsed = 1e3 * (time.perf_counter() - started)
    assert list(shares) == [SIMULATION, *KINDS, OPTIMISER, OTHERS, PYTHON]
    assert (trainer.progress.stage, trainer.progress.step) == (1, 8)
    assert 0 < 4 * sum(shares.values()) < elapsed
    for kind in (SIMULATION, "our loops", "dense layers", OPTIMISER):
        assert shares[kind] > 0, kind
    assert trainer.source is draw


@pytest.mark.thorough
def test_very_many_atoms_on_very_many_pixels_take_little_memory() -> None:
    """10⁵ atoms and 512 pixels, forward and backward, in a process that never holds 8 GB."""
    work = (
        "from cryoanm_lib.book.costs import one_image, peak_memory\n"
        "for size in ((100_000, 64, 32), (100_000, 512, 512), (1_000, 512, 512)):\n"
        "    one_image('auto', *size)()\n"
        "print(peak_memory())"
    )
    answer = subprocess.run([sys.executable, "-c", work], capture_output=True, text=True, check=True)
    assert 1e8 < float(answer.stdout) < 8e9
