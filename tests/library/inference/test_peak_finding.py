"""Climbs end on peaks, peaks that meet are one, and a good start is not lost on the way."""

import pyro
import pytest
import torch

from cryoanm_lib.inference.peak_finding import PeakFinder, Peaks, Starts, distinct, march
from cryoanm_lib.program.prior import Prior
from cryoanm_lib.program.unknowns import Unknowns

ALL = ("pose", "amplitude", "defocus")


@pytest.mark.parametrize("concentration", [(0.0, 0.0), (30.0, 0.0)])
def test_a_peak_is_where_the_gradient_vanishes(tiny_program, concentration) -> None:
    """By automatic differentiation of the log-joint density, in units of the posterior's own spread."""
    prior = Prior(pose_concentration=concentration)
    program = tiny_program(inferred=ALL, noise=0.05, prior=prior).double()
    pyro.set_rng_seed(0)
    particles, unknowns = program.simulate(6, 32), Unknowns.of(program)
    start = unknowns.values(particles.latents) + torch.tensor([0.05, 0.5, 1.0])
    peaks = PeakFinder(program, particles, 24).climb(Starts(torch.arange(6), start))
    values = peaks.values.clone().requires_grad_()
    height = program.log_joint(particles, unknowns.latents(values), 24)
    (slope,) = torch.autograd.grad(height.sum(), values)
    decrement = torch.einsum("pa,pab,pb->p", slope, torch.linalg.inv(peaks.precision), slope)
    assert (decrement < 0.01).all()
    torch.testing.assert_close(peaks.log_joint, height.detach(), rtol=0, atol=2e-3)


def test_no_start_nearby_ends_higher(tiny_program) -> None:
    program = tiny_program(inferred=ALL, noise=0.05)
    pyro.set_rng_seed(1)
    particles, unknowns = program.simulate(5, 32), Unknowns.of(program)
    climber, image = PeakFinder(program, particles, 24), torch.arange(5)
    truth = unknowns.values(particles.latents).double()
    peaks = climber.climb(Starts(image, truth))
    for seed in range(3):
        away = torch.randn(truth.shape, generator=torch.Generator().manual_seed(seed)) * 3
        deviation = torch.linalg.inv(peaks.precision).diagonal(dim1=1, dim2=2).sqrt()
        nearby = climber.height(Starts(image, peaks.values + 0.1 * away * deviation))
        assert (nearby <= peaks.log_joint + 2e-3).all()


def test_peaks_that_meet_are_one_and_hopeless_ones_go() -> None:
    unknowns = Unknowns(("pose",), n_modes=1)
    near_pi = 3.141
    peaks = Peaks(
        image=torch.tensor([1, 0, 0, 0, 1]),
        values=torch.tensor([[0.5], [near_pi], [-near_pi], [0.0], [2.0]]),
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


def test_a_march_does_not_lose_a_good_start(tiny_program) -> None:
    """With little signal the low resolutions have peaks elsewhere: the end is never below the start."""
    program = tiny_program(inferred=("pose", "amplitude"), noise=2.0)
    pyro.set_rng_seed(2)
    particles, unknowns = program.simulate(40, 32), Unknowns.of(program)
    image, truth = torch.arange(40), unknowns.values(particles.latents).double()
    marched = march(program, particles, Starts(image, truth), 32)
    best = marched.log_joint.new_full((40,), -torch.inf)
    best = best.scatter_reduce(0, marched.image, marched.log_joint, reduce="amax")
    start = PeakFinder(program, particles, 32).height(Starts(image, truth))
    assert (best >= start - 1e-3).all()
