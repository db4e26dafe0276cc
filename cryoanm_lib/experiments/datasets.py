"""Images that a run learns from and is tested on."""

import torch

from cryoanm_lib.experiments.run import Run
from cryoanm_lib.particles.particles import Simulated
from cryoanm_lib.particles.source import FixedSet, FreshImages, Source
from cryoanm_lib.program.program import Model

# Images that experiments must share are drawn from seeds of their own, whatever else a run draws.
TEST_SEED, TRAINING_SEED = 1_000_000_007, 2_000_000_011


def draw_test_images(run: Run, noise: float | None = None) -> Simulated:
    """The images that the residuals of an experiment are for; the same each time.

    Where a noise is given, it is that of every image, in place of the experiment's.
    """
    return _drawn_apart(run.model(noise), run.profile.test_images, run.seed + TEST_SEED)


def training_images(run: Run, model: Model, device: torch.device) -> Source:
    """What an experiment learns from: new images, or a fixed set."""
    section = run.section
    if section.training_images is None:
        return FreshImages(model, section.batch_size)
    fixed = _drawn_apart(model, section.training_images, run.seed + TRAINING_SEED).to(device)
    return FixedSet(fixed, section.batch_size, run.seed)


def _drawn_apart(model: Model, n_images: int, seed: int) -> Simulated:
    """Images of the whole box from a seed of their own, which leave the random state of the run as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model.simulate(n_images, model.forward_model.box_size)
