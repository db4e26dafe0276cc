"""Training on a device is waited for when a record is due, and not at a step."""

import copy

import pyro
import pytest
import torch

from cryoanm_lib.imaging.noise import AnyWhiteNoise
from cryoanm_lib.imaging.radial_noise import RadialNoise
from cryoanm_lib.inference.training import Stage, Trainer
from cryoanm_lib.particles.source import FixedSet, FreshImages
from cryoanm_lib.program.prior import Prior
from tests.library.emulated import DEVICE, emulated

BOTH = ("pose", "amplitude", "defocus")
SHIFTED = Prior(shift_scale=1.0, contrast_scale=0.1)  # pyright: ignore[reportCallIssue]

GUIDES = [
    ("elbo", "rings", {}),
    ("elbo", "pixels", {"stratified": False, "upright": False, "whole": True}),
    ("forward_kl", "rings", {}),
    ("forward_kl", "shared", {"others": "learned", "noise": AnyWhiteNoise(0.1, 0.4, 32)}),
    ("elbo", "shared", {"others": "computed", "prior": SHIFTED, "inferred": (*BOTH, "shift", "contrast")}),
    ("elbo", "rings", {"noise": RadialNoise(torch.full((17,), 0.01), 32, level=0.1)}),
]


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize(("objective", "encoder", "options"), GUIDES)
def test_a_step_asks_the_device_nothing_and_sends_it_nothing(
    tiny_guide, kept, objective, encoder, options
) -> None:
    """The first step of a stage checks arguments, and constants reach the device; no later one does."""
    guide = tiny_guide(encoder, **{"inferred": BOTH} | options)
    images = guide.model.simulate(20, 32)
    stage = Stage(resolution=16, steps=9, objective=objective, clip_norm=1.0)  # pyright: ignore[reportCallIssue]
    with emulated() as device:
        there, test = guide.to(DEVICE), images.to(DEVICE)
        source = FixedSet(test, 5, seed=1) if kept else FreshImages(there.model, 5)
        trainer = Trainer(there, [stage], source, test, show_progress=False)
        trainer.take_steps(1)
        device.waits.clear()
        before = [weight.clone() for weight in trainer._parameters()]
        trainer.take_steps(3)  # of the first epoch of those that are kept
        floor = {"item": 1} if isinstance(options.get("noise"), RadialNoise) else {}
        assert device.waits == {"copy": 1} | floor  # for a record: all losses at once, and what noise costs
        assert not all(a.equal(b) for a, b in zip(trainer._parameters(), before, strict=True))
    assert len(trainer.progress.losses) == 4


def test_losses_on_the_device_are_those_of_the_cpu(tiny_guide) -> None:
    """Of kept images by forward KL, which draws nothing: rounding of float32 alone is between them."""
    pyro.set_rng_seed(0)
    guide = tiny_guide("rings", inferred=BOTH)
    images = guide.model.simulate(20, 32)
    stage = Stage(resolution=16, steps=9, objective="forward_kl")  # pyright: ignore[reportCallIssue]
    with emulated():
        there, test = copy.deepcopy(guide).to(DEVICE), images.to(DEVICE)
        trainer = Trainer(there, [stage], FixedSet(test, 5, seed=1), test, show_progress=False)
        trainer.take_steps(6)
        found = trainer.progress.losses
    trainer = Trainer(guide, [stage], FixedSet(images, 5, seed=1), images, show_progress=False)
    trainer.take_steps(6)
    assert found == pytest.approx(trainer.progress.losses, rel=1e-3)
