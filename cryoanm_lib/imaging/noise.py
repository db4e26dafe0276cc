"""Noise on the coefficients of images: what draws it, makes it white, and normalises its density."""

import copy
import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryoanm_lib.errors import ForwardModelError
from cryoanm_lib.numerics.fourier import degrees_of_freedom, to_real

#: What a tensor (images,) may be indexed by.
Index = Tensor | slice | int | tuple[slice | None, ...]


class Noise(ABC):
    """Gaussian noise of a batch of images, independent from coefficient to coefficient.

    Another noise is a subclass. Whatever compares images compares whitened coefficients, of deviation 1.
    """

    #: Numbers that a network is told of the noise of an image.
    n_told = 1

    @abstractmethod
    def sample(
        self, coefficients: Complex[Tensor, "*batch kept"], generator: torch.Generator | None = None
    ) -> Complex[Tensor, "*batch kept"]:
        """Noise-free coefficients at any resolution with noise added, by default from torch's generator."""

    @abstractmethod
    def whiten(
        self, coefficients: Complex[Tensor, "*batch kept"], resolution: int
    ) -> Float[Tensor, "*batch dof"]:
        """Coefficients at resolution K in the basis of `to_real` and in units of the noise's deviation."""

    def flat(self, coefficients: Complex[Tensor, "*batch kept"]) -> Complex[Tensor, "*batch kept"]:
        """Coefficients so filtered that the noise is white, as networks see them; here it is already."""
        return coefficients

    @abstractmethod
    def log_normaliser(self, resolution: int) -> Float[Tensor, "*images"]:
        """Minus the log-density in the basis of `to_real` where the whitened residual is zero, in float64."""

    @abstractmethod
    def summary(self, n_images: int, like: Float[Tensor, "..."]) -> Float[Tensor, "images told"]:
        """What a network is told of the noise of each image."""

    def __getitem__(self, index: Index) -> "Noise":
        """That of some images, indexed as a tensor (images,) is; here all have the same."""
        return self

    def to(self, device: torch.device | str) -> "Noise":
        """The same for images on another device."""
        return self

    def drawn(self, n_images: int, like: Float[Tensor, "..."]) -> "Noise":
        """The noise of so many new images; here always this."""
        return self

    def unit(self) -> tuple["Noise", Float[Tensor, "*images"]]:
        """A noise that all share, so that templates are whitened once, and each image's factor on it."""
        return self, torch.ones((), dtype=torch.float64, device="cpu")


class WhiteNoise(Noise):
    """White noise of deviation σ_n on the N × N pixels; its coefficients have E|ε|² = σ_n²/N², real at k = 0.

    Parameters
    ----------
    deviation : float or Float[Tensor, "images"]
        σ_n of a pixel of the uncropped image, of all images or of each.
    box_size : int
        N, pixels along an edge of the uncropped image.

    Raises
    ------
    ForwardModelError
        If the deviation is negative, or not a number; where it is 0, there is no density.

    Examples
    --------
    >>> WhiteNoise(0.1, box_size=64).whiten(torch.ones(5, dtype=torch.complex64), resolution=4)[:3]
    tensor([640.0000, 905.0967,   0.0000])
    """

    def __init__(self, deviation: float | Float[Tensor, "*images"], box_size: int) -> None:
        if not isinstance(deviation, Tensor):
            # One number for all goes from the CPU to any device, with the arguments of a kernel.
            deviation = torch.tensor(deviation, dtype=torch.float64, device="cpu")
        self.deviation = deviation
        self.box_size = box_size
        if not (self.deviation >= 0).all():
            raise ForwardModelError(
                f"noise = {self.deviation.min().item():g} is no standard deviation: it must be 0 or greater"
            )
        # Asked once, and not at every step, where a GPU would have to wait for the answer.
        self.has_density = bool((self.deviation > 0).all())

    def sample(
        self, coefficients: Complex[Tensor, "*batch kept"], generator: torch.Generator | None = None
    ) -> Complex[Tensor, "*batch kept"]:
        """Coefficients with white noise added."""
        draw = unit_noise(coefficients, generator)
        return coefficients + self._beside(draw.real, self.deviation) / self.box_size * draw

    def whiten(
        self, coefficients: Complex[Tensor, "*batch kept"], resolution: int
    ) -> Float[Tensor, "*batch dof"]:
        """Divided by the deviation after the crop, σ_n K/N."""
        real = to_real(coefficients, resolution)
        return real * self._beside(real, self.cropped(resolution).reciprocal())

    def log_normaliser(self, resolution: int) -> Float[Tensor, "*images"]:
        """D log(√(2π) σ_n K/N) for the D values of the crop."""
        return degrees_of_freedom(resolution) * (math.sqrt(2 * math.pi) * self.cropped(resolution)).log()

    def summary(self, n_images: int, like: Float[Tensor, "..."]) -> Float[Tensor, "images 1"]:
        """log σ_n."""
        told = self.deviation.log()
        return told.to(like)[:, None] if told.ndim else like.new_full((n_images, 1), told.item())

    def cropped(self, resolution: int) -> Float[Tensor, "*images"]:
        """Deviation σ_n K/N of the values that the crop Π_K keeps, in the basis of `to_real`, in float64.

        Raises
        ------
        ForwardModelError
            If the noise is 0.
        """
        if not self.has_density:
            raise ForwardModelError(
                f"noise = {self.deviation.min().item():g} gives no likelihood: it must be greater than 0"
            )
        return self.deviation.double() * resolution / self.box_size

    def __getitem__(self, index: Index) -> "WhiteNoise":
        """That of some images."""
        return self if not self.deviation.ndim else self._with(self.deviation[index])

    def to(self, device: torch.device | str) -> "WhiteNoise":
        """The same for images on another device; one number for all stays where it is, on the CPU."""
        return self._with(self.deviation.to(device)) if self.deviation.ndim else self

    @staticmethod
    def _beside(
        like: Float[Tensor, "*batch values"], number: Float[Tensor, "*images"]
    ) -> float | Float[Tensor, "*images 1"]:
        """What multiplies the values of images; a plain number where it is the same for all."""
        return number.to(like)[..., None] if number.ndim else number.item()

    def _with(self, deviation: Float[Tensor, "*images"]) -> "WhiteNoise":
        """The same with another deviation, or with that of some: one that was positive is not asked again."""
        changed = copy.copy(self)
        changed.deviation = deviation
        changed.has_density = self.has_density or bool((deviation > 0).all())
        return changed

    def unit(self) -> tuple["WhiteNoise", Float[Tensor, "*images"]]:
        """White noise of deviation 1, and σ_n."""
        return WhiteNoise(1.0, self.box_size), self.deviation.double()


class AnyWhiteNoise(WhiteNoise):
    """White noise of which each new image has its own σ_n from low to high, whose logarithm is uniform.

    Where one is asked for that stands for all, it is the middle of the range.

    Raises
    ------
    ForwardModelError
        If the range is empty or begins at 0.
    """

    def __init__(self, low: float, high: float, box_size: int) -> None:
        if not 0 < low < high:
            raise ForwardModelError(
                f"noise = {(low, high)} is no range: the first end must be the lower one, and above 0"
            )
        super().__init__(math.sqrt(low * high), box_size)
        self.low, self.high = low, high

    def drawn(self, n_images: int, like: Float[Tensor, "..."]) -> WhiteNoise:
        """A deviation for each image."""
        low, high = math.log(self.low), math.log(self.high)
        share = torch.rand(n_images, dtype=like.dtype, device=like.device)
        return WhiteNoise(self.high, self.box_size)._with((low + (high - low) * share).exp())


def unit_noise(
    like: Complex[Tensor, "*batch kept"], generator: torch.Generator | None = None
) -> Complex[Tensor, "*batch kept"]:
    """Independent draws with E|ε|² = 1, half of it in each part, but for k = 0, where all of it is real."""
    draw = torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=generator)
    draw[..., 0] = draw[..., 0].real * 2**0.5
    return draw


def white_noise(deviation: float | tuple[float, float], box_size: int) -> WhiteNoise:
    """White noise of one deviation, or of a range of them.

    Raises
    ------
    ForwardModelError
        If a deviation is not above 0, or the range is none.

    Examples
    --------
    >>> white_noise(0.1, box_size=64).cropped(32).item()
    0.05
    """
    if isinstance(deviation, tuple):
        return AnyWhiteNoise(*deviation, box_size)
    noise = WhiteNoise(deviation, box_size)
    noise.cropped(box_size)  # refuses one that is not positive
    return noise


def same_noise(one: Noise, other: Noise) -> bool:
    """Whether two noises are the same to the last bit: then what one has whitened serves the other."""
    if one is other:
        return True
    if type(one) is not type(other) or vars(one).keys() != vars(other).keys():
        return False
    pairs = [(value, vars(other)[name]) for name, value in vars(one).items()]
    return all(a.equal(b) if isinstance(a, Tensor) else a == b for a, b in pairs)
