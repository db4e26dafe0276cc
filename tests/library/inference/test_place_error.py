"""Atoms off their places are noticed, measured, and paid for in error bars."""

import math

import pytest
import torch

from cryoanm_lib import (
    ContrastTransfer,
    ForwardModel,
    Model,
    OpticsPrior,
    given_ctf,
    luzzati_factor,
    place_error,
    refine,
    with_place_error,
)
from cryoanm_lib.errors import CryoANMError
from cryoanm_lib.inference.peak_finding import Starts
from cryoanm_lib.inference.refinement import RefinedPosterior

torch.set_num_threads(1)
BOX, K, PIXEL, WIDTH, OFF = 48, 24, 1.5, 1.5, 0.5


def model_of(places: torch.Tensor, noise: float) -> Model:
    """Beads that hardly bend, in front of a microscope."""
    along = torch.ones(1, len(places), 3, dtype=torch.float64) / math.sqrt(3 * len(places))
    sizes = {"box_size": BOX, "pixel_size": PIXEL, "atom_width": WIDTH}
    forward = ForwardModel(places, along, **sizes, transfer=ContrastTransfer(PIXEL))
    prior = OpticsPrior(pose="space", shift_scale=1.0, amplitude_scale=0.01, contrast_scale=0.1)
    return Model(forward, prior, noise)


def answered(
    off: float, seed: int, count: int, noise: float = 1.0
) -> tuple[RefinedPosterior, dict[str, torch.Tensor]]:
    """Posteriors by a model whose beads are off their places, of images; and the truth."""
    generator = torch.Generator().manual_seed(seed)
    places = 8 * torch.randn(60, 3, generator=generator, dtype=torch.float64)
    away = off * torch.randn(places.shape, generator=generator, dtype=torch.float64)
    maker, model = model_of(places + away, noise), model_of(places, noise)
    torch.manual_seed(seed)
    defocus = torch.empty(count).uniform_(4000, 7000)
    given = {"ctf": given_ctf(defocus, defocus, torch.zeros(count))}
    images = maker.simulate(count, K, given)
    starts = Starts.of_each(model.unknowns.points(images.truth).double()[:, None])
    return refine(model, images, K, starts, generator=generator), dict(images.truth)


def error_of(posterior: RefinedPosterior):
    generator = torch.Generator().manual_seed(1)
    return place_error(posterior, generator)


def test_displacements_are_measured_and_ring_where_no_image_does() -> None:
    posterior, _ = answered(OFF, seed=3, count=100)
    found = error_of(posterior)
    assert found.deviation == pytest.approx(OFF, rel=0.25)
    assert found.z > 10
    assert posterior.explained.all()


def test_where_nothing_is_off_nothing_is_found() -> None:
    """z, whose numbers of the sum are about a hundred, is above 4 once in two thousand times."""
    posterior, _ = answered(0.0, seed=4, count=100)
    found = error_of(posterior)
    assert found.z < 4
    assert found.deviation < 0.15


def test_nothing_is_found_in_much_noise_either() -> None:
    """Where posteriors are wide their means would have a bias in common, and draws have none; as above."""
    posterior, _ = answered(0.0, seed=5, count=300, noise=2.5)
    assert error_of(posterior).z < 4


def test_displacements_are_measured_beside_luzzati_s_factor() -> None:
    """Of a model that has D, from the frequencies at which that is near 1."""
    posterior, _ = answered(0.8, seed=3, count=100)
    damped = posterior.model.forward_model.with_luzzati(luzzati_factor(posterior).smooth().factor)
    model = Model(damped, posterior.model.prior, posterior.model.noise)
    assert damped.luzzati[K // 2] < 0.9
    starts = Starts.of_each(posterior.mixture.centre[:, :1])
    again = refine(model, posterior.particles, K, starts, generator=torch.Generator().manual_seed(2))
    found = error_of(again)
    assert found.deviation == pytest.approx(0.8, rel=0.25)
    assert found.z > 10


@pytest.mark.thorough
def test_error_bars_pay_for_displacements() -> None:
    """Over 12 molecules, whose displacements are independent, and of each 20 views."""
    plain, paid = [], []
    for seed in range(12):
        posterior, truth = answered(OFF, seed=100 + seed, count=20, noise=0.5)
        plain.append(posterior.standardised(truth))
        paid.append(with_place_error(posterior, OFF).standardised(truth))
    names = posterior.model.unknowns.columns
    moved = torch.tensor([name in ("pose", "shift") for name in names])
    before, after = (torch.cat(each).square().mean(0).sqrt()[moved] for each in (plain, paid))
    assert (before > 1.25).all()
    assert (after - 1).abs().max() < 0.15


def test_no_displacement_changes_nothing() -> None:
    posterior, _ = answered(0.0, seed=4, count=5)
    same = with_place_error(posterior, 0.0)
    assert same is posterior


def test_one_image_has_nothing_in_common() -> None:
    posterior, _ = answered(0.0, seed=4, count=1)
    with pytest.raises(CryoANMError, match=r"1 image shares nothing with another: give two or more"):
        error_of(posterior)


@pytest.mark.parametrize("wrong", [-1.0, math.nan, math.inf])
def test_a_deviation_is_not_negative(wrong: float) -> None:
    posterior, _ = answered(0.0, seed=4, count=2)
    with pytest.raises(CryoANMError, match=r"deviation = .* Å is not usable: it must be 0 or greater"):
        with_place_error(posterior, wrong)
