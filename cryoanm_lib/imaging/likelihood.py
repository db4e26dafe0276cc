"""The one Gaussian likelihood of an image at resolution K: as a function, and as a distribution for Pyro."""

from jaxtyping import Complex, Float
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.types import _size

from cryoanm_lib.imaging.noise import Noise


def log_likelihood(
    observed: Complex[Tensor, "*#batch kept"],
    predicted: Complex[Tensor, "*#batch kept"],
    noise: Noise,
    resolution: int,
) -> Float[Tensor, "*batch"]:
    """Log-density of the observed K × K crop given the predicted one.

    log p = -|W(y - ŷ)|²/2 - log Z, where W whitens the independent values of the crop in an orthonormal
    Fourier basis: for white noise the density of the pixels themselves, without computing a pixel. Where K is
    even, the crop has no Nyquist frequency, and 2K - 1 of its pixels are redundant. The noise is that of all
    images, or of each, and batches are broadcast.

    Raises
    ------
    ForwardModelError
        If the noise has no density, or there are more or fewer coefficients than K keeps.

    Examples
    --------
    >>> import torch
    >>> from cryoanm_lib.imaging.noise import WhiteNoise
    >>> empty = torch.zeros(481, dtype=torch.complex64)
    >>> print(f"{log_likelihood(empty, empty, WhiteNoise(0.1, box_size=64), resolution=32):.1f}")
    1995.8
    """
    squared = noise.whiten(observed - predicted, resolution).square().sum(-1)
    normaliser = noise.log_normaliser(resolution)
    # One for all images is a number on the CPU, which goes to a GPU without a copy.
    return -0.5 * squared - (normaliser.to(squared) if normaliser.ndim else normaliser)


class GaussianImage(TorchDistribution):
    """Coefficients of images about predicted ones at resolution K: `log_likelihood` as a distribution."""

    # Torch declares both as properties, and sets them as attributes itself.
    support = constraints.real_vector  # pyright: ignore[reportAssignmentType]
    arg_constraints = {}  # pyright: ignore[reportAssignmentType]

    def __init__(self, predicted: Complex[Tensor, "*batch kept"], noise: Noise, resolution: int) -> None:
        self.predicted, self.noise, self.resolution = predicted, noise, resolution
        super().__init__(predicted.shape[:-1], predicted.shape[-1:], validate_args=False)

    def expand(self, batch_shape: _size, _instance: None = None) -> "GaussianImage":
        """The same repeated over a larger batch."""
        return GaussianImage(self.predicted.expand(*batch_shape, -1), self.noise, self.resolution)

    def sample(self, sample_shape: _size = ()) -> Complex[Tensor, "*shape kept"]:
        """Noisy coefficients."""
        return self.noise.sample(self.predicted.expand(*sample_shape, *self.predicted.shape))

    def log_prob(self, value: Complex[Tensor, "*#batch kept"]) -> Float[Tensor, "..."]:
        """Log-density of observed coefficients."""
        return log_likelihood(value, self.predicted, self.noise, self.resolution)
