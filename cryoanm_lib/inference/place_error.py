"""What error bars owe to atoms of a model that are off their places."""

from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from cryoanm_lib.checks.predictive import standard_residual
from cryoanm_lib.errors import CryoANMError
from cryoanm_lib.inference.displacement import pull_back, push_forward
from cryoanm_lib.inference.refinement import RefinedPosterior
from cryoanm_lib.particles.particles import require_cpu
from cryoanm_lib.program.gauss_newton import Tangent, tangent
from cryoanm_lib.program.program import Model

#: Displacements drawn to learn what a displacement does, and draws from the posterior of each image.
_PROBES, _DRAWS = 8, 4

#: Displacements are small against the waves down to which a prediction keeps as much of itself as this.
_LINEAR = 0.7

# Images at once, whose slopes take memory.
_IMAGES = 50


class PlaceError(NamedTuple):
    """How far atoms are off their places.

    Attributes
    ----------
    deviation : float
        τ_a in Å, of an atom's place along each axis; of some hundred images known to a quarter of itself.
    z : float
        By how many standard deviations images have more in common than noise would give them: an alarm for a
        set of images, of which each alone says nothing. Its tail is longer than a normal's: of a right model
        it is above 4 once in some two thousand times.
    """

    deviation: float
    z: float


@torch.no_grad()
def place_error(posterior: RefinedPosterior, generator: torch.Generator | None = None) -> PlaceError:
    """How far the atoms of a model are off their places, from what many images have in common.

    Let every atom be displaced in the molecule's own frame by e ~ N(0, τ_a²) along each axis. With G the
    derivative of the whitened prediction of image i by places, and ψ a draw from its posterior,

        b_i = E_ψ Gᵀ (y - ŷ(ψ))

    is how the image would have the atoms moved. It is 0 on average where the model is right, because image
    and draw are then distributed as image and truth are, and two images share nothing but e. To first order,
    with J the derivative by the latents and Σ the covariance of their fit,

        Σ_{i≠j} b_i · b_j = τ_a² E_u Σ_{i≠j} (A_i u) · (A_j u),    A = Gᵀ (1 - J Σ Jᵀ) G,    u ~ N(0, 1).

    The noise adds nothing on average, whatever its power, and turning the sign of every b_i at random gives
    the deviation of the left side where e = 0.

    Parameters
    ----------
    posterior : RefinedPosterior
        Of a model, images with the latents that are given, and K. Of a model with Luzzati's D no more is used
        than along the axes down to where D falls below 0.7 of its highest value, and K = 8 at least, since a
        displacement must be small against the waves.
    generator : torch.Generator, optional
        Source of draws and of u.

    Raises
    ------
    CryoANMError
        If there are less than two images, or too few to tell what a displacement does.
    """
    require_cpu(posterior.particles)
    if len(posterior) < 2:
        raise CryoANMError("1 image shares nothing with another: give two or more")
    model, resolution = posterior.model, _linear_resolution(posterior.model, posterior.resolution)
    n_atoms = len(model.forward_model.reference)
    probes = torch.randn(_PROBES, n_atoms, 3, generator=generator, dtype=torch.float64)
    draws, mean = posterior.sample(_DRAWS, generator), posterior.mean()
    of_images, of_probes, squares = [], torch.zeros(_PROBES, 3 * n_atoms, dtype=torch.float64), 0.0
    for some in torch.arange(len(posterior)).split(_IMAGES):
        here = posterior.particles[some]
        b = torch.zeros(len(some), n_atoms, 3, dtype=torch.float64)
        for number in range(_DRAWS):
            at = {name: value[number, some] for name, value in draws.items()}
            b += (
                pull_back(model, here, at, standard_residual(model, here, at, resolution), resolution)
                / _DRAWS
            )
        of_images.append(b.flatten(1))
        at = {name: mean[name][some] for name in model.inferred}
        fitted = tangent(model, here, at, resolution)
        for number, moved in enumerate(push_forward(model, here, at, probes, resolution).unbind(1)):
            back = pull_back(model, here, at, _left_of(moved, fitted), resolution).flatten(1)
            of_probes[number] += back.sum(0)
            squares += back.square().sum() / _PROBES
    b = torch.cat(of_images)
    # Σ over pairs of b_i · b_j and of its square: all products less those of an image with itself.
    alone = b.square().sum(1)
    shared = b.sum(0).square().sum() - alone.sum()
    products = b @ b.T if len(b) < 3 * n_atoms else b.T @ b
    spread = (2 * (products.square().sum() - alone.square().sum())).clamp(min=1e-300).sqrt()
    expected = of_probes.square().sum(1).mean() - squares
    if not expected > 0:
        raise CryoANMError(f"{len(b)} images do not tell what a displacement of atoms does: give more")
    variance = (shared / expected).clamp(min=0.0)
    return PlaceError(variance.sqrt().item(), (shared / spread).item())


def _linear_resolution(model: Model, resolution: int) -> int:
    """K, or the largest even one below it within which D is at least `_LINEAR`."""
    luzzati = model.forward_model.luzzati
    if luzzati is None:
        return resolution
    shells = torch.nonzero(luzzati[1:] < _LINEAR * luzzati[1:].max())[:, 0]
    first = int(shells[0]) + 1 if len(shells) else len(luzzati)
    return min(resolution, max(8, 2 * first))


def _left_of(whitened: Float[Tensor, "images dof"], fitted: Tangent) -> Float64[Tensor, "images dof"]:
    """(1 - J Σ Jᵀ) x."""
    jacobian, x = fitted.jacobian.double(), whitened.double()[..., None]
    return (x - jacobian.transpose(1, 2) @ torch.linalg.solve(fitted.precision, jacobian @ x))[..., 0]


@torch.no_grad()
def with_place_error(posterior: RefinedPosterior, deviation: float) -> RefinedPosterior:
    """The posterior where atoms are off their places: each Gaussian wider, its middle where it is.

    A displacement e of all atoms moves the peak of an image by Σ Jᵀ G e. With e ~ N(0, τ_a²) its covariance
    grows to

        Σ + τ_a² Σ Jᵀ G Gᵀ J Σ.

    What moves the peaks of similar images moves them alike: averages over images do not become as much better
    as their number says. Evidence and effective sample size stay those of the model without displacements,
    and draws that were weighed become draws from the Gaussians.

    Parameters
    ----------
    posterior : RefinedPosterior
        Of a model, best of one with Luzzati's D.
    deviation : float
        τ_a in Å, such as `place_error` finds; 0 changes nothing.

    Raises
    ------
    CryoANMError
        If it is negative or not finite.
    """
    require_cpu(posterior.particles)
    if not 0 <= deviation < float("inf"):
        raise CryoANMError(f"deviation = {deviation:g} Å is not usable: it must be 0 or greater")
    if deviation == 0:
        return posterior
    mixture, scale = posterior.mixture, posterior.mixture.scale.clone()
    for component in range(scale.shape[1]):
        present = torch.nonzero(mixture.log_weight[:, component].isfinite())[:, 0]
        for some in present.split(_IMAGES):
            here = posterior.particles[some]
            at = mixture.unknowns.values(mixture.centre[some, component])
            fitted = tangent(posterior.model, here, at, posterior.resolution)
            columns = [
                pull_back(posterior.model, here, at, column, posterior.resolution).flatten(1)
                for column in fitted.jacobian.unbind(1)
            ]
            covariance = mixture.covariance[some, component]
            moved = deviation * covariance @ torch.stack(columns, dim=1)
            scale[some, component] = torch.linalg.cholesky(covariance + moved @ moved.transpose(1, 2))
    return replace(
        posterior,
        mixture=replace(mixture, scale=scale),
        weighed=torch.zeros_like(posterior.weighed),
    )
