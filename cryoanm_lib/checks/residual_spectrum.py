"""The power of what predictions leave of images: the noise's spectrum, and what a model fails to explain."""

import torch
from jaxtyping import Float
from torch import Tensor

from cryoanm_lib.imaging.latents import Values
from cryoanm_lib.imaging.noise_spectrum import Spectrum, solved
from cryoanm_lib.imaging.radial_noise import shell_hats
from cryoanm_lib.numerics.fourier import crop_coefficients
from cryoanm_lib.particles.particles import Particles, require_cpu
from cryoanm_lib.program.gauss_newton import Tangent, tangent
from cryoanm_lib.program.program import Model

#: Images at once, whose slopes take memory.
_IMAGES = 100


@torch.no_grad()
def residual_spectrum(model: Model, particles: Particles, values: Values, resolution: int) -> Spectrum:
    """Power in each shell of observed less predicted coefficients, at the mean of each image's posterior.

    What was fitted follows the noise and takes some of it away: of a coefficient the share h = (J F⁻¹ Jᵀ),
    with J the derivative of the whitened prediction and F the Fisher information. So

        E |y - ŷ|² = N⁻² ν² S (1 - h),

    which is solved for S, without bias where the posterior is a Gaussian, the latents are drawn from the
    prior and the noise assumed is the true one: estimate again with the one that was found.

    Parameters
    ----------
    model, particles, resolution : Model, Particles, int
        The model, images with the latents that are given, and K.
    values : mapping of str to Tensor
        The posterior mean of what is inferred, such as `RefinedPosterior.mean`.

    Returns
    -------
    Spectrum
        In the shells that K reaches; beyond, not a number.
    """
    require_cpu(particles)
    box_size, n_shells = model.forward_model.box_size, model.forward_model.box_size // 2 + 1
    hats, seen, free = shell_hats(resolution, n_shells), [], []
    for some in torch.arange(len(particles)).split(_IMAGES):
        here, at = particles[some], {name: values[name][some] for name in model.inferred}
        fitted = tangent(model, here, at, resolution)
        residual = crop_coefficients(here.coefficients, resolution) - fitted.predicted
        of_parts = _leverage(fitted)
        of_each = torch.cat([of_parts[:, :1], of_parts[:, 1:].unflatten(1, (-1, 2)).mean(-1)], dim=1)
        scaled = residual.abs().double() / here.noise.unit()[1][..., None]
        seen.append(box_size**2 * scaled.square() @ hats)
        free.append((1 - of_each).sum(0))
    expected = torch.stack(free).sum(0)[:, None] / len(particles) * hats
    measured = hats.sum(0) > 0
    found = solved(torch.cat(seen)[:, measured], hats[:, measured], expected[:, measured])
    power, error = (torch.full((n_shells,), torch.nan, dtype=torch.float64) for _ in range(2))
    power[measured], error[measured] = found.power, found.error
    return Spectrum(power, error)


def _leverage(fitted: Tangent) -> Float[Tensor, "images dof"]:
    """The share h of the noise that a fit takes, of each value of the whitened crop."""
    jacobian = fitted.jacobian.double()
    factor = torch.linalg.cholesky(
        jacobian @ jacobian.transpose(1, 2) + torch.diag_embed(fitted.prior_precision)
    )
    return torch.linalg.solve_triangular(factor, jacobian, upper=False).square().sum(1)
