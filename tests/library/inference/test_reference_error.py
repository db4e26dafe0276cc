"""A reference that is wrong outside its modes comes back, by as much as is claimed; a right one stays."""

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from scipy import stats

from cryoanm_lib import (
    ContrastTransfer,
    ForwardModel,
    Model,
    OpticsPrior,
    given_ctf,
    load_structure,
    moved_reference,
    normal_modes,
    reference_error,
    reference_statistics,
    refine,
)
from cryoanm_lib.checks.calibration import uniformity
from cryoanm_lib.checks.predictive import predictive_p_value
from cryoanm_lib.errors import CryoANMError
from cryoanm_lib.imaging.latents import AMPLITUDE
from cryoanm_lib.inference.moved_reference import MovedReference, unit_scales
from cryoanm_lib.inference.peak_finding import Starts
from cryoanm_lib.inference.reference_error import ReferenceEstimate, ReferenceStatistics
from cryoanm_lib.inference.refinement import RefinedPosterior
from cryoanm_lib.particles.particles import Particles, Simulated
from cryoanm_lib.program.gauss_newton import all_latents, tangent
from cryoanm_lib.program.prior import GIVEN_POSE

torch.set_num_threads(1)
BOX, PIXEL, WIDTH, MODES = 64, 1.5, 1.5, 3
#: Deviation of the noise at which images have a signal-to-noise ratio of 0.3.
NOISE = 0.175
MIRROR = torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)


class Protein:
    """Beads, modes that images bend along, and further ones along which the reference may be wrong."""

    def __init__(self, directions: int) -> None:
        self.places = load_structure("adk_open").coordinates
        found = normal_modes(self.places, n_modes=MODES + directions)
        self.modes, self.directions = found.vectors[:MODES], found.vectors[MODES:]
        self.scales = unit_scales(found.eigenvalues[MODES:] ** -0.5, self.directions)
        stiffness = (found.eigenvalues[0] / found.eigenvalues[:MODES]).sqrt()
        self.bends = tuple((math.sqrt(len(self.places)) * stiffness).tolist())

    def model(self, away: torch.Tensor | float = 0.0, noise: float = NOISE, mirrored: bool = False) -> Model:
        turn = MIRROR if mirrored else torch.ones(3, dtype=torch.float64)
        places, modes = (turn * (self.places + away)).float(), (turn * self.modes).float()
        forward = ForwardModel(places, modes, BOX, PIXEL, WIDTH, transfer=ContrastTransfer(PIXEL))
        prior = OpticsPrior(
            pose="space",
            pose_width=3.0,
            shift_scale=1.0,
            amplitude_scale=self.bends,
            defocus_scale=200.0,
            contrast_scale=0.1,
        )
        return Model(forward, prior, noise)

    def wrong(self, seed: int) -> torch.Tensor:
        """Amplitudes, as the elastic energy has them, of a displacement of 1 Å RMSD."""
        generator = torch.Generator().manual_seed(seed)
        c = self.scales * torch.randn(len(self.scales), generator=generator, dtype=torch.float64)
        return c * math.sqrt(len(self.places)) / c.norm()

    def displaced(self, amplitudes: torch.Tensor) -> torch.Tensor:
        return torch.tensordot(amplitudes, self.directions, dims=1)

    def rmsd(self, amplitudes: torch.Tensor) -> float:
        return (amplitudes.norm() / math.sqrt(len(self.places))).item()


def images_of(model: Model, count: int, resolution: int, seed: int) -> Simulated:
    """Seen from everywhere, poses known to three degrees."""
    torch.manual_seed(seed)
    defocus = torch.empty(count).uniform_(4000, 7000)
    pose = torch.nn.functional.normalize(torch.randn(count, 4), dim=1)
    given = {"ctf": given_ctf(defocus, defocus, torch.zeros(count)), GIVEN_POSE: pose}
    return model.simulate(count, resolution, given)


def answered(
    model: Model, images: Particles, resolution: int, starts: Starts | None = None
) -> RefinedPosterior:
    if starts is None:
        pose = images.given[GIVEN_POSE].double()
        rest = model.prior.means(len(pose), MODES, pose) | {"pose": pose}
        starts = Starts.of_each(model.unknowns.points(rest)[:, None])
    generator = torch.Generator().manual_seed(1)
    return refine(model, images, resolution, starts, generator=generator, good_share=0.5)


def settled(
    protein: Protein, images: Particles, resolution: int, start: torch.Tensor | float = 0.0, noise=NOISE
) -> tuple[MovedReference, list[RefinedPosterior]]:
    """The reference that begins displaced, and the last posteriors; in parts, each gone on with."""
    parts = torch.arange(len(images)).split(100)
    last: list[RefinedPosterior | None] = [None] * len(parts)

    def posteriors(away: torch.Tensor, k: int) -> Iterator[RefinedPosterior]:
        model = protein.model(start + away, noise)
        for number, rows in enumerate(parts):
            before = last[number]
            points = None if before is None else model.unknowns.points(before.mean())[:, None]
            starts = None if points is None else Starts.of_each(points)
            last[number] = answered(model, images[rows], k, starts)
            yield last[number]

    found = moved_reference(posteriors, protein.directions, protein.scales, resolution)
    return found, [one for one in last if one is not None]


def chance(away: torch.Tensor, covariance: torch.Tensor) -> float:
    """How often amplitudes would be as far off, by their covariance."""
    return stats.chi2.sf((away @ torch.linalg.solve(covariance, away)).item(), len(away))


def p_values(posteriors: list[RefinedPosterior]) -> torch.Tensor:
    """Of images, at a draw from the posterior of each."""
    each = []
    for number, one in enumerate(posteriors):
        generator = torch.Generator().manual_seed(number)
        draw = {name: value[0] for name, value in one.sample(1, generator).items()}
        each.append(predictive_p_value(one.model, one.particles, draw, one.resolution))
    return torch.cat(each)


def test_statistics_add_up_over_batches() -> None:
    protein = Protein(6)
    model = protein.model()
    posterior = answered(model, images_of(model, 12, 16, seed=1), 16)
    whole = reference_statistics(posterior, protein.directions, torch.Generator().manual_seed(3))
    generator, summed = torch.Generator().manual_seed(3), ReferenceStatistics.nothing(6)
    for some in torch.arange(12).split(5):
        summed = summed + reference_statistics(posterior[some], protein.directions, generator)
    assert summed.images == whole.images == 12
    for name in ("slope", "information", "squares"):
        # images are in single precision, and what is far from 0 is the information
        tolerance = 1e-5 * whole.information.diagonal().max().item()
        torch.testing.assert_close(getattr(summed, name), getattr(whole, name), rtol=1e-4, atol=tolerance)


def test_information_is_that_of_dense_normal_equations() -> None:
    """Of a model that bends along the directions too, by the inverse of the whole Fisher information."""
    protein = Protein(6)
    model = protein.model()
    images = images_of(model, 3, 16, seed=2)
    posterior = answered(model, images, 16)
    seen = reference_statistics(posterior, protein.directions)
    forward = model.forward_model
    every = torch.cat([protein.modes, protein.directions]).float()
    wider = ForwardModel(forward.reference, every, BOX, PIXEL, WIDTH, transfer=ContrastTransfer(PIXEL))
    mean = posterior.mean()
    latents = all_latents(model, images, mean)
    latents["amplitude"] = torch.cat([latents["amplitude"], torch.zeros(3, 6)], dim=1)
    slopes = images.noise[:, None].whiten(wider.slopes(latents, 16, (AMPLITUDE,))[1], 16)[:, MODES:]
    about = tangent(model, images, mean, 16)
    whole = torch.cat([about.jacobian, slopes], dim=1).double()
    columns, expected = about.jacobian.shape[1], torch.zeros(6, 6, dtype=torch.float64)
    for jacobian, prior in zip(whole, about.prior_precision, strict=True):
        fisher = jacobian @ jacobian.T + torch.diag(torch.cat([prior, torch.zeros(6)]))
        # what is left of one block is the inverse of that block of the inverse
        expected += torch.linalg.inv(torch.linalg.inv(fisher)[columns:, columns:])
    torch.testing.assert_close(seen.information, expected, rtol=2e-3, atol=1e-3 * expected.max().item())


def test_the_slope_is_that_of_the_evidence() -> None:
    """log p(image) by importance weights with the reference moved to either side, which asks for no slopes.

    In deviations of what images say the two are apart by 0.03, root mean square over 18 directions of three
    sets of images, because posteriors are not quite Gaussian; 0.15 is five times that.
    """
    protein = Protein(6)
    images = images_of(protein.model(), 40, 16, seed=3)
    posterior = answered(protein.model(), images, 16)
    seen = reference_statistics(posterior, protein.directions, torch.Generator().manual_seed(1))
    starts = Starts.of_each(posterior.mixture.centre[:, :1])
    deviation = seen.information.diagonal().rsqrt()
    for number, size in enumerate(deviation.tolist()):
        sides = []
        for sign in (-1, 1):
            away = sign * size * protein.directions[number]
            sides.append(answered(protein.model(away), images, 16, starts).log_evidence.double().sum())
        slope = (sides[1] - sides[0]).item() / 2
        assert slope == pytest.approx(seen.slope[number].item() * size, abs=0.15)


def drawn(
    spread: float, generator: torch.Generator, count: int = 30
) -> tuple[ReferenceEstimate, torch.Tensor]:
    """What is found of statistics of known Gaussians, and the truth."""
    scales = torch.linspace(3.0, 0.3, count, dtype=torch.float64)
    root = torch.randn(count, 2 * count, generator=generator, dtype=torch.float64)
    information = root @ root.T
    truth = spread * scales * torch.randn(count, generator=generator, dtype=torch.float64)
    noise = torch.linalg.cholesky(information) @ torch.randn(count, generator=generator, dtype=torch.float64)
    at = 0.1 * torch.randn(count, generator=generator, dtype=torch.float64)
    seen = ReferenceStatistics(information @ (truth - at) + noise, information, information, 100)
    return reference_error(seen, at, scales), truth


@pytest.mark.parametrize("spread", [0.0, 0.03, 1.0])
def test_errors_are_as_large_as_claimed(spread: float) -> None:
    """Of 100 times 30 amplitudes the mean square is 1 ± 0.026; false alarm 1e-4. With no displacement at all
    the prior is wider than the truth, and errors are smaller than claimed."""
    generator = torch.Generator().manual_seed(7)
    squares, moved = [], []
    for _ in range(100):
        found, truth = drawn(spread, generator)
        away = found.amplitudes - truth
        squares.append(away @ torch.linalg.solve(found.covariance, away) / len(away))
        moved.append(found.p_value < 1e-3)
    square = torch.stack(squares).mean().item()
    if spread:
        assert square == pytest.approx(1.0, abs=0.1)
    else:
        assert square < 1
        assert sum(moved) <= 3


def test_a_spread_is_found_and_none_is_said_to_be_none() -> None:
    """With no displacement the evidence is highest at 0 in about half of all cases; false alarm 1e-4."""
    generator = torch.Generator().manual_seed(8)
    nothing = [drawn(0.0, generator)[0] for _ in range(60)]
    assert sum(one.spread == 0 for one in nothing) > 15
    assert max(one.gain for one in nothing) < 9
    found = [drawn(1.0, generator)[0].spread for _ in range(60)]
    assert torch.tensor(found).mean().item() == pytest.approx(1.0, abs=0.1)


def test_nothing_is_said_of_no_images() -> None:
    with pytest.raises(CryoANMError, match="0 images say nothing of the reference"):
        reference_error(ReferenceStatistics.nothing(3), torch.zeros(3).double(), torch.ones(3).double())


def test_a_wrong_reference_comes_back() -> None:
    """From 1 Å, by few images; left is what is claimed, false alarm 1e-4."""
    protein = Protein(10)
    c = protein.wrong(seed=1)
    images = images_of(protein.model(), 60, 24, seed=4)
    found, _ = settled(protein, images, 24, -protein.displaced(c))
    left = found.error.amplitudes - c
    assert found.settled
    assert protein.rmsd(left) <= 0.1
    assert chance(left, found.error.covariance) > 1e-4
    assert found.half_p_value > 1e-4


@pytest.mark.thorough
def test_halves_agree_and_images_are_explained_afterwards() -> None:
    """Each half from the wrong reference by itself; three tests at 1e-4. Before, no image is explained."""
    protein = Protein(40)
    c, noise = protein.wrong(seed=2), 0.06
    images, start = images_of(protein.model(noise=noise), 300, 32, seed=5), -protein.displaced(c)
    before = answered(protein.model(start, noise), images, 32)
    assert uniformity(p_values([before])) < 1e-12
    halves = [settled(protein, images[part::2], 32, start, noise) for part in (0, 1)]
    errors = [found.error for found, _ in halves]
    apart, both = errors[0].amplitudes - errors[1].amplitudes, errors[0].covariance + errors[1].covariance
    assert chance(apart, both) > 1e-4
    assert uniformity(p_values([one for _, last in halves for one in last])) > 1e-4
    for error in errors:
        left = error.amplitudes - c
        assert protein.rmsd(left) <= 0.3
        assert chance(left, error.covariance) > 1e-4


@pytest.mark.thorough
def test_a_right_reference_stays() -> None:
    """It moves within its error of 0; false alarm 1e-4."""
    protein = Protein(20)
    found, last = settled(protein, images_of(protein.model(), 200, 24, seed=6), 24)
    assert found.error.gain < 9
    assert found.error.p_value > 1e-4
    assert chance(found.error.amplitudes, found.error.covariance) > 1e-4
    assert uniformity(p_values(last)) > 1e-4
    assert torch.cat([one.explained for one in last]).double().mean() > 0.99


@pytest.mark.slow
@pytest.mark.parametrize("seen", ["noise", "mirrored"])
def test_the_alarm_rings_where_a_reference_is_invented(seen: str) -> None:
    """Images of nothing, or of the other hand, may move a reference far; but then they are not explained.

    A model that takes a molecule for present makes noise likelier by tearing it apart, by several Å here.
    """
    protein = Protein(20)
    images = images_of(protein.model(mirrored=seen == "mirrored"), 100, 24, seed=7)
    if seen == "noise":
        empty = torch.zeros_like(images.coefficients)
        images = replace(images, coefficients=images.noise.sample(empty))
    found, last = settled(protein, images, 24)
    explained = torch.cat([one.explained for one in last]).double().mean().item()
    assert explained < 0.99
    if seen == "mirrored":
        assert found.half_p_value < 1e-4
        assert found.excess > 1.25
