"""A new noise: coloured, falling from the centre of Fourier space as the spectrum of ice does."""

import math

import torch

from cryoanm_lib import Model, Noise, Prior
from cryoanm_lib.numerics.fourier import crop_coefficients, half_plane_frequencies, resolution_of, to_real


class ColouredNoise(Noise):
    """Deviation σ(k) = σ_n (1 + (k₀/|k|)²)^½ of each coefficient, |k| at least one cycle a box."""

    def __init__(self, deviation, box_size, corner=6.0):
        self.box_size = box_size
        radius = half_plane_frequencies(box_size).norm(dim=-1).double().clamp(min=1.0)
        self.deviation = deviation * (1 + (corner / radius) ** 2).sqrt()

    def _kept(self, resolution):
        """The deviations that the crop keeps, in the order of coefficients."""
        return crop_coefficients(self.deviation.to(torch.complex128), resolution).real

    def sample(self, coefficients, generator=None):
        draw = torch.randn(coefficients.shape, dtype=coefficients.dtype, generator=generator)
        draw[..., 0] = draw[..., 0].real * 2**0.5
        scale = self._kept(resolution_of(coefficients)) / self.box_size
        return coefficients + scale.to(draw.real) * draw

    def whiten(self, coefficients, resolution):
        scale = self._kept(resolution) * resolution / self.box_size
        return to_real(coefficients / scale.to(coefficients.real), resolution)

    def log_normaliser(self, resolution):
        scale = math.sqrt(2 * math.pi) * self._kept(resolution) * resolution / self.box_size
        # A real and an imaginary part each, but for k = 0.
        return 2 * scale.log().sum(-1) - scale[..., 0].log()

    def summary(self, n_images, like):
        return self.deviation.mean().log().to(like).expand(n_images, 1)


def test_coloured_noise_is_whitened(forward):
    noise = ColouredNoise(0.1, 64)
    empty = torch.zeros(400, 481, dtype=torch.complex128)
    white = noise.whiten(noise.sample(empty, torch.Generator().manual_seed(0)), 32)
    # The variance of 400 draws, of 961 values: five deviations are missed by one in 2000 tests.
    assert ((white.square().mean(0) - 1).abs() < 5 * (2 / 400) ** 0.5).all()


def test_coloured_noise_leaves_error_bars_honest(forward, all_the_way):
    noise = ColouredNoise(0.1, 64)
    model = Model(forward(), Prior(), noise, inferred=("pose", "amplitude", "defocus"))
    torch.manual_seed(2)
    all_the_way(model, model.simulate(200, 32))
