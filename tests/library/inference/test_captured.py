"""A step that a GPU need not wait for: shown on a device without numbers, and recorded on a real one."""

from collections.abc import Iterator
from contextlib import contextmanager

import pyro
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cryoanm_lib.imaging.noise import AnyWhiteNoise
from cryoanm_lib.inference.captured import overwrite
from cryoanm_lib.inference.training import Stage, Trainer
from cryoanm_lib.particles.source import FixedSet, FreshImages
from cryoanm_lib.program.elbo import ForwardKL, SampledELBO, StratifiedELBO


class NothingIsSent(TorchDispatchMode):
    """Refuses an operation that brings numbers of the CPU to a device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        answer = func(*args, **(kwargs or {}))
        devices = [
            {x.device.type for x in tree_leaves(part) if isinstance(x, torch.Tensor)}
            for part in ((args, kwargs), answer)
        ]
        if "copy" in str(func) and devices == [{"cpu"}, {"meta"}]:
            raise AssertionError(f"{func} sends numbers to the device")
        return answer


@contextmanager
def recording() -> Iterator[None]:
    """As a step is recorded: arguments are not checked."""
    with pyro.validation_enabled(False):
        yield


@pytest.mark.parametrize(
    ("loss", "encoder", "options"),
    [
        (ForwardKL(), "rings", {}),
        (StratifiedELBO(), "rings", {}),
        (StratifiedELBO(), "pixels", {}),
        (SampledELBO(), "pixels", {"stratified": False, "upright": False, "whole": True}),
        (ForwardKL(), "shared", {"others": "learned"}),
        (ForwardKL(), "shared", {"others": "learned", "noise": AnyWhiteNoise(0.1, 0.4, 32)}),
    ],
)
def test_a_step_neither_asks_the_device_nor_sends_it_anything(tiny_guide, loss, encoder, options) -> None:
    """On the device `meta` a tensor has no values: whatever needs one fails."""
    guide = tiny_guide(encoder, inferred=("pose", "amplitude", "defocus"), **options).to("meta")

    def step() -> None:
        images = guide.model.simulate(5, 16)
        loss.differentiable_loss(guide.model.model, guide.guide, images, 12).backward()

    with recording():
        step()  # constants are made once
        with NothingIsSent():
            step()


def test_images_are_overwritten_in_place(tiny_model) -> None:
    model = tiny_model(inferred=("pose",))
    kept, new = model.simulate(3, 16), model.simulate(3, 16)
    place = kept.coefficients.data_ptr()
    overwrite(kept, new)
    assert kept.coefficients.data_ptr() == place and kept.coefficients.equal(new.coefficients)
    for table in ("given", "truth"):
        assert all(getattr(kept, table)[k].equal(v) for k, v in getattr(new, table).items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_recorded_step_does_what_an_eager_one_does(tiny_guide) -> None:
    """The losses of both fall alike; random numbers differ."""
    losses = []
    for record in (True, False):
        pyro.set_rng_seed(1)
        guide = tiny_guide(inferred=("pose", "amplitude")).to("cuda")
        test = guide.model.simulate(50, 32)
        stage = Stage(resolution=16, steps=300, objective="forward_kl")
        trainer = Trainer(guide, [stage], FreshImages(guide.model, 50), test, show_progress=False)
        if not record:
            trainer._recorded = 0, trainer._step
        trainer.take_steps(300)
        assert (trainer._recorded[1] == trainer._step) is not record
        losses.append(sum(trainer.progress.losses[-100:]) / 100)
    assert losses[0] == pytest.approx(losses[1], abs=0.3)


def test_kept_images_with_a_noise_each_are_not_recorded(tiny_guide) -> None:
    """A recording reads the noise of the first batch for ever: the step stays as it is, and says so."""
    guide = tiny_guide(noise=AnyWhiteNoise(0.1, 0.4, 32))
    images = guide.model.simulate(8, 32)
    trainer = Trainer(guide, [Stage(resolution=16, steps=3)], FixedSet(images, 4, seed=1), images)
    with pytest.warns(UserWarning, match="noise of its own"):
        assert trainer._recording() == trainer._step
