"""The search in space: its scores are the posterior's, and it finds what a guide has missed."""

import math

import pyro
import pytest
import torch

from cryoanm_lib import ContrastTransfer, ForwardModel, OpticsPrior, RadialNoise, given_ctf, normal_modes
from cryoanm_lib.checks.residuals import pose_distance
from cryoanm_lib.errors import CryoANMError
from cryoanm_lib.inference.peak_finding import Starts, march
from cryoanm_lib.inference.refinement import refine
from cryoanm_lib.inference.so3_search import SO3Search
from cryoanm_lib.inference.templates import Lattice
from cryoanm_lib.program.log_joint import log_joint
from cryoanm_lib.program.prior import Prior
from cryoanm_lib.program.program import Guide, Model

PRIOR = Prior(pose="space", shift_scale=0.8, amplitude_scale=1.0)
EVERYTHING = ("pose", "shift", "amplitude", "defocus")


@pytest.fixture
def guide(tiny_guide) -> Guide:
    pyro.set_rng_seed(0)
    return tiny_guide("shared", prior=PRIOR, inferred=EVERYTHING, noise=0.05, components=2)


@pytest.fixture
def model(guide) -> Model:
    return guide.model


def test_scores_are_those_of_the_posterior(model) -> None:
    """At points of the grid, up to a constant for each image, beside the same rotation and shift."""
    search = SO3Search(model, resolution=16, spacing=40.0)
    particles = model.simulate(3, 32)
    score, shift, _ = search.scores(particles)
    cells = torch.arange(0, len(search.poses), 7)
    latents = {
        "pose": search.poses[cells][:, None].expand(-1, 3, 4),
        "shift": search.shifts[shift[:, cells].T.long()],
        "amplitude": torch.zeros(len(cells), 3, 1),
        "defocus": torch.full((len(cells), 3), 50.0),
    }
    expected = log_joint(model, particles, {k: v.float() for k, v in latents.items()}, 16)
    difference = score[:, cells].T.double() - expected
    torch.testing.assert_close(difference, difference[:1].expand_as(difference), rtol=0, atol=0.05)


def either_sign(tiny_model) -> Model:
    """The molecule bright or dark, weak or strong, and nobody knows which."""
    prior = Prior(pose="space", amplitude_scale=1.0, contrast_mean=0.0, contrast_scale=1.0)
    return tiny_model(prior=prior, inferred=("pose", "amplitude", "contrast"), noise=0.05)


def test_scores_are_integrated_over_the_contrast(tiny_model) -> None:
    """By quadrature of the posterior over it; its best value is where that is highest."""
    model = either_sign(tiny_model)
    pyro.set_rng_seed(3)
    particles, search = model.simulate(3, 32), SO3Search(model, resolution=16, spacing=40.0)
    score, _, best = search.scores(particles)
    cells, line = torch.arange(0, len(search.poses), 31), torch.linspace(-4, 4, 1601)
    latents = {
        "pose": search.poses[cells][:, None, None].expand(-1, len(line), 3, 4),
        "amplitude": torch.zeros(len(cells), len(line), 3, 1),
        "contrast": line[:, None].expand(len(cells), -1, 3),
    }
    heights = log_joint(model, particles, {k: v.float() for k, v in latents.items()}, 16)
    expected = heights.double().logsumexp(1)
    difference = score[:, cells].T.double() - expected
    torch.testing.assert_close(difference, difference[:1].expand_as(difference), rtol=0, atol=0.05)
    torch.testing.assert_close(best[:, cells].T, line[heights.argmax(1)], rtol=0, atol=0.005)


def test_it_finds_poses_and_signs_of_contrast(tiny_model) -> None:
    model = either_sign(tiny_model)
    pyro.set_rng_seed(4)
    particles = model.simulate(60, 32)
    search = SO3Search(model, resolution=16, spacing=20.0)
    posterior = refine(model, particles, 32, search.starts(particles))
    seen = particles.truth["contrast"].abs() > 0.2
    found = posterior.mean()
    assert (found["contrast"][seen].sign() == particles.truth["contrast"][seen].sign()).double().mean() > 0.95
    away = torch.rad2deg(pose_distance(found["pose"].double(), particles.truth["pose"].double()))
    assert (away[seen] < 3.0).double().mean() > 0.9
    assert posterior.standardised(particles.truth)[seen][:, -1].square().mean() < 2.0


def test_it_finds_poses_without_a_guide(model) -> None:
    search = SO3Search(model, resolution=16, spacing=20.0)
    particles = model.simulate(30, 32)
    starts = search.starts(particles)
    peaks = march(model, particles, starts, 32, lowest=16)
    first = torch.searchsorted(peaks.image, torch.arange(30))
    found = model.unknowns.values(peaks.points[first])
    away = torch.rad2deg(pose_distance(found["pose"], particles.truth["pose"].double()))
    assert (away < 3.0).double().mean() > 0.9


def test_starts_of_an_image_are_apart(model) -> None:
    search = SO3Search(model, resolution=16, spacing=20.0, most=5)
    starts = search.starts(model.simulate(2, 32))
    poses = starts.points[:5, :4]
    distance = torch.rad2deg(pose_distance(poses[:, None], poses)) + 1000 * torch.eye(5)
    assert distance.min() >= 1.5 * 20.0 - 1e-6
    assert len(starts.image) == 10


def test_images_that_are_explained_are_passed_over(model) -> None:
    """Of 40 whose peak is the true one, one in a hundred may be doubted; those sent astray are all."""
    search = SO3Search(model, resolution=16, spacing=30.0)
    particles, unknowns = model.simulate(40, 32), model.unknowns
    peaks = march(model, particles, Starts.of_each(unknowns.points(particles.truth)[:, None]), 32)
    assert len(torch.unique(search.starts(particles, peaks).image)) <= 4
    away = torch.zeros(len(peaks), len(unknowns.columns), dtype=torch.float64)
    away[:, 0] = 1.5
    lost = type(peaks)(peaks.image, unknowns.moved(peaks.points, away), peaks.log_joint, peaks.precision)
    assert len(torch.unique(search.starts(particles, lost).image)) >= 38


def test_refinement_recovers_from_a_guide_that_knows_nothing(model, guide) -> None:
    particles = model.simulate(30, 32)
    alone = refine(model, particles, 32, guide)
    helped = refine(model, particles, 32, guide, SO3Search(model, resolution=16, spacing=20.0))
    assert helped.explained.double().mean() > 0.9 > alone.explained.double().mean()
    assert (helped.log_evidence[alone.explained] > alone.log_evidence[alone.explained] - 0.5).all()


def test_a_lattice_does_not_cover_space(model) -> None:
    with pytest.raises(CryoANMError, match="not in space: use `refine` with an `SO3Search`"):
        Lattice.covering(model, 16)


def test_shifts_are_searched_within_the_prior(model) -> None:
    search = SO3Search(model, resolution=16, spacing=40.0)
    assert search.shifts.norm(dim=1).max() <= 2.5 * 0.8 + 1e-6
    assert math.isclose(search.shifts.norm(dim=1).min().item(), 0.0, abs_tol=1e-9)


def test_a_given_shift_and_contrast_are_taken_into_account(tiny_model) -> None:
    """Shifts of three pixels and dim images, all of it known."""
    prior = Prior(pose="space", shift_scale=1.5, contrast_scale=0.2, amplitude_scale=1.0)
    model = tiny_model(prior=prior, inferred=("pose", "amplitude"), noise=0.05)
    pyro.set_rng_seed(2)
    particles = model.simulate(20, 32)
    search = SO3Search(model, resolution=16, spacing=20.0)
    peaks = march(model, particles, search.starts(particles), 32, lowest=16)
    first = torch.searchsorted(peaks.image, torch.arange(20))
    found = model.unknowns.values(peaks.points[first])["pose"]
    away = torch.rad2deg(pose_distance(found, particles.truth["pose"].double()))
    assert (away < 3.0).double().mean() > 0.85


def test_each_image_is_searched_with_its_own_microscope(cluster) -> None:
    """Scores are the posterior's where each image has a defocus and an astigmatism of its own, in ice."""
    modes = normal_modes(cluster, n_modes=1, cutoff=30.0)
    transfer = ContrastTransfer(2.0)
    forward = ForwardModel(cluster.float(), modes.vectors.float(), 32, pixel_size=2.0, transfer=transfer)
    noise = RadialNoise(torch.linspace(0.01, 0.001, 17), 32, level=0.1)
    model = Model(forward, OpticsPrior(pose="space", shift_scale=0.8, amplitude_scale=1.0), noise)
    defocus = torch.tensor([1500.0, 2500.0, 3500.0])
    ctf = given_ctf(defocus + 300, defocus - 300, torch.tensor([0.0, 40.0, 110.0]))
    images = model.simulate(3, 32, {"ctf": ctf})
    search = SO3Search(model, resolution=16, spacing=40.0)
    score, shift, _ = search.scores(images)
    cells = torch.arange(0, len(search.poses), 7)
    latents = {
        "pose": search.poses[cells][:, None].expand(-1, 3, 4),
        "shift": search.shifts[shift[:, cells].T.long()],
        "amplitude": torch.zeros(len(cells), 3, 1),
        "defocus": torch.zeros(len(cells), 3),
    }
    expected = log_joint(model, images, {k: v.float() for k, v in latents.items()}, 16)
    difference = score[:, cells].T.double() - expected
    torch.testing.assert_close(difference, difference[:1].expand_as(difference), rtol=0, atol=0.05)


def test_a_model_without_a_pose_in_space_is_refused(tiny_model) -> None:
    with pytest.raises(CryoANMError, match="use a LatticeSearch"):
        SO3Search(tiny_model())
