"""The population as few Gaussians, as many as images ask for."""

import math
from dataclasses import replace

import torch
from jaxtyping import Float64
from torch import Tensor

from cryoanm_lib.inference.likelihoods import Likelihoods
from cryoanm_lib.inference.population import Population, expected, folds, require_enough

#: Another Gaussian is taken if images that it has not seen gain by so many standard errors.
BETTER = 2.0
#: Steps of expectation and maximisation, and nats that one gains of all images together when they end.
_STEPS, _SETTLED = 400, 1e-3
#: Of what images differ by, the least that a Gaussian may be wide.
_NARROW = 1e-3


def gaussian_population(seen: Likelihoods, most: int = 5) -> Population:
    """A mixture of as many Gaussians as images that it was not learned from ask for.

    Expectation and maximisation with each image's own error (Bovy, Hogg and Roweis 2011). More Gaussians are
    taken if they make the images of each of five parts, learned from the others, more probable than fewer do
    by more than twice the standard error of that.

    Parameters
    ----------
    seen : Likelihoods
        Of all images.
    most : int
        Gaussians at most.

    Raises
    ------
    CryoANMError
        If there are fewer than ten images for each.
    """
    require_enough(seen, 10 * most)
    fold, chosen = folds(seen), 1
    before = _held_out(seen, fold, 1)
    for number in range(2, most + 1):
        after = _held_out(seen, fold, number)
        share, gain = fold / fold.sum(), after - before
        mean = (share * gain).sum()
        error = ((share * (gain - mean).square()).sum() / fold.sum()).sqrt()
        if mean > BETTER * error:
            chosen, before = number, after
        elif number > chosen + 1:
            break  # and not at once: outliers may need one of their own before states are told
    return gaussians(seen, chosen)


def _held_out(
    seen: Likelihoods, fold: Float64[Tensor, "folds images"], number: int
) -> Float64[Tensor, "folds images"]:
    """Log-evidence of each image under so many Gaussians that were learned without each of the parts."""
    rest = [replace(seen, count=seen.count - part) for part in fold]
    return torch.stack([gaussians(other, number).log_evidence(seen) for other in rest])


def gaussians(seen: Likelihoods, count: int) -> Population:
    """The most likely mixture of so many Gaussians, begun along the line on which images differ most."""
    # those that know nothing may say anything
    error = seen.covariance.diagonal(dim1=1, dim2=2).sum(1)
    share = seen.count / (1 + error / error.median().clamp(min=torch.finfo(error.dtype).tiny))
    away = seen.mean - (share @ seen.mean) / share.sum()
    spread = away.T @ (share[:, None] * away) / share.sum()
    along = away @ torch.linalg.eigh(spread).eigenvectors[:, -1]
    order = along.argsort()
    # as many images in each
    upto = seen.count[order].cumsum(0) - 0.5 * seen.count[order]
    part = torch.empty_like(order)
    part[order] = (upto * count / seen.count.sum()).long().clamp(max=count - 1)
    weight = share[:, None] * torch.nn.functional.one_hot(part, count)
    mean = (weight.T @ seen.mean) / weight.sum(0)[:, None]
    even = torch.full((count,), 1 / count, dtype=torch.float64)
    narrow = _NARROW**2 * torch.diag(spread.diagonal())
    found = Population(even, mean, (spread / count**2 + narrow).expand(count, -1, -1))
    evidence = -math.inf
    for _ in range(_STEPS):
        before, evidence = evidence, (seen.count @ found.log_evidence(seen)).item()
        if evidence - before < _SETTLED:
            break
        share, at, covariance = expected(seen, found)
        share = seen.count[:, None] * share
        total = share.sum(0)
        mean = (share[..., None] * at).sum(0) / total[:, None]
        away = at - mean
        every = covariance + away[..., None] * away[..., None, :]
        wide = (share[..., None, None] * every).sum(0) / total[:, None, None] + narrow
        found = Population(total / seen.count.sum(), mean, wide)
    return found
