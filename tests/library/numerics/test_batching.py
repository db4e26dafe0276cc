"""Too little memory: work goes on in smaller parts with the same answer, and training says what to lower."""

import pyro
import pytest
import torch

from cryoanm_lib.errors import TrainingError
from cryoanm_lib.inference.training import Stage, Trainer
from cryoanm_lib.numerics.batching import in_parts, is_out_of_memory
from cryoanm_lib.particles.source import FreshImages
from cryoanm_lib.program.log_joint import log_joint

ERRORS = [
    MemoryError("no"),
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_parts_are_halved_until_they_fit(error) -> None:
    """In order, each thing once, and with the random numbers that whole parts would have had."""
    tried = []

    def work(part: slice) -> torch.Tensor:
        tried.append(part.stop - part.start)
        drawn = torch.rand(part.stop - part.start)
        if part.stop - part.start > 3:
            raise error
        return drawn

    torch.manual_seed(3)
    with pytest.warns(UserWarning, match="too little memory: going on with 3 at a time"):
        found = torch.cat(in_parts(work, count=10, at_a_time=6))
    assert tried == [6, 3, 3, 3, 1]
    torch.manual_seed(3)
    torch.testing.assert_close(found, torch.cat([torch.rand(n) for n in (3, 3, 3, 1)]))


def test_what_fits_in_no_part_is_an_error_and_so_is_any_other() -> None:
    def fail(part: slice) -> None:
        raise MemoryError("no")

    with pytest.warns(UserWarning), pytest.raises(MemoryError):
        in_parts(fail, count=4, at_a_time=2)
    assert not is_out_of_memory(RuntimeError("shapes do not agree"))


def test_an_image_s_posterior_does_not_depend_on_the_parts(tiny_model, monkeypatch) -> None:
    model = tiny_model(inferred=("pose", "amplitude"))
    pyro.set_rng_seed(0)
    images = model.simulate(5, 16)
    whole = log_joint(model, images, images.truth, 16)
    monkeypatch.setattr("cryoanm_lib.program.log_joint._CHUNK", 2)
    torch.testing.assert_close(log_joint(model, images, images.truth, 16), whole)


def test_training_says_what_to_lower_and_by_how_much(tiny_guide) -> None:
    guide = tiny_guide()
    pyro.set_rng_seed(0)
    stages, test = [Stage(resolution=12, steps=2)], guide.model.simulate(4, 16)
    trainer = Trainer(guide, stages, FreshImages(guide.model, 8), test, 2, show_progress=False)

    def no_room(*given) -> None:
        raise ERRORS[2]

    guide.encoders["pose"].register_forward_hook(no_room)
    with pytest.raises(TrainingError, match=r"8 images of a step at K = 12 .*batch_size to 4"):
        trainer.run()
