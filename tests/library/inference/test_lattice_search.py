"""The wide search finds the molecule wherever it is turned, and what others have missed."""

import math

import pyro
import torch

from cryoanm_lib.inference.lattice_search import MOST, LatticeSearch
from cryoanm_lib.inference.peak_finding import Peaks, Starts, march
from cryoanm_lib.numerics.rotation import angle_distance, unit_vector_to_angle


def setting(tiny_model, noise, count=50):
    model = tiny_model(inferred=("pose", "amplitude"), noise=noise)
    pyro.set_rng_seed(0)
    return model, model.simulate(count, 32)


def test_one_of_the_starts_is_close_to_the_truth(tiny_model) -> None:
    model, particles = setting(tiny_model, 0.1)
    starts = LatticeSearch(model, 16).starts(particles)
    true = unit_vector_to_angle(particles.truth["pose"])[starts.image]
    off = torch.full((50,), math.pi).scatter_reduce(
        0, starts.image, angle_distance(starts.points[:, 0].float(), true), reduce="amin"
    )
    assert (off < math.radians(15)).all()


def test_more_noise_asks_for_more_starts_but_not_without_end(tiny_model) -> None:
    counts = []
    for noise in (0.05, 0.6, 3.0):
        model, particles = setting(tiny_model, noise)
        counts.append(torch.bincount(LatticeSearch(model, 32).starts(particles).image, minlength=50))
    assert counts[0].double().mean() < counts[1].double().mean() < counts[2].double().mean()
    assert (counts[0] >= 1).all() and (counts[2] <= MOST).all()


def test_what_has_been_seen_is_not_asked_for_again(tiny_model) -> None:
    """Peaks at the truth leave nothing to look for; those half a turn away leave the truth."""
    model, particles = setting(tiny_model, 0.05)
    values = model.unknowns.points(particles.truth).double()
    search = LatticeSearch(model, 16)
    for turn, wanted in ((0.0, 0), (math.pi, 50)):
        turned = Starts(torch.arange(50), values + torch.tensor([turn, 0.0]))
        missed = search.starts(particles, march(model, particles, turned, 32))
        assert len(set(missed.image.tolist())) == wanted


def test_starts_of_one_image_are_apart(tiny_model) -> None:
    model, particles = setting(tiny_model, 1.0, count=10)
    starts = LatticeSearch(model, 16).starts(particles)
    for image in range(10):
        own = starts.points[starts.image == image]
        assert len(own) == len({tuple(row) for row in own.tolist()})


def test_a_peak_beyond_the_lattice_hides_nothing(tiny_model) -> None:
    """At an amplitude of 80 Å, far out of the prior, and at the true pose."""
    model, particles = setting(tiny_model, 0.05, count=5)
    values = model.unknowns.points(particles.truth).double()
    values[:, 1] = 80.0
    precision = torch.eye(2, dtype=torch.float64).expand(5, 2, 2)
    beyond = Peaks(torch.arange(5), values, torch.zeros(5, dtype=torch.float64), precision)
    missed = LatticeSearch(model, 16).starts(particles, beyond)
    assert set(missed.image.tolist()) == set(range(5))
