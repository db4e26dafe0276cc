"""Referees that know of no lattice and no peak: Pyro's NUTS, and a classifier that tells samples apart."""

import copy
from collections.abc import Mapping
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Float
from pyro import poutine
from pyro.infer import MCMC, NUTS
from sklearn.model_selection import cross_val_score
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from cryoanm_lib.particles.particles import Particles
from cryoanm_lib.program.program import CryoProgram
from cryoanm_lib.program.unknowns import Unknowns


def nuts_draws(
    program: CryoProgram,
    particles: Particles,
    resolution: int,
    start: Mapping[str, Tensor],
    count: int = 500,
    warmup: int = 200,
    seed: int = 0,
) -> dict[str, Float[Tensor, "draws 1 ..."]]:
    """Draws from the posterior of one image by the No-U-Turn Sampler, on the density of Pyro's model.

    A single chain does not cross between peaks: it judges the peak that it starts on.

    Parameters
    ----------
    program : CryoProgram
        Its model, taken to float64; the guide plays no part.
    particles : Particles
        One image.
    resolution : int
        K.
    start : mapping of str to Tensor
        Latents of this image to start from.
    count, warmup : int
        Draws kept, and steps before them that set step size and metric.
    seed : int
        Of the chain.
    """
    unknowns, program = Unknowns.of(program), copy.deepcopy(program).double()
    given = {name: value.double() for name, value in particles.latents.items()}
    particles = Particles(particles.coefficients.to(torch.complex128), given)

    def potential(position: Mapping[str, Tensor]) -> Tensor:
        step = position["columns"] * scale
        latents = unknowns.latents(unknowns.moved(origin, step))
        with poutine.condition(data=latents):
            trace = poutine.trace(program.model).get_trace(particles, resolution)
        return -trace.log_prob_sum() - unknowns.log_volume(step).sum()

    origin = unknowns.values({name: start[name] for name in unknowns.names}).double()
    # Radians beside ångström: a unit of the chain is a thousandth of a radian, and the metric does the rest.
    scale = torch.tensor([1e-3 if name == "pose" else 1.0 for name in unknowns.columns], dtype=torch.float64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        kernel = NUTS(potential_fn=potential, full_mass=True)
        chain = MCMC(
            kernel,
            num_samples=count,
            warmup_steps=warmup,
            initial_params={"columns": origin.new_zeros(*origin.shape[:-1], len(scale))},
            disable_progbar=True,
        )
        chain.run()
    return unknowns.latents(unknowns.moved(origin, chain.get_samples()["columns"] * scale))


def c2st_accuracy(
    first: Float[Tensor, "draws columns"], second: Float[Tensor, "draws columns"], seed: int = 0
) -> float:
    """How often a classifier tells from which of two samples a point is (C2ST): 0.5 if they are alike.

    A small perceptron, trained and tested on different fifths of the points.

    Parameters
    ----------
    first, second : Float[Tensor, "draws columns"]
        As many points of each.
    seed : int
        Of the folds and the perceptron.
    """
    points = torch.cat([first, second]).double().numpy()
    labels = np.repeat([0, 1], [len(first), len(second)])
    order = np.random.default_rng(seed).permutation(len(points))
    perceptron = MLPClassifier((20, 20), max_iter=500, early_stopping=True, random_state=seed)
    classifier = make_pipeline(StandardScaler(), perceptron)
    return float(cross_val_score(classifier, points[order], labels[order], cv=5).mean())


def pairwise_c2st(
    samples: Mapping[str, Mapping[str, Tensor]], program: CryoProgram
) -> dict[tuple[str, str], list[float]]:
    """How often a classifier tells the draws of two methods apart, for every pair of methods and each image.

    Parameters
    ----------
    samples : mapping of str to mapping
        Latents (draws, images, …) by the method's name.
    program : CryoProgram
        Whose latents they are.
    """
    unknowns = Unknowns.of(program)
    values = {name: unknowns.values(latents).double() for name, latents in samples.items()}
    # An angle is measured from one draw's, so that no sample is cut where the circle is.
    origin = next(iter(values.values()))[0]
    away = {name: unknowns.offset(value, origin) for name, value in values.items()}
    return {
        (a, b): [
            c2st_accuracy(first, second)
            for first, second in zip(away[a].unbind(1), away[b].unbind(1), strict=True)
        ]
        for a, b in combinations(samples, 2)
    }
