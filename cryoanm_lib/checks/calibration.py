"""Are error bars honest?  Ranks and coverage of the truth among posterior draws, for many simulated images.

If latents are drawn from the prior, an image from the model and draws from the exact posterior of that image,
then the truth and the draws are exchangeable: any function of them that treats all alike ranks the truth
uniformly (simulation-based calibration, SBC).
"""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import scipy  # loads its parts where they are first used
import torch
from jaxtyping import Float
from torch import Tensor

from cryoanm_lib.imaging.latents import POSES

#: Levels at which coverage is quoted.
LEVELS = (0.5, 0.8, 0.95)


@runtime_checkable
class Posterior(Protocol):
    """What can be calibrated: `ExactPosterior`, `RefinedPosterior`, `GuidePosterior`, of so many images.

    Latents are drawn for each image; there is a log-density of one set of them for each draw and image.
    """

    def __len__(self) -> int: ...

    def sample(
        self, count: int, generator: torch.Generator | None = None
    ) -> dict[str, Float[Tensor, "draws images ..."]]: ...

    def log_density(self, latents: Mapping[str, Tensor]) -> Float[Tensor, "draws images"]: ...


def ranks(
    draws: Mapping[str, Tensor], truth: Mapping[str, Tensor]
) -> dict[str, Float[Tensor, "images columns"]]:
    """Share of draws below the truth, for each latent: uniform on 0, 1/S, …, 1 if the posterior is exact.

    A circle has no below. The pose is measured from the mean direction of draws and truth together, which
    treats them alike, and cut on the far side of it. In space it is the rotation vector from their mean about
    the three axes of the detector.

    Parameters
    ----------
    draws, truth : mapping of str to Tensor
        (draws, images, …), as of `Posterior.sample`, and (images, …); latents not drawn are ignored.
    """
    found = {}
    for name, drawn in draws.items():
        true = truth[name]
        if name == "pose":
            pose = POSES["plane" if true.shape[-1] == 2 else "space"].manifold
            together = torch.cat([drawn, true[None]]).movedim(0, -2)
            middle = pose.point(pose.mean(together, torch.ones_like(together[..., 0])))
            drawn, true = (pose.offset(pose.point(value), middle) for value in (drawn, true))
        share = (drawn < true).double().mean(0)
        found[name] = share if share.ndim > 1 else share[:, None]
    return found


def uniformity(
    values: Float[Tensor, "images"], n_draws: int | None = None, generator: torch.Generator | None = None
) -> float:
    """p-value of the Kolmogorov-Smirnov test that values are uniform; ranks are spread over their own step.

    Parameters
    ----------
    values : Float[Tensor, "images"]
        p-values, or ranks: shares of draws below the truth.
    n_draws : int, optional
        Number of draws S, of which a rank takes one of S + 1 values; none for p-values.
    generator : torch.Generator, optional
        Spreads the ranks.

    Examples
    --------
    >>> honest = torch.arange(101).repeat(3) / 100
    >>> uniformity(honest, 100) > 0.5, uniformity(0.5 * honest, 100) < 1e-6
    (True, True)
    """
    values = values.cpu()
    if n_draws is not None:
        spread = torch.rand(values.shape, generator=generator, dtype=torch.float64, device="cpu")
        values = (n_draws * values + spread) / (n_draws + 1)
    return float(scipy.stats.kstest(values.numpy(), "uniform").pvalue)


def credible_level(
    posterior: Posterior, draws: Mapping[str, Tensor], truth: Mapping[str, Tensor]
) -> Float[Tensor, "images"]:
    """Share of draws that are denser than the truth: the smallest region of all latents that holds it.

    Draws (draws, images, …) are the posterior's own; the truth is (images, …).
    """
    at_truth = posterior.log_density({name: truth[name][None] for name in draws})
    return (posterior.log_density(draws) > at_truth).double().mean(0)


def central_level(rank: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """The smallest central interval, or arc about the mean direction, that holds the truth, from its rank.

    Examples
    --------
    >>> central_level(torch.tensor([0.5, 0.25, 1.0]))
    tensor([0.0000, 0.5000, 1.0000])
    """
    return (2 * rank - 1).abs()


def coverage(level: Float[Tensor, "images"], nominal: float, n_draws: int) -> float:
    """Share of images whose truth lies within their credible region of a nominal level.

    The truth is inside if fewer than nominal (S + 1) of the S draws are ahead of it. For an honest posterior
    that happens with exactly the nominal probability where the number is whole, and even for a central
    interval: S = 199 is good for all `LEVELS`.

    Parameters
    ----------
    level : Float[Tensor, "images"]
        Share of draws that are ahead of the truth, as of `credible_level`.
    nominal, n_draws : float, int
        Level of the region, and S.

    Examples
    --------
    >>> coverage(torch.arange(100) / 99, 0.8, n_draws=99)
    0.8
    """
    ahead = (level * n_draws).round()
    return (ahead < nominal * (n_draws + 1) - 1e-9).double().mean().item()


def coverage_band(
    n_images: int, nominal: Float[Tensor, "levels"], probability: float = 0.95
) -> Float[Tensor, "levels 2"]:
    """Between which values the coverage of an honest posterior lies at each level, with a probability.

    Parameters
    ----------
    n_images, nominal : int, Float[Tensor, "levels"]
        Images that it is counted over, and levels.
    probability : float
        Of each value alone to lie within, by the binomial distribution.
    """
    tail = (1 - probability) / 2
    ends = [scipy.stats.binom.ppf(q, n_images, nominal.numpy()) / n_images for q in (tail, 1 - tail)]
    return torch.stack([torch.as_tensor(end) for end in ends], dim=-1)
