"""The forward model: Algorithm 1 against its steps done by hand, and what each latent does to an image."""

import math
from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
import torch
from torch import Tensor

from cryoanm_lib.errors import ForwardModelError
from cryoanm_lib.imaging.forward_model import ForwardModel
from cryoanm_lib.imaging.latents import (
    AMPLITUDE,
    CONTRAST,
    DEFOCUS,
    POSE,
    POSE_IN_SPACE,
    SHIFT,
    Latent,
    in_plane,
    pose_to_rotation,
)
from cryoanm_lib.imaging.noise import WhiteNoise
from cryoanm_lib.imaging.projection import PROJECTORS
from cryoanm_lib.imaging.unknowns import Unknowns
from cryoanm_lib.molecule.anm import normal_modes
from cryoanm_lib.molecule.structure import load_structure, rmsd
from cryoanm_lib.numerics.fourier import crop, crop_coefficients, half_plane_frequencies
from cryoanm_lib.numerics.rotation import quaternion_from_rotvec, quaternion_product
from tests.library.rotations import rotation_z

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


def random_latents(n: int = 4, n_modes: int = 3, seed: int = 0) -> dict[str, Tensor]:
    """Rotations all over SO(3), amplitudes of deviation 3, shifts of 1 pixel, the paper's defocus."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    pose = torch.nn.functional.normalize(normal(n, 4), dim=-1)
    return {
        "pose": pose,
        "amplitude": 3 * normal(n, n_modes),
        "defocus": 50 + 3 * normal(n),
        "shift": normal(n, 2),
    }


def one_image(pose: float = 0.0, amplitude: float = 0.0) -> dict[str, Tensor]:
    """In the plane, with one mode, at the paper's defocus."""
    pose, amplitude, defocus = (torch.tensor(x, dtype=torch.float64) for x in (pose, [amplitude], 50.0))
    return in_plane(pose, amplitude, defocus=defocus)


def changed(latents: dict[str, Tensor], change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    return {name: change(value) for name, value in latents.items()}


# Algorithm 1


@pytest.mark.parametrize("box_size", [64, 65])
@pytest.mark.parametrize("resolution", [16, 32])
def test_the_image_is_algorithm_1_by_hand(box_size: int, resolution: int) -> None:
    """Bend, turn, drop z, shift, draw, transfer, crop: in NumPy, one image at a time, on full spectra."""
    model, latents = adk(box_size=box_size), random_latents(2)
    reference, modes = model.reference.numpy(), model.modes.numpy()
    rotations = pose_to_rotation(latents["pose"]).numpy()
    steps = np.arange(box_size) - box_size // 2
    frequency = np.fft.fftfreq(box_size)
    squared_frequency = frequency[:, None] ** 2 + frequency[None, :] ** 2
    kept = np.r_[0 : resolution // 2, 1 - resolution // 2 : 0]
    for image in range(2):
        atoms = reference + sum(
            a * u for a, u in zip(latents["amplitude"][image].numpy(), modes, strict=True)
        )
        turned = np.array([rotations[image] @ atom for atom in atoms])
        x, y = (turned[:, :2] / 1.5 + latents["shift"][image].numpy()).T
        drawn = np.zeros((box_size, box_size))
        for x_atom, y_atom in zip(x, y, strict=True):
            squared = (steps[None, :] - x_atom) ** 2 + (steps[:, None] - y_atom) ** 2
            drawn += np.exp(-squared / (2 * 0.8**2))
        spectrum = np.fft.fft2(np.fft.ifftshift(drawn)) / box_size**2
        spectrum *= np.sin(-latents["defocus"][image].item() * squared_frequency)
        small = np.zeros((resolution, resolution), dtype=complex)
        small[np.ix_(kept, kept)] = spectrum[np.ix_(kept, kept)]
        expected = np.fft.fftshift(np.fft.ifft2(small)).real * resolution**2
        np.testing.assert_allclose(model.images(latents, resolution)[image], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("projector", PROJECTORS)
def test_projectors_give_the_same_images(projector: str) -> None:
    """The sparse projector may miss exp(-9/2) of each of the 107 atoms' peaks, the gridded one 2e-6."""
    latents = random_latents()
    expected = adk(projector="separable").images(latents)
    tolerance = {"sparse": math.exp(-4.5) * 107, "gridded": 2e-6 * 107}.get(projector, 1e-12)
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
    folded = changed(latents, lambda value: value.unflatten(0, (2, 3)))
    both = model.images(folded, resolution), images.unflatten(0, (2, 3))
    torch.testing.assert_close(*both, rtol=0, atol=1e-13)
    single = changed(latents, lambda value: value[4])
    torch.testing.assert_close(model.images(single, resolution), images[4], rtol=0, atol=1e-13)
    none = changed(latents, lambda value: value[:0])
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
    latents = random_latents(3) | {"contrast": torch.ones(3, dtype=torch.float64)}
    latents["defocus"] = latents["defocus"][:1]
    given = changed(latents, lambda value: value.clone().requires_grad_())
    weights = torch.linspace(-1, 1, box_size**2, dtype=torch.float64).view(box_size, box_size)

    def slopes(projector: str) -> tuple[Tensor, ...]:
        images = adk(projector=projector, box_size=box_size).images(given)
        return torch.autograd.grad((images * weights).square().sum(), list(given.values()))

    for found, expected in zip(slopes("auto"), slopes("fourier"), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())


@pytest.mark.parametrize("atom_width", [0.03, 0.05, 0.15, 0.2])
def test_images_of_very_narrow_atoms_are_finite(atom_width: float) -> None:
    latents = changed(random_latents(), Tensor.float)
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
    coordinates = model.deform(latents["amplitude"])
    rotations = pose_to_rotation(latents["pose"])
    for image, positions in enumerate(model.positions(latents)):
        for atom in (0, 50, 106):
            x, y, _ = rotations[image] @ coordinates[image, atom]
            expected = torch.stack([x, y]) / 1.5 + latents["shift"][image]
            torch.testing.assert_close(positions[atom], expected, rtol=0, atol=1e-13)


def test_the_viewing_direction_is_z() -> None:
    model = adk(n_modes=1)
    raised = ForwardModel(model.reference + torch.tensor([0.0, 0.0, 25.0]), model.modes, pixel_size=1.5)
    assert torch.equal(raised.images(one_image(0.4, 2.0)), model.images(one_image(0.4, 2.0)))


def test_a_pose_turns_the_image_from_x_to_y() -> None:
    """Columns are x and rows y: a positive quarter turn takes the image's right to its bottom row."""
    model = adk(n_modes=1, box_size=65)
    still, turned = (model.images(one_image(pose, 2.0)) for pose in (0.3, 0.3 + math.pi / 2))
    torch.testing.assert_close(turned, torch.rot90(still, -1), rtol=0, atol=1e-12)


def test_a_shift_is_a_phase_whatever_the_rotation() -> None:
    """Up to aliases: the first that falls on a kept frequency k is 1 - |k| cycles per pixel, or 57/64."""
    model, latents = adk(), random_latents()
    centred = model.coefficients(latents | {"shift": torch.zeros(4, 2).double()}, 16)
    angle = latents["shift"] @ (half_plane_frequencies(16).double().T / 64)
    phase = torch.exp(-2j * math.pi * angle)
    alias = 2 * math.pi * 0.8**2 * math.exp(-2 * (math.pi * 0.8 * 57 / 64) ** 2) / 64**2
    torch.testing.assert_close(model.coefficients(latents, 16), phase * centred, rtol=0, atol=4 * 107 * alias)


def test_the_defocus_multiplies_the_spectrum() -> None:
    model, latents = adk(), random_latents()
    squared = (half_plane_frequencies(32).double() / 64).square().sum(dim=-1)
    in_focus = PROJECTORS["separable"](model.positions(latents), 64, 0.8, 32)
    transfer = -(latents["defocus"][:, None] * squared).sin()
    torch.testing.assert_close(model.coefficients(latents, 32), transfer * in_focus, rtol=0, atol=1e-15)
    assert model.images(latents).mean(dim=(-2, -1)).abs().max() < 1e-15


def test_pixel_size_and_atom_width_are_in_their_units() -> None:
    """Twice the Å per pixel is half the molecule, at the same atom width in pixels."""
    model = adk(n_modes=1)
    halved = ForwardModel(model.reference / 2, model.modes, pixel_size=0.75)
    latents = one_image(0.4)
    torch.testing.assert_close(halved.images(latents), model.images(latents), rtol=0, atol=1e-13)


def test_in_plane_latents_are_centred_rotations_about_z() -> None:
    pose = torch.linspace(-3, 3, 5).double()
    model, latents = adk(n_modes=1), in_plane(pose, pose[:, None], defocus=pose + 50)
    assert torch.equal(pose_to_rotation(latents["pose"]), rotation_z(pose))
    centred = latents | {"shift": torch.zeros(5, 2).double()}
    assert torch.equal(model.positions(latents), model.positions(centred))


def test_the_papers_setting_has_the_papers_signal_to_noise_ratio() -> None:
    """Pixel variance over noise variance at 1 Å a pixel; for its own protein the paper says 2.6."""
    model = adk(n_modes=1, pixel_size=1.0)
    images = torch.stack([model.images(one_image(pose)) for pose in torch.linspace(0, 6, 13).tolist()])
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

    def coefficients(pose: Tensor, amplitude: Tensor, defocus: Tensor, shift: Tensor) -> Tensor:
        latents = in_plane(pose, amplitude, defocus=defocus, shift=shift)
        return torch.view_as_real(model.coefficients(latents, 6))

    assert torch.autograd.gradcheck(coefficients, inputs)


# Precision and devices


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("projector", PROJECTORS)
def test_a_moved_model_gives_the_same_images(projector: str, device: str) -> None:
    """In float32 the pixels keep 1e-5 of the brightest: positions of 25 pixels are known to 2e-6 pixels."""
    latents = random_latents()
    expected = adk(projector=projector).images(latents)
    moved = adk(projector=projector).to(device, torch.float32)
    there = changed(latents, lambda value: value.to(device, torch.float32))
    images = moved.images(there)
    assert images.dtype == torch.float32 and images.device.type == device
    assert (images.cpu() - expected).abs().max() < 1e-5 * expected.abs().max()
    noisy = WhiteNoise(0.1, 64).sample(moved.coefficients(there, 16))
    assert noisy.device.type == device
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


@pytest.mark.mistyped
@pytest.mark.parametrize("draw", ["images", "coefficients", "slopes"])
def test_batch_shapes_that_would_make_a_larger_one_are_refused(draw: str) -> None:
    """However an image is asked for: a table of all poses with all focuses would be another thing."""
    model, pose, amplitude = adk(n_modes=1).float(), torch.zeros(4), torch.zeros(4, 1)
    ways = {
        "images": model.images,
        "coefficients": lambda latents: model.coefficients(latents, 16),
        "slopes": lambda latents: model.slopes(latents, 16, (DEFOCUS,))[0],
    }
    with pytest.raises(ForwardModelError, match=r"batch shapes do not agree: .*defocus \(4, 1\)"):
        ways[draw](in_plane(pose, amplitude, defocus=torch.full((4, 1), 50.0)))
    with pytest.raises(ForwardModelError, match=r"amplitude \(4,\), defocus \(3,\)"):
        ways[draw](in_plane(pose, amplitude, defocus=torch.full((3,), 50.0)))
    stacked = in_plane(torch.zeros(2, 4), amplitude, defocus=torch.full((4,), 50.0))
    assert ways[draw](stacked).shape[:2] == (2, 4)


@pytest.mark.mistyped
@pytest.mark.parametrize(("box_size", "message"), [(64.5, "whole number of pixels"), (0, "greater than 0")])
def test_an_impossible_box_is_refused(box_size, message) -> None:
    with pytest.raises(ForwardModelError, match=message):
        ForwardModel(torch.zeros(3, 3), torch.zeros(1, 3, 3), box_size=box_size)


def test_coordinates_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ForwardModelError, match="reference holds NaN"):
        ForwardModel(torch.full((3, 3), math.nan), torch.zeros(1, 3, 3))


# Slopes


@pytest.mark.parametrize(
    "along",
    [
        (POSE,),
        (DEFOCUS,),
        (AMPLITUDE, DEFOCUS),
        (POSE_IN_SPACE,),
        (POSE, POSE_IN_SPACE, SHIFT, AMPLITUDE, DEFOCUS, CONTRAST),
    ],
    ids=lambda along: "-".join(latent.name for latent in along),
)
def test_slopes_are_differences_of_coefficients(along: tuple[Latent, ...]) -> None:
    """Central differences of the coefficients along every latent, at rotations all over SO(3)."""
    model, latents, step = adk(), random_latents(), 1e-4
    latents["contrast"] = torch.tensor([0.8, 1.0, 1.1, 1.3], dtype=torch.float64)
    image, slopes = model.slopes(latents, 24, along)
    torch.testing.assert_close(image, model.coefficients(latents, 24))
    found = iter(slopes.unbind(-2))
    axes = torch.eye(3, dtype=torch.float64)
    for latent in along:
        for column in range({POSE_IN_SPACE: 3, SHIFT: 2, AMPLITUDE: 3}.get(latent, 1)):
            ends = []
            for way in (step, -step):
                moved = changed(latents, Tensor.clone)
                if latent.name == "pose":
                    # The molecule turns about its own centre, before it is shifted.
                    axis = axes[2] if latent is POSE else axes[column]
                    turn = quaternion_from_rotvec(way * axis)
                    moved["pose"] = quaternion_product(turn.expand(4, 4), latents["pose"])
                else:
                    latent.rows(moved[latent.name])[..., column] += way
                ends.append(model.coefficients(moved, 24))
            torch.testing.assert_close(next(found), (ends[0] - ends[1]) / (2 * step), rtol=1e-5, atol=1e-9)
    assert next(found, None) is None


@pytest.mark.parametrize("pose", [POSE, POSE_IN_SPACE], ids=["plane", "space"])
def test_slopes_stand_in_the_order_that_is_asked_for(pose: Latent) -> None:
    """Whichever that is, as the columns of `Unknowns`: central differences by its steps."""
    model, values, step = adk(n_modes=2), random_latents(n_modes=2), 1e-4
    values["contrast"] = torch.tensor([0.8, 1.0, 1.1, 1.3], dtype=torch.float64)
    if pose is POSE:
        values["pose"] = POSE.manifold.value(values["shift"][:, :1])
    latents = [pose if latent.name == "pose" else latent for latent in model.latents]
    expected = {}
    for latent in latents:
        unknowns = Unknowns((latent,), n_modes=2)
        at, columns = unknowns.points(values), []
        for column in torch.eye(len(unknowns.columns), dtype=torch.float64):
            ends = (unknowns.values(unknowns.moved(at, way * column)) for way in (step, -step))
            high, low = (model.coefficients(values | end, 8) for end in ends)
            columns.append((high - low) / (2 * step))
        expected[latent.name] = torch.stack(columns, dim=-2)
    for count in (1, 2, len(latents)):
        for along in permutations(latents, count):
            _, slopes = model.slopes(values, 8, along)
            in_order = torch.cat([expected[latent.name] for latent in along], dim=-2)
            torch.testing.assert_close(slopes, in_order, rtol=1e-5, atol=1e-9)


def test_slopes_along_a_latent_of_another_model_are_refused() -> None:
    with pytest.raises(
        ForwardModelError, match=r"no derivative along \['magnification'\]: choose from pose, shift"
    ):
        adk().slopes(random_latents(), 16, (POSE, Latent("magnification")))
