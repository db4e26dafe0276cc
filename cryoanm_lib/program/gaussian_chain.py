"""A Gaussian over several latents, drawn one after the other."""

import math
from collections.abc import Mapping

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor

#: What a latent beside the pose may be drawn from.
Gaussian = dist.Normal | dist.MultivariateNormal | dist.Independent


class GaussianChain:
    """One Gaussian N(m, L Lᵀ) over the numbers of several latents as a product of conditionals.

        q(x_1, x_2, …) = q(x_1) q(x_2 | x_1) …,    q(x_k | x_<k) = N(m_k + Σ_j<k L_kj z_j, L_kk L_kkᵀ),

    with z = L⁻¹ (x - m), so that a program can draw each latent at a site of its own and none is lost of the
    covariance between them.

    Parameters
    ----------
    mean : Float[Tensor, "*batch total"]
        m, the latents side by side.
    scale : Float[Tensor, "*batch total total"]
        L, lower triangular.
    shapes : mapping of str to tuple of int
        Shape of each latent, in order: () for a number, (n,) for a vector.

    Examples
    --------
    >>> chain = GaussianChain(torch.zeros(2), torch.tensor([[1.0, 0.0], [2.0, 0.5]]), {"a": (), "b": ()})
    >>> given = chain.conditional("b", {"a": torch.tensor(3.0)})
    >>> given.mean, given.stddev
    (tensor(6.), tensor(0.5000))
    """

    def __init__(
        self,
        mean: Float[Tensor, "*batch total"],
        scale: Float[Tensor, "*batch total total"],
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        self.mean, self.scale, self.shapes = mean, scale, shapes

    def conditional(self, name: str, drawn: Mapping[str, Tensor]) -> Gaussian:
        """The distribution of a latent, given those that come before it."""
        standard, start = self.mean[..., :0], 0
        for before, shape in self.shapes.items():
            block = slice(start, start + math.prod(shape))
            from_others = (self.scale[..., block, :start] @ standard[..., None])[..., 0]
            mean, scale = self.mean[..., block] + from_others, self.scale[..., block, block]
            if before == name:
                if shape:
                    return dist.MultivariateNormal(mean, scale_tril=scale)
                return dist.Normal(mean[..., 0], scale[..., 0, 0])
            value = drawn[before] if shape else drawn[before][..., None]
            away = torch.linalg.solve_triangular(scale, (value - mean)[..., None], upper=False)[..., 0]
            batch = torch.broadcast_shapes(standard.shape[:-1], away.shape[:-1])
            standard = torch.cat([standard.expand(*batch, -1), away.expand(*batch, -1)], dim=-1)
            start = block.stop
        raise KeyError(name)
