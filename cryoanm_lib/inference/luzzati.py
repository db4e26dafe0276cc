"""How much of a coarse model's prediction is in the images, shell by shell: Luzzati's D."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryoanm_lib.errors import CryoANMError
from cryoanm_lib.imaging.radial_noise import shell_hats
from cryoanm_lib.inference.refinement import RefinedPosterior
from cryoanm_lib.numerics.fourier import crop_coefficients
from cryoanm_lib.numerics.smoothing import smoothed
from cryoanm_lib.particles.particles import require_cpu

#: Draws from the posterior of each image.
_DRAWS = 8


@dataclass(frozen=True, eq=False)
class Luzzati:
    """D in each shell |k| = 0 … N//2: the coefficients that are expected, in units of those predicted.

    Where atoms are off their places by τ_a along each axis it is exp(-2π² τ_a² k²), with k in cycles per Å
    (Luzzati 1952), and in general what whatever is wrong with a prediction leaves of it (Read 1986).

    Attributes
    ----------
    factor, error : Float[Tensor, "shells"]
        The estimate and its standard error, given the posteriors; not a number in shells that K does not
        reach.
    """

    factor: Float[Tensor, "shells"]
    error: Float[Tensor, "shells"]

    def smooth(self) -> "Luzzati":
        """A Gaussian process through D over |k|; shells that were not measured have that of the nearest."""
        shells = torch.nonzero(self.error > 0)[:, 0]  # measured: no NaN is greater than 0
        every = torch.arange(len(self.factor)).clamp(shells.min(), shells.max())
        seen = (shells, self.factor[shells], self.error[shells], every)
        at, values, errors, to = (part.double().numpy() for part in seen)
        mean, deviation = smoothed(at, values, errors, to, lengths=(2.0, 100.0))
        return Luzzati(torch.from_numpy(mean), torch.from_numpy(deviation))


@torch.no_grad()
def luzzati_factor(posterior: RefinedPosterior, generator: torch.Generator | None = None) -> Luzzati:
    """D of a model, from the posteriors of images: a step of expectation and maximisation.

    Over all images, draws from their posteriors, and the coefficients of a shell,

        D = Σ Re ŷ* y / Σ |ŷ|²,

    with y in units of the noise and ŷ without the D that the model has. Take the next step with the
    posteriors of a model that has this one, `model.forward_model.with_luzzati(found.smooth().factor)`; where
    D stays, it is the most likely. Beside a contrast that is inferred, D is known but for a factor: it is the
    one with which contrasts have the mean of their prior, unless that is 0, known as well as n images tell a
    mean: σ/√n of contrasts with a deviation σ, which the errors do not contain.

    Parameters
    ----------
    posterior : RefinedPosterior
        Of a model, images with the latents that are given, and K.
    generator : torch.Generator, optional
        Source of the draws.

    Raises
    ------
    CryoANMError
        If there are less than two images, which tell no error.
    """
    require_cpu(posterior.particles)
    if len(posterior) < 2:
        raise CryoANMError(f"{len(posterior)} images tell no error of D: give two or more")
    model, resolution = posterior.model, posterior.resolution
    forward, n_shells = model.forward_model, model.forward_model.box_size // 2 + 1
    of_coefficients = shell_hats(resolution, n_shells)
    # Both parts of a coefficient belong to its shell; k = 0 has one.
    hats = torch.cat([of_coefficients[:1], of_coefficients[1:].repeat_interleave(2, dim=0)])
    shared, own = torch.zeros(2, len(posterior), n_shells, dtype=torch.float64)
    draws, particles = posterior.sample(_DRAWS, generator), posterior.particles
    seen = particles.noise.whiten(crop_coefficients(particles.coefficients, resolution), resolution).double()
    for number in range(_DRAWS):
        latents = {**particles.given, **{name: value[number] for name, value in draws.items()}}
        made = forward.coefficients(latents, resolution)
        whitened = particles.noise.whiten(made, resolution).double()
        shared += (whitened * seen) @ hats
        own += whitened.square() @ hats
    total = own.sum(0)
    found = shared.sum(0) / total
    error = (shared - found * own).std(0) * len(posterior) ** 0.5 / total
    present = torch.ones_like(found) if forward.luzzati is None else forward.luzzati.double()
    if "contrast" in model.inferred:
        mean, _ = model.prior.moments("contrast", forward.n_modes, found)
        if mean != 0:
            present = present * draws["contrast"].double().mean() / mean
    return Luzzati(present * found, present.abs() * error)
