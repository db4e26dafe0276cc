"""What the model predicts on a lattice over the whole prior, scored for all images by one matrix product."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryoanm_lib.errors import CryoANMError
from cryoanm_lib.imaging.forward_model import ForwardModel
from cryoanm_lib.imaging.latents import Values
from cryoanm_lib.imaging.noise import Noise, same_noise
from cryoanm_lib.imaging.unknowns import Unknowns
from cryoanm_lib.numerics.fourier import crop_coefficients, degrees_of_freedom
from cryoanm_lib.particles.particles import Particles
from cryoanm_lib.program.program import Model

#: Deviations of a prior that the lattice spans to either side.
REACH = 6.0

#: Cells of the largest lattice that is laid.
MOST_CELLS = 2**22

# Templates that are made at a time, and bytes of them that are kept for the next images.
_CHUNK = 4096
_KEPT_BYTES = 2**29


@dataclass(frozen=True, eq=False)
class Lattice:
    """Cells that cover the circle of poses, and `REACH` deviations of the other priors to either side.

    They let no atom move by more than half a pixel of the crop from one to the next.

    Attributes
    ----------
    origin, spacing : Float[Tensor, "columns"]
        Lower corner of the first cell, and the edges of all.
    index : Int[Tensor, "cells columns"]
        Position of each cell; the columns are those of `Unknowns`.
    """

    origin: Float[Tensor, "columns"]
    spacing: Float[Tensor, "columns"]
    index: Int[Tensor, "cells columns"]

    @classmethod
    def covering(cls, model: Model, resolution: int) -> "Lattice":
        """The lattice for what a model infers, at resolution K.

        Raises
        ------
        CryoANMError
            If there are too many unknowns for a lattice, or the pose is one in space.
        """
        unknowns, prior = model.unknowns, model.prior
        if prior.pose == "space" and "pose" in model.inferred:
            raise CryoANMError(
                "a lattice covers poses in the plane, not in space: use `refine` with an `SO3Search`"
            )
        finest, ends, steps = _finest(model, resolution), [], []
        for latent in unknowns.latents:
            if latent.manifold.turns:
                ends.append((-math.pi, math.pi))
            else:
                like = model.forward_model.reference.double()
                mean, scale = prior.moments(latent.name, unknowns.n_modes, like)
                ends += torch.stack([mean - REACH * scale, mean + REACH * scale], dim=-1).tolist()
            steps += finest[latent.name]
        # An even number, so that the circle has as many odd cells as even ones.
        counts = [
            max(4, 2 * math.ceil((high - low) / step / 2))
            for (low, high), step in zip(ends, steps, strict=True)
        ]
        if math.prod(counts) > MOST_CELLS:
            raise CryoANMError(
                f"a lattice over {' × '.join(map(str, counts))} cells, for {', '.join(unknowns.columns)} at "
                f"K = {resolution}, is larger than {MOST_CELLS}: infer fewer latents, or lower K"
            )
        device = model.device
        axes = torch.meshgrid(*(torch.arange(count, device=device) for count in counts), indexing="ij")
        low, high = torch.tensor(ends, dtype=torch.float64, device=device).unbind(-1)
        spacing = (high - low) / torch.tensor(counts, device=device)
        return cls(low, spacing, torch.stack(axes, dim=-1).flatten(0, -2))

    def __len__(self) -> int:
        """Number of cells."""
        return len(self.index)

    @property
    def centre(self) -> Float[Tensor, "cells columns"]:
        """Middles of the cells."""
        return self.origin + (self.index + 0.5) * self.spacing


def _finest(model: Model, resolution: int) -> dict[str, list[float]]:
    """Edges of cells within which an image changes little, for each number of each latent.

    No atom moves by more than half a pixel of the crop, nor the microscope's factor by more than a half.
    """
    forward, prior = model.forward_model, model.prior
    pixel = forward.pixel_size * forward.box_size / resolution
    radius = forward.reference[:, :2].norm(dim=-1).max().item()
    rest = prior.means(1, forward.n_modes, forward.reference) | {"pose": forward.reference.new_ones(1, 2)}
    finest = {
        "pose": [0.5 * pixel / radius],
        "shift": [0.5 * forward.box_size / resolution] * 2,
        "amplitude": (0.5 * pixel / forward.modes.norm(dim=-1).amax(-1)).tolist(),
        **forward.transfer.steps(rest, resolution / (2 * forward.box_size)),
    }
    for latent in model.unknowns.latents:
        if latent.acts_on == "scale":  # the image is linear in it: one peak, to which the prior leads
            finest[latent.name] = prior.moments(latent.name, forward.n_modes, rest["pose"])[1].tolist()
    return finest


class Templates:
    """Scores of images at the cells of the covering lattice.

    Where the latents that are given are common to all images, so are the templates: they are made once and
    kept, and the scores are one matrix product. Else each image has its own.
    """

    def __init__(self, model: Model, resolution: int) -> None:
        self.model, self.resolution = model, resolution
        self.lattice = Lattice.covering(model, resolution)
        self._points = self.lattice.centre.to(model.forward_model.reference.dtype)
        self._log_prior = model.log_prior(model.unknowns.values(self.lattice.centre))
        self._kept: tuple[dict[str, Tensor], Noise, list[Tensor]] | None = None

    @torch.no_grad()
    def log_joint(self, particles: Particles) -> Float[Tensor, "images cells"]:
        """log p(image, latents) of every image at every cell: |y - μ|² = |y|² - 2 y·μ + |μ|², whitened."""
        unit, level = particles.noise.unit()
        cropped = crop_coefficients(particles.coefficients, self.resolution)
        observed = unit.whiten(cropped, self.resolution)
        inferred = self.model.inferred
        given = {name: value for name, value in particles.given.items() if name not in inferred}
        if all((value == value[:1]).all() for value in given.values()):
            common = {name: value[:1] for name, value in given.items()}
            scores = self._scored(observed, self._common(common, unit))
        else:
            own = ({k: v[i : i + 1] for k, v in given.items()} for i in range(len(particles)))
            rows = zip(observed.split(1), own, strict=True)
            scores = torch.cat([self._scored(row, self._made(given, unit)) for row, given in rows])
        alone = -0.5 * observed.double().square().sum(-1, keepdim=True)
        level = level.to(alone).expand(len(particles))
        constant = particles.noise.log_normaliser(self.resolution).to(alone)
        constant = constant.expand(len(particles))[:, None]
        return (scores.double() + alone) / level[:, None] ** 2 - constant + self._log_prior

    def _scored(
        self, observed: Float[Tensor, "images dof"], made: Iterable[Float[Tensor, "_ dof"]]
    ) -> Float[Tensor, "images cells"]:
        """y·μ - |μ|²/2."""
        return torch.cat([observed @ part.T - 0.5 * part.square().sum(-1) for part in made], dim=1)

    def _common(self, given: Values, unit: Noise) -> Iterable[Float[Tensor, "_ dof"]]:
        """The templates for given latents, those of the last call if they fit."""
        if self._kept is not None:
            before, unit_before, templates = self._kept
            if same_noise(unit, unit_before) and all(v.equal(before[name]) for name, v in given.items()):
                return templates
        numbers = len(self.lattice) * degrees_of_freedom(self.resolution)
        if numbers * self._points.element_size() > _KEPT_BYTES:
            return self._made(given, unit)
        self._kept = (dict(given), unit, list(self._made(given, unit)))
        return self._kept[2]

    def _made(self, given: Values, unit: Noise) -> Iterator[Float[Tensor, "_ dof"]]:
        """Whitened templates, some at a time."""
        for points, index in zip(self._points.split(_CHUNK), self.lattice.index.split(_CHUNK), strict=True):
            rows = {**given, **self.model.unknowns.values(points)}
            latents = {name: value.expand(len(index), *value.shape[1:]) for name, value in rows.items()}
            group = same_projection(self.model.unknowns, index)
            predicted = coefficients_reusing(self.model.forward_model, latents, group, self.resolution)
            yield unit.whiten(predicted, self.resolution)


def same_projection(
    unknowns: Unknowns, index: Int[Tensor, "cells columns"], image: Int[Tensor, "cells"] | None = None
) -> Int[Tensor, "cells"]:
    """A number for each cell that it shares with those in which all atoms lie where they do in it."""
    key = index.new_zeros(len(index)) if image is None else image.clone()
    on_atoms = unknowns.of(lambda latent: latent.acts_on == "atoms", index.device)
    for column in index[:, on_atoms].unbind(-1):
        low, high = column.amin(), column.amax()
        key = key * (high - low + 1) + column - low
    return torch.unique(key, return_inverse=True)[1]


def coefficients_reusing(
    forward: ForwardModel, latents: Values, group: Int[Tensor, "cells"], resolution: int
) -> Complex[Tensor, "cells kept"]:
    """Coefficients of cells, projected once for each group of `same_projection`."""
    # Of equals the last, whatever the order in which a device comes to them.
    rows = torch.arange(len(group), device=group.device)
    first = group.new_zeros(int(group.max()) + 1).scatter_reduce(0, group, rows, reduce="amax")
    projected = forward.projections({name: value[first] for name, value in latents.items()}, resolution)
    return forward.factor(latents, resolution) * projected[group]
