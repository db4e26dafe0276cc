"""How wide priors are to be, from what images say of every latent less what priors said before."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float64
from torch import Tensor

from cryoanm_lib.analysis.molecule import Molecule
from cryoanm_lib.analysis.plan import Plan
from cryoanm_lib.imaging.latents import Values
from cryoanm_lib.inference.refinement import RefinedPosterior
from cryoanm_lib.program.prior import GIVEN_POSE, OpticsPrior

#: Deviations that are expected of what else of the microscope may vary: Å, radians, Å².
OF_OPTICS = {"astigmatism": 100.0, "phase_shift": 0.2, "b_factor": 30.0}
#: Widths of a prior that are tried.
_GRID = 200


def with_widths(
    prior: OpticsPrior, posterior: RefinedPosterior, mean: Values, molecule: Molecule, plan: Plan
) -> OpticsPrior:
    """A prior as wide as the posteriors of some images, computed with it, say that it should be.

    The mean of each is given apart, as it may be about another centre.
    """
    unknowns = posterior.model.unknowns
    variance = posterior.covariance().diagonal(dim1=1, dim2=2)
    seen_of = {}
    fixed = {"pose": plan.pose != "star", "defocus": not plan.defocus_width}
    for latent in unknowns.latents:
        if fixed.get(latent.name):
            continue
        own = unknowns.of(lambda other, latent=latent: other is latent)
        value = latent.rows(mean[latent.name]).double()
        if latent.name == "pose":
            table = posterior.particles.given[GIVEN_POSE].double()
            value = latent.manifold.offset(latent.manifold.point(value), latent.manifold.point(table))
            width = value.new_full((3,), math.radians(prior.pose_width))
            middle = torch.zeros_like(width)
        else:
            middle, width = prior.moments(latent.name, unknowns.n_modes, value)
        seen_of[latent.name] = _seen(value, variance[:, own], middle, width)
    return prior.model_copy(update=_of_each(seen_of, molecule, plan))


def _seen(
    mean: Float64[Tensor, "images columns"],
    variance: Float64[Tensor, "images columns"],
    middle: Float64[Tensor, "*columns"],
    width: Float64[Tensor, "*columns"],
) -> tuple[Float64[Tensor, "images columns"], Float64[Tensor, "images columns"]]:
    """What the images alone say, and how precisely: posteriors less the prior N(middle, width²)."""
    # where a posterior is as wide as the prior, or of several peaks and wider, an image says nothing
    precision = (1 / variance - width**-2).clamp(min=1e-6 * width**-2)
    return (mean / variance - middle / width**2) / precision, precision


def prior_width(
    seen: Float64[Tensor, "numbers"],
    precision: Float64[Tensor, "numbers"],
    expected: float,
    free: bool = False,
) -> tuple[float, float]:
    """Mean and deviation of a normal prior, given what images say of so many numbers; the mean 0 unless free.

    The deviation is the root mean square of its posterior, with a half-normal prior as wide as is expected:
    the most likely one may be 0 where images say little, and this is what was expected where they say none.

    Parameters
    ----------
    seen, precision : Float64[Tensor, "numbers"]
        Middle of each image's likelihood, in any unit, and one over its variance.
    expected : float
        Deviation that is expected, in the same unit.
    free : bool
        Find the mean too.

    Returns
    -------
    tuple of float
        Mean, 0 unless it is free, and deviation.

    Examples
    --------
    >>> said = torch.linspace(-1, 1, 201).double().erfinv()[1:-1] * 2**0.5
    >>> middle, width = prior_width(2 * said, torch.full_like(said, 1e6), expected=5.0)
    >>> print(f"{middle:.1f} ± {width:.1f}")
    0.0 ± 2.0
    """
    grid = expected * torch.logspace(-2, 1, _GRID, dtype=torch.float64)
    weight = 1 / (grid[:, None].square() + 1 / precision)
    total = weight.sum(1)
    middle = (weight * seen).sum(1) / total if free else torch.zeros_like(grid)
    squared = weight * (seen - middle[:, None]).square()
    log_density = 0.5 * (weight.log() - squared).sum(1) - (0.5 * total.log() if free else 0.0)
    share = (log_density + grid.log() - 0.5 * (grid / expected).square()).softmax(0)
    return (share @ middle).item(), (share @ grid.square()).sqrt().item()


def _of_each(seen: Mapping[str, tuple[Tensor, Tensor]], molecule: Molecule, plan: Plan) -> dict[str, object]:
    """Settings of the prior; of several columns of one kind together, but of amplitudes."""
    expected = {
        "pose": math.radians(plan.pose_width),
        "shift": plan.shift_width,
        "defocus": plan.defocus_width,
        "contrast": plan.contrast_width,
        **OF_OPTICS,
    }
    found: dict[str, object] = {}
    for name, columns in seen.items():
        if name == "amplitude":
            each = zip(columns[0].T, columns[1].T, molecule.scales, strict=True)
            found["amplitude_scale"] = tuple(prior_width(*column)[1] for column in each)
            continue
        said, precision = (part.flatten() for part in columns)
        middle, width = prior_width(said, precision, expected[name], free=name in ("defocus", "contrast"))
        if name == "pose":
            found["pose_width"] = math.degrees(width)
        else:
            found[f"{name}_scale"] = width
        if name == "defocus":  # the mean of the contrast is in D
            found["defocus_mean"] = middle
    return found
