"""The exact posterior of a few latents, on a lattice that is refined wherever probability may hide."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoanm_lib.diagnostics import fisher_information
from cryoanm_lib.distributions import ProjectedNormal
from cryoanm_lib.errors import CryoANMError
from cryoanm_lib.fourier import crop_coefficients, to_real
from cryoanm_lib.likelihood import cropped_noise, log_likelihood
from cryoanm_lib.program import LATENTS, CryoProgram, Particles, Prior, to_forward
from cryoanm_lib.rotation import angle_to_unit_vector

#: Deviations of a prior that the lattice spans to either side.
REACH = 6.0

#: A cell that cannot rise to within this many nats of the best one is dropped.
NEGLIGIBLE = 16.0

# Predictions that are held in memory at a time.
_CHUNK = 4096


@dataclass(frozen=True, eq=False)
class ExactPosterior:
    """Posterior of a batch of images as cells of a lattice, those of each image where its probability is.

    Attributes
    ----------
    inferred : tuple of str
        The latents that were unknown; their numbers are the columns, a pose as an angle in radians.
    image : Int[Tensor, "cells"]
        The image that a cell belongs to.
    centre, spacing : Float[Tensor, "cells columns"]
        The middle of a cell, and its edges.
    log_mass : Float[Tensor, "cells"]
        Logarithm of a cell's probability; they add up to one for each image.
    log_evidence : Float[Tensor, "images"]
        log p(image), the latents integrated out.
    """

    inferred: tuple[str, ...]
    image: Int[Tensor, "cells"]
    centre: Float[Tensor, "cells columns"]
    spacing: Float[Tensor, "cells columns"]
    log_mass: Float[Tensor, "cells"]
    log_evidence: Float[Tensor, "images"]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.log_evidence)

    def sample(self, generator: torch.Generator | None = None) -> dict[str, Float[Tensor, "images ..."]]:
        """One draw for each image: a cell by its probability, then a point within it; as of the guide."""
        uniform = torch.rand(self.log_mass.shape, generator=generator, dtype=self.log_mass.dtype)
        # The largest of log p + Gumbel noise is a draw from p.
        race = self.log_mass - (-uniform.clamp(min=1e-300).log()).log()
        winner = _argmax_of_each(race, self.image, len(self))
        jitter = torch.rand(self.centre[winner].shape, generator=generator, dtype=self.centre.dtype) - 0.5
        return _as_latents(self.centre[winner] + jitter * self.spacing[winner], self.inferred)

    def mean(self) -> dict[str, Float[Tensor, "images ..."]]:
        """Posterior mean of each latent; of the pose the mean direction, a unit vector."""
        weight = self.log_mass.exp()[:, None]
        latents = _as_latents(self.centre, self.inferred)
        means = {}
        for name, value in latents.items():
            rows = value if value.ndim > 1 else value[:, None]
            mean = rows.new_zeros(len(self), rows.shape[1]).index_add(0, self.image, weight * rows)
            means[name] = mean if value.ndim > 1 else mean[:, 0]
        if "pose" in means:
            means["pose"] = torch.nn.functional.normalize(means["pose"], dim=-1)
        return means


@torch.no_grad()
def exact_posterior(
    program: CryoProgram, particles: Particles, resolution: int, tolerance: float = 0.01
) -> ExactPosterior:
    """Posterior of the program's unknown latents for each image, and its evidence, to a stated tolerance.

    A lattice over the whole prior is first laid so that neighbouring cells differ by half a pixel of the
    crop. Then, again and again, cells are dropped that cannot hold a peak worth keeping, and the others
    halved, until they are as narrow as the posterior: F_dd h_d² ≤ 1 for the Fisher information F. Between its
    centre and a corner a cell rises by at most ½ Σ_ab |F_ab| h_a h_b / 4 if a peak lies in it. A lattice sum
    of a smooth density converges faster than any power of h; that it has is seen by the two halves of the
    lattice, as of a chess board, giving the same evidence. Where they do not, one more halving follows.

    Parameters
    ----------
    program : CryoProgram
        Its model, prior and noise; the guide plays no part. Its projector must have forward-mode derivatives.
    particles : Particles
        Images, and the latents that are given.
    resolution : int
        K.
    tolerance : float
        Nats by which the evidence of either half of the lattice may differ from the other.

    Raises
    ------
    CryoANMError
        If the evidence does not settle.
    """
    names = tuple(name for name in LATENTS if name in program.inferred)
    lattice = _Lattice.covering(program, particles, resolution, names)
    for _ in range(40):
        fisher = lattice.fisher()
        lattice = lattice.pruned(fisher)
        wide = lattice.too_wide(fisher) | lattice.unsettled(tolerance)
        if not wide.any():
            return lattice.posterior()
        lattice = lattice.halved(wide)
    raise CryoANMError(
        f"the evidence has not settled to {tolerance} nats at K = {resolution}: allow a larger tolerance"
    )


@dataclass(frozen=True, eq=False)
class _Lattice:
    """Cells of all images, with the log-joint density at their centres."""

    program: CryoProgram
    particles: Particles
    resolution: int
    names: tuple[str, ...]
    image: Int[Tensor, "cells"]
    index: Int[Tensor, "cells columns"]
    level: Int[Tensor, "images columns"]
    origin: Float[Tensor, "columns"]
    coarse: Float[Tensor, "columns"]
    log_joint: Float[Tensor, "cells"]

    @classmethod
    def covering(
        cls, program: CryoProgram, particles: Particles, resolution: int, names: tuple[str, ...]
    ) -> "_Lattice":
        """The coarsest lattice, over the whole circle and `REACH` deviations of the other priors."""
        spans, counts = _spans(program, resolution, names)
        low, high = spans.unbind(-1)
        axes = [torch.arange(n) for n in counts]
        nodes = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)
        image = torch.arange(len(particles)).repeat_interleave(len(nodes))
        index = nodes.repeat(len(particles), 1)
        level = torch.zeros(len(particles), len(counts), dtype=torch.long)
        coarse = (high - low) / torch.tensor(counts)
        empty = cls(program, particles, resolution, names, image, index, level, low, coarse, torch.empty(0))
        given = [particles.latents[name] for name in LATENTS if name not in names]
        if not all((value == value[:1]).all() for value in given):
            return empty._evaluated(image, index, level)
        centre = low + (nodes + 0.5) * coarse
        return replace(empty, log_joint=_of_templates(program, particles, resolution, names, centre))

    @property
    def spacing(self) -> Float[Tensor, "images columns"]:
        """Edges of the cells of each image."""
        return self.coarse * 0.5**self.level

    @property
    def centre(self) -> Float[Tensor, "cells columns"]:
        """Middles of the cells."""
        return self.origin + (self.index + 0.5) * self.spacing[self.image]

    def _evaluated(self, image: Tensor, index: Tensor, level: Tensor) -> "_Lattice":
        bare = replace(self, image=image, index=index, level=level)
        centre = bare.centre
        parts = [
            _log_joint(self.program, self.particles, self.resolution, self.names, image[part], centre[part])
            for part in torch.arange(len(image)).split(_CHUNK)
        ]
        return replace(bare, log_joint=torch.cat(parts))

    def _best(self) -> Float[Tensor, "images"]:
        return _max_of_each(self.log_joint, self.image, len(self.particles))

    def fisher(self) -> Float[Tensor, "images columns columns"]:
        """Fisher information at the best cell of each image."""
        best = _argmax_of_each(self.log_joint, self.image, len(self.particles))
        here = _with_given(self.particles, self.image[best], self.centre[best], self.names)
        program = self.program
        return fisher_information(
            program.forward_model, here, self.names, program.prior, program.noise, self.resolution
        )

    def pruned(self, fisher: Tensor) -> "_Lattice":
        """Without the cells that cannot hold a peak near the height of the best."""
        half = self.spacing.double() / 2
        rise = 0.5 * (fisher.abs() * half[:, :, None] * half[:, None, :]).sum((1, 2))
        keep = self.log_joint + rise[self.image] >= (self._best() - NEGLIGIBLE)[self.image]
        return replace(self, image=self.image[keep], index=self.index[keep], log_joint=self.log_joint[keep])

    def too_wide(self, fisher: Tensor) -> Tensor:
        """For each image and column whether the cells are wider than the posterior."""
        return self.spacing**2 * fisher.diagonal(dim1=1, dim2=2) > 1.0

    def unsettled(self, tolerance: float) -> Tensor:
        """For each image, in all columns, whether the two halves of the lattice disagree on the evidence."""
        n_images, odd = len(self.particles), self.index.sum(-1) % 2 == 1
        halves = [_logsumexp_of_each(self.log_joint[h], self.image[h], n_images) for h in (odd, ~odd)]
        moved = (halves[0] - halves[1]).abs()
        return (~(moved <= tolerance))[:, None].expand_as(self.level)

    def halved(self, wide: Tensor) -> "_Lattice":
        """With cells cut in two along the columns that are marked for their image."""
        image, index = self.image, self.index
        for column in range(index.shape[1]):
            cut = wide[image, column]
            step = torch.zeros_like(index)
            step[:, column] = 1
            doubled = torch.where(cut[:, None], index + step * index, index)
            image, index = torch.cat([image, image[cut]]), torch.cat([doubled, (doubled + step)[cut]])
        return self._evaluated(image, index, self.level + wide.long())

    def posterior(self) -> ExactPosterior:
        """Normalised, image by image."""
        spacing = self.spacing.to(self.log_joint)
        weight = self.log_joint + spacing.log().sum(-1)[self.image]
        evidence = _logsumexp_of_each(weight, self.image, len(self.particles))
        mass = weight - evidence[self.image]
        return ExactPosterior(self.names, self.image, self.centre, spacing[self.image], mass, evidence)


def _spans(
    program: CryoProgram, resolution: int, names: tuple[str, ...]
) -> tuple[Float[Tensor, "columns 2"], list[int]]:
    """Ends of each column, and cells that let no atom move by more than half a pixel of the crop."""
    model, prior = program.forward_model, program.prior
    pixel = model.pixel_size * model.box_size / resolution
    radius = model.reference[:, :2].norm(dim=-1).max().item()
    farthest = model.modes.norm(dim=-1).amax(-1).tolist()
    # Half a radian of the transfer function's phase at the highest frequency, for want of a pixel.
    phase = 0.5 / (resolution / (2 * model.box_size)) ** 2
    amplitude = REACH * prior.amplitude_scale
    spans, steps = [], []
    for name in names:
        if name == "pose":
            spans.append((-math.pi, math.pi))
            steps.append(0.5 * pixel / radius)
        elif name == "amplitude":
            spans += [(-amplitude, amplitude)] * model.n_modes
            steps += [0.5 * pixel / move for move in farthest]
        else:
            reach = REACH * prior.defocus_scale
            spans.append((prior.defocus_mean - reach, prior.defocus_mean + reach))
            steps.append(phase)
    counts = [max(4, 2 * math.ceil((b - a) / step / 2)) for (a, b), step in zip(spans, steps, strict=True)]
    return torch.tensor(spans, dtype=torch.float64), counts


def _log_joint(
    program: CryoProgram,
    particles: Particles,
    resolution: int,
    names: tuple[str, ...],
    image: Int[Tensor, "cells"],
    centre: Float[Tensor, "cells columns"],
) -> Float[Tensor, "cells"]:
    """log p(image, latents) at points, one image each; what is given has no prior."""
    model = program.forward_model
    latents = _with_given(particles, image, centre, names)
    predicted = model.coefficients(to_forward(latents), resolution)
    observed = crop_coefficients(particles.coefficients, resolution)[image]
    likelihood = log_likelihood(observed, predicted, program.noise, resolution, model.box_size)
    return likelihood.double() + _log_prior(program.prior, latents, names)


def _log_prior(prior: Prior, latents: Mapping[str, Tensor], names: tuple[str, ...]) -> Float[Tensor, "cells"]:
    """Sum of the log-priors of the unknown latents."""
    total = latents["pose"].new_zeros(len(latents["pose"]), dtype=torch.float64)
    if "pose" in names:
        like = latents["pose"].new_tensor(prior.pose_concentration)
        total = total + ProjectedNormal(like).log_prob(latents["pose"])
    if "amplitude" in names:
        normal = torch.distributions.Normal(0.0, prior.amplitude_scale)
        total = total + normal.log_prob(latents["amplitude"]).sum(-1)
    if "defocus" in names:
        normal = torch.distributions.Normal(prior.defocus_mean, prior.defocus_scale)
        total = total + normal.log_prob(latents["defocus"])
    return total


def _of_templates(
    program: CryoProgram,
    particles: Particles,
    resolution: int,
    names: tuple[str, ...],
    centre: Float[Tensor, "nodes columns"],
) -> Float[Tensor, "cells"]:
    """The same at all nodes for all images, where what is given is common to them: one matrix product.

    |y - μ|² = |y|² - 2 y·μ + |μ|², relative to the node at which each image is likeliest.
    """
    model = program.forward_model
    sigma = cropped_noise(program.noise, resolution, model.box_size)
    first = torch.zeros(len(centre), dtype=torch.long)
    latents = _with_given(particles, first, centre, names)
    coefficients = [
        model.coefficients(to_forward({name: value[part] for name, value in latents.items()}), resolution)
        for part in torch.arange(len(centre)).split(_CHUNK)
    ]
    templates = to_real(torch.cat(coefficients), resolution) / sigma
    observed = to_real(crop_coefficients(particles.coefficients, resolution), resolution) / sigma
    relative = observed @ templates.T - 0.5 * templates.square().sum(-1)
    alone = -0.5 * observed.double().square().sum(-1, keepdim=True)
    constant = observed.shape[-1] * math.log(math.sqrt(2 * math.pi) * sigma)
    likelihood = relative.double() + alone - constant
    return (likelihood + _log_prior(program.prior, latents, names)).flatten()


def _with_given(
    particles: Particles, image: Int[Tensor, "points"], values: Tensor, names: tuple[str, ...]
) -> dict[str, Tensor]:
    """The latents at points: those that are given from the image, the others from the columns."""
    like = particles.latents["pose"]
    given = {name: particles.latents[name][image] for name in LATENTS if name not in names}
    return given | {name: value.to(like) for name, value in _as_latents(values, names).items()}


def _as_latents(values: Float[Tensor, "points columns"], names: tuple[str, ...]) -> dict[str, Tensor]:
    """Columns by the latent's name: a unit vector for the pose."""
    single = [name for name in names if name != "amplitude"]
    widths = [1 if name in single else values.shape[-1] - len(single) for name in names]
    parts = dict(zip(names, values.split(widths, dim=-1), strict=True))
    converted = {"pose": lambda part: angle_to_unit_vector(part[:, 0]), "defocus": lambda part: part[:, 0]}
    return {name: converted.get(name, lambda part: part)(part) for name, part in parts.items()}


def _max_of_each(values: Tensor, image: Tensor, n_images: int) -> Tensor:
    low = values.new_full((n_images,), -math.inf)
    return low.scatter_reduce(0, image, values, reduce="amax")


def _argmax_of_each(values: Tensor, image: Tensor, n_images: int) -> Tensor:
    best = torch.nonzero(values == _max_of_each(values, image, n_images)[image])[:, 0]
    first = torch.zeros(n_images, dtype=torch.long)
    first[image[best].flip(0)] = best.flip(0)
    return first


def _logsumexp_of_each(values: Tensor, image: Tensor, n_images: int) -> Tensor:
    top = _max_of_each(values, image, n_images)
    total = values.new_zeros(n_images).index_add(0, image, (values - top[image]).exp())
    return top + total.log()
