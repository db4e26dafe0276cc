"""What computing costs: growth with atoms and pixels, and where a training step spends its time."""

import math
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.profiler import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from cryoanm_lib.errors import ConfigurationError
from cryoanm_lib.imaging.fourier_projection import fourier_coefficients
from cryoanm_lib.imaging.projection import PROJECTORS
from cryoanm_lib.inference.training import Trainer
from cryoanm_lib.numerics.timing import seconds_of
from cryoanm_lib.particles.particles import Particles

#: Kinds of work in a training step, by how the names of torch's operations begin. The first that fits counts.
KINDS = {
    "our loops": ("_Compiled", "_Spread", "_Products", "_Filter"),
    "convolutions": (
        "aten::mkldnn_conv",
        "aten::_slow_conv",  # of bfloat16, on a CPU that knows none
        "aten::convolution",
        "aten::_conv",
        "aten::conv",
        "aten::cudnn_conv",
    ),
    "dense layers": ("aten::addmm", "aten::mm", "aten::bmm", "aten::baddbmm", "aten::linear"),
    "normalisation": (
        "aten::native_batch",
        "aten::batch_norm",
        "aten::native_layer",
        "aten::layer_norm",
        "aten::native_group",
        "aten::group_norm",
    ),
    "Fourier transforms": ("aten::_fft", "aten::fft"),
}

#: Parts of a training step that are not known by their operations but by who asks for them, and the rest.
SIMULATION, OPTIMISER, OTHERS, PYTHON = "simulation", "optimiser", "other operations", "Python and Pyro"


@dataclass
class Growth:
    """How the time of one way to do something grows with its size.

    Attributes
    ----------
    name : str
        Of the way.
    sizes : list of int
        Sizes that were tried, rising.
    seconds : list of float
        Median of each.
    """

    name: str
    sizes: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def exponent(self) -> float:
        """e of the power law t ~ sizeᵉ that fits the last three sizes best, or NaN if there are fewer.

        Examples
        --------
        >>> print(f"{Growth('square', [1, 10, 100, 1000], [1.0, 1.0, 100.0, 10000.0]).exponent:.2f}")
        2.00
        """
        if len(self.sizes) < 3:
            return math.nan
        x, y = ([math.log(v) for v in values[-3:]] for values in (self.sizes, self.seconds))
        return statistics.linear_regression(x, y).slope


def grow(
    ways: dict[str, Callable[[int], Callable[[], object]]], sizes: Iterable[int], longest: float
) -> list[Growth]:
    """Time every way at rising sizes, each until it takes longer than so many seconds.

    Given a size, each of the ways returns the work to be timed.
    """
    found = [Growth(name) for name in ways]
    for size in sizes:
        for growth in found:
            if not growth.seconds or growth.seconds[-1] <= longest:
                growth.sizes.append(size)
                growth.seconds.append(seconds_of(ways[growth.name](size)))
    return found


@dataclass(frozen=True)
class Limits:
    """What a device can do at all.

    Attributes
    ----------
    product_rate : float
        Operations a second in a large single-precision matrix product.
    copy_rate : float
        Bytes a second of a large copy, read and written.
    """

    product_rate: float
    copy_rate: float

    @classmethod
    def of(cls, device: torch.device, size: int = 3000, copied: int = 2**28) -> "Limits":
        """Measured now, by products of square matrices and copies of so many bytes, which no cache holds."""
        square = torch.randn(size, size, device=device)
        product = seconds_of(lambda: _finished(square @ square))
        source = torch.ones(copied, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        copy = seconds_of(lambda: _finished(target.copy_(source)))
        return cls(2 * size**3 / product, 2 * copied / copy)


@dataclass(frozen=True)
class Throughput:
    """How fast Fourier coefficients come straight from coordinates, beside what the device can do.

    Attributes
    ----------
    images_per_second : float
        Of one molecule.
    of_product_rate : float
        Operations, 8 real ones for each atom and coefficient, as a share of the rate of a large product.
    of_copy_rate : float
        Positions read and coefficients written, as a share of the rate of a large copy.
    """

    images_per_second: float
    of_product_rate: float
    of_copy_rate: float

    @classmethod
    def of(
        cls,
        limits: Limits,
        device: torch.device,
        resolution: int,
        n_atoms: int = 133,
        box_size: int = 64,
        n_images: int = 200,
    ) -> "Throughput":
        """Measured now, forward, by the paper's task unless told otherwise."""
        positions = (torch.rand(n_images, n_atoms, 2, device=device) - 0.5) * 0.8 * box_size
        found = fourier_coefficients(positions, box_size, 0.8, resolution)
        seconds = seconds_of(lambda: _finished(fourier_coefficients(positions, box_size, 0.8, resolution)))
        operations = 8 * n_atoms * found.numel()
        return cls(
            n_images / seconds,
            operations / seconds / limits.product_rate,
            (positions.nbytes + found.nbytes) / seconds / limits.copy_rate,
        )


def peak_memory() -> float:
    """Bytes of memory that this process has held at most."""
    unit = 1 if sys.platform == "darwin" else 1024
    return float(unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def _finished(answer: Tensor) -> Tensor:
    """The same once it is there: a GPU works on while Python goes ahead."""
    if answer.is_cuda:
        torch.cuda.synchronize(answer.device)
    return answer


def globule(n_atoms: int, seed: int = 0) -> Float[Tensor, "atoms 3"]:
    """Atoms as densely packed as the Cα of a protein, in an ellipsoid of three unequal axes, in Å.

    Examples
    --------
    >>> globule(1000).shape
    torch.Size([1000, 3])
    """
    generator = torch.Generator().manual_seed(seed)
    side = round((2 * n_atoms) ** (1 / 3)) + 3
    lattice = torch.cartesian_prod(*[torch.arange(-side, side + 1)] * 3).double()
    lattice = 5.1 * (lattice + 0.5 * (torch.rand(lattice.shape, generator=generator) - 0.5))
    distance = (lattice / torch.tensor([1.6, 1.0, 0.7])).norm(dim=1)
    return lattice[distance.argsort()[:n_atoms]]


def one_image(
    projector: str, n_atoms: int, box_size: int, resolution: int, atom_width: float = 0.8
) -> Callable[[], object]:
    """The work of an image: coefficients of a globule that fills most of the box, and their gradient.

    One image keeps one thread of ours busy: give torch one too, to compare.
    """
    flat = globule(n_atoms)[:, :2].float()
    at = (0.4 * box_size / flat.norm(dim=1).max() * flat).requires_grad_()

    def forward_and_backward() -> Tensor:
        coefficients = PROJECTORS[projector](at, box_size, atom_width, resolution)
        (gradient,) = torch.autograd.grad(torch.view_as_real(coefficients).sum(), at)
        return _finished(gradient)

    return forward_and_backward


def step_shares(trainer: Trainer, steps: int = 10) -> dict[str, float]:
    """Milliseconds of a CPU in a step of the last stage, by kind of work, forward and backward together.

    Parameters
    ----------
    trainer : Trainer
        Of a guide on the CPU; it is spoilt for training.
    steps : int
        How many are measured, after as many that are not.

    Raises
    ------
    ConfigurationError
        If the guide is on a GPU, which works on while the clock of a CPU is read.
    """
    if next(trainer.guide.parameters()).device.type != "cpu":
        raise ConfigurationError("steps are taken apart on a CPU: set device = 'cpu'")
    trainer.progress.stage = len(trainer.stages) - 1
    draw = trainer.source

    def labelled_draw(resolution: int, step: int) -> Particles:
        with record_function(SIMULATION):
            return draw(resolution, step)

    trainer.take_steps(steps)
    trainer.source = labelled_draw
    try:
        with profile(activities=[ProfilerActivity.CPU]) as measured:
            started = time.perf_counter()
            trainer.take_steps(steps)
            seconds = time.perf_counter() - started
    finally:
        trainer.source = draw
    shares = dict.fromkeys((SIMULATION, *KINDS, OPTIMISER, OTHERS), 0.0)
    for event in measured.events() or ():
        shares[_kind(event)] += 1e-3 * event.self_cpu_time_total / steps
    # What none of torch's operations accounts for.
    return {**shares, PYTHON: max(0.0, 1e3 * seconds / steps - sum(shares.values()))}


def _kind(event: FunctionEvent) -> str:
    """Who asked for an operation, or what it is."""
    asking: FunctionEvent | None = event
    while asking is not None:
        if asking.name == SIMULATION:
            return SIMULATION
        if asking.name.startswith("Optimizer"):
            return OPTIMISER
        asking = asking.cpu_parent
    fits = (kind for kind, beginnings in KINDS.items() if event.name.startswith(beginnings))
    return next(fits, OTHERS)
