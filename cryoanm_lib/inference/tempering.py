"""Draws from posteriors that are no mixture of Gaussians: a population led there through tempered ones."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from cryoanm_lib.errors import CryoANMError
from cryoanm_lib.imaging.latents import Values
from cryoanm_lib.inference.gaussian_mixture import GaussianMixture
from cryoanm_lib.inference.refinement import ess_fraction
from cryoanm_lib.numerics.batching import many
from cryoanm_lib.numerics.per_image_rng import PerImageRNG
from cryoanm_lib.particles.particles import Particles, require_images
from cryoanm_lib.program.log_joint import log_joint
from cryoanm_lib.program.program import Model

#: Effective share of the draws that a step of the temperature leaves.
_KEPT = 0.5
#: Share of proposals that go the whole way from one draw to another, and so from one peak to another.
_LEAPS = 0.1
# Images at once, whose draws take memory; halvings that find the next temperature.
_IMAGES, _HALVINGS = 50, 40


@dataclass(frozen=True, eq=False)
class DrawnPosterior:
    """Posterior of a batch of images as draws of equal weight.

    Attributes
    ----------
    model, particles, resolution : Model, Particles, int
        Whose posterior it is.
    points : Float64[Tensor, "draws images width"]
        Points of the model's `Unknowns`.
    log_evidence : Float64[Tensor, "images"]
        log p(image).
    acceptance : Float64[Tensor, "images"]
        Share of draws that a move took elsewhere, at the temperature where that was least: with a hundredth
        or less, draws may not have spread.
    """

    model: Model
    particles: Particles
    resolution: int
    points: Float64[Tensor, "draws images width"]
    log_evidence: Float64[Tensor, "images"]
    acceptance: Float64[Tensor, "images"]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.log_evidence)

    def sample(
        self, count: int, generator: torch.Generator | None = None
    ) -> dict[str, Float[Tensor, "draws images ..."]]:
        """So many of the draws, each taken once.

        Raises
        ------
        CryoANMError
            If there are not so many.
        """
        if count > len(self.points):
            raise CryoANMError(f"count = {count} is more than the {len(self.points)} draws that there are")
        chosen = torch.randperm(len(self.points), generator=generator, device="cpu")[:count]
        values = self.model.unknowns.values(self.points[chosen.to(self.points.device)])
        return {name: value.to(self.model.forward_model.reference) for name, value in values.items()}

    def log_density(self, latents: Values) -> Float[Tensor, "draws images"]:
        """log p(image, latents), by which coverage is judged; the evidence is no part of it."""
        like = self.model.forward_model.reference
        latents = {name: latents[name].to(like) for name in self.model.inferred}
        return log_joint(self.model, self.particles, latents, self.resolution)

    def mean(self) -> dict[str, Float[Tensor, "images ..."]]:
        """Mean of each latent; of the pose the mean direction or rotation."""
        values = self.model.unknowns.values(self.points.transpose(0, 1))
        weight = self.points.new_full(self.points.shape[1::-1], 1 / len(self.points))
        return {
            latent.name: latent.unrows(latent.manifold.mean(latent.rows(values[latent.name]), weight))
            for latent in self.model.unknowns.latents
        }

    def covariance(self) -> Float64[Tensor, "images columns columns"]:
        """Covariance of the steps from the mean."""
        unknowns = self.model.unknowns
        away = unknowns.offset(self.points, unknowns.points(self.mean()).double())
        away = away - away.mean(0)
        return torch.einsum("sia,sib->iab", away, away) / (len(away) - 1)

    def standardised(self, truth: Values) -> Float[Tensor, "images columns"]:
        """How far the truth is from the mean along every column, in the posterior's deviations."""
        unknowns = self.model.unknowns
        mean, true = (unknowns.points(found).double() for found in (self.mean(), truth))
        return unknowns.offset(true, mean) / self.covariance().diagonal(dim1=1, dim2=2).sqrt()


def prior_about(
    model: Model, n_images: int, pose: Float[Tensor, "images dim"] | None = None, deviation: float = 0.0
) -> GaussianMixture:
    """Where to start from: the prior of each latent but the pose, and poses about some that are known.

    Parameters
    ----------
    model, n_images : Model, int
        What infers the latents of how many images.
    pose, deviation : Float[Tensor, "images dim"], float
        Where the pose is inferred: about which one, and how far in radians about every axis. Peaks that are
        further away are not found.

    Raises
    ------
    CryoANMError
        If the pose is inferred and none is given, or the deviation is not positive or beyond half a turn.
    """
    unknowns, like = model.unknowns, model.forward_model.reference.new_zeros(1, dtype=torch.float64)
    if "pose" in unknowns.names and (pose is None or not 0 < deviation <= math.pi):
        raise CryoANMError(
            f"the pose is inferred, and deviation = {deviation:g}: say about which pose, and how far in "
            "radians, above 0 and at most π"
        )
    means = model.prior.means(n_images, unknowns.n_modes, like)
    points = unknowns.points({**means, **({} if pose is None else {"pose": pose.to(like)})})
    spread = [
        like.new_full((sum(name == "pose" for name in unknowns.columns),), deviation)
        if latent.name == "pose"
        else model.prior.moments(latent.name, unknowns.n_modes, like)[1]
        for latent in unknowns.latents
    ]
    scale = torch.diag(torch.cat(spread)).expand(n_images, 1, -1, -1)
    return GaussianMixture(unknowns, points.new_zeros(n_images, 1), points[:, None], scale)


@torch.no_grad()
def temper(
    model: Model,
    particles: Particles,
    resolution: int,
    start: GaussianMixture,
    draws: int = 256,
    moves: int = 8,
    generator: torch.Generator | None = None,
) -> DrawnPosterior:
    """The posterior of each image by a sequential Monte Carlo sampler (Del Moral et al. 2006).

    Draws from q₀ become draws from q₀^(1-β) p(image, latents)^β as β rises from 0 to 1, by steps that leave
    half of the effective draws. Each time they are resampled by weight and moved by differential evolution
    (ter Braak 2006): by a difference of two draws from the other half of the population, which has the shape
    of the posterior whatever that is. At low signal, where a mixture of Gaussians is no good, it takes some
    hundred times as many evaluations as `refine` and asks for no shape.

    Parameters
    ----------
    model, particles, resolution : Model, Particles, int
        What made which images, with latents that are given of each, and K.
    start : GaussianMixture
        q₀, wider than the posterior: `prior_about`, or the mixture of a `RefinedPosterior`, widened.
    draws, moves : int, int
        How many draws, an even number, and how often each is moved at every temperature.
    generator : torch.Generator, optional
        Source of all random numbers; an image has the same whatever images it stands among.

    Raises
    ------
    CryoANMError
        If there are fewer draws than make differences in all directions, an odd number, no move, images that
        `refine` would refuse, or one whose posterior no draw leads to.
    """
    columns = len(model.unknowns.columns)
    if draws % 2 or draws < 4 * columns or moves < 1:
        raise CryoANMError(
            f"draws = {draws} and moves = {moves} are not usable: it takes an even number of draws, at least "
            f"{4 * columns} for {columns} unknown numbers, and one move"
        )
    require_images(particles, model.device)
    model.check_given(particles.given, resolution)
    streams = PerImageRNG.of(len(particles), generator, model.device)
    parts = []
    for some in torch.arange(len(particles), device=model.device).split(many(_IMAGES, model.device)):
        chosen = (particles[some], resolution, start[some], streams[some])
        population = _Population(model, *chosen, draws, some)
        while len(pending := torch.nonzero(population.beta < 1)[:, 0]):
            population.step(pending, moves)
        parts.append(population)
    return DrawnPosterior(
        *(model, particles, resolution),
        torch.cat([part.points for part in parts], dim=1),
        torch.cat([part.log_evidence for part in parts]),
        torch.cat([part.acceptance for part in parts]),
    )


class _Population:
    """Draws for some images, each image at a temperature of its own."""

    def __init__(
        self,
        model: Model,
        particles: Particles,
        resolution: int,
        start: GaussianMixture,
        streams: PerImageRNG,
        draws: int,
        numbers: Tensor,
    ) -> None:
        self.numbers = numbers
        self.model, self.particles, self.resolution = model, particles, resolution
        self.start, self.streams = start, streams
        self.points = start.sample(draws, streams)
        every = torch.arange(len(particles), device=self.points.device)
        self.log_start, self.log_joint = self._heights(self.points, every)
        self.beta = self.points.new_zeros(len(particles))
        self.log_evidence = torch.zeros_like(self.beta)
        self.acceptance = torch.ones_like(self.beta)

    def step(self, which: Tensor, moves: int) -> None:
        """Raise β of some images, resample their draws, and move them."""
        ratio = self.log_joint[:, which] - self.log_start[:, which]
        rise = _rise(ratio, 1 - self.beta[which])
        if len(stuck := which[rise <= 0]):
            raise CryoANMError(
                f"of {len(ratio)} draws for image {self.numbers[stuck[0]].item()} none leads to its "
                "posterior: start nearer to it, or check the scales of noise and image"
            )
        log_weight = rise * ratio
        self.log_evidence[which] += log_weight.logsumexp(0) - math.log(len(ratio))
        # 1 exactly at the end, so that no rounding asks for one more step
        reached = torch.where(rise < 1 - self.beta[which], self.beta[which] + rise, 1.0)
        self.beta[which] = reached
        picked = _systematic(log_weight, self.streams[which])
        width = self.points.shape[-1]
        points = self.points[:, which].gather(0, picked[..., None].expand(-1, -1, width))
        heights = [part[:, which].gather(0, picked) for part in (self.log_start, self.log_joint)]
        accepted = torch.zeros_like(self.beta[which])
        for _ in range(moves):
            points, heights, share = self._moved(points, heights, which)
            accepted += share / moves
        self.points[:, which], self.acceptance[which] = points, self.acceptance[which].minimum(accepted)
        self.log_start[:, which], self.log_joint[:, which] = heights

    def _moved(
        self, points: Float64[Tensor, "draws images width"], heights: list[Tensor], which: Tensor
    ) -> tuple[Float64[Tensor, "draws images width"], list[Tensor], Float64[Tensor, "images"]]:
        """Either half by differences of the other, and the share of proposals that were accepted."""
        streams, beta, accepted = self.streams[which], self.beta[which], []
        halves = list(points.chunk(2))
        levels = [list(part) for part in zip(*(height.chunk(2) for height in heights), strict=True)]
        for own in (0, 1):
            proposed = self._proposed(halves[own], halves[1 - own], streams)
            there = self._heights(proposed, which)
            gain = [new - old for new, old in zip(there, levels[own], strict=True)]
            log_ratio = (1 - beta) * gain[0] + beta * gain[1]
            better = streams.uniform(len(proposed)).T.log() < log_ratio
            # between two copies of one draw there is no difference, and nothing moves
            better &= (proposed != halves[own]).any(-1)
            halves[own] = torch.where(better[..., None], proposed, halves[own])
            levels[own] = [torch.where(better, new, old) for new, old in zip(there, levels[own], strict=True)]
            accepted.append(better.double().mean(0))
        heights = [torch.cat(part) for part in zip(*levels, strict=True)]
        return torch.cat(halves), heights, torch.stack(accepted).mean(0)

    def _proposed(
        self,
        own: Float64[Tensor, "half images width"],
        other: Float64[Tensor, "half images width"],
        streams: PerImageRNG,
    ) -> Float64[Tensor, "half images width"]:
        """x + γ (a - b), with a and b two different draws of the other half."""
        half, unknowns = len(own), self.model.unknowns
        first, second, size, leap = streams.uniform(4, half).permute(1, 2, 0)
        first = (first * half).long()
        second = (first + 1 + (second * (half - 1)).long()) % half
        wide = (*first.shape, other.shape[-1])
        ends = (other.gather(0, index[..., None].expand(wide)) for index in (first, second))
        # The best length for a Gaussian, about which it is varied.
        usual = 2.38 / math.sqrt(2 * len(unknowns.columns)) * (0.5 + size)
        length = torch.where(leap < _LEAPS, 1.0, usual)
        return unknowns.moved(own, length[..., None] * unknowns.offset(*ends))

    def _heights(
        self, points: Float64[Tensor, "draws images width"], which: Tensor
    ) -> tuple[Float64[Tensor, "draws images"], Float64[Tensor, "draws images"]]:
        """log q₀ and log p(image, latents)."""
        latents = self.model.unknowns.values(points.to(self.model.forward_model.reference))
        joint = log_joint(self.model, self.particles[which], latents, self.resolution)
        # a point that no number describes is no place to be
        return self.start[which].log_density(points), joint.nan_to_num(nan=-math.inf, posinf=-math.inf)


def _rise(
    log_ratio: Float64[Tensor, "draws images"], most: Float64[Tensor, "images"]
) -> Float64[Tensor, "images"]:
    """The rise of β that leaves `_KEPT` of the draws effective, or the most."""
    low, high = torch.zeros_like(most), most.clone()
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        kept = ess_fraction(middle * log_ratio) >= _KEPT
        low, high = torch.where(kept, middle, low), torch.where(kept, high, middle)
    return torch.where(ess_fraction(most * log_ratio) >= _KEPT, most, low)


def _systematic(
    log_weight: Float64[Tensor, "draws images"], streams: PerImageRNG
) -> Int64[Tensor, "draws images"]:
    """Indices by weight, at even distances from one random number, and shuffled: copies in either half."""
    count = len(log_weight)
    reached = log_weight.softmax(0).cumsum(0).T.contiguous()
    places = (streams.uniform(1) + torch.arange(count, device=reached.device)) / count
    picked = torch.searchsorted(reached / reached[:, -1:], places).clamp(max=count - 1)
    return picked.gather(1, streams.uniform(count).argsort(dim=1)).T
