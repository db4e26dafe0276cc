"""Schedules, resuming to the bit, and what training does to a guide."""

import math
from dataclasses import asdict

import pyro
import pytest
import torch

from cryoanm_lib.checkpoint import (
    load_checkpoint,
    load_tensors,
    save_checkpoint,
    save_tensors,
    write_atomically,
)
from cryoanm_lib.errors import ArtifactError
from cryoanm_lib.training import Stage, Trainer, TrainingError

STAGES = [
    Stage(12, 6),
    Stage(16, 6, learning_rate=2e-3, final_learning_rate=2e-4),
    Stage(16, 4, objective="forward_kl"),
]


def make_trainer(tiny_program, stages=STAGES, window=3, seed=0, **options) -> Trainer:
    pyro.set_rng_seed(seed)
    program = tiny_program(**({"inferred": ("pose", "amplitude")} | options))
    test = program.simulate(10, 16)
    return Trainer(program, stages, lambda k: program.simulate(8, 16), test, window, show_progress=False)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.program.encoders.state_dict().items()}


@pytest.mark.parametrize("stop_after", [1, 2, 3, 4, 5])
def test_a_resumed_run_equals_an_unbroken_one_to_the_bit(tiny_program, tmp_path, stop_after) -> None:
    unbroken = make_trainer(tiny_program)
    unbroken.run()

    class Stop(Exception):
        pass

    windows = 0

    def save_then_stop(trainer: Trainer) -> None:
        nonlocal windows
        windows += 1
        if windows == stop_after:
            save_checkpoint(tmp_path / "c.safetensors", trainer, "abc")
            raise Stop

    with pytest.raises(Stop):
        make_trainer(tiny_program).run(save_then_stop)
    resumed = make_trainer(tiny_program, seed=99)
    resumed.test = unbroken.test
    load_checkpoint(tmp_path / "c.safetensors", resumed, "abc")
    resumed.run()
    for name, tensor in weights(unbroken).items():
        assert torch.equal(tensor, weights(resumed)[name]), name
    strip = lambda history: [{k: v for k, v in r.items() if k != "seconds"} for r in history]  # noqa: E731
    assert strip(resumed.progress.history) == strip(unbroken.progress.history)
    for ours, theirs in zip(resumed.progress.snapshots, unbroken.progress.snapshots, strict=True):
        assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


def test_one_seed_fixes_a_run(tiny_program) -> None:
    first, second, other = (make_trainer(tiny_program, seed=s) for s in (3, 3, 4))
    histories = []
    for trainer in (first, second, other):
        pyro.clear_param_store()
        pyro.set_rng_seed(trainer is other)
        histories.append([r["loss"] for r in trainer.run().history])
    assert histories[0] == histories[1] != histories[2]


def test_learning_rate_runs_geometrically() -> None:
    stage = Stage(16, 100, learning_rate=1e-2, final_learning_rate=1e-4)
    assert stage.learning_rate_at(0) == pytest.approx(1e-2)
    assert stage.learning_rate_at(50) == pytest.approx(1e-3)
    assert Stage(16, 100).learning_rate_at(99) == Stage(16, 100).learning_rate_at(0)


def test_learning_rate_reaches_every_optimiser(tiny_program) -> None:
    trainer = make_trainer(tiny_program, [Stage(16, 3, learning_rate=5e-3, final_learning_rate=5e-4)])
    trainer.run()
    expected = trainer.stages[0].learning_rate_at(2)
    rates = {group["lr"] for o in trainer.optimizer.optim_objs.values() for group in o.param_groups}
    assert rates == {expected}


def test_a_frozen_network_does_not_move(tiny_program) -> None:
    trainer = make_trainer(tiny_program, [Stage(16, 6, train=("amplitude",))])
    before = weights(trainer)
    trainer.run()
    moved = {
        name.split(".")[0]
        for name, tensor in weights(trainer).items()
        if not torch.equal(tensor, before[name])
    }
    assert moved == {"amplitude"}


def test_a_settled_stage_ends_early(tiny_program) -> None:
    """A learning rate of almost nothing cannot improve by half, so the stage ends after two windows."""
    trainer = make_trainer(tiny_program, [Stage(16, 60, learning_rate=1e-12, settle=0.5)])
    assert trainer.run().total_steps == 6


def test_noise_floor_is_what_the_truth_costs(tiny_program) -> None:
    """Minus the mean log-likelihood of 500 images at their own latents, to 5 standard errors."""
    from cryoanm_lib.fourier import crop_coefficients
    from cryoanm_lib.likelihood import log_likelihood
    from cryoanm_lib.program import to_forward

    trainer = make_trainer(tiny_program)
    program, resolution = trainer.program, 12
    particles = program.simulate(500, 16)
    predicted = program.forward_model.coefficients(to_forward(particles.latents), resolution)
    observed = crop_coefficients(particles.coefficients, resolution)
    cost = -log_likelihood(observed, predicted, program.noise, resolution, program.forward_model.box_size)
    assert abs(cost.mean() - trainer.noise_floor(resolution)) < 5 * cost.std() / math.sqrt(500)


@pytest.mark.parametrize("stratified", [True, False])
def test_training_lowers_the_loss(tiny_program, stratified) -> None:
    stages = [Stage(16, 60, learning_rate=3e-3)]
    trainer = make_trainer(tiny_program, stages, window=20, inferred=("amplitude",), stratified=stratified)
    history = trainer.run().history
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]


def test_a_loss_that_is_not_finite_stops_the_run(tiny_program) -> None:
    trainer = make_trainer(tiny_program)
    with torch.no_grad():
        trainer.program.encoders["pose"].head.bias.fill_(math.nan)
    pyro.enable_validation(False)
    try:
        with pytest.raises(TrainingError, match=r"loss is nan at step 0 \(stage 0, K = 12\)"):
            trainer.run()
    finally:
        pyro.enable_validation(True)


def test_a_checkpoint_of_another_configuration_is_refused(tiny_program, tmp_path) -> None:
    trainer = make_trainer(tiny_program)
    save_checkpoint(tmp_path / "c.safetensors", trainer, "abc")
    with pytest.raises(ArtifactError, match="belongs to configuration abc, not to xyz"):
        load_checkpoint(tmp_path / "c.safetensors", trainer, "xyz")


@pytest.mark.parametrize("damage", ["truncate", "garbage", "missing"])
def test_a_damaged_checkpoint_is_refused(tiny_program, tmp_path, damage) -> None:
    path, trainer = tmp_path / "c.safetensors", make_trainer(tiny_program)
    save_checkpoint(path, trainer, "abc")
    content = path.read_bytes()
    path.write_bytes(
        {"truncate": content[: len(content) // 2], "garbage": b"\0" * 100, "missing": b""}[damage]
    )
    if damage == "missing":
        path.unlink()
    with pytest.raises(ArtifactError, match="missing or damaged"):
        load_checkpoint(path, trainer, "abc")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.ones(3)}, note="old")

    def fail(beside) -> None:
        beside.write_bytes(b"half")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        write_atomically(path, fail)
    assert load_tensors(path)[1]["note"] == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_progress_is_plain_data(tiny_program) -> None:
    trainer = make_trainer(tiny_program, [Stage(12, 3)])
    progress = trainer.run()
    assert asdict(progress)["total_steps"] == 3 and len(progress.snapshots) == 1
