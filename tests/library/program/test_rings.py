"""Rings: what a turn does to the harmonics, and networks that turn with the image."""

import math

import pytest
import torch

from cryoanm_lib.numerics.fourier import coefficients_to_image
from cryoanm_lib.numerics.rotation import angle_to_unit_vector, rotation_from_unit_vector
from cryoanm_lib.program.rings import Rings


@pytest.fixture
def rings() -> Rings:
    return Rings(16, references=4)


def turned_by(n: int, rings: Rings) -> torch.Tensor:
    """A pose of n of the angles at which the rings are sampled."""
    return angle_to_unit_vector(torch.tensor(2 * math.pi * n / rings.n_angles))


def test_a_wave_on_a_ring_is_one_harmonic() -> None:
    """On the middle of an image exp(-r²/18) r cos φ, only the harmonic m = 1 is there, and it is real."""
    size = 32
    rings = Rings(size)
    steps = torch.arange(size) - size // 2
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    seen = rings((x * torch.exp(-(x**2 + y**2) / 18.0)).float())
    table = rings.grid(seen)
    radii = torch.arange(size // 2) + 0.5
    # rfft with norm "ortho" of cos φ on n points is √n / 2
    expected = radii.sqrt() * radii * torch.exp(-(radii**2) / 18.0) * math.sqrt(rings.n_angles) / 2
    torch.testing.assert_close(table[:, 1].real, expected, atol=1e-4, rtol=1e-4)
    assert table[:, 1].imag.abs().max() < 1e-4
    assert torch.cat([table[:, :1], table[:, 2:]], dim=1).abs().max() < 1e-4


@pytest.mark.parametrize("angle", [0.3, 1.7, -2.9])
def test_a_turn_of_the_molecule_is_a_phase(tiny_forward, angle) -> None:
    """Turned back, the harmonics at θ are those at 0, at any angle, once image and spectrum fade in time."""
    tiny_forward.atom_width = 2.0
    tiny_forward.reference *= 0.4
    pose = angle_to_unit_vector(torch.tensor([angle, 0.0]))
    latents = {"pose": pose, "amplitude": torch.full((2, 1), 2.0), "defocus": torch.full((2,), 50.0)}
    rings = Rings(32)
    seen = rings(coefficients_to_image(tiny_forward.coefficients(latents, 32), 32))
    turned, upright = rings.turn_back(seen, pose)
    assert (turned - upright).abs().max() < 1e-3 * upright.abs().max()


def test_turning_back_keeps_leading_dimensions(rings) -> None:
    seen = rings(torch.randn(5, 16, 16))
    pose = angle_to_unit_vector(torch.randn(3, 5))
    turned = rings.turn_back(seen, pose)
    assert turned.shape == (3, 5, len(rings))
    torch.testing.assert_close(turned[1], rings.turn_back(seen, pose[1]))


@pytest.mark.parametrize("n", [1, 11, 24, 47])
def test_the_pose_turns_with_the_image(rings, n) -> None:
    """By any of the sampled angles: vectors turn, logits stay, to the last digits of float32."""
    torch.manual_seed(0)
    encoder, pose = rings.pose_encoder(3).eval(), turned_by(n, rings)
    upright = rings(torch.randn(6, 16, 16))
    turned = rings.turn_back(upright, pose[None] * torch.tensor([1.0, -1.0]))
    logits, vectors = encoder(upright)
    logits_turned, vectors_turned = encoder(turned)
    torch.testing.assert_close(logits_turned, logits, atol=1e-6, rtol=1e-5)
    rotation = rotation_from_unit_vector(pose)[:2, :2]
    torch.testing.assert_close(vectors_turned, vectors @ rotation.T, atol=1e-5, rtol=1e-4)


def test_a_learned_reference_finds_itself(rings) -> None:
    """A reference that is an image's own conjugate harmonics correlates best at the pose of the image."""
    torch.manual_seed(1)
    upright = rings(torch.randn(1, 16, 16))
    encoder = rings.pose_encoder(1)
    with torch.no_grad():
        encoder.references[0] = torch.view_as_real(upright[0].conj().resolve_conj())
    for n in (0, 7, 40):
        image = rings.turn_back(upright, turned_by(n, rings)[None] * torch.tensor([1.0, -1.0]))
        assert encoder.correlations(image)[0, 0].argmax() == n


@pytest.mark.parametrize("batch", [(5,), (2, 5)])
def test_networks_keep_the_batch(rings, batch) -> None:
    seen = rings(torch.randn(*batch, 16, 16))
    assert seen.shape == (*batch, len(rings))
    logits, vectors = rings.pose_encoder(3).eval()(seen)
    assert logits.shape == (*batch, 3) and vectors.shape == (*batch, 3, 2)
    assert rings.encoder(4).eval()(seen).shape == (*batch, 4)


def test_every_parameter_learns(rings) -> None:
    """The gradient reaches nearly each weight of each network: a rectifier may leave out a few."""
    torch.manual_seed(2)
    seen = rings(torch.randn(8, 16, 16))
    encoder, dense = rings.pose_encoder(2), rings.encoder(2)
    logits, vectors = encoder(seen)
    (logits.square().sum() + vectors.square().sum() + dense(seen).square().sum()).backward()
    for name, parameter in [*encoder.named_parameters(), *dense.named_parameters()]:
        moved = parameter.grad.abs() > 1e-6 * parameter.grad.abs().max()
        assert parameter.grad.abs().max() > 1e-5 and moved.double().mean() > 0.8, name


def test_what_is_computed_is_not_saved(rings) -> None:
    """The interpolation onto rings follows from the size: it is in no artifact."""
    assert not rings.state_dict()
    assert "frame" not in rings.pose_encoder(1).state_dict()
