"""Rotations: the group they form, the hand they turn with, and distances accurate from 0 to π."""

import math

import pytest
import torch
from torch import Tensor

from cryoanm_lib.rotation import (
    angle_distance,
    angle_to_unit_vector,
    mean_quaternion,
    quaternion_conjugate,
    quaternion_distance,
    quaternion_from_step,
    quaternion_product,
    quaternion_z,
    rotation_distance,
    rotation_from_quaternion,
    rotation_from_unit_vector,
    rotation_z,
    step_between,
    step_from_quaternion,
    turned_by,
    unit_vector_to_angle,
    wrap_angle,
)

torch.set_num_threads(1)
ANGLES = torch.linspace(-math.pi, math.pi, 41, dtype=torch.float64)


def random_rotations(n: int, seed: int = 0) -> Tensor:
    """Uniform on SO(3): the orthogonal factor of a Gaussian matrix, made right-handed."""
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(n, 3, 3, generator=generator, dtype=torch.float64))
    q = q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None, :]
    return q * torch.linalg.det(q)[:, None, None]


def rotation_about(axis: Tensor, angle: Tensor) -> Tensor:
    """The exponential of the generator: a definition that shares no formula with the library."""
    x, y, z = (axis / axis.norm()).tolist()
    generator = torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]], dtype=torch.float64)
    return torch.linalg.matrix_exp(angle[..., None, None] * generator)


# Angles


def test_wrapping_adds_whole_turns_only() -> None:
    angles = torch.linspace(-50.0, 50.0, 1001, dtype=torch.float64)
    wrapped = wrap_angle(angles)
    turns = (angles - wrapped) / (2 * math.pi)
    assert wrapped.abs().max() <= math.pi
    torch.testing.assert_close(turns, turns.round(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wrapping_leaves_an_angle_in_range_as_it_is(dtype: torch.dtype) -> None:
    angles = torch.cat([ANGLES, torch.logspace(-30, 0, 31)]).to(dtype)
    assert torch.equal(wrap_angle(angles), angles)


def test_wrapping_has_unit_slope() -> None:
    angles = torch.linspace(-9.0, 9.0, 13, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(wrap_angle(angles).sum(), angles)
    assert torch.equal(slope, torch.ones_like(slope))


def test_angle_distance_is_the_angle_between_unit_vectors() -> None:
    a, b = ANGLES[:, None] * 3, ANGLES[None, :] - 1.0
    difference = (angle_to_unit_vector(a) - angle_to_unit_vector(b)).norm(dim=-1)
    expected = 2 * torch.arcsin((difference / 2).clamp(max=1.0))
    # The chord is flat at π, so that the arcsine knows the angle there to √eps only.
    torch.testing.assert_close(angle_distance(a, b), expected, rtol=0, atol=3e-8)
    torch.testing.assert_close(angle_distance(a, b), angle_distance(b, a), rtol=0, atol=0)


def test_angle_distance_is_a_metric_on_the_circle() -> None:
    generator = torch.Generator().manual_seed(1)
    a, b, c = 20 * torch.randn(3, 1000, generator=generator, dtype=torch.float64)
    assert (angle_distance(a, c) <= angle_distance(a, b) + angle_distance(b, c) + 1e-12).all()
    torch.testing.assert_close(angle_distance(a, a + 6 * math.pi), torch.zeros_like(a), rtol=0, atol=1e-13)
    torch.testing.assert_close(
        angle_distance(a, a + math.pi), torch.full_like(a, math.pi), rtol=0, atol=1e-13
    )


def test_unit_vector_and_angle_are_inverse() -> None:
    vectors = angle_to_unit_vector(ANGLES)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones_like(ANGLES), rtol=0, atol=1e-15)
    torch.testing.assert_close(unit_vector_to_angle(7.5 * vectors), ANGLES, rtol=0, atol=1e-15)


# Matrices about the viewing direction


def test_rotation_z_is_right_handed_and_active() -> None:
    quarter = rotation_z(torch.tensor(math.pi / 2, dtype=torch.float64))
    x, y, z = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(quarter @ x, y, rtol=0, atol=1e-15)
    torch.testing.assert_close(quarter @ y, -x, rtol=0, atol=1e-15)
    assert torch.equal(quarter @ z, z)
    torch.testing.assert_close(rotation_z(ANGLES), rotation_about(z, ANGLES), rtol=0, atol=1e-14)


def test_rotations_about_z_form_a_group() -> None:
    matrices = rotation_z(ANGLES)
    unit = torch.eye(3, dtype=torch.float64)
    products = matrices[:, None] @ matrices[None]
    torch.testing.assert_close(products, rotation_z(ANGLES[:, None] + ANGLES[None]), rtol=0, atol=1e-14)
    torch.testing.assert_close(rotation_z(-ANGLES), matrices.mT, rtol=0, atol=0)
    torch.testing.assert_close(matrices @ matrices.mT, unit.expand_as(matrices), rtol=0, atol=1e-15)
    torch.testing.assert_close(torch.linalg.det(matrices), torch.ones_like(ANGLES), rtol=0, atol=1e-15)
    assert torch.equal(rotation_z(torch.zeros(2, 5)), torch.eye(3).expand(2, 5, 3, 3))


def test_rotation_from_unit_vector_takes_x_to_it() -> None:
    vectors = angle_to_unit_vector(ANGLES)
    matrices = rotation_from_unit_vector(vectors)
    assert torch.equal(matrices[:, :2, 0], vectors)
    assert torch.equal(matrices, rotation_z(ANGLES))
    assert matrices.dtype == torch.float64


# Distance on SO(3)


def test_rotation_distance_is_the_angle_of_the_relative_rotation() -> None:
    axis = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    angles = torch.linspace(0.0, math.pi, 50, dtype=torch.float64)
    for start in random_rotations(5):
        distance = rotation_distance(start, start @ rotation_about(axis, angles))
        torch.testing.assert_close(distance, angles, rtol=0, atol=1e-14)


def test_rotation_distance_is_a_metric_that_ignores_a_common_rotation() -> None:
    a, b, c = random_rotations(300).unflatten(0, (3, 100))
    between = rotation_distance(a, b)
    assert (between >= 0).all() and (between <= math.pi).all()
    torch.testing.assert_close(rotation_distance(b, a), between, rtol=0, atol=1e-14)
    torch.testing.assert_close(rotation_distance(c @ a, c @ b), between, rtol=0, atol=1e-13)
    torch.testing.assert_close(rotation_distance(a @ c, b @ c), between, rtol=0, atol=1e-13)
    assert (rotation_distance(a, c) <= between + rotation_distance(b, c) + 1e-12).all()
    assert rotation_distance(a, a).max() < 1e-15


def test_rotation_distance_of_random_pairs_has_the_haar_density() -> None:
    """The angle of a uniform rotation has the distribution (θ - sin θ) / π: Kolmogorov–Smirnov, 2000 draws.

    The limit 2.23 / √n is passed by chance with probability 1e-4.
    """
    n = 2000
    angles = rotation_distance(random_rotations(n, seed=3), torch.eye(3, dtype=torch.float64)).sort().values
    cdf = (angles - angles.sin()) / math.pi
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    assert max((cdf - steps[:-1]).max(), (steps[1:] - cdf).max()) < 2.23 / math.sqrt(n)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 5e-7), (torch.float64, 1e-15)])
@pytest.mark.parametrize("offset", [0.0, 1e-15, 1e-7, 1e-5, 1e-3])
def test_rotation_distance_is_accurate_near_zero_and_near_pi(
    offset: float, dtype: torch.dtype, atol: float
) -> None:
    unit = torch.eye(3, dtype=dtype)
    small = torch.tensor(offset, dtype=dtype)
    near_zero = rotation_distance(rotation_z(small), unit)
    torch.testing.assert_close(near_zero, small, rtol=1e-6 if dtype == torch.float32 else 1e-14, atol=0)
    near_pi = rotation_distance(rotation_z(math.pi - small), unit)
    assert near_pi.item() == pytest.approx(math.pi - offset, abs=atol)


def test_rotation_distance_has_a_finite_gradient_everywhere() -> None:
    angles = torch.tensor([0.0, 1e-12, 1.0, -2.0, math.pi], dtype=torch.float64, requires_grad=True)
    distance = rotation_distance(rotation_z(angles), torch.eye(3, dtype=torch.float64))
    (slope,) = torch.autograd.grad(distance.sum(), angles)
    assert slope.isfinite().all()
    torch.testing.assert_close(slope[1:4], angles[1:4].sign(), rtol=0, atol=1e-12)


# Quaternions


def random_quaternions(n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(n, 4, generator=generator, dtype=torch.float64), dim=-1)


def test_a_product_of_quaternions_is_one_of_matrices() -> None:
    a, b = random_quaternions(50), random_quaternions(50, seed=1)
    both = rotation_from_quaternion(quaternion_product(a, b))
    torch.testing.assert_close(both, rotation_from_quaternion(a) @ rotation_from_quaternion(b))
    identity = rotation_from_quaternion(quaternion_product(a, quaternion_conjugate(a)))
    torch.testing.assert_close(identity, torch.eye(3, dtype=torch.float64).expand(50, 3, 3))


def test_both_signs_of_a_quaternion_are_one_rotation() -> None:
    q = random_quaternions(50)
    assert torch.equal(rotation_from_quaternion(q), rotation_from_quaternion(-q))
    torch.testing.assert_close(step_from_quaternion(q), step_from_quaternion(-q))


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-3, 1.0, 3.0, math.pi - 1e-9])
def test_a_step_is_the_exponential_of_its_generator(angle: float) -> None:
    axis = torch.tensor([0.6, -0.3, 0.74], dtype=torch.float64)
    step = angle * axis / axis.norm()
    found = rotation_from_quaternion(quaternion_from_step(step))
    torch.testing.assert_close(found, rotation_about(axis, torch.tensor(angle, dtype=torch.float64)))
    torch.testing.assert_close(step_from_quaternion(quaternion_from_step(step)), step, rtol=1e-12, atol=1e-15)


def test_a_turn_about_z_is_that_of_the_plane() -> None:
    torch.testing.assert_close(rotation_from_quaternion(quaternion_z(ANGLES)), rotation_z(ANGLES))


def test_steps_lead_from_one_rotation_to_another() -> None:
    a, b = random_quaternions(200), random_quaternions(200, seed=1)
    there = turned_by(a, step_between(a, b))
    torch.testing.assert_close(rotation_from_quaternion(there), rotation_from_quaternion(b))
    torch.testing.assert_close(there.norm(dim=-1), torch.ones(200, dtype=torch.float64))


def test_the_distance_of_quaternions_is_that_of_their_rotations() -> None:
    a, b = random_quaternions(200), random_quaternions(200, seed=1)
    expected = rotation_distance(rotation_from_quaternion(a), rotation_from_quaternion(b))
    torch.testing.assert_close(quaternion_distance(a, b), expected)
    near = turned_by(a, torch.tensor([1e-8, 0.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(quaternion_distance(a, near), torch.full((200,), 1e-8, dtype=torch.float64))


def test_the_gradient_of_a_step_is_finite_where_there_is_none() -> None:
    step = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(quaternion_from_step(step)[1], step)
    torch.testing.assert_close(slope, torch.tensor([0.5, 0.0, 0.0], dtype=torch.float64))


def test_the_mean_of_rotations_does_not_know_signs() -> None:
    middle = random_quaternions(4)
    steps = 0.05 * torch.randn(400, 4, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    signs = torch.randint(2, (400, 4, 1), generator=torch.Generator().manual_seed(3)) * 2 - 1
    found = mean_quaternion(signs * turned_by(middle, steps))
    assert quaternion_distance(found, middle).max() < 5 * 0.05 * 3**0.5 / 20
    weighed = mean_quaternion(
        torch.stack([middle, random_quaternions(4, seed=5)]), torch.tensor([[1.0], [0.0]])
    )
    assert quaternion_distance(weighed, middle).max() < 1e-7
