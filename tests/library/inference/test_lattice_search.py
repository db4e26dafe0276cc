"""The wide search finds the molecule wherever it is turned, and what others have missed."""

import math

import pyro
import torch

from cryoanm_lib.inference.lattice_search import MOST, LatticeSearch
from cryoanm_lib.inference.peak_finding import Peaks, Starts, march
from cryoanm_lib.numerics.rotation import angle_distance, unit_vector_to_angle
from cryoanm_lib.program.unknowns import Unknowns


def setting(tiny_program, noise, count=50):
    program = tiny_program(inferred=("pose", "amplitude"), noise=noise)
    pyro.set_rng_seed(0)
    return program, program.simulate(count, 32)


def test_one_of_the_starts_is_close_to_the_truth(tiny_program) -> None:
    program, particles = setting(tiny_program, 0.1)
    starts = LatticeSearch(program, 16).starts(particles)
    true = unit_vector_to_angle(particles.latents["pose"])[starts.image]
    off = torch.full((50,), math.pi).scatter_reduce(
        0, starts.image, angle_distance(starts.values[:, 0].float(), true), reduce="amin"
    )
    assert (off < math.radians(15)).all()


def test_more_noise_asks_for_more_starts_but_not_without_end(tiny_program) -> None:
    counts = []
    for noise in (0.05, 0.6, 3.0):
        program, particles = setting(tiny_program, noise)
        counts.append(torch.bincount(LatticeSearch(program, 32).starts(particles).image, minlength=50))
    assert counts[0].double().mean() < counts[1].double().mean() < counts[2].double().mean()
    assert (counts[0] >= 1).all() and (counts[2] <= MOST).all()


def test_what_has_been_seen_is_not_asked_for_again(tiny_program) -> None:
    """Peaks at the truth leave nothing to look for; those half a turn away leave the truth."""
    program, particles = setting(tiny_program, 0.05)
    values = Unknowns.of(program).values({n: particles.latents[n] for n in program.inferred}).double()
    search = LatticeSearch(program, 16)
    for turn, wanted in ((0.0, 0), (math.pi, 50)):
        turned = Starts(torch.arange(50), values + torch.tensor([turn, 0.0]))
        missed = search.starts(particles, march(program, particles, turned, 32))
        assert len(set(missed.image.tolist())) == wanted


def test_starts_of_one_image_are_apart(tiny_program) -> None:
    program, particles = setting(tiny_program, 1.0, count=10)
    starts = LatticeSearch(program, 16).starts(particles)
    for image in range(10):
        own = starts.values[starts.image == image]
        assert len(own) == len({tuple(row) for row in own.tolist()})


def test_a_peak_beyond_the_lattice_hides_nothing(tiny_program) -> None:
    """At an amplitude of 80 Å, far out of the prior, and at the true pose."""
    program, particles = setting(tiny_program, 0.05, count=5)
    values = Unknowns.of(program).values({n: particles.latents[n] for n in program.inferred}).double()
    values[:, 1] = 80.0
    precision = torch.eye(2, dtype=torch.float64).expand(5, 2, 2)
    beyond = Peaks(torch.arange(5), values, torch.zeros(5, dtype=torch.float64), precision)
    missed = LatticeSearch(program, 16).starts(particles, beyond)
    assert set(missed.image.tolist()) == set(range(5))
