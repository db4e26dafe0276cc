"""Form factors of elements against gemmi's density of an all-atom model, and sums of Gaussians by hand."""

import math

import gemmi
import numpy as np
import pytest
import torch

from cryoanm_lib import ForwardModel, Model, Prior, Scattering, beads_of, load_atoms
from cryoanm_lib.errors import ForwardModelError
from cryoanm_lib.imaging.spatial_projection import separable_image
from cryoanm_lib.inference.fisher import fisher_information
from cryoanm_lib.numerics.fourier import image_to_coefficients
from tests.all_the_way import K, limit_by_differences

torch.set_num_threads(1)


def test_images_are_projections_of_gemmis_density() -> None:
    """All heavy atoms of adenylate kinase on gemmi's grid, summed along z and cropped alike."""
    atoms = load_atoms("adk_open")
    places, elements = atoms.coordinates, atoms.elements
    box_size, pixel_size, fine = 96, 1.0, 2
    edge, b_factor = box_size * pixel_size, 30.0
    structure = gemmi.Structure()
    structure.cell = gemmi.UnitCell(edge, edge, edge, 90, 90, 90)
    structure.spacegroup_hm = "P 1"
    residue = gemmi.Residue()
    for element, place in zip(elements, places.tolist(), strict=True):
        atom = gemmi.Atom()
        atom.element, atom.b_iso, atom.occ = gemmi.Element(element), b_factor, 1.0
        atom.pos = gemmi.Position(*(x + edge / 2 for x in place))
        residue.add_atom(atom)
    chain, model = gemmi.Chain("A"), gemmi.Model(1)
    chain.add_residue(residue)
    model.add_chain(chain)
    structure.add_model(model)
    calculator = gemmi.DensityCalculatorE()
    calculator.d_min, calculator.rate, calculator.cutoff = 2 * pixel_size / fine, 1.0, 1e-7
    calculator.set_grid_cell_and_spacegroup(structure)
    calculator.grid.set_size(*(fine * box_size,) * 3)
    calculator.add_model_density_to_grid(structure[0])
    density = torch.tensor(np.array(calculator.grid, copy=True), dtype=torch.float64)
    # (x, y, z) on a grid whose first point is the corner: a projection in Å of potential, rows along y.
    projected = density.sum(2).T * (pixel_size / fine)
    expected = image_to_coefficients(projected, K)
    forward = ForwardModel(
        places,
        torch.zeros(1, len(places), 3, dtype=torch.float64),
        box_size=box_size,
        pixel_size=pixel_size,
        scattering=Scattering.of_elements(elements, b_factor),
    )
    latents = {"pose": torch.tensor([1.0, 0.0]).double(), "amplitude": torch.zeros(1).double()}
    found = forward.projections(latents, K)
    assert ((found - expected).norm() / expected.norm()).item() < 2e-3
    assert found[0].real.item() == pytest.approx(expected[0].real.item(), rel=2e-3)


def test_a_kind_of_one_gaussian_is_a_bead() -> None:
    """b = 8π² (σ Δx)² is a Gaussian of σ pixels; of peak 1 where a = 2π (σ Δx)²."""
    positions = 5 * torch.randn(30, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigma, pixel_size = 1.3, 1.7
    square = (sigma * pixel_size) ** 2 * torch.ones(1, 1, dtype=torch.float64)
    kinds = torch.zeros(30, dtype=torch.long)
    beads = Scattering(kinds, 2 * math.pi * square, 8 * math.pi**2 * square)
    found = beads.coefficients(positions, 64, pixel_size, 32)
    expected = image_to_coefficients(separable_image(positions, 64, sigma), 32)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)


def test_slopes_and_limit_agree_with_differences() -> None:
    """Of a few atoms of several kinds, in space, with everything inferred."""
    generator = torch.Generator().manual_seed(1)
    places = 8 * torch.randn(40, 3, generator=generator, dtype=torch.float64)
    places -= places.mean(0)
    directions = torch.linalg.qr(torch.randn(120, 2, generator=generator, dtype=torch.float64))[0]
    modes = directions.T.reshape(2, 40, 3)
    scattering = Scattering.of_elements(["C", "N", "O", "S"] * 10, torch.linspace(0, 60, 40))
    forward = ForwardModel(places, modes, pixel_size=1.5, scattering=scattering)
    model = Model(forward, Prior(pose="space", shift_scale=1.0), noise=0.5)
    torch.manual_seed(0)
    images = model.simulate(5, K)
    limit = limit_by_differences(model, images)
    fisher = fisher_information(model, images, images.truth, K)
    own = torch.linalg.inv(fisher).diagonal(dim1=1, dim2=2).sqrt()
    assert ((own / limit - 1).abs() < 0.01).all()
    found = forward.images(images.truth)
    assert found.shape == (5, 64, 64)


def test_a_bead_scatters_as_its_atoms_do_on_average() -> None:
    """Debye's average over all turns of a residue about its Cα, of the beads of each kind."""
    atoms = load_atoms("adk_closed")
    beads = beads_of(atoms)
    found = Scattering.of_beads(atoms, beads, step=0.01)
    frequencies = torch.stack([torch.linspace(0, 0.04, 5), torch.zeros(5)], dim=1).double()
    each = Scattering.of_elements(atoms.elements, atoms.b_factors, step=0.01)
    own = each.factors(frequencies, pixel_size=1.0)[each.kinds]
    away = (atoms.coordinates - beads.coordinates[beads.of_atom]).norm(dim=1)
    averaged = own * torch.sinc(2 * frequencies[:, 0] * away[:, None])
    kinds = found.kinds[beads.of_atom]
    expected = torch.zeros(len(found.amplitudes), 5, dtype=torch.float64).index_add(0, kinds, averaged)
    expected /= torch.bincount(found.kinds)[:, None]
    factors = found.factors(frequencies, pixel_size=1.0)
    torch.testing.assert_close(factors[:, 0], expected[:, 0], rtol=1e-6, atol=0)  # the weight of the atoms
    error = (factors / expected - 1).abs().amax(0)
    assert error.max() < 0.01  # up to 25 Å
    # To second order: what is left grows with the fourth power of the frequency.
    assert (error[4] / error[2]).item() == pytest.approx(16, rel=0.2)


def test_centred_beads_come_nearer_to_their_atoms() -> None:
    """Images at 12 Å from everywhere: within 6 % of those of all atoms, and less than half as far as Cα."""
    atoms, errors = load_atoms("adk_open"), []
    sizes = {"box_size": 128, "pixel_size": 1.5}
    nothing = torch.zeros(1, len(atoms), 3, dtype=torch.float64)
    whole = Scattering.of_elements(atoms.elements, atoms.b_factors)
    generator = torch.Generator().manual_seed(0)
    pose = torch.nn.functional.normalize(torch.randn(20, 4, generator=generator, dtype=torch.float64), dim=1)
    latents = {"pose": pose, "amplitude": torch.zeros(20, 1, dtype=torch.float64)}
    exact = ForwardModel(atoms.coordinates, nothing, **sizes, scattering=whole).projections(latents, K)
    for centred in (False, True):
        beads = beads_of(atoms, centred=centred)
        scattering = Scattering.of_beads(atoms, beads)
        modes = nothing[:, : len(beads)]
        coarse = ForwardModel(beads.coordinates, modes, **sizes, scattering=scattering)
        errors.append(((coarse.projections(latents, K) - exact).norm() / exact.norm()).item())
    assert errors[1] < 0.06 and errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize(
    ("wrong", "asked"),
    [
        ({"elements": ["C", "Qq"]}, "'Qq' does not exist"),
        ({"elements": ["C"], "b_factors": -1.0}, "b_factor = -1"),
        ({"elements": ["C"], "b_factors": math.nan}, "b_factor = nan"),
    ],
)
def test_atoms_that_are_none_are_refused(wrong: dict, asked: str) -> None:
    with pytest.raises(ForwardModelError, match=asked):
        Scattering.of_elements(**wrong)


def test_as_many_atoms_are_asked_for_as_there_are() -> None:
    with pytest.raises(ForwardModelError, match="3 atoms and the reference has 2"):
        ForwardModel(torch.zeros(2, 3), torch.zeros(1, 2, 3), scattering=Scattering.of_elements(["C"] * 3))
