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

from cryoanm_lib.imaging.latents import Values
from cryoanm_lib.imaging.unknowns import Unknowns
from cryoanm_lib.particles.particles import Particles
from cryoanm_lib.program.program import Model


def nuts_draws(
    model: Model,
    particles: Particles,
    resolution: int,
    start: Values,
    count: int = 500,
    warmup: int = 200,
    seed: int = 0,
) -> dict[str, Float[Tensor, "draws 1 ..."]]:
    """Draws from the posterior of one image by the No-U-Turn Sampler, on the density of Pyro's model.

    A single chain does not cross between peaks: it judges the peak that it starts on.

    Parameters
    ----------
    model, particles, resolution : Model, Particles, int
        The model, taken to float64, one image, and K.
    start : mapping of str to Tensor
        Latents of this image to start from.
    count, warmup, seed : int
        Draws kept, steps before them that set step size and metric, and the seed of the chain.
    """
    unknowns, model = model.unknowns, copy.deepcopy(model).double()
    given = {name: value.double() for name, value in particles.given.items()}
    particles = Particles(particles.coefficients.to(torch.complex128), given, particles.noise)

    def potential(position: Mapping[str, Tensor]) -> Tensor:
        step = position["columns"] * scale
        latents = unknowns.values(unknowns.moved(origin, step))
        with poutine.condition(data=latents):
            trace = poutine.trace(model.model).get_trace(particles, resolution)
        return -trace.log_prob_sum() - unknowns.log_volume(step).sum()

    origin = unknowns.points(start).double()
    # Radians beside ångström: a unit of the chain is a thousandth of a radian, and the metric does the rest.
    scale = unknowns.of_manifold("unit").double()
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
    return unknowns.values(unknowns.moved(origin, chain.get_samples()["columns"] * scale))


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


def pairwise_c2st(samples: Mapping[str, Values], unknowns: Unknowns) -> dict[tuple[str, str], list[float]]:
    """How often a classifier tells the draws of two methods apart, for every pair of methods and each image.

    Parameters
    ----------
    samples, unknowns : mapping of str to mapping, Unknowns
        Latents (draws, images, …) by the method's name, and what they are draws of.
    """
    values = {name: unknowns.points(latents).double() for name, latents in samples.items()}
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
