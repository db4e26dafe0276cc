"""What every model must do: simulate, know its limit, and be refined with error bars that hold."""

import torch
from scipy import stats

from cryoanm_lib import ForwardModel, Model, Particles, Simulated, load_structure, normal_modes, refine
from cryoanm_lib.checks.calibration import credible_level
from cryoanm_lib.inference.fisher import fisher_information
from cryoanm_lib.inference.peak_finding import Starts
from cryoanm_lib.inference.refinement import RefinedPosterior

K = 32

#: How often an honest posterior would be called wrong, by the number of truths in its 80 % regions.
FALSE_ALARM = 1e-3


def adenylate_kinase(**options: object) -> ForwardModel:
    """It and its softest mode, seen by a microscope of one's own."""
    structure = load_structure("adk_open", stride=4)
    modes = normal_modes(structure.coordinates, cutoff=20.0)
    return ForwardModel(structure.coordinates.double(), modes.vectors, **options)


def limit_by_differences(model: Model, images: Simulated) -> torch.Tensor:
    """Deviations of the exact posterior where it is a Gaussian, all derivatives by central differences."""
    unknowns, h = model.unknowns, 1e-4
    at = unknowns.points(images.truth)

    def seen(points: torch.Tensor) -> torch.Tensor:
        latents = {**images.given, **unknowns.values(points)}
        return images.noise.whiten(model.forward_model.coefficients(latents, K), K)

    jacobian, curvature = [], []
    for step in h * torch.eye(len(unknowns.columns), dtype=torch.float64):
        ahead, behind = unknowns.moved(at, step), unknowns.moved(at, -step)
        jacobian.append((seen(ahead) - seen(behind)) / (2 * h))
        heights = [model.log_prior(unknowns.values(points)) for points in (ahead, at, behind)]
        curvature.append((2 * heights[1] - heights[0] - heights[2]) / h**2)
    j = torch.stack(jacobian, dim=1)
    fisher = j @ j.transpose(1, 2) + torch.diag_embed(torch.stack(curvature, dim=1).clamp(min=0.0))
    return torch.linalg.inv(fisher).diagonal(dim1=1, dim2=2).sqrt()


def goes_all_the_way(model: Model, images: Simulated, particles: Particles | None = None) -> RefinedPosterior:
    """Hold the limit against differences, and the refined posterior against the truth.

    Refinement begins within five limits of the truth; where the particles are others than the images they
    were made from, they are what is refined.
    """
    particles = images if particles is None else particles
    limit = limit_by_differences(model, images)
    fisher = fisher_information(model, images, images.truth, K)
    own = torch.linalg.inv(fisher).diagonal(dim1=1, dim2=2).sqrt()
    assert ((own / limit - 1).abs() < 0.01).all()

    generator = torch.Generator().manual_seed(0)
    away = 2 * limit * torch.randn(limit.shape, generator=generator, dtype=torch.float64)
    near = model.unknowns.moved(model.unknowns.points(images.truth), away)
    posterior = refine(model, particles, K, Starts.of_each(near[:, None]), generator=generator)
    draws = posterior.sample(199, generator)
    truth = {name: images.truth[name] for name in model.inferred}
    inside = int((credible_level(posterior, draws, truth) * 199 < 0.8 * 200 - 1e-9).sum())
    low, high = stats.binom.interval(1 - FALSE_ALARM, len(images), 0.8)
    assert low <= inside <= high
    assert posterior.explained.double().mean() > 0.99
    return posterior
