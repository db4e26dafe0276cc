"""The log-posterior about a point: its height, its slope, and its curvature by Gauss and Newton."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryoanm_lib.imaging.forward_model import ForwardModel
from cryoanm_lib.imaging.latents import Latent, Values
from cryoanm_lib.imaging.unknowns import Unknowns
from cryoanm_lib.numerics.fourier import crop_coefficients
from cryoanm_lib.particles.particles import Particles
from cryoanm_lib.program.prior import Prior


@runtime_checkable
class HasPosterior(Protocol):
    """What is needed of a `Model`."""

    forward_model: ForwardModel
    prior: Prior
    unknowns: Unknowns


@dataclass(frozen=True, eq=False)
class GaussNewton:
    """Of images, each at a point of its own, in float64.

    Attributes
    ----------
    height : Float[Tensor, "images"]
        log p(image, latents), but for latents that are not moved.
    slope : Float[Tensor, "images columns"]
        Its gradient Jᵀr + ∇log p by the steps of `Unknowns`.
    precision : Float[Tensor, "images columns columns"]
        JᵀJ + P: the Fisher information of the image and the curvature of the prior, where that is positive.
    """

    height: Float[Tensor, "images"]
    slope: Float[Tensor, "images columns"]
    precision: Float[Tensor, "images columns columns"]


@dataclass(frozen=True, eq=False)
class Tangent:
    """The prediction of each image about a point, in units of the noise: what is left, and how it changes.

    Attributes
    ----------
    predicted : Complex[Tensor, "images kept"]
        Coefficients at the point, as they are.
    residual : Float[Tensor, "images dof"]
        r, observed less predicted, whitened.
    jacobian : Float[Tensor, "images columns dof"]
        Jᵀ, the derivative of the whitened prediction by the steps of `Unknowns`.
    prior_slope, prior_precision : Float[Tensor, "images columns"]
        Gradient of log p there, and its curvature P where that is positive.
    """

    predicted: Complex[Tensor, "images kept"]
    residual: Float[Tensor, "images dof"]
    jacobian: Float[Tensor, "images columns dof"]
    prior_slope: Float[Tensor, "images columns"]
    prior_precision: Float[Tensor, "images columns"]

    @property
    def precision(self) -> Float[Tensor, "images columns columns"]:
        """JᵀJ + P in float64, the product itself in the type of the model, which is faster."""
        information = (self.jacobian @ self.jacobian.transpose(1, 2)).double()
        return information + torch.diag_embed(self.prior_precision)


def all_latents(model: HasPosterior, particles: Particles, values: Values) -> dict[str, Tensor]:
    """All that images depend on, given or at `values`, in the type of the forward model."""
    latents = {**particles.given, **values}
    return {name: value.to(model.forward_model.reference) for name, value in latents.items()}


def tangent(
    model: HasPosterior,
    particles: Particles,
    values: Values,
    resolution: int,
    latents: tuple[Latent, ...] | None = None,
) -> Tangent:
    """The prediction about a point of each image, its slopes, and the prior's; as `gauss_newton` takes it."""
    latents = model.unknowns.latents if latents is None else latents
    forward, noise = model.forward_model, particles.noise
    predicted, slopes = forward.slopes(all_latents(model, particles, values), resolution, latents)
    # Images from a file may be in double precision, the model in single.
    observed = crop_coefficients(particles.coefficients, resolution).to(predicted.dtype)
    exact = {name: value.double() for name, value in values.items()}
    prior = model.prior.about(particles.given)
    of_prior = [prior.slopes(latent, exact, forward.n_modes) for latent in latents]
    slope, precision = (torch.cat(parts, dim=1) for parts in zip(*of_prior, strict=True))
    residual = noise.whiten(observed - predicted, resolution)
    return Tangent(predicted, residual, noise[:, None].whiten(slopes, resolution), slope, precision)


def gauss_newton(
    model: HasPosterior,
    particles: Particles,
    values: Values,
    resolution: int,
    latents: tuple[Latent, ...] | None = None,
) -> GaussNewton:
    """With J the derivative of the crop in units of the noise, r what it leaves unexplained, and p the prior.

    Parameters
    ----------
    model, particles, resolution : Model, Particles, int
        Forward model and prior, images with latents that are given of each, and K.
    values : mapping of str to Tensor
        Where to look: the latents that are moved, and any that take the place of given ones; in float64 or in
        the forward model's type.
    latents : tuple of Latent, optional
        Along which one may move, in the order of the columns; default all that the model infers.
    """
    latents = model.unknowns.latents if latents is None else latents
    at = tangent(model, particles, values, resolution, latents)
    prior = model.prior.about(particles.given)
    log_prior = sum(
        prior.distribution(one.name, model.forward_model.n_modes, at.prior_slope).log_prob(
            values[one.name].double()
        )
        for one in latents
    )
    squared = at.residual.double().square().sum(-1)
    return GaussNewton(
        -0.5 * squared - particles.noise.log_normaliser(resolution) + log_prior,
        (at.jacobian @ at.residual[..., None])[..., 0].double() + at.prior_slope,
        at.precision,
    )
