"""Rotations: the group they form, the hand they turn with, and distances accurate from 0 to π."""

import math

import pytest
import scipy.linalg
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from cryoanm_lib.numerics.rotation import (
    angle_distance,
    angle_to_unit_vector,
    mean_quaternion,
    quaternion_conjugate,
    quaternion_distance,
    quaternion_from_rotvec,
    quaternion_product,
    quaternion_z,
    rotation_from_quaternion,
    rotation_from_unit_vector,
    rotvec_between,
    rotvec_from_quaternion,
    turned_by,
    unit_vector_to_angle,
    wrap_angle,
)
from tests.library.rotations import rotation_distance, rotation_z

torch.set_num_threads(1)
ANGLES = torch.linspace(-math.pi, math.pi, 41, dtype=torch.float64)


def random_rotations(n: int, seed: int = 0) -> Tensor:
    """Uniform on SO(3): the orthogonal factor of a Gaussian matrix, made right-handed."""
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(n, 3, 3, generator=generator, dtype=torch.float64))
    q = q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None, :]
    return q * torch.linalg.det(q)[:, None, None]


def skew(vector: Tensor) -> Tensor:
    """The generator of a rotation about a vector."""
    x, y, z = vector.tolist()
    return torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]], dtype=torch.float64)


def exponential(generator: Tensor) -> Tensor:
    """SciPy's: that of torch errs by 2e-11 at an angle of 0.03."""
    return torch.from_numpy(scipy.linalg.expm(generator.numpy()))


def rotation_about(axis: Tensor, angle: Tensor) -> Tensor:
    """The exponential of the generator: a definition that shares no formula with the library."""
    return exponential(angle[..., None, None] * skew(axis / axis.norm()))


def vectors(length: int, each: st.SearchStrategy) -> st.SearchStrategy[Tensor]:
    numbers = st.lists(each, min_size=length, max_size=length)
    return numbers.map(lambda drawn: torch.tensor(drawn, dtype=torch.float64))


def unit_vectors(length: int) -> st.SearchStrategy[Tensor]:
    whole = vectors(length, st.floats(-1.0, 1.0))
    return whole.filter(lambda v: v.norm() > 1e-3).map(lambda v: v / v.norm())


#: Rotation vectors up to half a turn, and the rotations that they are the exponentials of.
steps = st.builds(lambda axis, angle: angle * axis, unit_vectors(3), st.floats(0.0, math.pi))
rotations = steps.map(lambda step: exponential(skew(step)))
quaternions = unit_vectors(4)


# Angles


@given(st.floats(-1e6, 1e6))
@example(3 * math.pi)
def test_wrapping_adds_whole_turns_only(angle: float) -> None:
    """To the rounding of the angle that is given."""
    wrapped = wrap_angle(torch.tensor(angle, dtype=torch.float64))
    turns = (angle - wrapped.item()) / (2 * math.pi)
    assert abs(wrapped.item()) <= math.pi + 1e-15 * abs(angle)
    assert turns == pytest.approx(round(turns), rel=1e-15)
    assert torch.equal(wrap_angle(wrapped), wrapped)


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


@given(vectors(3, st.floats(-20.0, 20.0)), st.integers(-3, 3))
def test_angle_distance_is_a_metric_on_the_circle(angles: Tensor, turns: int) -> None:
    a, b, c = angles
    between = angle_distance(a, b)
    assert angle_distance(a, c) <= between + angle_distance(b, c) + 1e-14
    assert torch.equal(angle_distance(b, a), between)
    turned = angle_distance(a + c + 2 * math.pi * turns, b + c)
    opposite = angle_distance(a + math.pi, b)
    torch.testing.assert_close(turned, between, rtol=0, atol=1e-13)
    torch.testing.assert_close(opposite, math.pi - between, rtol=0, atol=1e-13)


@given(st.floats(-math.pi, math.pi), st.floats(1e-9, 1e9))
def test_unit_vector_and_angle_are_inverse(angle: float, length: float) -> None:
    angle = torch.tensor(angle, dtype=torch.float64)
    vector = angle_to_unit_vector(angle)
    assert vector.norm().item() == pytest.approx(1.0, rel=1e-15)
    torch.testing.assert_close(unit_vector_to_angle(length * vector), angle, rtol=0, atol=1e-15)


# Matrices about the viewing direction


def test_rotation_z_is_right_handed_and_active() -> None:
    quarter = rotation_z(torch.tensor(math.pi / 2, dtype=torch.float64))
    x, y, z = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(quarter @ x, y, rtol=0, atol=1e-15)
    torch.testing.assert_close(quarter @ y, -x, rtol=0, atol=1e-15)
    assert torch.equal(quarter @ z, z)
    torch.testing.assert_close(rotation_z(ANGLES), rotation_about(z, ANGLES), rtol=0, atol=1e-14)


@given(vectors(2, st.floats(-20.0, 20.0)))
def test_rotations_about_z_form_a_group(angles: Tensor) -> None:
    first, second = rotation_z(angles)
    unit = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(first @ second, rotation_z(angles.sum()), rtol=0, atol=1e-14)
    assert torch.equal(rotation_z(-angles), torch.stack([first, second]).mT)
    torch.testing.assert_close(first @ first.mT, unit, rtol=0, atol=1e-15)
    assert torch.linalg.det(first).item() == pytest.approx(1.0, rel=1e-15)
    assert torch.equal(rotation_z(torch.zeros(2, 5)), torch.eye(3).expand(2, 5, 3, 3))


def test_rotation_from_unit_vector_takes_x_to_it() -> None:
    vectors = angle_to_unit_vector(ANGLES)
    matrices = rotation_from_unit_vector(vectors)
    assert torch.equal(matrices[:, :2, 0], vectors)
    assert torch.equal(matrices, rotation_z(ANGLES))
    assert matrices.dtype == torch.float64


# Distance on SO(3)


@given(rotations, unit_vectors(3), st.floats(0.0, math.pi))
def test_rotation_distance_is_the_angle_of_the_relative_rotation(
    start: Tensor, axis: Tensor, angle: float
) -> None:
    angle = torch.tensor(angle, dtype=torch.float64)
    distance = rotation_distance(start, start @ rotation_about(axis, angle))
    torch.testing.assert_close(distance, angle, rtol=0, atol=1e-14)


@given(rotations, rotations, rotations)
def test_rotation_distance_is_a_metric_that_ignores_a_common_rotation(
    a: Tensor, b: Tensor, c: Tensor
) -> None:
    between = rotation_distance(a, b)
    assert 0 <= between <= math.pi
    for moved in (rotation_distance(b, a), rotation_distance(c @ a, c @ b), rotation_distance(a @ c, b @ c)):
        torch.testing.assert_close(moved, between, rtol=0, atol=1e-14)
    assert rotation_distance(a, c) <= between + rotation_distance(b, c) + 1e-14
    assert rotation_distance(a, a) < 1e-15


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


whole_quaternions = vectors(4, st.integers(-1000, 1000))


@given(whole_quaternions, whole_quaternions, whole_quaternions)
def test_quaternions_of_whole_numbers_obey_their_laws_exactly(a: Tensor, b: Tensor, c: Tensor) -> None:
    """Associative and distributive; the conjugate turns the order, and squared lengths multiply."""
    product, conjugate = quaternion_product, quaternion_conjugate
    assert torch.equal(product(product(a, b), c), product(a, product(b, c)))
    assert torch.equal(product(a, b + c), product(a, b) + product(a, c))
    assert torch.equal(product(a + b, c), product(a, c) + product(b, c))
    assert torch.equal(conjugate(product(a, b)), product(conjugate(b), conjugate(a)))
    assert torch.equal(product(a, conjugate(a))[0], a.square().sum())
    assert product(a, b).square().sum() == a.square().sum() * b.square().sum()


@given(quaternions, quaternions, vectors(3, st.floats(-1.0, 1.0)))
def test_a_quaternion_turns_as_its_matrix_does(a: Tensor, b: Tensor, vector: Tensor) -> None:
    """R(a) v is a v a*; it is a rotation, and that of a product is the product."""
    matrix, close = rotation_from_quaternion(a), torch.testing.assert_close
    pure = torch.cat([vector.new_zeros(1), vector])
    turned = quaternion_product(quaternion_product(a, pure), quaternion_conjugate(a))
    close(turned, torch.cat([vector.new_zeros(1), matrix @ vector]), rtol=0, atol=1e-14)
    close(matrix @ matrix.mT, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-14)
    close(rotation_from_quaternion(quaternion_conjugate(a)), matrix.mT, rtol=0, atol=0)
    assert torch.linalg.det(matrix).item() == pytest.approx(1.0, rel=1e-14)
    both = rotation_from_quaternion(quaternion_product(a, b))
    close(both, matrix @ rotation_from_quaternion(b), rtol=0, atol=1e-14)


@given(quaternions)
@example(torch.tensor([0.0, 0.6, -0.8, 0.0], dtype=torch.float64))
def test_both_signs_of_a_quaternion_are_one_rotation(q: Tensor) -> None:
    """Of half a turn the step may be either one of two."""
    assert torch.equal(rotation_from_quaternion(q), rotation_from_quaternion(-q))
    step, other = rotvec_from_quaternion(q), rotvec_from_quaternion(-q)
    assert torch.equal(step, -other if q[0] == 0 else other)
    assert step.norm() <= math.pi * (1 + 1e-15)
    again = rotation_from_quaternion(quaternion_from_rotvec(step))
    torch.testing.assert_close(again, rotation_from_quaternion(q), rtol=0, atol=1e-14)


@given(vectors(3, st.floats(-10.0, 10.0)) | steps)
def test_a_step_is_the_exponential_of_its_generator(step: Tensor) -> None:
    """Also one of more than a turn; those up to half a turn come back."""
    quaternion, angle = quaternion_from_rotvec(step), step.norm()
    assert quaternion.norm().item() == pytest.approx(1.0, rel=1e-15)
    expected = exponential(skew(step))
    torch.testing.assert_close(rotation_from_quaternion(quaternion), expected, rtol=0, atol=1e-12)
    if angle < math.pi - 1e-12:
        torch.testing.assert_close(rotvec_from_quaternion(quaternion), step, rtol=1e-14, atol=1e-15)


def test_a_turn_about_z_is_that_of_the_plane() -> None:
    torch.testing.assert_close(rotation_from_quaternion(quaternion_z(ANGLES)), rotation_z(ANGLES))


@given(quaternions, quaternions)
def test_steps_lead_from_one_rotation_to_another(a: Tensor, b: Tensor) -> None:
    there = turned_by(a, rotvec_between(a, b))
    matrices = [rotation_from_quaternion(q) for q in (there, b)]
    torch.testing.assert_close(*matrices, rtol=0, atol=1e-14)
    assert there.norm().item() == pytest.approx(1.0, rel=1e-15)


@given(quaternions, steps.filter(lambda step: step.norm() < 3.1))
@example(torch.eye(4, dtype=torch.float64)[0], torch.zeros(3, dtype=torch.float64))
def test_a_step_taken_is_found_again_and_so_is_its_derivative(origin: Tensor, step: Tensor) -> None:
    def found(step: Tensor) -> Tensor:
        return rotvec_between(origin, turned_by(origin, step))

    torch.testing.assert_close(found(step), step, rtol=0, atol=1e-14)
    slope = torch.autograd.functional.jacobian(found, step)
    torch.testing.assert_close(slope, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-11)


@given(quaternions, quaternions, steps)
def test_the_distance_of_quaternions_is_that_of_their_rotations(a: Tensor, b: Tensor, step: Tensor) -> None:
    expected = rotation_distance(rotation_from_quaternion(a), rotation_from_quaternion(b))
    for one, other in ((a, b), (b, a), (-a, b), (quaternion_conjugate(a), quaternion_conjugate(b))):
        torch.testing.assert_close(quaternion_distance(one, other).double(), expected, rtol=0, atol=1e-14)
    moved = quaternion_distance(a, turned_by(a, step))
    torch.testing.assert_close(moved, step.norm(), rtol=0, atol=1e-14)


def test_the_gradient_of_a_step_is_finite_where_there_is_none() -> None:
    step = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(quaternion_from_rotvec(step)[1], step)
    torch.testing.assert_close(slope, torch.tensor([0.5, 0.0, 0.0], dtype=torch.float64))


def test_the_mean_of_rotations_does_not_know_signs() -> None:
    middle = random_quaternions(4)
    steps = 0.05 * torch.randn(400, 4, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    signs = torch.randint(2, (400, 4, 1), generator=torch.Generator().manual_seed(3)) * 2 - 1
    found = mean_quaternion(signs * turned_by(middle, steps))
    assert quaternion_distance(found, middle).max() < 5 * 0.05 * 3**0.5 / 20
    weighed = mean_quaternion(
        torch.stack([middle, random_quaternions(4, seed=5)]), torch.tensor([[1.0], [0.0]]).expand(2, 4)
    )
    assert quaternion_distance(weighed, middle).max() < 1e-7


@given(quaternions, quaternions, st.lists(steps, min_size=1, max_size=6), st.data())
def test_the_mean_of_rotations_turns_with_them(
    before: Tensor, after: Tensor, around: list[Tensor], data: st.DataObject
) -> None:
    """And depends on neither their order nor their signs, nor on a factor common to all weights."""
    draws = quaternion_from_rotvec(0.3 * torch.stack(around))  # within a radian of the unit
    weights = data.draw(vectors(len(draws), st.floats(0.1, 1.0)))
    order = torch.tensor(data.draw(st.permutations(range(len(draws)))))
    signs = data.draw(vectors(len(draws), st.sampled_from([-1, 1])))

    moved = quaternion_product(quaternion_product(after, draws), before)
    found = mean_quaternion((signs[:, None] * moved)[order], 7.0 * weights[order])
    expected = quaternion_product(quaternion_product(after, mean_quaternion(draws, weights)), before)
    assert quaternion_distance(found, expected) < 1e-13
    assert found.norm().item() == pytest.approx(1.0, rel=1e-14)
