"""Projection: three projectors against a plain double sum, and what projection must leave unchanged."""

import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cryoanm_lib.imaging import fourier_axis, fourier_projection, gridded_projection
from cryoanm_lib.imaging.fourier_projection import fourier_coefficients, fourier_slopes
from cryoanm_lib.imaging.gridded_projection import ACCURACY, Spreading, gridded_coefficients, gridded_image
from cryoanm_lib.imaging.projection import PROJECTORS, fastest
from cryoanm_lib.imaging.spatial_projection import PAPER_REACH, separable_image, sparse_image
from cryoanm_lib.numerics.batching import WORKING_SET
from cryoanm_lib.numerics.fourier import (
    coefficients_to_image,
    half_plane_frequencies,
    highest_frequency,
    image_to_coefficients,
)
from tests.library.rotations import rotation_z

torch.set_num_threads(1)
WIDTH = 0.8
BOXES = [32, 33]
SPARSE_ERROR = math.exp(
    -4.5
)  # of a peak, per atom: the tails beyond 3 widths that the paper's patch cuts off
ERROR = {"sparse": SPARSE_ERROR, "gridded": 2 * ACCURACY}  # of those that are not exact
EXTENT = 8.5  # widths from its centre at which an atom is below the rounding of double precision


def atoms(*batch: int, n: int = 12, radius: float = 7.0, seed: int = 0) -> Tensor:
    """Positions in pixels; at the default radius a box of 32 holds every Gaussian to 1e-19 of its peak."""
    generator = torch.Generator().manual_seed(seed)
    return radius * (2 * torch.rand(*batch, n, 2, generator=generator, dtype=torch.float64) - 1)


def plain_image(positions: Tensor, box_size: int, width: float = WIDTH) -> Tensor:
    """The definition: every atom at every pixel."""
    steps = torch.arange(box_size, dtype=torch.float64) - box_size // 2
    x, y = positions[:, :, None, None].unbind(1)
    return (-((steps - x).square() + (steps[:, None] - y).square()) / (2 * width**2)).exp().sum(0)


def periodic(positions: Tensor, box_size: int, width: float = WIDTH) -> Tensor:
    """The atoms and all of their copies, a whole number of boxes away, that are seen in the box."""
    far = math.ceil((positions.abs().max().item() + EXTENT * width) / box_size + 0.5)
    steps = box_size * torch.arange(-far, far + 1, dtype=torch.float64)
    copies = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1).flatten(0, 1)
    return (positions[:, None] + copies).flatten(0, 1)


def project(name: str, positions: Tensor, box_size: int, width: float = WIDTH) -> Tensor:
    """The image by one of the projectors, at the box's own resolution."""
    coefficients = PROJECTORS[name](positions, box_size, width, box_size)
    return coefficients_to_image(coefficients, box_size)


class Scene(NamedTuple):
    """Atoms in a box, and the resolution to which its image is cropped."""

    positions: Tensor
    box_size: int
    width: float
    resolution: int

    def coefficients(self, name: str, **changes) -> Tensor:
        """By one of the projectors."""
        return PROJECTORS[name](*self._replace(**changes))

    @property
    def most(self) -> float:
        """What an atom adds to a coefficient at most: to the mean, where it is at a pixel."""
        reach = math.ceil(EXTENT * self.width)
        line = sum(math.exp(-0.5 * (step / self.width) ** 2) for step in range(-reach, reach + 1))
        return (line / self.box_size) ** 2

    def tolerance(self, name: str) -> float:
        """What a coefficient may be wrong by: rounding, and what the projector leaves out."""
        row_cut_off = SPARSE_ERROR * self.most**0.5 / self.box_size  # one on each side of the atom
        left_out = {"sparse": 5 * row_cut_off, "gridded": 5 * ACCURACY * self.most}
        return len(self.positions) * (1e-13 * self.most + left_out.get(name, 0.0))


def clouds(reach: float) -> st.SearchStrategy[Tensor]:
    """A few atoms, as far from the origin as is said."""
    place = st.floats(-reach, reach)
    cloud = st.lists(st.tuples(place, place), min_size=1, max_size=8)
    return cloud.map(lambda drawn: torch.tensor(drawn, dtype=torch.float64))


@st.composite
def scenes_within(draw: st.DrawFn) -> Scene:
    """Every atom is wholly in the box, odd or even."""
    width = draw(st.floats(0.3, 1.5))
    extent = math.ceil(EXTENT * width)
    box_size = draw(st.integers(2 * extent + 1, 2 * extent + 16))
    resolution = draw(st.integers(1, box_size))
    return Scene(draw(clouds((box_size - 1) // 2 - extent)), box_size, width, resolution)


@st.composite
def scenes_around(draw: st.DrawFn) -> Scene:
    """Atoms are anywhere, in and about a box of any size."""
    box_size = draw(st.integers(1, 40))
    resolution = draw(st.integers(1, box_size))
    return Scene(draw(clouds(1.5 * box_size)), box_size, draw(st.floats(0.1, 2.0)), resolution)


every_projector = pytest.mark.parametrize("name", PROJECTORS)
every_box = pytest.mark.parametrize("box_size", BOXES)


@every_projector
@given(scenes_within(), st.integers(0, 2**32 - 1))
def test_projectors_and_their_gradients_agree_with_the_plain_sum(name: str, scene: Scene, seed: int) -> None:
    """The gradient, of a random sum of coefficients, knows its errors' slopes: up to six for one width."""
    leaf, other = (scene.positions.clone().requires_grad_() for _ in range(2))
    found = scene.coefficients(name, positions=leaf)
    expected = image_to_coefficients(plain_image(other, scene.box_size, scene.width), scene.resolution)
    torch.testing.assert_close(found, expected, rtol=0, atol=scene.tolerance(name))
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(found.shape, generator=generator, dtype=torch.complex128)
    for coefficients in (found, expected):
        (weights.conj() * coefficients).real.sum().backward()
    slopes = 6 / scene.width * scene.tolerance(name) * weights.abs().sum().item()
    torch.testing.assert_close(leaf.grad, other.grad, rtol=0, atol=slopes)


def test_an_image_from_patches_wraps_around_the_edge() -> None:
    """To the rounding of its type, unless told otherwise; and its derivative is that of an exact one."""
    positions, box_size = atoms(2, radius=22.0, n=9).requires_grad_(), 33
    steps = box_size * torch.arange(-1, 2, dtype=torch.float64)
    copies = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1).flatten(0, 1)
    exact = separable_image((positions[:, :, None] + copies).flatten(1, 2), box_size, WIDTH)
    found = gridded_image(positions, box_size, WIDTH)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-14)
    weights = separable_image(atoms(2, n=5, seed=1), box_size, WIDTH)
    slopes = [torch.autograd.grad((image * weights).sum(), positions)[0] for image in (found, exact)]
    torch.testing.assert_close(*slopes, rtol=0, atol=1e-13)
    rough = gridded_image(positions, box_size, WIDTH, accuracy=1e-3)
    assert 1e-5 < (rough - exact).abs().max() < 9e-3


@pytest.mark.parametrize("image", [separable_image, sparse_image])
@every_box
def test_images_agree_with_the_plain_sum_across_the_edge(image, box_size: int) -> None:
    positions = atoms(n=30, radius=22.0)
    expected = plain_image(positions, box_size)
    allowed = 1e-13 if image is separable_image else SPARSE_ERROR * len(positions)
    assert (image(positions, box_size, WIDTH) - expected).abs().max() < allowed


def test_the_paper_s_patch_is_five_pixels_by_five() -> None:
    """6 σ_a × 6 σ_a at σ_a = 0.8, wherever in its pixel the atom is."""
    for x in torch.linspace(-0.49, 0.49, 15).tolist():
        image = sparse_image(torch.tensor([[x, -x]], dtype=torch.float64), 32, WIDTH)
        assert torch.equal(image.nonzero().amin(0), torch.tensor([14, 14]))
        assert torch.equal(image.nonzero().amax(0), torch.tensor([18, 18]))


@pytest.mark.parametrize("reach", [2.0, PAPER_REACH, 5.5])
def test_the_sparse_projector_errs_by_less_than_it_says(reach: float) -> None:
    worst = 0.0
    for x in torch.linspace(-0.5, 0.5, 21).tolist():
        position = torch.tensor([[x, 0.37 - x]], dtype=torch.float64)
        for width in (0.5, WIDTH, 1.0, 1.3):
            error = sparse_image(position, 32, width, reach) - separable_image(position, 32, width)
            worst = max(worst, error.abs().max().item())
    assert 0 < worst < math.exp(-(reach**2) / 2)


@pytest.mark.parametrize("name", ["fourier", "gridded"])
@given(scenes_around())
def test_projectors_without_pixels_wrap_around_the_edge(name: str, scene: Scene) -> None:
    """The image on a torus: the plain one of the atoms and their periodic copies."""
    copies = periodic(scene.positions, scene.box_size, scene.width)
    expected = image_to_coefficients(plain_image(copies, scene.box_size, scene.width), scene.resolution)
    torch.testing.assert_close(scene.coefficients(name), expected, rtol=0, atol=scene.tolerance(name))


@every_projector
@every_box
def test_an_atom_at_the_origin_peaks_at_its_pixel(name: str, box_size: int) -> None:
    image = project(name, torch.zeros(1, 2, dtype=torch.float64), box_size)
    middle = box_size // 2
    assert image.argmax().item() == middle * box_size + middle
    # An even box loses its Nyquist frequency, which carries 2e-2 of so narrow a peak.
    assert image[middle, middle].item() == pytest.approx(1.0, abs=1e-6 if box_size % 2 else 2e-2)


@every_projector
@every_box
def test_x_is_the_column_and_y_the_row(name: str, box_size: int) -> None:
    image = project(name, torch.tensor([[5.0, -3.0]], dtype=torch.float64), box_size)
    row, column = divmod(image.argmax().item(), box_size)
    assert (row, column) == (box_size // 2 - 3, box_size // 2 + 5)


@every_projector
@given(scenes_within())
def test_every_atom_adds_an_intensity_of_2πσ2(name: str, scene: Scene) -> None:
    """To the aliases of Poisson's sum, most for an atom at a pixel; and no other coefficient is larger."""
    found = scene.coefficients(name)
    total, each = found[0].item() / len(scene.positions), 2 * math.pi * (scene.width / scene.box_size) ** 2
    assert total == pytest.approx(each, rel=0, abs=scene.most - each + scene.tolerance(name))
    assert found.abs().max() <= found[0].real + 2 * scene.tolerance(name)


@every_projector
@given(scenes_within(), st.data())
def test_atoms_add_up_in_any_order(name: str, scene: Scene, data: st.DataObject) -> None:
    shuffled = scene.positions[data.draw(st.permutations(range(len(scene.positions))))]
    first, second = shuffled.tensor_split([data.draw(st.integers(0, len(shuffled)))])
    found = scene.coefficients(name, positions=first) + scene.coefficients(name, positions=second)
    torch.testing.assert_close(found, scene.coefficients(name), rtol=0, atol=1e-15 * len(shuffled))


@every_projector
@given(scenes_within(), st.data())
def test_whole_pixel_shifts_are_phases(name: str, scene: Scene, data: st.DataObject) -> None:
    """Shifted by whole pixels the sampled image is the same one: c(k) gains exp(-2πi k·t/N)."""
    reach = (scene.box_size - 1) // 2 - math.ceil(EXTENT * scene.width)
    low = (-reach - scene.positions.amin(0)).ceil().int().tolist()
    high = (reach - scene.positions.amax(0)).floor().int().tolist()
    shift = [data.draw(st.integers(*ends)) for ends in zip(low, high, strict=True)]
    shift = torch.tensor(shift, dtype=torch.float64)

    frequencies = half_plane_frequencies(scene.resolution).double() / scene.box_size
    phase = torch.exp(-2j * math.pi * (frequencies @ shift))
    moved = scene.coefficients(name, positions=scene.positions + shift)
    expected = phase * scene.coefficients(name)
    torch.testing.assert_close(moved, expected, rtol=0, atol=2 * scene.tolerance(name))


@every_projector
def test_shifts_of_any_size_are_phases_of_a_wide_atom(name: str) -> None:
    """At a width of 2 pixels aliases have an amplitude below exp(-2π² σ² / 4) = 3e-9."""
    positions, box_size, resolution, width = atoms(radius=3.0), 48, 16, 2.0
    shift = torch.tensor([0.37, -1.61], dtype=torch.float64)
    phase = torch.exp(-2j * math.pi * (half_plane_frequencies(resolution).double() / box_size @ shift))
    still = PROJECTORS[name](positions, box_size, width, resolution)
    moved = PROJECTORS[name](positions + shift, box_size, width, resolution)
    tolerance = max(3e-9, ERROR.get(name, 0.0) * len(positions))
    torch.testing.assert_close(moved, phase * still, rtol=0, atol=tolerance)


@every_projector
@given(scenes_within())
def test_turned_and_mirrored_positions_give_a_turned_and_mirrored_image(name: str, scene: Scene) -> None:
    """A quarter turn, x to y, is one from columns to rows; on an odd grid it maps pixels to pixels."""

    def picture(positions: Tensor) -> Tensor:
        coefficients = scene.coefficients(name, positions=positions)
        return coefficients_to_image(coefficients, 2 * highest_frequency(scene.resolution) + 1)

    quarter = rotation_z(torch.tensor(math.pi / 2, dtype=torch.float64))[:2, :2].round()
    image, turned = picture(scene.positions), picture(scene.positions @ quarter.T)
    allowed = 2 * scene.tolerance(name) * image.numel()
    torch.testing.assert_close(turned, torch.rot90(image, -1), rtol=0, atol=allowed)
    torch.testing.assert_close(picture(scene.positions.flip(-1)), image.mT, rtol=0, atol=allowed)


@every_projector
def test_batch_dimensions_come_first(name: str) -> None:
    positions = atoms(2, 3)
    batched = PROJECTORS[name](positions, 32, WIDTH, 16)
    one_by_one = [[PROJECTORS[name](each, 32, WIDTH, 16) for each in row] for row in positions]
    expected = torch.stack([torch.stack(row) for row in one_by_one])
    torch.testing.assert_close(batched, expected, rtol=0, atol=1e-15)


@every_projector
@every_box
def test_gradients_agree_with_finite_differences(name: str, box_size: int) -> None:
    positions = atoms(2, n=3).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda p: torch.view_as_real(PROJECTORS[name](p, box_size, WIDTH, 6)), positions
    )


@every_projector
def test_single_precision_agrees_with_double(name: str) -> None:
    """2e-6 of the peak a pixel and atom at 25 pixels from the origin, where float32 resolves 2e-6 pixels."""
    positions = atoms(n=100, radius=25.0)
    double = project(name, positions, 64)
    single = project(name, positions.float(), 64)
    assert single.dtype == torch.float32
    assert (single - double).abs().max() < 2e-6 * double.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(scenes_around(), st.integers(2, 12), st.integers(0, 2**32 - 1))
def test_compiled_loops_and_torch_agree(dtype: torch.dtype, scene: Scene, digits: int, seed: int) -> None:
    """Coefficients, gradients and slopes: two programs for the same sums, with any number of aliases.

    Atoms are of three kinds, of which some may be empty.
    """
    _, box_size, width, resolution = scene
    generator = torch.Generator().manual_seed(seed)
    positions = torch.stack([scene.positions, -scene.positions]).to(dtype)
    velocities = torch.randn(2, 3, *scene.positions.shape, generator=generator, dtype=dtype)
    axis = fourier_projection.axis_for(positions, box_size, width, resolution, 0.1**digits)
    leaf, other = (positions.clone().requires_grad_() for _ in range(2))
    ends = torch.randint(len(scene.positions) + 1, (2,), generator=generator).sort().values.tolist()
    of_kind = torch.rand(3, axis.ones.shape[1], generator=generator, dtype=dtype)
    kinds = fourier_projection.Kinds((0, *ends, len(scene.positions)), of_kind)
    found = fourier_projection._Compiled.apply(leaf, axis, kinds)
    expected = fourier_projection._by_products(other, axis, kinds)
    weights = torch.randn(found.shape, dtype=found.dtype, generator=generator)
    found.backward(weights)
    expected.backward(weights)
    velocities[:, 0, :, 1] = 0  # one that moves atoms along an axis alone
    moved = fourier_projection._slopes_compiled(positions, velocities, axis, kinds)
    slopes = fourier_projection._slopes_by_products(positions, velocities, axis, kinds)
    rounding = 500 * torch.finfo(dtype).eps * scene.most
    speed = velocities.abs().sum().item() / width
    for ours, theirs, scale in (
        (found, expected, len(scene.positions)),
        (leaf.grad, other.grad, weights.abs().sum().item() / width),
        (moved, slopes, len(scene.positions) + speed),
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=rounding * scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(scenes_around(), st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_compiled_loops_and_torch_spread_alike(
    dtype: torch.dtype, scene: Scene, digits: int, seed: int
) -> None:
    """Images and gradients, also where a patch is wider than the grid and folded upon itself."""
    spreading = Spreading.on_pixels(scene.box_size, scene.width, 0.1**digits)
    leaf, other = (scene.positions[None].to(dtype).requires_grad_() for _ in range(2))
    found = gridded_projection._SpreadCompiled.apply(leaf, spreading)
    expected = gridded_projection._Spread.apply(other, spreading)
    weights = torch.randn(found.shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    found.backward(weights)
    expected.backward(weights)
    atom = 500 * torch.finfo(dtype).eps * scene.most * scene.box_size**2
    torch.testing.assert_close(found, expected, rtol=0, atol=atom * len(scene.positions))
    torch.testing.assert_close(leaf.grad, other.grad, rtol=0, atol=atom * weights.abs().max() / scene.width)


def test_no_images_and_no_atoms_have_coefficients() -> None:
    """An empty batch stays one, and nothing casts no shadow."""
    assert PROJECTORS["auto"](torch.zeros(0, 5, 2), 32, WIDTH, 8).shape == (0, 25)
    image, slopes = fourier_slopes(torch.zeros(0, 5, 2), torch.zeros(0, 3, 5, 2), 32, WIDTH, 8)
    assert image.shape == (0, 25) and slopes.shape == (0, 3, 25)
    assert (PROJECTORS["auto"](torch.zeros(2, 0, 2), 32, WIDTH, 8) == 0).all()


@pytest.mark.parametrize("name", sorted({*PROJECTORS} - {"sparse"}))  # which drops it
def test_an_atom_that_is_nowhere_is_not_a_number(name: str) -> None:
    positions = atoms(2)
    positions[0, 3, 1] = math.nan
    found = PROJECTORS[name](positions, 32, WIDTH, 16)
    assert found[0].isnan().any() and not found[1].isnan().any()


@pytest.mark.parametrize("projector", [fourier_coefficients, gridded_coefficients])
def test_threads_share_the_images(projector) -> None:
    """Also a number that they cannot share alike; every image is computed once, and comes out the same.

    Our loops give the same bits; torch's Fourier transforms, with more threads, the same to rounding.
    """
    positions = atoms(41, n=5).requires_grad_()

    def answer(threads: int) -> tuple[Tensor, Tensor]:
        torch.set_num_threads(threads)
        found = projector(positions, 32, WIDTH, 16)
        return found.detach(), torch.autograd.grad(found.real.square().sum(), positions)[0]

    (alone, slope_alone), (shared, slope_shared) = answer(1), answer(3)
    assert torch.equal(shared, alone)
    rounding = 0.0 if projector is fourier_coefficients else 1e-13
    torch.testing.assert_close(slope_shared, slope_alone, rtol=rounding, atol=1e-4 * rounding)


@pytest.mark.parametrize("resolution", [9, 16, 32])
@every_box
def test_slopes_are_the_derivatives_of_the_coefficients(box_size, resolution) -> None:
    """Against the gradient of random sums of the coefficients, to rounding."""
    positions, velocities = atoms(2), atoms(2, 3, seed=1)
    image, slopes = fourier_slopes(positions, velocities, box_size, WIDTH, resolution)

    positions.requires_grad_()
    coefficients = fourier_coefficients(positions, box_size, WIDTH, resolution)
    torch.testing.assert_close(image, coefficients.detach())
    generator = torch.Generator().manual_seed(2)
    for _ in range(10):
        weights = torch.randn(image.shape, dtype=image.dtype, generator=generator)
        total = (weights.conj() * coefficients).sum().real
        (gradient,) = torch.autograd.grad(total, positions, retain_graph=True)
        expected = (gradient[:, None] * velocities).sum((-1, -2))
        found = (weights.conj()[:, None] * slopes).sum(-1).real
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("projector", [fourier_coefficients, gridded_coefficients])
@given(scenes_around(), st.floats(3.0, 12.0))
def test_no_atom_errs_by_more_than_four_times_the_accuracy(projector, scene: Scene, digits: float) -> None:
    """Once for the nearest alias on each side along x and along y; all others are as nothing."""
    positions, *sizes = scene
    exact = fourier_coefficients(positions[:, None], *sizes, 1e-16)
    error = (projector(positions[:, None], *sizes, 0.1**digits) - exact).abs().max()
    assert error < 4.2 * 0.1**digits * scene.most


def test_a_wide_atom_is_spread_on_a_grid_that_the_box_does_not_enlarge() -> None:
    """The same picture on finer pixels: the grid has the points that the crop needs."""
    spreadings = [Spreading.chosen(box, box / 32, 32, 1e-6) for box in (64, 128, 512)]
    assert len({(s.points, s.radius) for s in spreadings}) == 1


def test_many_atoms_are_gridded_and_few_are_not() -> None:
    crossing = [fastest(n, 512, 0.8, 512, 1e-6) for n in (1, 10, 100, 1_000, 10_000, 100_000)]
    assert crossing[0] == "fourier" and crossing[-1] == "gridded"
    assert crossing == sorted(crossing)


@pytest.mark.parametrize("projector", [fourier_coefficients, gridded_coefficients])
def test_images_are_worked_on_a_few_at_a_time(projector, monkeypatch) -> None:
    """Without compiled loops and with the smallest chunks nothing changes, nor do gradients."""
    positions = atoms(7, n=5).requires_grad_()

    def answer() -> tuple[Tensor, Tensor]:
        found = projector(positions, 32, WIDTH, 16)
        return found.detach(), torch.autograd.grad(found.real.square().sum(), positions)[0]

    before = answer()
    monkeypatch.setattr("cryoanm_lib.numerics.compiled.compiled_for", lambda tensor: False)
    fourier_axis._axis_of.cache_clear()
    monkeypatch.setitem(WORKING_SET, "cpu", 1)
    after = answer()
    fourier_axis._axis_of.cache_clear()
    for was, found in zip(before, after, strict=True):
        torch.testing.assert_close(found, was, rtol=1e-12, atol=1e-15)
