"""The forward model: Algorithm 1 against its steps done by hand, and what each latent does to an image."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from cryoanm_lib.errors import ForwardModelError
from cryoanm_lib.imaging.forward_model import DIRECTIONS, ForwardModel
from cryoanm_lib.imaging.latents import Latents
from cryoanm_lib.imaging.noise import add_noise
from cryoanm_lib.imaging.projection import PROJECTORS
from cryoanm_lib.molecule.anm import normal_modes
from cryoanm_lib.molecule.structure import load_structure, rmsd
from cryoanm_lib.numerics.fourier import crop, crop_coefficients, half_plane_frequencies, to_real
from cryoanm_lib.numerics.rotation import quaternion_from_rotvec, rotation_from_quaternion, rotation_z

torch.set_num_threads(1)
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")],
    ),
]


def adk(n_modes: int = 3, **settings: object) -> ForwardModel:
    """Adenylate kinase, by default at a pixel size that keeps it inside the box however it turns."""
    reference = load_structure("adk_open").coordinates
    return ForwardModel(reference, normal_modes(reference, n_modes).vectors, **{"pixel_size": 1.5} | settings)


def random_latents(n: int = 4, n_modes: int = 3, seed: int = 0) -> Latents:
    """Rotations all over SO(3), amplitudes of deviation 3, shifts of 1 pixel, the paper's defocus."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rotations, _ = torch.linalg.qr(normal(n, 3, 3))
    rotations = rotations * torch.linalg.det(rotations)[:, None, None]
    return Latents(3 * normal(n, n_modes), rotations, 50 + 3 * normal(n), normal(n, 2))


def in_plane(
    pose: float = 0.0, amplitude: float = 0.0, defocus: float = 50.0, shift: tuple[float, float] = (0.0, 0.0)
) -> Latents:
    values = [torch.tensor(value, dtype=torch.float64) for value in (pose, [amplitude], defocus, shift)]
    return Latents.in_plane(*values)


def with_changes(latents: Latents, **changes: Tensor) -> Latents:
    return Latents(**vars(latents) | changes)


# Algorithm 1


@pytest.mark.parametrize("box_size", [64, 65])
@pytest.mark.parametrize("resolution", [16, 32])
def test_the_image_is_algorithm_1_by_hand(box_size: int, resolution: int) -> None:
    """Bend, turn, drop z, shift, draw, transfer, crop: in NumPy, one image at a time, on full spectra."""
    model, latents = adk(box_size=box_size), random_latents(2)
    reference, modes = model.reference.numpy(), model.modes.numpy()
    steps = np.arange(box_size) - box_size // 2
    frequency = np.fft.fftfreq(box_size)
    squared_frequency = frequency[:, None] ** 2 + frequency[None, :] ** 2
    kept = np.r_[0 : resolution // 2, 1 - resolution // 2 : 0]
    for image in range(2):
        atoms = reference + sum(a * u for a, u in zip(latents.amplitudes[image].numpy(), modes, strict=True))
        turned = np.array([latents.rotations[image].numpy() @ atom for atom in atoms])
        x, y = (turned[:, :2] / 1.5 + latents.shifts[image].numpy()).T
        drawn = np.zeros((box_size, box_size))
        for x_atom, y_atom in zip(x, y, strict=True):
            squared = (steps[None, :] - x_atom) ** 2 + (steps[:, None] - y_atom) ** 2
            drawn += np.exp(-squared / (2 * 0.8**2))
        spectrum = np.fft.fft2(np.fft.ifftshift(drawn)) / box_size**2
        spectrum *= np.sin(-latents.defocus[image].item() * squared_frequency)
        small = np.zeros((resolution, resolution), dtype=complex)
        small[np.ix_(kept, kept)] = spectrum[np.ix_(kept, kept)]
        expected = np.fft.fftshift(np.fft.ifft2(small)).real * resolution**2
        np.testing.assert_allclose(model.images(latents, resolution)[image], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("projector", PROJECTORS)
def test_projectors_give_the_same_images(projector: str) -> None:
    """The sparse projector may miss 3e-7 of each of the 107 atoms' peaks, the gridded one 2e-6."""
    latents = random_latents()
    expected = adk(projector="separable").images(latents)
    tolerance = {"sparse": 3e-7 * 107, "gridded": 2e-6 * 107}.get(projector, 1e-12)
    torch.testing.assert_close(adk(projector=projector).images(latents), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("resolution", [4, 16, 32, 62])
def test_a_lower_resolution_is_a_crop(resolution: int) -> None:
    model, latents = adk(), random_latents()
    cropped = crop_coefficients(model.coefficients(latents, 64), resolution)
    torch.testing.assert_close(model.coefficients(latents, resolution), cropped, rtol=0, atol=1e-16)
    torch.testing.assert_close(
        model.images(latents, resolution), crop(model.images(latents), resolution), rtol=0, atol=1e-13
    )


@pytest.mark.parametrize("resolution", [16, 64])
def test_batch_dimensions_come_first(resolution: int) -> None:
    model, latents = adk(), random_latents(6)
    images = model.images(latents, resolution)
    folded = Latents(**{name: value.unflatten(0, (2, 3)) for name, value in vars(latents).items()})
    both = model.images(folded, resolution), images.unflatten(0, (2, 3))
    torch.testing.assert_close(*both, rtol=0, atol=1e-13)
    single = Latents(**{name: value[4] for name, value in vars(latents).items()})
    torch.testing.assert_close(model.images(single, resolution), images[4], rtol=0, atol=1e-13)
    none = Latents(**{name: value[:0] for name, value in vars(latents).items()})
    if resolution == 64:
        assert model.images(none).shape == (0, 64, 64)


@pytest.mark.parametrize("box_size", [64, 65])
@pytest.mark.parametrize("compiled", [True, False])
def test_images_of_the_whole_box_have_the_gradients_of_coefficients(
    box_size: int, compiled: bool, monkeypatch
) -> None:
    """By patches and a filter, or through a vector of coefficients; one focus for all poses."""
    if not compiled:
        monkeypatch.setattr("cryoanm_lib.numerics.compiled.compiled_for", lambda tensor: False)
    latents = random_latents(3)
    names = ("amplitudes", "rotations", "shifts", "contrast")
    given = {name: getattr(latents, name).clone().requires_grad_() for name in names}
    given["defocus"] = latents.defocus[:1].clone().requires_grad_()
    weights = torch.linspace(-1, 1, box_size**2, dtype=torch.float64).view(box_size, box_size)

    def slopes(projector: str) -> tuple[Tensor, ...]:
        images = adk(projector=projector, box_size=box_size).images(Latents(**given))
        return torch.autograd.grad((images * weights).square().sum(), list(given.values()))

    for found, expected in zip(slopes("auto"), slopes("fourier"), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())


@pytest.mark.parametrize("atom_width", [0.03, 0.05, 0.15, 0.2])
def test_images_of_very_narrow_atoms_are_finite(atom_width: float) -> None:
    latents = Latents(**{name: value.float() for name, value in vars(random_latents()).items()})
    images, expected = (
        adk(atom_width=atom_width, projector=projector).float().images(latents)
        for projector in ("auto", "separable")
    )
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-4)


# What each latent does


def test_an_amplitude_moves_the_atoms_by_α_over_root_n() -> None:
    model = adk(n_modes=2)
    for amplitudes in ([3.0, 0.0], [0.0, -5.0], [3.0, 4.0]):
        bent = model.deform(torch.tensor(amplitudes, dtype=torch.float64))
        assert rmsd(bent, model.reference) == pytest.approx(math.hypot(*amplitudes) / math.sqrt(107))
    assert torch.equal(model.deform(torch.zeros(2).double()), model.reference)


def test_positions_are_turned_then_shifted_and_drop_z() -> None:
    model, latents = adk(), random_latents()
    coordinates = model.deform(latents.amplitudes)
    for image, positions in enumerate(model.positions(latents)):
        for atom in (0, 50, 106):
            x, y, _ = latents.rotations[image] @ coordinates[image, atom]
            expected = torch.stack([x, y]) / 1.5 + latents.shifts[image]
            torch.testing.assert_close(positions[atom], expected, rtol=0, atol=1e-13)


def test_the_viewing_direction_is_z() -> None:
    model = adk(n_modes=1)
    raised = ForwardModel(model.reference + torch.tensor([0.0, 0.0, 25.0]), model.modes, pixel_size=1.5)
    assert torch.equal(raised.images(in_plane(0.4, 2.0)), model.images(in_plane(0.4, 2.0)))


def test_a_pose_turns_the_image_from_x_to_y() -> None:
    """Columns are x and rows y: a positive quarter turn takes the image's right to its bottom row."""
    model = adk(n_modes=1, box_size=65)
    still, turned = (model.images(in_plane(pose, 2.0)) for pose in (0.3, 0.3 + math.pi / 2))
    torch.testing.assert_close(turned, torch.rot90(still, -1), rtol=0, atol=1e-12)


def test_a_shift_is_a_phase_whatever_the_rotation() -> None:
    """Up to aliases: the first that falls on a kept frequency k is 1 - |k| cycles per pixel, or 57/64."""
    model, latents = adk(), random_latents()
    centred = model.coefficients(with_changes(latents, shifts=torch.zeros(4, 2).double()), 16)
    angle = latents.shifts @ (half_plane_frequencies(16).double().T / 64)
    phase = torch.exp(-2j * math.pi * angle)
    alias = 2 * math.pi * 0.8**2 * math.exp(-2 * (math.pi * 0.8 * 57 / 64) ** 2) / 64**2
    torch.testing.assert_close(model.coefficients(latents, 16), phase * centred, rtol=0, atol=4 * 107 * alias)


def test_the_defocus_multiplies_the_spectrum() -> None:
    model, latents = adk(), random_latents()
    squared = (half_plane_frequencies(32).double() / 64).square().sum(dim=-1)
    in_focus = PROJECTORS["separable"](model.positions(latents), 64, 0.8, 32)
    transfer = -(latents.defocus[:, None] * squared).sin()
    torch.testing.assert_close(model.coefficients(latents, 32), transfer * in_focus, rtol=0, atol=1e-15)
    assert model.images(latents).mean(dim=(-2, -1)).abs().max() < 1e-15


def test_pixel_size_and_atom_width_are_in_their_units() -> None:
    """Twice the Å per pixel is half the molecule, at the same atom width in pixels."""
    model = adk(n_modes=1)
    halved = ForwardModel(model.reference / 2, model.modes, pixel_size=0.75)
    latents = in_plane(0.4)
    torch.testing.assert_close(halved.images(latents), model.images(latents), rtol=0, atol=1e-13)


def test_in_plane_latents_are_centred_rotations_about_z() -> None:
    pose = torch.linspace(-3, 3, 5).double()
    latents = Latents.in_plane(pose, pose[:, None], pose + 50)
    assert torch.equal(latents.rotations, rotation_z(pose))
    assert torch.equal(latents.shifts, torch.zeros(5, 2).double())


def test_the_papers_setting_has_the_papers_signal_to_noise_ratio() -> None:
    """Pixel variance over noise variance at 1 Å a pixel; for its own protein the paper says 2.6."""
    model = adk(n_modes=1, pixel_size=1.0)
    images = torch.stack([model.images(in_plane(pose)) for pose in torch.linspace(0, 6, 13).tolist()])
    assert 2.0 < images.var(dim=(-2, -1)).mean().item() / 0.1**2 < 3.0


@pytest.mark.parametrize("projector", PROJECTORS)
def test_gradients_agree_with_finite_differences(projector: str) -> None:
    generator = torch.Generator().manual_seed(0)
    reference = 2 * torch.randn(5, 3, generator=generator, dtype=torch.float64)
    modes = normal_modes(reference, 2).vectors
    model = ForwardModel(reference, modes, box_size=20, projector=projector)
    inputs = [
        torch.tensor(value, dtype=torch.float64, requires_grad=True)
        for value in ([0.4, -1.0], [[0.5, -0.7], [1.2, 0.1]], [50.0, 47.0], [[0.3, -0.2], [0.1, 0.8]])
    ]

    def coefficients(*values: Tensor) -> Tensor:
        return torch.view_as_real(model.coefficients(Latents.in_plane(*values), 6))

    assert torch.autograd.gradcheck(coefficients, inputs)


# Noise


def test_simulated_noise_is_white() -> None:
    """What `simulate` adds, over σ_n K/N, are independent standard normal coordinates.

    The sum of 2000 × 225 squares lies within 5 standard deviations of its mean and each coordinate's own
    within 6, which fails by chance with a rate of 6e-7 + 225 × 2e-9 = 1e-6.
    """
    model, n, noise, resolution = adk(n_modes=1), 2000, 0.1, 16
    generator = torch.Generator().manual_seed(2)
    clean = Latents(**{name: value.expand(n, *value.shape) for name, value in vars(in_plane(0.4)).items()})
    drawn = model.simulate(clean, noise, resolution, generator) - model.coefficients(clean, resolution)
    vectors = to_real(drawn, resolution) / (noise * resolution / 64)
    degrees = vectors.numel()
    assert abs(vectors.square().sum().item() - degrees) < 5 * math.sqrt(2 * degrees)
    assert ((vectors.square().sum(dim=0) - n) / math.sqrt(2 * n)).abs().max() < 6
    assert drawn[:, 0].imag.abs().max() == 0


def test_noise_is_reproducible_and_can_be_absent() -> None:
    model, latents = adk(), random_latents()
    first, second = (model.simulate(latents, 0.1, 16, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, model.simulate(latents, 0.1, 16, torch.Generator().manual_seed(4)))
    assert torch.equal(model.simulate(latents, 0.0, 16), model.coefficients(latents, 16))


# Precision and devices


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("projector", PROJECTORS)
def test_a_moved_model_gives_the_same_images(projector: str, device: str) -> None:
    """In float32 the pixels keep 1e-5 of the brightest: positions of 25 pixels are known to 2e-6 pixels."""
    latents = random_latents()
    expected = adk(projector=projector).images(latents)
    moved = adk(projector=projector).to(device, torch.float32)
    there = Latents(**{name: value.to(device, torch.float32) for name, value in vars(latents).items()})
    images = moved.images(there)
    assert images.dtype == torch.float32 and images.device.type == device
    assert (images.cpu() - expected).abs().max() < 1e-5 * expected.abs().max()
    assert moved.simulate(there, 0.1, 16).device.type == device
    back = moved.to("cpu", torch.float64).images(latents)
    assert (back - expected).abs().max() < 1e-5 * expected.abs().max()


def test_a_model_is_restored_from_its_state() -> None:
    model = adk()
    other = ForwardModel(torch.zeros(107, 3).double(), torch.zeros(3, 107, 3).double(), pixel_size=1.5)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.images(random_latents()), model.images(random_latents()))


# Errors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"box_size": 32}, r"reaches 21\.2 pixels .* half a box of 32 .* at least 44 pixels, .* 2\.02 Å"),
        ({"pixel_size": 0.9}, r"reaches 34\.9 pixels .* half a box of 64 .* at least 70 pixels, .* 0\.99 Å"),
        (
            {"projector": "ray"},
            "projector 'ray' does not exist: choose from auto, fourier, gridded, separable, sparse",
        ),
        ({"box_size": 0}, "box_size = 0 is not usable: it must be greater than 0"),
        ({"pixel_size": 0.0}, r"pixel_size = 0\.0 is not usable"),
        ({"pixel_size": math.nan}, "pixel_size = nan is not usable"),
        ({"atom_width": -0.8}, r"atom_width = -0\.8 is not usable"),
    ],
)
def test_an_impossible_microscope(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ForwardModelError, match=message):
        adk(**settings)


@pytest.mark.parametrize("needed", [64, 66, 80])
def test_the_recommended_box_and_pixel_size_work(needed: int) -> None:
    """A molecule is refused in a box two pixels smaller than the one that the error asks for."""
    reference = load_structure("adk_open").coordinates * (needed / 64)
    modes = normal_modes(load_structure("adk_open").coordinates).vectors
    ForwardModel(reference, modes, box_size=needed)
    with pytest.raises(ForwardModelError, match=f"at least {needed} pixels"):
        ForwardModel(reference, modes, box_size=needed - 2)


@pytest.mark.mistyped
def test_modes_of_another_structure() -> None:
    model = adk()
    message = r"modes of shape \(3, 107, 3\) do not belong .* \(106, 3\): expected \(modes, 106, 3\)"
    with pytest.raises(ForwardModelError, match=message):
        ForwardModel(model.reference[1:], model.modes, pixel_size=1.5)


@pytest.mark.mistyped
@pytest.mark.parametrize("shape", [(2,), (4, 4), ()])
def test_a_wrong_number_of_amplitudes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ForwardModelError, match="for a model of 3 modes: the last dimension must be 3"):
        adk().deform(torch.zeros(shape, dtype=torch.float64))


@pytest.mark.parametrize("resolution", [31, 66, 2, 0])
def test_an_unusable_resolution(resolution: int) -> None:
    with pytest.raises(ForwardModelError, match=f"resolution K = {resolution} pixels is not usable"):
        adk().coefficients(random_latents(), resolution)


@pytest.mark.parametrize("noise", [-0.1, math.nan])
def test_noise_that_is_no_standard_deviation(noise: float) -> None:
    with pytest.raises(ForwardModelError, match=f"noise = {noise} is not a standard deviation"):
        adk().simulate(random_latents(), noise, 16)
    with pytest.raises(ForwardModelError, match="must be 0 or greater"):
        add_noise(torch.zeros(5, dtype=torch.complex64), noise, 64)


@pytest.mark.mistyped
def test_batch_shapes_that_would_make_a_larger_one_are_refused() -> None:
    pose, amplitude = torch.zeros(4), torch.zeros(4, 1)
    with pytest.raises(ForwardModelError, match=r"batch shapes do not agree: .*defocus \(4, 1\)"):
        Latents.in_plane(pose, amplitude, torch.full((4, 1), 50.0))
    with pytest.raises(ForwardModelError, match=r"rotations \(4,\), defocus \(3,\)"):
        Latents.in_plane(pose, amplitude, torch.full((3,), 50.0))
    stacked = Latents.in_plane(torch.zeros(2, 4), amplitude, torch.full((4,), 50.0))
    assert stacked.rotations.shape == (2, 4, 3, 3)


@pytest.mark.mistyped
@pytest.mark.parametrize(("box_size", "message"), [(64.5, "whole number of pixels"), (0, "greater than 0")])
def test_an_impossible_box_is_refused(box_size, message) -> None:
    with pytest.raises(ForwardModelError, match=message):
        ForwardModel(torch.zeros(3, 3), torch.zeros(1, 3, 3), box_size=box_size)


def test_coordinates_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ForwardModelError, match="reference holds NaN"):
        ForwardModel(torch.full((3, 3), math.nan), torch.zeros(1, 3, 3))


@pytest.mark.parametrize(
    "along",
    [("pose",), ("defocus",), ("amplitude", "defocus"), ("rotation",), tuple(DIRECTIONS)],
    ids="-".join,
)
def test_slopes_are_differences_of_coefficients(along) -> None:
    """Central differences of the coefficients in every direction, at rotations all over SO(3)."""
    model, latents, step = adk(), random_latents(), 1e-4
    latents = replace(latents, contrast=torch.tensor([0.8, 1.0, 1.1, 1.3], dtype=torch.float64))
    image, slopes = model.slopes(latents, 24, along)
    torch.testing.assert_close(image, model.coefficients(latents, 24))
    found = iter(slopes.unbind(-2))
    axes = torch.eye(3, dtype=torch.float64)
    for name in along:
        for column in range({"rotation": 3, "shift": 2, "amplitude": 3}.get(name, 1)):
            ends = []
            for way in (step, -step):
                # The molecule turns about its own centre, before it is shifted.
                axis = {"pose": axes[2], "rotation": axes[column]}.get(name, 0 * axes[0])
                turn = rotation_from_quaternion(quaternion_from_rotvec(way * axis))
                amplitudes, shifts = latents.amplitudes.clone(), latents.shifts.clone()
                amplitudes[:, column] += way * (name == "amplitude")
                shifts[:, min(column, 1)] += way * (name == "shift")
                moved = Latents(
                    *(amplitudes, turn @ latents.rotations, latents.defocus + way * (name == "defocus")),
                    *(shifts, latents.contrast + way * (name == "contrast")),
                )
                ends.append(model.coefficients(moved, 24))
            torch.testing.assert_close(next(found), (ends[0] - ends[1]) / (2 * step), rtol=1e-5, atol=1e-9)
    assert next(found, None) is None


def test_slopes_along_an_unknown_direction_are_refused() -> None:
    with pytest.raises(
        ForwardModelError, match=r"no derivative along \['magnification'\]: choose from pose, rotation"
    ):
        adk().slopes(random_latents(), 16, ("pose", "magnification"))
