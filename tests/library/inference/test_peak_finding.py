"""Climbs end on peaks, peaks that meet are one, and a good start is not lost on the way."""

import pyro
import pytest
import torch

from cryoanm_lib.checks.predictive import explained_p_value
from cryoanm_lib.experiments.profile import load_profile
from cryoanm_lib.imaging.latents import POSE
from cryoanm_lib.imaging.noise import WhiteNoise
from cryoanm_lib.imaging.unknowns import Unknowns
from cryoanm_lib.inference.peak_finding import (
    PeakFinder,
    Peaks,
    Starts,
    distinct,
    march,
    with_reversed_bends,
)
from cryoanm_lib.program.log_joint import log_joint
from cryoanm_lib.program.prior import Prior
from cryoanm_lib.program.program import Model

ALL = ("pose", "amplitude", "defocus")


@pytest.mark.parametrize("concentration", [(0.0, 0.0), (30.0, 0.0)])
def test_a_peak_is_where_the_gradient_vanishes(tiny_model, concentration) -> None:
    """By automatic differentiation of the log-joint density, in units of the posterior's own spread."""
    prior = Prior(pose_concentration=concentration)
    model = tiny_model(inferred=ALL, noise=0.05, prior=prior).double()
    pyro.set_rng_seed(0)
    particles, unknowns = model.simulate(6, 32), model.unknowns
    start = unknowns.points(particles.truth) + torch.tensor([0.05, 0.5, 1.0])
    peaks = PeakFinder(model, particles, 24).find(Starts(torch.arange(6), start))
    values = peaks.points.clone().requires_grad_()
    height = log_joint(model, particles, unknowns.values(values), 24)
    (slope,) = torch.autograd.grad(height.sum(), values)
    decrement = torch.einsum("pa,pab,pb->p", slope, torch.linalg.inv(peaks.precision), slope)
    assert (decrement < 0.01).all()
    torch.testing.assert_close(peaks.log_joint, height.detach(), rtol=0, atol=2e-3)


def test_no_start_nearby_ends_higher(tiny_model) -> None:
    model = tiny_model(inferred=ALL, noise=0.05)
    pyro.set_rng_seed(1)
    particles, unknowns = model.simulate(5, 32), model.unknowns
    finder, image = PeakFinder(model, particles, 24), torch.arange(5)
    truth = unknowns.points(particles.truth).double()
    peaks = finder.find(Starts(image, truth))
    for seed in range(3):
        away = torch.randn(truth.shape, generator=torch.Generator().manual_seed(seed)) * 3
        deviation = torch.linalg.inv(peaks.precision).diagonal(dim1=1, dim2=2).sqrt()
        nearby = finder.height(Starts(image, peaks.points + 0.1 * away * deviation))
        assert (nearby <= peaks.log_joint + 2e-3).all()


def test_peaks_that_meet_are_one_and_hopeless_ones_go() -> None:
    unknowns = Unknowns((POSE,), n_modes=1)
    near_pi = 3.141
    peaks = Peaks(
        image=torch.tensor([1, 0, 0, 0, 1]),
        points=torch.tensor([[0.5], [near_pi], [-near_pi], [0.0], [2.0]]),
        log_joint=torch.tensor([-5.0, -1.0, -2.0, -3.0, -100.0]),
        precision=torch.full((5, 1, 1), 100.0),
    )
    left = distinct(peaks, unknowns, n_images=2)
    assert left.image.tolist() == [0, 0, 1]
    assert left.log_joint.tolist() == [-1.0, -3.0, -5.0]


def test_evidence_of_a_gaussian_peak_is_exact() -> None:
    precision = torch.diag(torch.tensor([4.0, 0.25], dtype=torch.float64))[None]
    log_joint = torch.zeros(1, dtype=torch.float64)
    peaks = Peaks(torch.zeros(1, dtype=torch.long), torch.zeros(1, 2), log_joint, precision)
    axis = torch.linspace(-40, 40, 4001, dtype=torch.float64)
    sums = [(-0.5 * p * axis**2).exp().sum() * (axis[1] - axis[0]) for p in (4.0, 0.25)]
    assert peaks.log_evidence.item() == pytest.approx((sums[0] * sums[1]).log().item(), abs=1e-9)


def test_a_march_does_not_lose_a_good_start(tiny_model) -> None:
    """With little signal the low resolutions have peaks elsewhere: the end is never below the start."""
    model = tiny_model(inferred=("pose", "amplitude"), noise=2.0)
    pyro.set_rng_seed(2)
    particles, unknowns = model.simulate(40, 32), model.unknowns
    image, truth = torch.arange(40), unknowns.points(particles.truth).double()
    marched = march(model, particles, Starts(image, truth), 32)
    best = marched.log_joint.new_full((40,), -torch.inf)
    best = best.scatter_reduce(0, marched.image, marched.log_joint, reduce="amax")
    start = PeakFinder(model, particles, 32).height(Starts(image, truth))
    assert (best >= start - 1e-3).all()


def test_bends_that_a_tilt_makes_up_for_are_found() -> None:
    """Climbs from twice the bend on the wrong side: a few stay there, and none when bends are reversed."""
    forward = load_profile("laptop").run("so3_any_noise").forward_model()
    prior = Prior(pose="space", shift_scale=2.0, amplitude_scale=3.0)
    model = Model(forward, prior, WhiteNoise(0.05, forward.box_size))
    pyro.set_rng_seed(0)
    particles, points = model.simulate(100, forward.box_size), model.unknowns.points
    finder, wrong = PeakFinder(model, particles, 32), dict(particles.truth)
    wrong["amplitude"] = -2 * wrong["amplitude"]
    right, climbed = (finder.find(Starts.of_each(points(v)[:, None])) for v in (particles.truth, wrong))
    assert (climbed.log_joint < right.log_joint - 5).any()
    found = with_reversed_bends(model, particles, climbed, 32)
    assert (found.log_joint[found.first(100)] > right.log_joint - 5).all()
    # of an image that leaves less than noise does there is nothing to doubt
    well = explained_p_value(model, particles, particles.truth, 32).argmax()[None]
    alone, start = particles[well], Starts(torch.zeros(1, dtype=torch.long), right.points[well])
    peak = PeakFinder(model, alone, 32).find(start)
    assert with_reversed_bends(model, alone, peak, 32) is peak
