"""log p(image, latents) of many images and draws, part by part."""

import torch
from jaxtyping import Float
from torch import Tensor

from cryoanm_lib.imaging.latents import Values
from cryoanm_lib.imaging.likelihood import log_likelihood
from cryoanm_lib.numerics.batching import in_parts, many
from cryoanm_lib.numerics.fourier import crop_coefficients
from cryoanm_lib.particles.particles import Particles
from cryoanm_lib.program.program import Model

# Points at which images are predicted at a time: what they need should stay near the processor.
_CHUNK = 512


def log_joint(
    model: Model, particles: Particles, latents: Values, resolution: int
) -> Float[Tensor, "*draws images"]:
    """log p(image, latents) at resolution K, in float64.

    The latents that are inferred are those of each image, with any number of draws in front; the others come
    with the particles.
    """
    n_images = len(particles)
    chosen = {name: latents[name] for name in model.inferred}
    draws = model.log_prior(chosen, particles.given).shape[:-1]
    observed = crop_coefficients(particles.coefficients, resolution)
    flat = {name: value.flatten(0, len(draws)) for name, value in chosen.items()}
    every = torch.arange(draws.numel() * n_images, device=observed.device)

    def scored(rows: slice) -> Float[Tensor, "rows"]:
        part, image = every[rows], every[rows] % n_images
        given = {name: value[image] for name, value in particles.given.items()}
        here = {name: value[part] for name, value in flat.items()}
        predicted = model.forward_model.coefficients(given | here, resolution)
        fit = log_likelihood(observed[image], predicted, particles.noise[image], resolution)
        return fit.double() + model.log_prior(here, given)

    return torch.cat(in_parts(scored, len(every), many(_CHUNK, every.device))).view(*draws, n_images)
