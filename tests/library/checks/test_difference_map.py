"""The difference map shows an atom that a model lacks, as dense as it is; else it is flat."""

import math

import pytest
import torch

from cryoanm_lib import ContrastTransfer, ForwardModel, Model, OpticsPrior, RadialNoise, given_ctf
from cryoanm_lib.checks.difference_map import DifferenceMap, difference_map
from cryoanm_lib.numerics.point_groups import point_group
from cryoanm_lib.numerics.rotation import quaternion_product, rotation_from_quaternion

torch.set_num_threads(1)
BOX, K, PIXEL, WIDTH = 48, 32, 1.5, 2.0


def model_of(places: torch.Tensor, noise: float) -> Model:
    """Beads that move as one, in front of a microscope; coloured noise."""
    along = torch.ones(1, len(places), 3, dtype=torch.float64) / math.sqrt(3 * len(places))
    sizes = {"box_size": BOX, "pixel_size": PIXEL, "atom_width": WIDTH}
    forward = ForwardModel(places, along, **sizes, transfer=ContrastTransfer(PIXEL))
    prior = OpticsPrior(pose="space", shift_scale=1.0, amplitude_scale=0.01, contrast_scale=0.1)
    return Model(forward, prior, RadialNoise(noise**2 * torch.linspace(3, 1, BOX // 2 + 1), BOX))


def shown(present: bool, noise: float, count: int = 1500) -> tuple[DifferenceMap, torch.Tensor]:
    """The map of images of some beads, by a model that lacks the last of ten; and where that is."""
    generator = torch.Generator().manual_seed(5)
    places = 9 * torch.randn(9, 3, generator=generator, dtype=torch.float64)
    lacking = torch.tensor([[12.0, -7.5, 4.5]], dtype=torch.float64)
    maker = model_of(torch.cat([places, lacking]) if present else places, noise)
    model = model_of(places, noise)
    torch.manual_seed(6)
    defocus = torch.empty(count).uniform_(4000, 7000)
    given = {"ctf": given_ctf(defocus, defocus, torch.zeros(count))}
    images = maker.simulate(count, K, given)
    return difference_map(model, images, images.truth, K), lacking[0]


def test_a_missing_atom_is_found_where_it_is() -> None:
    found, where = shown(present=True, noise=1.0)
    (peak,) = found.peaks(1)
    assert (peak - where).norm() <= found.pixel_size * math.sqrt(3) / 2
    assert found.at(where[None]) > 8 * found.error.min()


def test_the_map_is_as_dense_as_what_is_missing() -> None:
    """A Gaussian of unit peak in projection has a density of 1 / (√(2π) σ_a Δx) at its centre."""
    found, where = shown(present=True, noise=0.02)
    assert found.at(where[None]).item() == pytest.approx(
        1 / (math.sqrt(2 * math.pi) * WIDTH * PIXEL), rel=0.1
    )


def test_the_map_is_flat_where_nothing_is_missing() -> None:
    """No power beyond noise: |d|² over what noise leaves of it is 1 in each shell.

    Of n coefficients, half of them independent, the mean has a deviation of √(2 / n), and of such as share
    images with their neighbours, of a quarter more (1.2 times over 24 sets); false alarm 2e-3.
    """
    found, _ = shown(present=False, noise=1.0)
    line = torch.fft.fftfreq(K, 1 / K, dtype=torch.float64)
    shell = torch.stack(torch.meshgrid(line, line, line, indexing="ij")).norm(dim=0).round().long()
    deviation = 1.25 * (2 / shell.flatten().bincount().double()).sqrt()
    shells = slice(2, K // 2 - 1)
    assert ((found.excess[shells] - 1).abs() < 4 * deviation[shells]).all()
    assert (found.density.abs() <= 6 * found.error).all()
    present, _ = shown(present=True, noise=1.0)
    assert present.density.max() > 5 * found.density.abs().max()


def test_an_image_of_a_symmetric_molecule_is_one_from_each_side() -> None:
    """The same map as of every image at all of its equivalent poses."""
    generator = torch.Generator().manual_seed(5)
    group = point_group("D2")
    part = 9 * torch.randn(3, 3, generator=generator, dtype=torch.float64)
    model = model_of(torch.cat([part @ turn.T for turn in rotation_from_quaternion(group)]), 1.0)
    torch.manual_seed(6)
    still = {"ctf": given_ctf(torch.full((100,), 5000.0)), "amplitude": torch.zeros(100, 1)}
    images = model.simulate(100, K, still)
    images.truth["amplitude"] = still["amplitude"]
    found = difference_map(model, images, images.truth, K, group)
    every = torch.arange(100).repeat_interleave(len(group))
    truth = {name: value[every] for name, value in images.truth.items()}
    truth["pose"] = quaternion_product(truth["pose"], group.repeat(100, 1).to(truth["pose"]))
    expanded = difference_map(model, images[every], truth, K)
    torch.testing.assert_close(found.density, expanded.density, atol=0.2 * found.error.min().item(), rtol=0)
