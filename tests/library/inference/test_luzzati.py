"""Luzzati's D is found in images that have it, and is that of atoms off their places."""

import math

import pytest
import torch

from cryoanm_lib import (
    ContrastTransfer,
    ForwardModel,
    Luzzati,
    Model,
    OpticsPrior,
    Particles,
    RadialNoise,
    given_ctf,
    luzzati_factor,
    refine,
)
from cryoanm_lib.errors import CryoANMError, ForwardModelError
from cryoanm_lib.inference.gaussian_mixture import GaussianMixture
from cryoanm_lib.inference.peak_finding import Starts
from cryoanm_lib.inference.refinement import RefinedPosterior

torch.set_num_threads(1)
BOX, K, PIXEL, WIDTH = 48, 32, 1.5, 0.8


def model_of(places: torch.Tensor, luzzati: torch.Tensor | None = None, noise: float = 0.2) -> Model:
    """Beads that hardly bend, in front of a microscope; coloured noise, contrast unknown."""
    along = torch.ones(1, len(places), 3, dtype=torch.float64) / math.sqrt(3 * len(places))
    sizes = {"box_size": BOX, "pixel_size": PIXEL, "atom_width": WIDTH}
    forward = ForwardModel(places, along, **sizes, transfer=ContrastTransfer(PIXEL), luzzati=luzzati)
    prior = OpticsPrior(pose="space", shift_scale=1.0, amplitude_scale=0.01, contrast_scale=0.1)
    return Model(forward, prior, RadialNoise(noise**2 * torch.linspace(3, 1, BOX // 2 + 1), BOX))


def places_of(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    places = 9 * torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return places * (places.norm(dim=1, keepdim=True) / 30).clamp(min=1).reciprocal()


def images_of(maker: Model, count: int) -> tuple[Particles, dict[str, torch.Tensor]]:
    torch.manual_seed(6)
    defocus = torch.empty(count).uniform_(4000, 7000)
    given = {"ctf": given_ctf(defocus, defocus, torch.zeros(count))}
    images = maker.simulate(count, K, given)
    return images, dict(images.truth)


def refined(model: Model, particles: Particles, truth: dict[str, torch.Tensor]) -> RefinedPosterior:
    starts = Starts.of_each(model.unknowns.points(truth).double()[:, None])
    return refine(model, particles, K, starts, generator=torch.Generator().manual_seed(1))


def known(model: Model, particles: Particles, truth: dict[str, torch.Tensor]) -> RefinedPosterior:
    """Narrow posteriors about the truth."""
    at = model.unknowns.points(truth).double()[:, None]
    nothing = torch.zeros(len(at), dtype=torch.float64)
    narrow = 1e-6 * torch.eye(len(model.unknowns.columns)).double().expand(len(at), 1, -1, -1)
    mixture = GaussianMixture(model.unknowns, nothing[:, None], at, narrow)
    return RefinedPosterior(model, particles, K, mixture, nothing, nothing, nothing.bool(), nothing)


PLACES = places_of(40)
SHELLS = torch.arange(BOX // 2 + 1, dtype=torch.float64)
FALLING = (-2 * (SHELLS / BOX * 2.5).square()).exp()


def test_what_images_hold_of_a_prediction_is_found() -> None:
    """Where the latents are known D is, in 16 shells, as far off as its errors say, but thrice in 10⁴."""
    particles, truth = images_of(model_of(PLACES, FALLING), 100)
    found = luzzati_factor(known(model_of(PLACES), particles, truth), torch.Generator().manual_seed(2))
    expected = FALLING * truth["contrast"].mean()  # of which the prior's mean is 1
    away = ((found.factor - expected) / found.error)[1:17]
    assert away.square().sum() < 45
    assert expected[16] < 0.3 and (found.error[1:17] < 0.05).all()


def test_a_contrast_of_either_sign_has_no_scale() -> None:
    particles, truth = images_of(model_of(PLACES, FALLING), 100)
    model = model_of(PLACES)
    model.prior = model.prior.model_copy(update={"contrast_mean": 0.0, "contrast_scale": 2.0})
    found = luzzati_factor(known(model, particles, truth), torch.Generator().manual_seed(2))
    away = ((found.factor - FALLING) / found.error)[1:17]
    assert away.square().sum() < 45


def test_it_is_found_from_posteriors_of_a_model_without_it() -> None:
    """Two steps, the first from posteriors that lack D, bring it within a tenth."""
    particles, truth = images_of(model_of(PLACES, FALLING), 40)
    model = wrong = model_of(PLACES)
    for _ in range(2):
        found = luzzati_factor(refined(model, particles, truth), torch.Generator().manual_seed(2))
        damped = model.forward_model.with_luzzati(found.smooth().factor)
        model = Model(damped, wrong.prior, wrong.noise)
    assert (damped.luzzati - FALLING * truth["contrast"].mean())[2:17].abs().max() < 0.1


def test_atoms_off_their_places_have_the_d_of_luzzati() -> None:
    """exp(-2π² τ² k²), the mean over displacements, from which that of 1600 atoms deviates little."""
    places, off = places_of(1600), 1.2
    generator = torch.Generator().manual_seed(7)
    moved = places + off * torch.randn(places.shape, generator=generator, dtype=torch.float64)
    particles, truth = images_of(model_of(moved, noise=0.02), 60)
    found = luzzati_factor(known(model_of(places, noise=0.02), particles, truth), generator)
    expected = (-2 * (math.pi * off * SHELLS / (BOX * PIXEL)).square()).exp()
    assert (found.factor - expected)[1:15].abs().max() < 0.1
    assert expected[14] < 0.4


def test_smoothing_keeps_what_is_known_and_fills_what_is_not() -> None:
    known, noise = SHELLS < 18, 0.05 * torch.randn(25, generator=torch.Generator().manual_seed(1)).double()
    error = torch.full_like(FALLING, 0.05).where(known, torch.nan)
    smooth = Luzzati((FALLING + noise).where(known, torch.nan), error).smooth()
    assert (smooth.factor - FALLING)[:18].abs().max() < 3 * 0.05
    assert (smooth.error[1:17] < 0.05).all()
    torch.testing.assert_close(smooth.factor[18:], smooth.factor[17].expand(7))


def test_d_is_a_number_of_each_shell() -> None:
    with pytest.raises(
        ForwardModelError, match=r"D has shape \(5,\): give a number for each of the 25 shells"
    ):
        model_of(places_of(5), torch.ones(5))
    with pytest.raises(ForwardModelError, match=r"D is nan in shell 20: `smooth\(\)` of an estimate fills"):
        model_of(places_of(5), FALLING.where(SHELLS < 20, torch.nan))


def test_one_image_tells_no_error() -> None:
    particles, truth = images_of(model_of(PLACES), 1)
    with pytest.raises(CryoANMError, match="1 images tell no error of D: give two or more"):
        luzzati_factor(known(model_of(PLACES), particles, truth))
