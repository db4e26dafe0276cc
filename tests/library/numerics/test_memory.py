"""Too little memory: work goes on in smaller parts with the same answer, and training says what to lower."""

import pyro
import pytest
import torch

from cryoanm_lib.errors import TrainingError
from cryoanm_lib.inference.training import Stage, Trainer
from cryoanm_lib.numerics.memory import in_parts, is_out_of_memory

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


def test_an_image_s_posterior_does_not_depend_on_the_parts(tiny_program, monkeypatch) -> None:
    program = tiny_program(inferred=("pose", "amplitude"))
    pyro.set_rng_seed(0)
    particles = program.simulate(5, 16)
    whole = program.log_joint(particles, particles.latents, 16)
    monkeypatch.setattr("cryoanm_lib.program.program._CHUNK", 2)
    torch.testing.assert_close(program.log_joint(particles, particles.latents, 16), whole)


def test_training_says_what_to_lower_and_by_how_much(tiny_program) -> None:
    program = tiny_program()
    pyro.set_rng_seed(0)
    stages, test = [Stage(resolution=12, steps=2)], program.simulate(4, 16)
    trainer = Trainer(program, stages, lambda k, step: program.simulate(8, k), test, 2, show_progress=False)

    def no_room(*given) -> None:
        raise ERRORS[2]

    program.encoders["pose"].register_forward_hook(no_room)
    with pytest.raises(TrainingError, match=r"a step of 8 images at K = 12 .*batch_size to 4"):
        trainer.run()
