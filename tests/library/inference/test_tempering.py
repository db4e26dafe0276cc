"""The tempered sampler: exact and Gaussian posteriors as referees, and images that do not meet."""

import math
from dataclasses import replace

import pytest
import torch

from cryoanm_lib import Model, Prior, exact_posterior, prior_about, refine, temper
from cryoanm_lib.checks.calibration import LEVELS, coverage, coverage_band, credible_level
from cryoanm_lib.errors import CryoANMError
from cryoanm_lib.inference import tempering
from cryoanm_lib.inference.peak_finding import Starts
from cryoanm_lib.numerics.per_image_rng import PerImageRNG
from cryoanm_lib.numerics.rotation import quaternion_product, quaternion_z
from tests.all_the_way import adenylate_kinase

torch.set_num_threads(1)
K = 16


def plane_model(noise: float) -> Model:
    """Pose and amplitude unknown, defocus given."""
    return Model(adenylate_kinase(), Prior(), noise, ("pose", "amplitude"))


def test_evidence_and_moments_are_those_of_the_exact_posterior() -> None:
    """Where the pose has several peaks, from everywhere on the circle.

    A run of 512 draws knows the log-evidence to some 0.1; 40 images and five of their deviations.
    """
    model = plane_model(noise=1.0)
    torch.manual_seed(0)
    images = model.simulate(40, K)
    start = prior_about(model, 40, torch.tensor([[1.0, 0.0]]).expand(40, 2), deviation=2.0)
    found = temper(model, images, K, start, draws=512, generator=torch.Generator().manual_seed(1))
    exact = exact_posterior(model, images, K)
    away = found.log_evidence - exact.log_evidence
    assert away.abs().mean() < 0.2
    assert abs(away.mean()) < 5 * away.std() / 40**0.5 + 0.02
    mean, other = found.mean()["amplitude"][:, 0], exact.mean()["amplitude"][:, 0]
    deviation = found.covariance()[:, 1, 1].sqrt()
    assert ((mean - other) / deviation).square().mean().sqrt() < 5 / math.sqrt(512)
    assert found.acceptance.min() > 0.05


def test_draws_are_those_of_the_gaussian_where_it_is_one() -> None:
    """In space, all latents unknown: mean and covariance of `refine`, at a signal that makes it exact."""
    prior = Prior(pose="space", shift_scale=1.0, amplitude_scale=3.0)
    model = Model(adenylate_kinase(pixel_size=1.5), prior, noise=0.1)
    torch.manual_seed(0)
    images, generator = model.simulate(6, K), torch.Generator().manual_seed(1)
    starts = Starts.of_each(model.unknowns.points(images.truth).double()[:, None])
    refined = refine(model, images, K, starts, generator=generator)
    start = prior_about(model, 6, images.truth["pose"], deviation=0.1)
    found = temper(model, images, K, start, draws=512, moves=12, generator=generator)
    points = model.unknowns.points(found.mean()).double(), model.unknowns.points(refined.mean()).double()
    own, theirs = (each.covariance().diagonal(dim1=1, dim2=2) for each in (found, refined))
    z = model.unknowns.offset(*points) / (theirs / 512).sqrt()
    assert z.square().mean().sqrt() < 3  # draws are not all independent
    assert ((own / theirs).sqrt() - 1).abs().max() < 0.25
    assert (found.log_evidence - refined.log_evidence).abs().mean() < 0.4


@pytest.mark.thorough
def test_regions_hold_the_truth_where_there_is_hardly_a_signal() -> None:
    """And a pose has several peaks. Within the band of an honest posterior, false alarm 1e-3."""
    n, model = 250, plane_model(noise=1.0)
    torch.manual_seed(2)
    images, generator = model.simulate(n, K), torch.Generator().manual_seed(3)
    start = prior_about(model, n, torch.tensor([[0.0, 1.0]]).expand(n, 2), deviation=2.0)
    found = temper(model, images, K, start, draws=200, generator=generator)
    level = credible_level(found, found.sample(199, generator), images.truth)
    inside = torch.tensor([coverage(level, nominal, 199) for nominal in LEVELS])
    band = coverage_band(n, torch.tensor(LEVELS), 1 - 1e-3)
    assert ((inside >= band[:, 0]) & (inside <= band[:, 1])).all()


def test_an_image_has_the_same_draws_whatever_it_stands_among(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempering, "_IMAGES", 2)
    model = plane_model(noise=0.5)
    torch.manual_seed(4)
    images = model.simulate(5, K)
    start = prior_about(model, 5, images.truth["pose"], deviation=1.0)
    whole = temper(model, images, K, start, draws=32, generator=torch.Generator().manual_seed(5))
    first = torch.arange(3)
    part = temper(model, images[first], K, start[first], 32, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(part.points, whole.points[:, :3], rtol=0, atol=1e-6)
    assert whole.sample(32)["pose"].shape == (32, 5, 2)
    one = {name: value[None] for name, value in images.truth.items()}
    exact = {name: value.double() for name, value in one.items()}
    torch.testing.assert_close(whole.log_density(exact), whole.log_density(one), rtol=0, atol=1e-3)


def test_a_pose_turned_by_its_mean_is_no_other() -> None:
    """The start is about the pose that is given, in space too."""
    model = Model(adenylate_kinase(pixel_size=1.5), Prior(pose="space"), noise=0.1)
    pose = quaternion_product(quaternion_z(torch.tensor([0.7])), torch.tensor([[0.6, 0.0, 0.8, 0.0]]))
    start = prior_about(model, 1, pose, deviation=0.02)
    torch.testing.assert_close(start.centre[0, :, :4].float(), pose)
    assert start.covariance[0, 0].diagonal()[:3].sqrt().tolist() == pytest.approx([0.02] * 3)


def test_a_posterior_that_no_draw_leads_to_is_refused() -> None:
    """Where the noise is that of a unit other than the image's, no temperature is low enough."""
    model = plane_model(noise=1.0)
    images = model.simulate(2, K)
    start = prior_about(model, 2, images.truth["pose"], deviation=1.0)
    tiny = replace(images, noise=plane_model(1e-9).noise, coefficients=1e3 * images.coefficients)
    with pytest.raises(CryoANMError, match="of 16 draws for image 0 none leads to its posterior"):
        temper(model, tiny, K, start, draws=16)
    with pytest.raises(CryoANMError, match=r"deviation = 180: .* radians"):
        prior_about(model, 2, images.truth["pose"], deviation=180.0)


def test_draws_that_stay_where_they_are_count_as_stuck() -> None:
    """Between copies of one draw there is no difference: a population of them moves nowhere, and says so."""
    model = plane_model(noise=1.0)
    images, which = model.simulate(2, K), torch.arange(2)
    start = prior_about(model, 2, images.truth["pose"], deviation=1.0)
    streams = PerImageRNG.of(2, torch.Generator().manual_seed(1))
    population = tempering._Population(model, images, K, start, streams, 16, which)
    copies = population.points[:1].expand(16, -1, -1)
    heights = [height[:1].expand(16, -1) for height in (population.log_start, population.log_joint)]
    after, _, share = population._moved(copies, heights, which)
    assert torch.equal(after, copies)
    assert share.tolist() == [0.0, 0.0]
    _, _, share = population._moved(population.points, [population.log_start, population.log_joint], which)
    assert (share > 0).all()


@pytest.mark.parametrize(
    ("wrong", "asked"),
    [({"draws": 31}, "an even number"), ({"draws": 4}, "at least 8 for 2"), ({"moves": 0}, "one move")],
)
def test_what_cannot_spread_is_refused(wrong: dict[str, int], asked: str) -> None:
    model = plane_model(noise=0.5)
    images = model.simulate(2, K)
    start = prior_about(model, 2, images.truth["pose"], deviation=1.0)
    with pytest.raises(CryoANMError, match=asked):
        temper(model, images, K, start, **wrong)
    with pytest.raises(CryoANMError, match="about which pose"):
        prior_about(model, 2)
    with pytest.raises(CryoANMError, match="more than the 16 draws"):
        temper(model, images, K, start, draws=16).sample(17)
