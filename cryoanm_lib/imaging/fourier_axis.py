"""Transforms of Gaussians along one axis, of which `fourier_projection` makes its products."""

import functools
import math

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryoanm_lib.imaging import _fourier_loops as fourier_loops
from cryoanm_lib.numerics import compiled
from cryoanm_lib.numerics.fourier import highest_frequency


def axis_for(
    like: Tensor, box_size: int, atom_width: float, resolution: int, accuracy: float | None
) -> "Axis":
    """The axis for positions like these, made once; sizes as of `fourier_coefficients`."""
    accuracy = torch.finfo(like.dtype).eps if accuracy is None else accuracy
    return _axis_of(box_size, atom_width, resolution, accuracy, like.dtype, like.device)


class Axis:
    """The transforms X(k) along one axis, for k = 0 … m.

    With u = exp(-2πi x/N) and v = exp(-2πi x) they are uᵏ (e₀ + Σ (eₐ vᵃ + e₋ₐ v⁻ᵃ)), the sum over a > 0: a
    power, times a few terms for the aliases whose sums and differences are those of the cosines and sines.
    """

    def __init__(
        self,
        box_size: int,
        atom_width: float,
        resolution: int,
        accuracy: float,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        highest = highest_frequency(resolution)
        self.box_size, self.highest, self.width, self.dtype = box_size, highest, 2 * (highest + 1), dtype
        # exp(-2 (π σ_a f)²) falls below the accuracy at this frequency f, in cycles per pixel.
        cutoff = math.sqrt(-0.5 * math.log(accuracy)) / (math.pi * atom_width)
        self.n_aliases = math.floor(cutoff + highest / box_size)
        k = torch.arange(highest + 1, dtype=torch.float64, device=device)[:, None] / box_size
        aliases = torch.arange(-self.n_aliases, self.n_aliases + 1, dtype=torch.float64, device=device)
        angular = 2 * math.pi * (k + aliases)
        scale = math.sqrt(2 * math.pi) * atom_width / box_size
        envelope = scale * (-0.5 * (atom_width * angular).square()).exp()
        self._orders = [
            [part.to(device, dtype) for part in self._even_and_odd(weights)]
            for weights in (envelope, angular * envelope)  # d/dx exp(-iωx) = -iω exp(-iωx)
        ]
        self.compiled = compiled.compiled_for(self._orders[0][0])
        if self.compiled:
            orders = np.stack(
                [np.concatenate([p.numpy().reshape(-1, highest + 1) for p in o]) for o in self._orders]
            )
            numbers = fourier_loops.constants(orders.dtype, box_size)
            self.numbers = numbers, np.ascontiguousarray(orders)

        self.ones = torch.ones(1, 2 * highest * (highest + 1) + 1, device=device, dtype=dtype)

    def empty(self, *shape: int) -> Complex[Tensor, "*shape kept"]:
        """Room for coefficients on the CPU."""
        kept = 2 * self.highest * (self.highest + 1) + 1
        return torch.empty(*shape, kept, dtype=self.dtype.to_complex())

    def _even_and_odd(self, weights: Float[Tensor, "k aliases"]) -> tuple[Tensor, Tensor, Tensor]:
        below, middle, above = weights.tensor_split([self.n_aliases, self.n_aliases + 1], dim=1)
        below = below.flip(1)
        return middle, (above + below).T[..., None], (above - below).T[..., None]

    def transforms(
        self, x: Float[Tensor, "images atoms"], orders: int
    ) -> list[Float[Tensor, "images rows atoms"]]:
        """X(k) and, with two orders, its derivative by x; real above imaginary parts."""
        cos, sin = self._powers(x)
        phase = (-2 * math.pi) * x[:, None]
        waves = [((a * phase).cos(), (a * phase).sin()) for a in range(1, self.n_aliases + 1)]
        found = []
        for middle, even, odd in self._orders[:orders]:
            transform = x.new_empty(len(x), 2, self.highest + 1, x.shape[1])
            real, imag = transform.unbind(1)
            if waves:
                outer_real = torch.addcmul(middle, even[0], waves[0][0])
                outer_imag = odd[0] * waves[0][1]
                for a in range(1, self.n_aliases):
                    outer_real.addcmul_(even[a], waves[a][0])
                    outer_imag.addcmul_(odd[a], waves[a][1])
                _multiply(cos, sin, outer_real, outer_imag, real, imag)
            else:
                torch.mul(cos, middle, out=real)
                torch.mul(sin, middle, out=imag)
            if found:  # the derivative: -i (a + ib) = b - ia
                transform = torch.stack([imag, -real], dim=1)
            found.append(transform.flatten(1, 2))
        return found

    def _powers(self, x: Float[Tensor, "images atoms"]) -> Float[Tensor, "2 images k atoms"]:
        """Cosines and sines of -2πkx/N: those up to k give those up to 2k, by one product of each with uᵏ."""
        powers = x.new_empty(2, len(x), self.highest + 1, x.shape[1])
        cos, sin = powers
        cos[:, 0], sin[:, 0] = 1.0, 0.0
        if self.highest:
            angle = (-2 * math.pi / self.box_size) * x
            cos[:, 1], sin[:, 1] = angle.cos(), angle.sin()
        have = 1  # the highest power so far
        while have < self.highest:
            more = min(have, self.highest - have)
            low, high, new = slice(1, 1 + more), slice(have, have + 1), slice(have + 1, have + 1 + more)
            _multiply(cos[:, low], sin[:, low], cos[:, high], sin[:, high], cos[:, new], sin[:, new])
            have += more
        return powers


def _multiply(a: Tensor, b: Tensor, c: Tensor, d: Tensor, real: Tensor, imag: Tensor) -> None:
    """Write (a + ib)(c + id) to `real` and `imag`."""
    torch.mul(a, c, out=real).addcmul_(b, d, value=-1)
    torch.mul(a, d, out=imag).addcmul_(b, c)


_axis_of = functools.lru_cache(maxsize=64)(Axis)
