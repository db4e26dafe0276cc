"""What the model predicts on a lattice over the whole prior, scored for all images by one matrix product."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryoanm_lib.errors import CryoANMError
from cryoanm_lib.numerics.fourier import crop_coefficients, to_real
from cryoanm_lib.particles.particles import Particles, to_forward
from cryoanm_lib.program.program import CryoProgram
from cryoanm_lib.program.unknowns import Unknowns

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
    def covering(cls, program: CryoProgram, resolution: int) -> "Lattice":
        """The lattice for what a program infers, at resolution K.

        Raises
        ------
        CryoANMError
            If there are too many unknowns for a lattice, or the pose is one in space.
        """
        model, prior = program.forward_model, program.prior
        if prior.pose == "space" and "pose" in program.inferred:
            raise CryoANMError(
                "a lattice covers poses in the plane, not in space: use `refine` with an `SO3Search`"
            )
        pixel = model.pixel_size * model.box_size / resolution
        radius = model.reference[:, :2].norm(dim=-1).max().item()
        farthest = 0.5 * pixel / model.modes.norm(dim=-1).amax(-1)
        finest = {
            "shift": [0.5 * model.box_size / resolution] * 2,
            "amplitude": farthest.tolist(),
            # Half a radian of the transfer function's phase at the highest frequency.
            "defocus": [0.5 / (resolution / (2 * model.box_size)) ** 2],
            # The image is linear in it: one peak, which the prior is as good a start for as any.
            "contrast": [prior.contrast_scale],
        }
        ends, steps = [], []
        unknowns = Unknowns.of(program)
        for name in unknowns.names:
            if name == "pose":
                ends.append((-math.pi, math.pi))
                steps.append(0.5 * pixel / radius)
                continue
            mean, scale = prior.moments(name, model.n_modes, model.reference.double())
            ends += torch.stack([mean - REACH * scale, mean + REACH * scale], dim=-1).tolist()
            steps += finest[name]
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
        axes = torch.meshgrid(*(torch.arange(count) for count in counts), indexing="ij")
        low, high = torch.tensor(ends, dtype=torch.float64).unbind(-1)
        return cls(low, (high - low) / torch.tensor(counts), torch.stack(axes, dim=-1).flatten(0, -2))

    def __len__(self) -> int:
        """Number of cells."""
        return len(self.index)

    @property
    def centre(self) -> Float[Tensor, "cells columns"]:
        """Middles of the cells."""
        return self.origin + (self.index + 0.5) * self.spacing


class Templates:
    """Scores of images at the cells of the covering lattice.

    Where the latents that are given are common to all images, so are the templates: they are made once and
    kept, and the scores are one matrix product. Else each image has its own.

    Parameters
    ----------
    program : CryoProgram
        The model; the guide plays no part.
    resolution : int
        K.
    """

    def __init__(self, program: CryoProgram, resolution: int) -> None:
        self.program, self.resolution = program, resolution
        self.lattice = Lattice.covering(program, resolution)
        self._values = self.lattice.centre.to(program.forward_model.reference.dtype)
        self._log_prior = program.log_prior(Unknowns.of(program).latents(self.lattice.centre))
        self._kept: tuple[dict[str, Tensor], list[Tensor]] | None = None

    @torch.no_grad()
    def log_joint(self, particles: Particles) -> Float[Tensor, "images cells"]:
        """log p(image, latents) of every image at every cell: |y - μ|² = |y|² - 2 y·μ + |μ|²."""
        cropped = crop_coefficients(particles.coefficients, self.resolution)
        observed = to_real(cropped, self.resolution)
        without = {*self.program.inferred, "noise"}
        given = {k: v for k, v in particles.latents.items() if k not in without}
        if all((value == value[:1]).all() for value in given.values()):
            scores = self._scored(observed, self._common({name: value[:1] for name, value in given.items()}))
        else:
            own = ({k: v[i : i + 1] for k, v in given.items()} for i in range(len(particles)))
            scores = torch.cat(
                [self._scored(row, self._made(g)) for row, g in zip(observed.split(1), own, strict=True)]
            )
        sigma = self.program.sigma_of(particles.latents, self.resolution, self._log_prior)
        sigma = sigma.expand(len(particles))[:, None]
        constant = observed.shape[-1] * (math.sqrt(2 * math.pi) * sigma).log()
        alone = -0.5 * observed.double().square().sum(-1, keepdim=True)
        return (scores.double() + alone) / sigma**2 - constant + self._log_prior

    def _scored(
        self, observed: Float[Tensor, "images dof"], made: Iterable[Float[Tensor, "_ dof"]]
    ) -> Float[Tensor, "images cells"]:
        """y·μ - |μ|²/2."""
        return torch.cat([observed @ part.T - 0.5 * part.square().sum(-1) for part in made], dim=1)

    def _common(self, given: Mapping[str, Tensor]) -> Iterable[Float[Tensor, "_ dof"]]:
        """The templates for given latents, those of the last call if they fit."""
        if self._kept is not None and all(value.equal(self._kept[0][k]) for k, value in given.items()):
            return self._kept[1]
        dof = 2 * len(self.program.forward_model.frequencies(self.resolution)) - 1
        if len(self.lattice) * dof * self._values.element_size() > _KEPT_BYTES:
            return self._made(given)
        self._kept = (dict(given), list(self._made(given)))
        return self._kept[1]

    def _made(self, given: Mapping[str, Tensor]) -> Iterator[Float[Tensor, "_ dof"]]:
        """Templates, some at a time."""
        for part in torch.arange(len(self.lattice)).split(_CHUNK):
            rows = {**given, **Unknowns.of(self.program).latents(self._values[part])}
            latents = {name: value.expand(len(part), *value.shape[1:]) for name, value in rows.items()}
            group = same_projection(self.program, self.lattice.index[part])
            predicted = coefficients_reusing(self.program, latents, group, self.resolution)
            yield to_real(predicted, self.resolution)


def same_projection(
    program: CryoProgram, index: Int[Tensor, "cells columns"], image: Int[Tensor, "cells"] | None = None
) -> Int[Tensor, "cells"]:
    """A number for each cell that it shares with those that differ from it in defocus or contrast alone."""
    names, after = Unknowns.of(program).columns, ("defocus", "contrast")
    columns = [c for c, name in zip(index.unbind(-1), names, strict=True) if name not in after]
    key = torch.zeros(len(index), dtype=torch.long) if image is None else image.clone()
    for column in columns:
        low, high = column.amin(), column.amax()
        key = key * (high - low + 1) + column - low
    return torch.unique(key, return_inverse=True)[1]


def coefficients_reusing(
    program: CryoProgram, latents: Mapping[str, Tensor], group: Int[Tensor, "cells"], resolution: int
) -> Complex[Tensor, "cells kept"]:
    """Coefficients of cells, projected once for each group of cells that share a projection.

    Parameters
    ----------
    program : CryoProgram
        The model.
    latents : mapping of str to Tensor
        All latents of each cell.
    group : Int[Tensor, "cells"]
        As of `same_projection`.
    resolution : int
        K.
    """
    model = program.forward_model
    first = torch.empty(int(group.max()) + 1, dtype=torch.long)
    first[group] = torch.arange(len(group))
    forward = to_forward({name: value[first] for name, value in latents.items()})
    return model.transfer(to_forward(latents), resolution) * model.projections(forward, resolution)[group]
