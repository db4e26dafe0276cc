"""Distributions of the pose: the projected normal on the circle, and mixtures on the circle or in space."""

import math

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.types import _size

from cryoanm_lib.program.antipodal import AntipodalProjectedNormal

# Below this argument the ray integral is taken from its asymptotic series, whose error is then < 1e-12;
# above, cancellation costs at most three digits of the gradient: 2e-13 of it in float64, 1e-4 in float32.
_SERIES_BELOW = -30.0
_SERIES = (1.0, -3.0, 15.0, -105.0, 945.0, -10395.0)


def log_ray_integral(t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Stable log ∫_0^∞ r exp(-(r - t)²/2) dr = log(exp(-t²/2) + √(2π) t Φ(t)), for any real t.

    The sum is positive but cancels for negative t, where the scaled complementary error function takes over,
    and far out its asymptotic series exp(-t²/2) t⁻² (1 - 3 t⁻² + 15 t⁻⁴ - …).

    Examples
    --------
    >>> [f"{value:.1f}" for value in log_ray_integral(torch.tensor([-1000.0, 0.0, 1000.0]))]
    ['-500013.8', '0.0', '7.8']
    """
    # Each branch sees its own t, and elsewhere one that is safe. (A clamp has no sure slope at its end.)
    in_front, at_hand = t > -1.0, t > _SERIES_BELOW
    front = torch.where(in_front, t, -1.0)
    gaussian, upper = (-0.5 * front.square()).exp(), torch.special.ndtr(front)
    direct = (gaussian + math.sqrt(2 * math.pi) * front * upper).log()
    back = torch.where(at_hand & ~in_front, t, -1.0)
    mills = math.sqrt(math.pi / 2) * torch.special.erfcx(-back / math.sqrt(2.0))
    scaled = -0.5 * back.square() + (1 + back * mills).log()
    inverse = torch.where(at_hand, _SERIES_BELOW, t).square().reciprocal()
    series = sum((c * inverse**n for n, c in enumerate(_SERIES)), torch.zeros_like(inverse))
    tail = -0.5 / inverse + inverse.log() + series.log()
    return torch.where(in_front, direct, torch.where(at_hand, scaled, tail))


class ProjectedNormal(dist.ProjectedNormal):
    """Projected normal on the circle: the direction of a planar Gaussian with mean μ and unit covariance.

        p(v | μ) = (2π)⁻¹ exp(-|μ × v|²/2) ∫_0^∞ r exp(-(r - μ·v)²/2) dr,  |v| = 1,

    uniform at μ = 0. As Pyro's, but for a density that stays finite and differentiable at any concentration
    |μ|, also on the far side of the circle, where Pyro's is the logarithm of zero.

    Parameters
    ----------
    concentration : Float[Tensor, "*batch 2"]
        μ: its direction is the mean, its length the concentration. From a length of about 5 the angle is
        nearly normal with a standard deviation of 1 / |μ| radians.

    Examples
    --------
    >>> pose = ProjectedNormal(torch.tensor([30.0, 0.0]))
    >>> [f"{x:.1f}" for x in pose.log_prob(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))]
    ['2.5', '-451.8', '-458.6']
    """

    def log_prob(self, value: Float[Tensor, "*#batch 2"]) -> Float[Tensor, "..."]:
        """Log-density with respect to arc length (radians) at unit vectors."""
        mu = self.concentration
        along = (mu * value).sum(-1)
        across = mu[..., 0] * value[..., 1] - mu[..., 1] * value[..., 0]
        return log_ray_integral(along) - 0.5 * across.square() - math.log(2 * math.pi)

    def rsample(self, sample_shape: _size = ()) -> Float[Tensor, "... 2"]:
        """Unit vectors. Pyro's looks for a vector of length 0, for which a GPU would have to wait."""
        gaussian = self.concentration.expand(self._extended_shape(sample_shape))
        return torch.nn.functional.normalize(gaussian + torch.randn_like(gaussian), dim=-1)

    def expand(self, batch_shape: _size, _instance: None = None) -> "ProjectedNormal":
        """The same distribution repeated over a larger batch."""
        batch_shape = torch.Size(batch_shape)
        return ProjectedNormal(self.concentration.expand(batch_shape + self.event_shape))


def projected_normal(
    concentration: Float[Tensor, "*batch dim"],
) -> ProjectedNormal | AntipodalProjectedNormal:
    """The distribution of a pose by the length of its mean vector: 2 in the plane, 4 in space."""
    return {2: ProjectedNormal, 4: AntipodalProjectedNormal}[concentration.shape[-1]](concentration)


class ProjectedNormalMixture(TorchDistribution):
    """A mixture of projected normals; a sample picks a component, so that it has no pathwise gradient.

        q(v) = Σ_c w_c p(v | μ_c),  w = softmax(logits)

    with the concentrations μ_c. Vectors of two numbers are poses in the plane, of four unit quaternions:
    poses in space.

    Examples
    --------
    >>> either_way = ProjectedNormalMixture(torch.zeros(2), torch.tensor([[20.0, 0.0], [-20.0, 0.0]]))
    >>> either_way.sample((1000,)).shape
    torch.Size([1000, 2])
    >>> [f"{x:.3f}" for x in either_way.log_prob(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))]
    ['1.384', '1.384']
    """

    # Torch declares both as properties, and sets them as attributes itself.
    support = constraints.sphere  # pyright: ignore[reportAssignmentType]
    arg_constraints = {  # pyright: ignore[reportAssignmentType]
        "logits": constraints.real_vector,
        "concentrations": constraints.independent(constraints.real, 2),
    }

    def __init__(
        self,
        logits: Float[Tensor, "*batch components"],
        concentrations: Float[Tensor, "*batch components dim"],
    ) -> None:
        self.logits, self.concentrations = logits, concentrations
        super().__init__(logits.shape[:-1], concentrations.shape[-1:], validate_args=False)

    def expand(self, batch_shape: _size, _instance: None = None) -> "ProjectedNormalMixture":
        """The same mixture repeated over a larger batch."""
        logits = self.logits.expand(*batch_shape, self.logits.shape[-1])
        return type(self)(logits, self.concentrations.expand(*logits.shape, *self.event_shape))

    @property
    def weights(self) -> Float[Tensor, "*batch components"]:
        """Mixture weights, which sum to one."""
        return self.logits.softmax(-1)

    @property
    def components(self) -> ProjectedNormal | AntipodalProjectedNormal:
        """The components as one batched distribution."""
        return projected_normal(self.concentrations)

    def sample(self, sample_shape: _size = ()) -> Float[Tensor, "*shape dim"]:
        """Draw a component for each batch entry, then a direction from it."""
        with torch.no_grad():
            # The largest of the logits plus Gumbel noise: no look at the weights, for which a GPU would wait.
            logits = self.logits.expand(*sample_shape, *self.logits.shape)
            chosen = (logits - torch.empty_like(logits).exponential_().log()).argmax(-1)
            shape = (*sample_shape, *self.concentrations.shape)
            index = chosen[..., None, None].expand(*chosen.shape, 1, shape[-1])
            return projected_normal(self.concentrations.expand(shape).gather(-2, index).squeeze(-2)).sample()

    def log_prob(self, value: Float[Tensor, "*#batch dim"]) -> Float[Tensor, "..."]:
        """Log-density at unit vectors, the components summed: in radians⁻¹ on the circle, ⁻³ in space."""
        each = self.components.log_prob(value.unsqueeze(-2))
        return torch.logsumexp(each + self.logits.log_softmax(-1), dim=-1)


class StratifiedMixture(ProjectedNormalMixture):
    """The same mixture, drawn once from every component, so that every draw has a pathwise gradient.

    The components come first in the batch shape, (components, *batch), and an expectation under the mixture
    is the sum over them with `strata_weights`. The density is that of the whole mixture.

    Examples
    --------
    >>> pose = StratifiedMixture(torch.zeros(5, 2), torch.randn(5, 2, 2))
    >>> draws = pose.rsample()
    >>> draws.shape, (pose.strata_weights * draws[..., 0]).sum(0).shape
    (torch.Size([2, 5, 2]), torch.Size([5]))
    """

    has_rsample = True

    def __init__(
        self,
        logits: Float[Tensor, "*batch components"],
        concentrations: Float[Tensor, "*batch components dim"],
    ) -> None:
        super().__init__(logits, concentrations)
        self._batch_shape = torch.Size([logits.shape[-1], *logits.shape[:-1]])

    def expand(self, batch_shape: _size, _instance: None = None) -> "StratifiedMixture":
        """The same mixture repeated over a larger batch, (components, *batch)."""
        return super().expand(batch_shape[1:])

    def rsample(self, sample_shape: _size = ()) -> Float[Tensor, "... dim"]:
        """One direction from each component."""
        return self.components.rsample(sample_shape).movedim(-2, len(sample_shape))

    def sample(self, sample_shape: _size = ()) -> Float[Tensor, "... dim"]:
        """One direction from each component, without a gradient."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    @property
    def strata_weights(self) -> Float[Tensor, "components *batch"]:
        """The weight of each draw in an expectation."""
        return self.weights.movedim(-1, 0)
