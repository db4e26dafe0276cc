"""From a guide's guess to the posterior of each image: peaks climbed and weighed, and their shape checked."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cryoanm_lib.checks.predictive import explained_p_value
from cryoanm_lib.imaging.latents import Values
from cryoanm_lib.imaging.unknowns import Unknowns
from cryoanm_lib.inference.amortised import propose
from cryoanm_lib.inference.gaussian_mixture import GaussianMixture
from cryoanm_lib.inference.peak_finding import Peaks, Search, Starts, distinct, march, with_reversed_bends
from cryoanm_lib.numerics.per_image_rng import PerImageRNG
from cryoanm_lib.particles.particles import Particles, require_images
from cryoanm_lib.program.log_joint import log_joint
from cryoanm_lib.program.program import Guide, Model

#: Draws that check the shape of a posterior, and the effective share of them that passes.
CHECK_DRAWS, GOOD_SHARE = 12, 0.97

#: Draws an adaptive round, rounds at most, and the effective share that ends them.
ROUND_DRAWS, ROUNDS, ENOUGH_SHARE = 256, 5, 0.6

#: An image whose best peak leaves a residual as improbable as this has not been explained.
SUSPICIOUS = 1e-4

# Adaptive rounds propose some draws from further out, so that a tail that is too thin shows.
_WIDENED, _WIDENED_SHARE = 2.5, 0.15

# Candidates for each draw from a posterior that is weighed.
_CANDIDATES = 4


@dataclass(frozen=True, eq=False)
class RefinedPosterior:
    """Posterior of a batch of images: a mixture of Gaussians each, and weights where that is not enough.

    Draws follow the weights where an image is weighed; density, mean and covariance are the mixture's.

    Attributes
    ----------
    model, particles, resolution : Model, Particles, int
        Whose posterior it is.
    mixture : GaussianMixture
        One component a peak.
    log_evidence : Float[Tensor, "images"]
        log p(image), the latents integrated out, by the importance weights of the draws that check.
    ess_fraction : Float[Tensor, "images"]
        Effective sample size of draws from the mixture, as a share of their number: 1 where it is exact.
    weighed : Bool[Tensor, "images"]
        Where draws are picked by their importance weights, because the Gaussians did not pass the check.
    surprise : Float[Tensor, "images"]
        How probable a residual as large as that of the best peak would be if the model were right.
    """

    model: Model
    particles: Particles
    resolution: int
    mixture: GaussianMixture
    log_evidence: Float[Tensor, "images"]
    ess_fraction: Float[Tensor, "images"]
    weighed: Bool[Tensor, "images"]
    surprise: Float[Tensor, "images"]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.log_evidence)

    @property
    def explained(self) -> Bool[Tensor, "images"]:
        """Where the best peak leaves no more than noise; elsewhere the answer must not be trusted."""
        return self.surprise >= SUSPICIOUS

    def __getitem__(self, which: Tensor) -> "RefinedPosterior":
        parts = (self.log_evidence, self.ess_fraction, self.weighed, self.surprise)
        return RefinedPosterior(
            *(self.model, self.particles[which], self.resolution, self.mixture[which]),
            *(part[which] for part in parts),
        )

    def beside(self, model: Model, particles: Particles) -> "RefinedPosterior":
        """The same where the same model and images are: on another device, as a rule."""
        parts = (self.log_evidence, self.ess_fraction, self.weighed, self.surprise)
        return RefinedPosterior(
            *(model, particles, self.resolution, self.mixture.to(model.device)),
            *(part.to(model.device) for part in parts),
        )

    def with_images(self, which: Tensor, others: "RefinedPosterior") -> "RefinedPosterior":
        """The same, some images' posteriors replaced."""
        changed: dict[str, Any] = {"mixture": self.mixture.with_images(which, others.mixture)}
        for name in ("log_evidence", "ess_fraction", "weighed", "surprise"):
            changed[name] = getattr(self, name).clone()
            changed[name][which] = getattr(others, name)
        return replace(self, **changed)

    @torch.no_grad()
    def sample(
        self, count: int, generator: torch.Generator | None = None
    ) -> dict[str, Float[Tensor, "draws images ..."]]:
        """Draws for each image."""
        streams = PerImageRNG.of(len(self), generator, self.model.device)
        values = self.mixture.sample(count, streams)
        if self.weighed.any():
            values[:, self.weighed] = self[self.weighed]._picked(count, streams[self.weighed])
        latents = self.mixture.unknowns.values(values)
        return {name: value.to(self.model.forward_model.reference) for name, value in latents.items()}

    def _picked(self, count: int, streams: PerImageRNG) -> Float[Tensor, "draws images width"]:
        """Of several candidates for each draw, one by its importance weight."""
        values, log_weight = self._weighed_draws(max(_CANDIDATES * count, ROUND_DRAWS), streams)
        reached = log_weight.softmax(0).cumsum(0).T.contiguous()
        uniform = streams.uniform(count) * reached[:, -1:]
        picked = torch.searchsorted(reached, uniform).clamp(max=len(values) - 1).T
        return values.gather(0, picked[..., None].expand(-1, -1, values.shape[-1]))

    def _weighed_draws(
        self, count: int, streams: PerImageRNG
    ) -> tuple[Float[Tensor, "draws images width"], Float[Tensor, "draws images"]]:
        """Draws from a somewhat wider mixture, with the logarithms of their importance weights."""
        proposal = self.mixture.widened(_WIDENED, _WIDENED_SHARE)
        values = proposal.sample(count, streams)
        return values, self._log_joint(values) - proposal.log_density(values)

    def _judged_by(self, log_weight: Float[Tensor, "draws images"]) -> "RefinedPosterior":
        """With the evidence and the effective share that importance weights give."""
        evidence = log_weight.logsumexp(0) - math.log(len(log_weight))
        return replace(self, log_evidence=evidence, ess_fraction=ess_fraction(log_weight))

    def _log_joint(self, values: Float[Tensor, "draws images width"]) -> Float[Tensor, "draws images"]:
        """log p(image, latents) at points."""
        latents = self.mixture.unknowns.values(values.to(self.model.forward_model.reference))
        return log_joint(self.model, self.particles, latents, self.resolution)

    def log_density(self, latents: Values) -> Float[Tensor, "draws images"]:
        """Log-density of the mixture, by which coverage is judged: where a peak was missed there is none."""
        return self.mixture.log_density(self.mixture.unknowns.points(latents).double())

    def mean(self) -> dict[str, Float[Tensor, "images ..."]]:
        """Mean of each latent under the mixture; of the pose the mean direction or rotation."""
        weight, middles = self.mixture.log_weight.exp(), self.mixture.unknowns.values(self.mixture.centre)
        return {
            latent.name: latent.unrows(latent.manifold.mean(latent.rows(middles[latent.name]), weight))
            for latent in self.mixture.unknowns.latents
        }

    def covariance(self) -> Float[Tensor, "images columns columns"]:
        """Covariance of the mixture in steps from the heaviest component of each image."""
        mixture, weight = self.mixture, self.mixture.log_weight.exp()
        leading = mixture.centre[torch.arange(len(self), device=weight.device), weight.argmax(1)]
        away = mixture.unknowns.offset(mixture.centre, leading[:, None])
        mean = torch.einsum("ic,ica->ia", weight, away)
        within = torch.einsum("ic,icab->iab", weight, mixture.covariance)
        between = torch.einsum("ic,ica,icb->iab", weight, away, away)
        return within + between - mean[:, :, None] * mean[:, None, :]

    def standardised(self, truth: Values) -> Float[Tensor, "images columns"]:
        """How far the truth is from the mean along every column, in the posterior's deviations."""
        unknowns = self.mixture.unknowns
        mean, true = (unknowns.points(found).double() for found in (self.mean(), truth))
        return unknowns.offset(true, mean) / self.covariance().diagonal(dim1=1, dim2=2).sqrt()


@torch.no_grad()
def refine(
    model: Model,
    particles: Particles,
    resolution: int,
    starts: Starts | Guide,
    search: Search | None = None,
    generator: torch.Generator | None = None,
    good_share: float = GOOD_SHARE,
    group: Float[Tensor, "turns 4"] | None = None,
) -> RefinedPosterior:
    """The posterior of each image, from where somebody thinks that its peaks are.

    Every start is climbed at rising resolution. If there is a wide search, what it sees beside the peaks that
    were found is climbed too; then the highest of each image once more with its bends reversed. Each peak
    becomes a Gaussian with the curvature at its top, weighed by its evidence. Then draws check the shape:
    where they are worth less than `good_share` of their number, the mixture is moved to the moments of its
    weighted draws, round by round, until these are worth `ENOUGH_SHARE` or no more than the round before, and
    what is drawn from it afterwards is picked by weight.

    Parameters
    ----------
    model, particles, resolution : Model, Particles, int
        What made which images, with latents that are given of each, and K.
    starts : Starts or Guide
        Points to climb from, at least one an image, or a guide that proposes them.
    search : LatticeSearch or SO3Search, optional
        Looks for what the starts have missed. Without it nothing does: then `explained` tells a wrong peak
        from a right one where there is enough signal, and where there is little, nothing can.
    generator : torch.Generator, optional
        Source of the draws that check.
    good_share : float
        Worth of the draws below which the mixture is changed; 0 leaves Gaussians as they are, which is some
        ten times as fast.
    group : Float[Tensor, "turns 4"], optional
        Turns after which the molecule looks the same, as of `point_group`: of equivalent poses the posterior
        has one.

    Raises
    ------
    CryoANMError
        If there is no image, one is not finite, they are not on the model's device, or the defocus is too
        high for the box.
    """
    require_images(particles, model.device)
    model.check_given(particles.given, resolution)
    unknowns = model.unknowns
    if isinstance(starts, Guide):
        starts = Starts.of_each(unknowns.points(propose(starts, particles, resolution)))
    starts = starts.to(model.device)
    peaks = march(model, particles, starts, resolution, group=group)
    if search is not None and len(missed := search.starts(particles, peaks)):
        more = march(model, particles, missed, resolution, search.resolution, group)
        peaks = distinct(peaks.joined(more), unknowns, len(particles), group)
    peaks = with_reversed_bends(model, particles, peaks, resolution, group)
    mixture = _mixture_of(peaks, unknowns, len(particles))
    highest = unknowns.values(mixture.centre[:, 0].to(model.forward_model.reference))
    surprise = explained_p_value(model, particles, highest, resolution)
    nothing = torch.zeros_like(surprise)
    posterior = RefinedPosterior(
        *(model, particles, resolution, mixture, nothing, nothing, nothing.bool(), surprise)
    )
    streams = PerImageRNG.of(len(particles), generator, model.device)
    values = mixture.sample(CHECK_DRAWS, streams)
    posterior = posterior._judged_by(posterior._log_joint(values) - mixture.log_density(values))
    poor = posterior.ess_fraction < good_share
    return posterior.with_images(poor, _adapted(posterior[poor], streams[poor])) if poor.any() else posterior


def _mixture_of(peaks: Peaks, unknowns: Unknowns, n_images: int) -> GaussianMixture:
    """The peaks of each image as a mixture, the highest first, weighed by their evidence."""
    rank = peaks.rank
    shape, columns = (n_images, int(rank.max()) + 1), peaks.precision.shape[-1]
    log_share = peaks.log_joint.new_full(shape, -math.inf)
    log_share[peaks.image, rank] = peaks.log_evidence
    # Where an image has fewer peaks than the most, its first one stands with no weight.
    centre = peaks.points[peaks.first(n_images)][:, None].repeat(1, shape[1], 1)
    centre[peaks.image, rank] = peaks.points
    scale = torch.eye(columns, dtype=centre.dtype, device=centre.device).repeat(*shape, 1, 1)
    covariance = torch.linalg.inv(peaks.precision)
    scale[peaks.image, rank] = torch.linalg.cholesky(0.5 * (covariance + covariance.transpose(1, 2)))
    return GaussianMixture(unknowns, log_share.log_softmax(1), centre, scale)


def _adapted(posterior: RefinedPosterior, streams: PerImageRNG) -> RefinedPosterior:
    """Each mixture at the moments of its weighted draws, as long as more of them count each round."""
    best = replace(
        posterior,
        ess_fraction=torch.zeros_like(posterior.ess_fraction),
        weighed=torch.ones_like(posterior.weighed),
    )
    pending, trial = torch.arange(len(best), device=best.weighed.device), best
    chosen = torch.zeros_like(best.weighed)
    for _ in range(ROUNDS):
        values, log_weight = trial._weighed_draws(ROUND_DRAWS, streams[pending])
        trial = trial._judged_by(log_weight)
        better = trial.ess_fraction > best.ess_fraction[pending]
        best = best.with_images(pending[better], trial[better])
        go_on = better & (trial.ess_fraction < ENOUGH_SHARE)
        if not go_on.any():
            break
        pending, trial = pending[go_on], trial[go_on]
        chosen[pending] = True
        trial = replace(trial, mixture=trial.mixture.refitted(values[:, go_on], log_weight[:, go_on]))
    # The draws that chose among mixtures flatter the best: others say what it is worth.
    if not chosen.any():
        return best
    judged = best[chosen]
    return best.with_images(chosen, judged._judged_by(judged._weighed_draws(ROUND_DRAWS, streams[chosen])[1]))


def ess_fraction(log_weight: Float[Tensor, "draws images"]) -> Float[Tensor, "images"]:
    """Kish's effective sample size, (Σw)² / Σw², as a share of the number of draws.

    Examples
    --------
    >>> ess_fraction(torch.tensor([[0.0, 0.0], [0.0, -torch.inf]])).tolist()
    [1.0, 0.5]
    """
    return (2 * log_weight.logsumexp(0) - (2 * log_weight).logsumexp(0)).exp() / len(log_weight)
