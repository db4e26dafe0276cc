"""Where a model is wrong: what predictions leave of images, brought back to the molecule's frame."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Complex, Float, Int, Shaped
from torch import Tensor

from cryoanm_lib.imaging.latents import Values, pose_to_rotation
from cryoanm_lib.numerics.fourier import crop_coefficients, half_plane_frequencies
from cryoanm_lib.numerics.rotation import rotation_from_quaternion
from cryoanm_lib.particles.particles import Particles, require_cpu
from cryoanm_lib.program.gauss_newton import all_latents
from cryoanm_lib.program.program import Model

#: Images at a time.
_IMAGES = 200


class DifferenceMap(NamedTuple):
    """Density that images hold and the model lacks, on K × K × K voxels whose origin is voxel (K//2, …).

    Attributes
    ----------
    density : Float[Tensor, "z y x"]
        In units of an image's pixels for each Å along the beam.
    error : Float[Tensor, "z y x"]
        Its standard deviation, given the images, over the frequencies that they reach.
    power, excess : Float[Tensor, "shells"]
        Power of the difference in each shell of whole |k| as it was estimated, 0 where there is none, and the
        mean of |d|² over what noise leaves of it, which is 1 where the model is right.
    pixel_size : float
        Å an edge of a voxel.
    """

    density: Float[Tensor, "z y x"]
    error: Float[Tensor, "z y x"]
    power: Float[Tensor, "shells"]
    excess: Float[Tensor, "shells"]
    pixel_size: float

    def at(self, places: Float[Tensor, "places 3"]) -> Float[Tensor, "places"]:
        """Density in the voxels that hold some places (x, y, z) in Å."""
        size = len(self.density)
        voxel = (places / self.pixel_size).round().long() + size // 2
        inside = ((voxel >= 0) & (voxel < size)).all(dim=-1)
        x, y, z = voxel.clamp(0, size - 1).unbind(-1)
        return self.density[z, y, x].where(inside, 0.0)

    def peaks(self, count: int) -> Float[Tensor, "found 3"]:
        """Places (x, y, z) in Å of the highest voxels above 0 that none of the 26 around exceeds.

        There may be fewer than were asked for.
        """
        around = torch.nn.functional.max_pool3d(self.density[None, None], 3, 1, 1)[0, 0]
        tops = torch.nonzero((self.density == around) & (self.density > 0))
        order = self.density[tuple(tops.T)].argsort(descending=True)[:count]
        return (tops[order].flip(-1) - len(self.density) // 2) * self.pixel_size


@torch.no_grad()
def difference_map(
    model: Model,
    particles: Particles,
    values: Values,
    resolution: int,
    group: Float[Tensor, "turns 4"] | None = None,
) -> DifferenceMap:
    """The density that would explain what predictions leave of images, as likely as the images make it.

    By the slice theorem a residual's coefficient r(k), moved back by its shift, is h(k) d(Rᵀ(k, 0)) and
    noise, where h is the microscope and d the difference in Fourier space. With the noise whitened, and a
    Gaussian prior of d whose power P in each shell is estimated from the same images,

        d = P Σ h r / (1 + P Σ h²),

    so that a map is flat where there is nothing beyond noise. The molecule's bends are left as they are.

    Parameters
    ----------
    model, particles, resolution : Model, Particles, int
        The model, images with the latents that are given, and K.
    values : mapping of str to Tensor
        The posterior mean of what is inferred, such as `RefinedPosterior.mean`.
    group : Float[Tensor, "turns 4"], optional
        Turns after which the molecule looks the same, as of `point_group`: an image is one from each side.
    """
    require_cpu(particles)
    turns = torch.eye(3, dtype=torch.float64)[None] if group is None else rotation_from_quaternion(group)
    cells, shape = resolution**3, (resolution,) * 3
    matched = torch.zeros(cells, 2, dtype=torch.float64)
    squares, spread = torch.zeros(2, cells, dtype=torch.float64)
    for some in torch.arange(len(particles)).split(_IMAGES):
        here = particles[some]
        latents = all_latents(model, here, {name: values[name][some] for name in model.inferred})
        left, factor = _brought_back(model, here, latents, resolution)
        product, rotation = torch.view_as_real(factor * left), pose_to_rotation(latents["pose"]).double()
        for turn in turns:
            cell, weight = _neighbours(rotation @ turn, resolution)
            for corner in range(8):
                at, share = cell[..., corner].flatten(), weight[..., corner]
                matched.index_add_(0, at, (share[..., None] * product).flatten(0, -2))
                squares.index_add_(0, at, (share * factor.square()).flatten())
                spread.index_add_(0, at, (share * factor).square().flatten())
    matched, squares, spread = (
        torch.view_as_complex(matched).view(shape),
        squares.view(shape),
        spread.view(shape),
    )
    size = model.forward_model.box_size * model.forward_model.pixel_size
    return _solved(
        matched + _mirrored(matched).conj(), squares + _mirrored(squares), spread + _mirrored(spread), size
    )


def _phase(latents: Values, frequencies: Float[Tensor, "kept 2"]) -> Complex[Tensor, "..."]:
    """What moves an image back by its shift."""
    if "shift" not in latents:
        return torch.ones(1, 1, dtype=torch.complex128)
    angle = 2 * math.pi * latents["shift"].double() @ frequencies.double().T
    return torch.polar(torch.ones_like(angle), angle)


def _brought_back(
    model: Model, particles: Particles, latents: Values, resolution: int
) -> tuple[Complex[Tensor, "images kept"], Float[Tensor, "images kept"]]:
    """What is left of each coefficient, as of an image that is not shifted, and the microscope's factor.

    Both in units of the noise, E|ε|² = 1. The first stands alone where the others stand for two.
    """
    forward = model.forward_model
    left = crop_coefficients(particles.coefficients, resolution) - forward.coefficients(latents, resolution)
    left = left * _phase(latents, forward.frequencies(resolution))
    ones = torch.ones(len(particles), left.shape[-1], dtype=torch.complex128)
    whitened = particles.noise.whiten(ones, resolution)
    scale = torch.cat([whitened[:, :1], whitened[:, 1::2]], dim=1).double() / math.sqrt(2.0)
    return scale * left, scale * forward.microscope(latents, resolution).double()


def _neighbours(
    rotations: Float[Tensor, "images 3 3"], resolution: int
) -> tuple[Int[Tensor, "images kept 8"], Float[Tensor, "images kept 8"]]:
    """The cells around each coefficient's place in space, and its shares in them; none beyond K/2 - 1."""
    flat = half_plane_frequencies(resolution).double()
    place = flat @ rotations[:, :2]  # Rᵀ (k, 0)
    inside = place.norm(dim=-1, keepdim=True) < resolution / 2 - 1
    low = place.floor()
    corners = torch.cartesian_prod(*(torch.arange(2),) * 3)
    share = 1 - (place - low)[..., None, :].sub(corners).abs()
    x, y, z = (low[..., None, :].long() + corners).remainder(resolution).unbind(-1)
    return (z * resolution + y) * resolution + x, share.prod(-1) * inside


def _mirrored(grid: Shaped[Tensor, "z y x"]) -> Shaped[Tensor, "z y x"]:
    """The value at -k."""
    return grid.flip(0, 1, 2).roll((1, 1, 1), (0, 1, 2))


def _solved(
    matched: Complex[Tensor, "z y x"],
    squares: Float[Tensor, "z y x"],
    spread: Float[Tensor, "z y x"],
    size: float,
) -> DifferenceMap:
    """The map, in a box of so many Å, from Σ h r, Σ h² and what the noise of the first is, in each cell."""
    resolution = len(matched)
    line = torch.fft.fftfreq(resolution, 1 / resolution, dtype=torch.float64)
    radius = torch.stack(torch.meshgrid(line, line, line, indexing="ij")).norm(dim=0)
    shell = radius.round().long().clamp(max=resolution // 2)

    def summed(values: Float[Tensor, "z y x"]) -> Float[Tensor, "shells"]:
        zero = torch.zeros(resolution // 2 + 1, dtype=torch.float64)
        return zero.index_add(0, shell.flatten(), values.flatten())

    seen, noise = summed(matched.abs().square()), summed(spread)
    power = ((seen - noise) / summed(squares.square()).clamp(min=1e-300)).clamp(min=0.0)
    # What no image reaches is unknown, and left out of the map and of its error.
    prior = power[shell].where(squares > 0, 0.0)
    found = prior * matched / (1 + prior * squares)
    fading = _fading(resolution)
    density = torch.fft.fftshift(torch.fft.ifftn(found, norm="forward")).real / size
    error = (prior / (1 + prior * squares)).sum().sqrt() / size
    excess = seen / noise.clamp(min=1e-300)
    return DifferenceMap(density / fading, error / fading, power, excess, size / resolution)


def _fading(resolution: int) -> Float[Tensor, "z y x"]:
    """How shares of a coefficient in eight cells, which smooth Fourier space, fade a map to its edges."""
    line = (torch.arange(resolution, dtype=torch.float64) - resolution // 2) / resolution
    along = torch.sinc(line).square()
    return along[:, None, None] * along[:, None] * along
