"""The error of a reference structure outside the span of its modes, from all images at once."""

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from cryoanm_lib.checks.predictive import chi_square_tail, standard_residual
from cryoanm_lib.errors import CryoANMError
from cryoanm_lib.imaging.latents import Values
from cryoanm_lib.inference.displacement import pull_back, push_forward
from cryoanm_lib.inference.refinement import RefinedPosterior
from cryoanm_lib.particles.particles import require_cpu
from cryoanm_lib.program.gauss_newton import tangent

#: Draws from the posterior of each image.
_DRAWS = 4
#: Å, root mean square, that displacements may have before images are seen: the least, the most, and steps.
_LEAST, _MOST, _TRIED = 1e-4, 10.0, 400

# Images at once, whose slopes take memory.
_IMAGES = 50


@dataclass(frozen=True, eq=False)
class ReferenceStatistics:
    """All that some images say of a displacement, to second order: sums, which add up over batches.

    Attributes
    ----------
    slope : Float64[Tensor, "directions"]
        g = Σ_i s_i, of log p(images) by the amplitudes of the directions.
    information : Float64[Tensor, "directions directions"]
        H, minus its expected second derivatives.
    squares : Float64[Tensor, "directions directions"]
        Σ_i s_i s_iᵀ, whose mean is H where the model is right.
    images : int
        How many.
    """

    slope: Float64[Tensor, "directions"]
    information: Float64[Tensor, "directions directions"]
    squares: Float64[Tensor, "directions directions"]
    images: int

    @classmethod
    def nothing(cls, count: int) -> "ReferenceStatistics":
        """Of no image."""
        square = torch.zeros(count, count).double()
        return cls(square.sum(0), square, square, 0)

    def __add__(self, others: "ReferenceStatistics") -> "ReferenceStatistics":
        return ReferenceStatistics(
            self.slope + others.slope,
            self.information + others.information,
            self.squares + others.squares,
            self.images + others.images,
        )


@torch.no_grad()
def reference_statistics(
    posterior: RefinedPosterior,
    directions: Float64[Tensor, "directions atoms 3"],
    generator: torch.Generator | None = None,
) -> ReferenceStatistics:
    """What images say of a displacement u = Σ_j c_j B_j of all atoms, whatever their own latents are.

    With U the derivative of the whitened prediction of image i by c, ψ a draw from its posterior and r its
    residual, the slope of log p(image) by c is (Fisher's identity)

        s_i = E_ψ Uᵀ r(ψ).

    Its mean over images is 0 where the model is right, however wide the posteriors are; at their peaks it
    need not be. With J the derivative by the latents and P the curvature of their prior, the information is
    what the latents leave,

        H_i = Uᵀ U - Uᵀ J (Jᵀ J + P)⁻¹ Jᵀ U,

    at the mean of each posterior (Louis 1982, for Gaussian ones).

    Parameters
    ----------
    posterior : RefinedPosterior
        Of a model, images with the latents that are given, and K.
    directions : Float64[Tensor, "directions atoms 3"]
        B, in the molecule's frame.
    generator : torch.Generator, optional
        Source of draws.
    """
    require_cpu(posterior.particles)
    count = len(directions)
    slope, (information, squares) = torch.zeros(count).double(), torch.zeros(2, count, count).double()
    draws, mean = posterior.sample(_DRAWS, generator), posterior.mean()
    for some in torch.arange(len(posterior)).split(_IMAGES):
        here = posterior[some]
        at = {name: value[some] for name, value in mean.items()}
        fitted = tangent(here.model, here.particles, at, here.resolution)
        moved = push_forward(here.model, here.particles, at, directions, here.resolution)
        shared = (moved @ fitted.jacobian.transpose(1, 2)).double()
        each = _slopes(here, {n: value[:, some] for n, value in draws.items()}, at, directions, shared)
        of_latents = torch.linalg.solve(fitted.precision, shared.transpose(1, 2))
        own = moved.transpose(0, 1).flatten(1)
        slope += each.sum(0)
        information += (own @ own.T).double() - (shared @ of_latents).sum(0)
        squares += each.T @ each
    return ReferenceStatistics(slope, information, squares, len(posterior))


def _slopes(
    posterior: RefinedPosterior,
    draws: Values,
    mean: Values,
    directions: Float64[Tensor, "directions atoms 3"],
    shared: Float64[Tensor, "images directions columns"],
) -> Float64[Tensor, "images directions"]:
    """s_i from draws ψ, of each of which Uᵀ r is -Uᵀ J (ψ - mean) to first order, whose mean is known: 0."""
    model, particles, unknowns = posterior.model, posterior.particles, posterior.model.unknowns
    middle, slope = unknowns.points(mean).double(), torch.zeros(shared.shape[:2]).double()
    for number in range(_DRAWS):
        at = {name: value[number] for name, value in draws.items()}
        left = standard_residual(model, particles, at, posterior.resolution)
        back = pull_back(model, particles, at, left, posterior.resolution)
        away = unknowns.offset(unknowns.points(at).double(), middle)
        # the mean of draws that were weighed is not that of the mixture
        away = away.masked_fill(posterior.weighed[:, None], 0.0)
        slope += back.flatten(1) @ directions.flatten(1).T + (shared @ away[..., None])[..., 0]
    return slope / _DRAWS


@dataclass(frozen=True, eq=False)
class ReferenceEstimate:
    """A displacement of all atoms, and how surely it is known.

    Attributes
    ----------
    amplitudes, covariance : Float64[Tensor, "directions"], Float64[Tensor, "directions directions"]
        Mean and covariance of c in Å over all atoms.
    spread : float
        τ in Å, root mean square over atoms, that makes the images most likely; 0 where that is none.
    gain : float
        Nats by which they are more likely by that τ than without a displacement.
    p_value : float
        How often χ² against no displacement would be as large by chance.
    """

    amplitudes: Float64[Tensor, "directions"]
    covariance: Float64[Tensor, "directions directions"]
    spread: float
    gain: float
    p_value: float


def reference_error(
    seen: ReferenceStatistics, at: Float64[Tensor, "directions"], scales: Float64[Tensor, "directions"]
) -> ReferenceEstimate:
    """The displacement that images and the elastic energy agree upon.

    About the c of the statistics, log p(images) is gᵀ (c - at) - (c - at)ᵀ H (c - at) / 2, and a priori
    c_j ~ N(0, τ² s_j²), where s_j² falls as 1 / λ_j. The evidence of each τ is known in closed form; mean and
    covariance are averages over τ, which is uniform a priori, so that they pay for not knowing it.

    Parameters
    ----------
    seen : ReferenceStatistics
        Of all images, by a model whose reference is displaced already.
    at : Float64[Tensor, "directions"]
        By c = at.
    scales : Float64[Tensor, "directions"]
        s_j, deviations in Å over all atoms of a displacement of 1 Å root mean square.

    Raises
    ------
    CryoANMError
        If there is no image, or images say nothing of any direction.
    """
    information = scales[:, None] * seen.information * scales
    h, axes = torch.linalg.eigh(0.5 * (information + information.T))
    h = h.clamp(min=0.0)
    if not h.sum() > 0:
        raise CryoANMError(f"{seen.images} images say nothing of the reference: give more, or others")
    pull = axes.T @ (scales * (seen.information @ at + seen.slope))
    tau = torch.logspace(0, 1, _TRIED, _MOST / _LEAST, dtype=torch.float64)[:, None] * _LEAST
    shrunk = tau**2 / (1 + tau**2 * h)
    log_evidence = 0.5 * (pull**2 * shrunk - torch.log1p(tau**2 * h)).sum(1)
    # Uniform in τ, on steps in its logarithm.
    share = (log_evidence + tau[:, 0].log()).softmax(0)[:, None]
    middle = (share * shrunk).sum(0)
    away = (shrunk - middle) * pull
    covariance = torch.diag(middle) + away.T @ (share * away)
    axes = scales[:, None] * axes
    best, gain = int(log_evidence.argmax()), log_evidence.max().item()
    known = h > h.max() * len(h) * torch.finfo(h.dtype).eps
    chi_square = (pull[known] ** 2 / h[known]).sum()
    return ReferenceEstimate(
        axes @ (middle * pull),
        axes @ covariance @ axes.T,
        spread=tau[best].item() if gain > 0 else 0.0,
        gain=max(gain, 0.0),
        p_value=chi_square_tail(chi_square, int(known.sum())).item(),
    )
