"""What the model itself says of shift, bend, focus and contrast, once the pose is given."""

import functools
import math

import torch
from jaxtyping import Float
from torch import Tensor

from cryoanm_lib.errors import ConfigurationError
from cryoanm_lib.imaging.latents import Values
from cryoanm_lib.imaging.unknowns import Unknowns
from cryoanm_lib.numerics.batching import many
from cryoanm_lib.numerics.fourier import crop_coefficients, half_plane_frequencies
from cryoanm_lib.particles.particles import Particles
from cryoanm_lib.program.gauss_newton import HasPosterior, gauss_newton

# K at which the shift is looked for, deviations of its prior that are searched, and Newton steps at the end.
_SHIFT_RESOLUTION, _REACH, _STEPS = 20, 4.0, 3

# No number moves by more than this many deviations of its prior in one step: a wrong pose asks for anything.
_LONGEST = 2.0

# Deviations of a contrast's prior that its mean must be away from 0.
_DEFINITE = 5.0

# Poses that are worked on at a time: what they need should stay near the processor.
_ROWS = 256


class ComputedOthers:
    """p(others | pose, image), the model made linear in the others.

    Given the pose, an image is nearly linear in amplitudes, defocus and contrast, so that with the
    `gauss_newton` precision F and slope g at x the posterior is the Gaussian of precision F about x + F⁻¹ g.
    The shift, in which the image is not linear, is first looked for on a grid. No gradient passes through the
    answer: where it is the posterior of the others at the K of the likelihood, the terms that are missing
    cancel on average.

    Parameters
    ----------
    model, particles, resolution : Model, Particles, int
        What made which images, with latents that are given of each, and K; the latents but the pose are the
        others.

    Raises
    ------
    ConfigurationError
        If the contrast is inferred, and its prior admits either sign.
    """

    def __init__(self, model: HasPosterior, particles: Particles, resolution: int) -> None:
        self.model, self.particles, self.resolution = model, particles, resolution
        if "contrast" in model.unknowns.names:
            # Numbers of the prior, asked for here: a guide is asked anew at each step.
            like = torch.zeros((), dtype=model.forward_model.reference.dtype, device="cpu")
            moments = model.prior.moments("contrast", model.unknowns.n_modes, like)
            mean, scale = (part.item() for part in moments)
            if abs(mean) < _DEFINITE * scale:
                raise ConfigurationError(
                    f"a contrast of {mean:g} ± {scale:g} may have either sign, and the others are computed "
                    f"about its mean: give one of {_DEFINITE:g} deviations at least, or search for poses "
                    "without a guide"
                )
        others = tuple(latent for latent in model.unknowns.latents if latent.name != "pose")
        self.unknowns = Unknowns(others, model.unknowns.n_modes)

    @torch.no_grad()
    def __call__(
        self, pose: Float[Tensor, "*batch images dim"]
    ) -> tuple[Float[Tensor, "*batch images total"], Float[Tensor, "*batch images total total"]]:
        """Mean and Cholesky factor of the covariance at poses, the others side by side."""
        batch, device = pose.shape[:-1], pose.device
        image = torch.arange(len(self.particles), device=device).expand(batch).reshape(-1)
        flat, parts = pose.flatten(end_dim=-2), []
        for rows in torch.arange(len(image), device=device).split(many(_ROWS, device)):
            parts.append(self._of_rows(self.particles[image[rows]], flat[rows]))
        mean, spread = (torch.cat(found) for found in zip(*parts, strict=True))
        return mean.view(*batch, -1), spread.view(*batch, *spread.shape[1:])

    def _of_rows(
        self, particles: Particles, pose: Float[Tensor, "rows dim"]
    ) -> tuple[Float[Tensor, "rows total"], Float[Tensor, "rows total total"]]:
        """The same for one pose an image."""
        model, unknowns = self.model, self.unknowns
        mean, scale = model.prior.all_moments(unknowns.names, unknowns.n_modes, pose.double())
        values = unknowns.values(mean.repeat(len(pose), 1)) | {"pose": pose}
        if "shift" in unknowns.names:
            values["shift"] = self._best_shift(particles, values).to(mean)
        points = unknowns.points(values)
        for k in (min(_SHIFT_RESOLUTION, self.resolution), *[self.resolution] * _STEPS):
            at = unknowns.values(points) | {"pose": pose}
            about = gauss_newton(model, particles, at, k, unknowns.latents)
            # In deviations of the prior, so that numbers of all units weigh alike.
            precision = scale[:, None] * about.precision * scale
            factor = _cholesky(precision)
            step = torch.cholesky_solve((scale * about.slope)[..., None], factor)[..., 0]
            points = points + scale * step * (_LONGEST / step.abs().amax(1, keepdim=True)).clamp(max=1.0)
        covariance = torch.cholesky_inverse(factor)
        spread = scale[:, None] * _cholesky(covariance)
        return points.to(pose), spread.to(pose)

    def _best_shift(self, particles: Particles, values: Values) -> Float[Tensor, "rows 2"]:
        """The most probable shift on a grid of half a pixel of the crop, everything else as it is."""
        forward, scale = self.model.forward_model, self.model.prior.shift_scale
        k = min(_SHIFT_RESOLUTION, self.resolution)
        here = {**particles.given, **values}
        predicted = forward.coefficients({n: v.to(forward.reference) for n, v in here.items()}, k)
        grid = shift_grid(_REACH * scale, 0.5 * forward.box_size / k, predicted.device).to(predicted.real)
        phase = 2 * math.pi * half_plane_frequencies(k, predicted.device).to(grid) @ grid.T / forward.box_size
        # Moving the image back is moving the prediction there; whitened, their product is the likelihood's.
        observed, expected = (
            particles.noise.whiten(c, k) for c in (crop_coefficients(particles.coefficients, k), predicted)
        )
        matched = _from_real(observed) * _from_real(expected).conj()
        score = matched.real @ phase.cos() - matched.imag @ phase.sin()
        return grid[(score - 0.5 * (grid / scale).square().sum(1)).argmax(1)]


def _cholesky(matrices: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
    """Cholesky factors; off the CPU, where one would wait for an error, not a number where there is none."""
    if matrices.device.type == "cpu":
        return torch.linalg.cholesky(matrices)
    factor, failed = torch.linalg.cholesky_ex(matrices)
    return torch.where(failed[..., None, None] == 0, factor, math.nan)


def _from_real(values: Float[Tensor, "*batch dof"]) -> Tensor:
    """Coefficients from values in the order of `to_real`, up to its factors."""
    mean = torch.view_as_complex(torch.stack([values[..., :1], torch.zeros_like(values[..., :1])], dim=-1))
    rest = torch.view_as_complex(values[..., 1:].unflatten(-1, (-1, 2)).contiguous())
    return torch.cat([mean, rest], dim=-1)


# Which points are within the circle decides how many there are: asked once, and not at every step.
@functools.lru_cache(maxsize=64)
def shift_grid(
    reach: float, step: float, device: torch.device | str | None = None
) -> Float[Tensor, "shifts 2"]:
    """Shifts within a circle, on a square grid about zero.

    Examples
    --------
    >>> len(shift_grid(reach=1.0, step=1.0))
    5
    """
    ends = math.floor(reach / step)
    line = step * torch.arange(-ends, ends + 1, device=device)
    grid = torch.stack(torch.meshgrid(line, line, indexing="ij"), dim=-1).flatten(0, 1)
    return grid[grid.norm(dim=1) <= reach + 1e-9]
