"""The distribution of a pose in space: a projected normal on quaternions, to which h and -h are the same."""

import math

import torch
from jaxtyping import Float
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.types import _size

from cryoanm_lib.numerics.rotation import quaternion_conjugate, quaternion_product


def log_line_integral(t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """log ∫_-∞^∞ |r|³ exp(-(r - t)²/2) dr = log(2 exp(-t²/2) (t² + 2) + √(2π) (t³ + 3t) erf(t/√2)).

    Every term is positive, so that nothing cancels at any t.

    Examples
    --------
    >>> [f"{value:.3f}" for value in log_line_integral(torch.tensor([-1000.0, 0.0, 1000.0]))]
    ['21.642', '1.386', '21.642']
    """
    gaussian = 2 * (-0.5 * t.square()).exp() * (t.square() + 2)
    front = math.sqrt(2 * math.pi) * t * (t.square() + 3) * torch.erf(t / math.sqrt(2.0))
    return (gaussian + front).log()


class AntipodalProjectedNormal(TorchDistribution):
    """The direction in four dimensions of a Gaussian with mean μ and unit covariance, as a rotation.

    A unit quaternion h and its opposite are one rotation, so the densities of both are summed:

        p(R) = (2π)⁻² exp(-|μ - (μ·h) h|²/2) ∫_-∞^∞ |r|³ exp(-(r - μ·h)²/2) dr / 8,

    with respect to the volume of rotation vectors in radians³, of which SO(3) has 8π²: a radian of turn is
    half a radian of quaternion. It is uniform at μ = 0, and neither the sign of h nor that of μ matters.

    Parameters
    ----------
    concentration : Float[Tensor, "*batch 4"]
        μ: its direction is the mean rotation, its length the concentration. From a length of about 5 the
        rotation vector from the mean is nearly normal with a deviation of 2 / |μ| radians about every axis.

    Examples
    --------
    >>> pose = AntipodalProjectedNormal(torch.tensor([30.0, 0.0, 0.0, 0.0]))
    >>> [f"{x:.1f}" for x in pose.log_prob(torch.eye(4)[:2])]
    ['5.4', '-454.4']
    >>> pose.sample((5,)).shape
    torch.Size([5, 4])
    """

    has_rsample = True
    # Torch declares both as properties, and sets them as attributes itself.
    support = constraints.sphere  # pyright: ignore[reportAssignmentType]
    arg_constraints = {"concentration": constraints.real_vector}  # pyright: ignore[reportAssignmentType]

    def __init__(self, concentration: Float[Tensor, "*batch 4"]) -> None:
        self.concentration = concentration
        super().__init__(concentration.shape[:-1], concentration.shape[-1:], validate_args=False)

    def expand(self, batch_shape: _size, _instance: None = None) -> "AntipodalProjectedNormal":
        """The same distribution repeated over a larger batch."""
        return AntipodalProjectedNormal(self.concentration.expand(*batch_shape, 4))

    def rsample(self, sample_shape: _size = ()) -> Float[Tensor, "... 4"]:
        """Unit quaternions; the sign is that of the Gaussian, and means nothing."""
        shape = self._extended_shape(sample_shape)
        gaussian = self.concentration.expand(shape)
        return torch.nn.functional.normalize(gaussian + torch.randn_like(gaussian), dim=-1)

    def log_prob(self, value: Float[Tensor, "*#batch 4"]) -> Float[Tensor, "..."]:
        """Log-density in radians⁻³ at unit quaternions of either sign."""
        along = (self.concentration * value).sum(-1)
        across = self.concentration - along[..., None] * value
        return log_line_integral(along) - 0.5 * across.square().sum(-1) - math.log(32 * math.pi**2)

    def slopes(
        self, value: Float[Tensor, "*#batch 4"]
    ) -> tuple[Float[Tensor, "*batch 3"], Float[Tensor, "*batch 3"]]:
        """Gradient of the log-density by rotation vectors, and its second derivatives along the axes.

        With t the real part of μ h̄ and v its vector part, a rotation vector s changes t by v·s/2 - t s²/8,
        and the log-density is that of the line integral, g, and t²/2:

            ∇ = (g'/g + t) v / 2,    ∂² = (g''/g - (g'/g)² + 1) v² / 4 - (g'/g + t) t / 4.
        """
        product = quaternion_product(self.concentration, quaternion_conjugate(value))
        t, v = product[..., :1], product[..., 1:]
        bell, front = (-0.5 * t.square()).exp(), math.sqrt(2 * math.pi) * torch.erf(t / math.sqrt(2.0))
        g = 2 * bell * (t.square() + 2) + front * t * (t.square() + 3)
        first = (6 * t * bell + 3 * front * (t.square() + 1)) / g
        second = (12 * bell + 6 * front * t) / g
        along = first + t
        return 0.5 * along * v, 0.25 * ((second - first.square() + 1) * v.square() - along * t)
