"""Schedules, resuming to the bit, and what training does to a guide."""

import math
from dataclasses import asdict

import pyro
import pytest
import torch
from pydantic import ValidationError

from cryoanm_lib.errors import ArtifactError, TrainingError
from cryoanm_lib.experiments import checkpoint
from cryoanm_lib.experiments.checkpoint import resume, save_checkpoint
from cryoanm_lib.imaging.likelihood import log_likelihood
from cryoanm_lib.inference import amortised
from cryoanm_lib.inference.training import EXPLAINED, Stage, Trainer
from cryoanm_lib.io.storage import load_tensors, save_tensors, write_atomically
from cryoanm_lib.numerics.fourier import crop_coefficients, degrees_of_freedom
from cryoanm_lib.particles.source import FreshImages

STAGES = [
    Stage(resolution=12, steps=6),
    Stage(resolution=16, steps=6, learning_rate=2e-3, final_learning_rate=2e-4, train=("amplitude",)),
    Stage(resolution=16, steps=4, objective="forward_kl"),
    Stage(resolution=16, steps=3, train=("pose",)),
]


def make_trainer(tiny_guide, stages=STAGES, window=3, seed=0, **options) -> Trainer:
    pyro.set_rng_seed(seed)
    guide = tiny_guide(**({"inferred": ("pose", "amplitude")} | options))
    test = guide.model.simulate(10, 16)
    return Trainer(guide, stages, FreshImages(guide.model, 8), test, window, show_progress=False)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.guide.encoders.state_dict().items()}


@pytest.mark.parametrize("encoder", ["rings", "pixels", "shared"])
@pytest.mark.parametrize("objective", ["elbo", "forward_kl"])
def test_every_weight_of_every_network_learns(tiny_guide, encoder, objective) -> None:
    stages = [Stage(resolution=16, steps=3, objective=objective)]
    options = {"encoder": encoder, "inferred": ("pose", "amplitude", "defocus"), "others": "learned"}
    trainer = make_trainer(tiny_guide, stages, **options)
    before = {name: value.clone() for name, value in trainer.guide.encoders.named_parameters()}
    trainer.run()
    still = [n for n, v in trainer.guide.encoders.named_parameters() if torch.equal(v, before[n])]
    assert not still


class Stop(Exception):
    """Raised where a run is to be interrupted."""


def run_with_stops(tiny_guide, path, stops: list[int]) -> Trainer:
    """Run the schedule, each time from a new process's state, saved and stopped after the given windows."""
    windows = 0

    def save_then_stop(trainer: Trainer) -> None:
        nonlocal windows
        windows += 1
        if windows in stops:
            save_checkpoint(path, trainer, "abc")
            raise Stop

    trainer = first = make_trainer(tiny_guide)
    while True:
        try:
            trainer.run(save_then_stop)
        except Stop:
            # Another seed: whatever is not restored shows.
            trainer = make_trainer(tiny_guide, seed=99)
            trainer.test, trainer.truth = first.test, first.truth
            assert resume(path, trainer, "abc")
        else:
            return trainer


@pytest.mark.parametrize("stops", [[1], [2], [3], [5], [7], [2, 3], [3, 4], [1, 2, 3, 4, 5, 6]], ids=str)
def test_a_resumed_run_equals_an_unbroken_one_to_the_bit(tiny_guide, tmp_path, stops) -> None:
    unbroken = make_trainer(tiny_guide)
    unbroken.run()
    resumed = run_with_stops(tiny_guide, tmp_path / "c.safetensors", stops)
    for name, tensor in weights(unbroken).items():
        assert torch.equal(tensor, weights(resumed)[name]), name
    assert untimed(resumed.progress.history) == untimed(unbroken.progress.history)
    for ours, theirs in zip(resumed.progress.snapshots, unbroken.progress.snapshots, strict=True):
        assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


def untimed(history: list[dict]) -> list[dict]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in history]


def test_one_seed_fixes_a_run(tiny_guide) -> None:
    losses = [[r["loss"] for r in make_trainer(tiny_guide, seed=s).run().history] for s in (3, 3, 4)]
    assert losses[0] == losses[1] != losses[2]


def test_trainers_do_not_disturb_one_another(tiny_guide) -> None:
    """Pyro's store is global: a trainer made before another has run must train all the same."""
    alone = make_trainer(tiny_guide, [Stage(resolution=16, steps=3)])
    expected = [r["loss"] for r in alone.run().history]
    early = make_trainer(tiny_guide, [Stage(resolution=16, steps=3)])
    state = torch.get_rng_state()
    make_trainer(tiny_guide, [Stage(resolution=16, steps=3)], seed=5).run()
    torch.set_rng_state(state)
    before = weights(early)
    assert [r["loss"] for r in early.run().history] == expected
    assert not all(torch.equal(before[name], tensor) for name, tensor in weights(early).items())


@pytest.mark.parametrize(("objective", "stratified"), [("elbo", True), ("elbo", False), ("forward_kl", True)])
@pytest.mark.parametrize("at_a_time", [1, 3, 8])
def test_a_step_in_parts_is_the_step(tiny_guide, monkeypatch, objective, stratified, at_a_time) -> None:
    """Of 8 images: the loss and every gradient, by Pyro's own ELBO and by ours."""
    stages = [Stage(resolution=16, steps=1, objective=objective)]
    options = {"encoder": "pixels", "inferred": ("pose",), "stratified": stratified}
    trainer = make_trainer(tiny_guide, stages, **options)
    images = trainer.guide.model.simulate(8, 16)
    # the same numbers are drawn for each image, whatever the part that it is in
    monkeypatch.setattr(torch, "randn_like", lambda like: torch.full_like(like, 0.3))
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda values: values.fill_(1.0))
    found = []
    for pixels in (8 * 16**2, at_a_time * 16**2):
        monkeypatch.setattr(amortised, "_PIXELS", pixels)
        trainer.optimizer.zero_grad()
        loss = trainer._leave_gradients(images, 16)
        found.append([loss, *(p.grad.clone() for p in trainer.guide.encoders.parameters())])
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


def test_learning_rate_runs_geometrically() -> None:
    stage = Stage(resolution=16, steps=100, learning_rate=1e-2, final_learning_rate=1e-4)
    assert stage.learning_rate_at(0) == pytest.approx(1e-2)
    assert stage.learning_rate_at(50) == pytest.approx(1e-3)
    assert Stage(resolution=16, steps=100).learning_rate_at(99) == Stage(
        resolution=16, steps=100
    ).learning_rate_at(0)


def test_learning_rate_reaches_every_optimiser(tiny_guide) -> None:
    trainer = make_trainer(
        tiny_guide, [Stage(resolution=16, steps=3, learning_rate=5e-3, final_learning_rate=5e-4)]
    )
    trainer.run()
    expected = trainer.stages[0].learning_rate_at(2)
    rates = {group["lr"] for group in trainer.optimizer.param_groups}
    assert rates == {expected}


def test_a_frozen_network_does_not_move(tiny_guide) -> None:
    trainer = make_trainer(tiny_guide, [Stage(resolution=16, steps=6, train=("amplitude",))])
    before = weights(trainer)
    trainer.run()
    moved = {
        name.split(".")[0]
        for name, tensor in weights(trainer).items()
        if not torch.equal(tensor, before[name])
    }
    assert moved == {"amplitude"}


def test_a_settled_stage_ends_early(tiny_guide, monkeypatch) -> None:
    """Once images count as explained, a learning rate of almost nothing ends the stage after two windows."""
    monkeypatch.setattr("cryoanm_lib.inference.training.EXPLAINED", math.inf)
    trainer = make_trainer(tiny_guide, [Stage(resolution=16, steps=60, learning_rate=1e-12, settle=0.5)])
    assert trainer.run().total_steps == 6


def test_noise_floor_is_what_the_truth_costs(tiny_guide) -> None:
    """Minus the mean log-likelihood of 500 images at their own latents, to 5 standard errors."""
    trainer = make_trainer(tiny_guide)
    model, resolution = trainer.guide.model, 12
    particles = model.simulate(500, 16)
    predicted = model.forward_model.coefficients(particles.truth, resolution)
    observed = crop_coefficients(particles.coefficients, resolution)
    cost = -log_likelihood(observed, predicted, particles.noise, resolution)
    assert abs(cost.mean() - trainer.noise_floor(resolution)) < 5 * cost.std() / math.sqrt(500)


@pytest.mark.parametrize("stratified", [True, False])
def test_training_lowers_the_loss(tiny_guide, stratified) -> None:
    stages = [Stage(resolution=16, steps=60, learning_rate=3e-3)]
    trainer = make_trainer(tiny_guide, stages, window=20, inferred=("amplitude",), stratified=stratified)
    first, *_, last = (record["loss"] for record in trainer.run().history)
    assert 0 < last < 0.9 * first


def test_both_objectives_report_the_loss_of_one_image(tiny_guide) -> None:
    """`Trace_ELBO` and ours agree on the same guide, whatever the batch; 15 % is 5 σ of their noise here."""
    losses = []
    for stratified, batch in [(True, 10), (False, 10), (False, 80)]:
        trainer = make_trainer(
            tiny_guide, [Stage(resolution=16, steps=60, learning_rate=1e-12)], 60, stratified=stratified
        )
        trainer.source = FreshImages(trainer.guide.model, batch)
        losses.append(trainer.run().history[0]["loss"])
    assert losses == pytest.approx([losses[0]] * 3, rel=0.15)


def test_a_loss_that_is_not_finite_stops_the_run(tiny_guide) -> None:
    trainer = make_trainer(tiny_guide)
    with torch.no_grad():
        trainer.guide.encoders["pose"].references.fill_(math.nan)
    with pytest.raises(
        TrainingError,
        match=r"diverged at step 0 \(stage 0, K = 12\).*weight 'pose.references': lower the learning rate",
    ):
        trainer.run()


def test_images_that_are_no_numbers_are_named_before_what_they_spoil(tiny_guide) -> None:
    trainer = make_trainer(tiny_guide)
    draw = trainer.source

    def with_a_hole(resolution, step):
        particles = draw(resolution, step)
        particles.coefficients[0, 3] = math.nan
        return particles

    trainer.source = with_a_hole
    with pytest.raises(TrainingError, match="not finite: coefficients of the images"):
        trainer.run()


def test_a_step_that_spoils_the_weights_is_not_saved(tiny_guide) -> None:
    """The loss of the step was fine: the weights after it are not."""
    trainer, saved = make_trainer(tiny_guide, [Stage(resolution=12, steps=6)]), []
    take = trainer._step
    steps = iter(range(100))

    def spoil_the_last_of_a_window():
        loss = take()
        if next(steps) == 5:
            with torch.no_grad():
                trainer.guide.encoders["amplitude"].dense[0].weight[0, 0] = math.inf
        return loss

    trainer._step = spoil_the_last_of_a_window
    with pytest.raises(TrainingError, match="weight 'amplitude"):
        trainer.run(after_window=lambda trainer: saved.append(trainer.progress.total_steps))
    assert saved == [3]


def test_a_learning_rate_that_is_too_high_is_named(tiny_guide) -> None:
    trainer = make_trainer(tiny_guide, [Stage(resolution=16, steps=30, learning_rate=1e30)])
    with pytest.raises(TrainingError, match=r"lower the learning rate of this stage, 1e\+30"):
        trainer.run()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"objective": "kl"}, "'elbo' or 'forward_kl'"),
        ({"train": ()}, "at least 1"),
        ({"train": ("amplitud",)}, "'amplitude'"),
        ({"resolution": 15}, "multiple of 2"),
        ({"objective": "forward_kl", "settle": 0.1}, "only objective = 'elbo'"),
        ({"pace": 1}, "Extra inputs"),
    ],
)
def test_an_impossible_stage_is_refused(wrong, message) -> None:
    with pytest.raises(ValidationError, match=message):
        Stage(**({"resolution": 16, "steps": 5} | wrong))


def test_a_checkpoint_of_another_configuration_is_refused(tiny_guide, tmp_path) -> None:
    trainer = make_trainer(tiny_guide)
    save_checkpoint(tmp_path / "c.safetensors", trainer, "abc")
    with pytest.raises(ArtifactError, match="belongs to configuration abc, not to xyz"):
        resume(tmp_path / "c.safetensors", trainer, "xyz")


@pytest.mark.parametrize("damage", ["truncate", "garbage", "flip"])
def test_a_damaged_checkpoint_is_deleted_and_training_begins_anew(tiny_guide, tmp_path, damage) -> None:
    path, trainer = tmp_path / "c.safetensors", make_trainer(tiny_guide, [Stage(resolution=12, steps=8)])
    trainer.run(after_window=lambda trainer: save_checkpoint(path, trainer, "abc"))
    content = path.read_bytes()
    path.write_bytes(
        {
            "truncate": content[: len(content) // 2],
            "garbage": b"\0" * 100,
            "flip": content[:-1000] + bytes([content[-1000] ^ 1]) + content[-999:],
        }[damage]
    )
    fresh = make_trainer(tiny_guide, [Stage(resolution=12, steps=8)])
    with pytest.warns(UserWarning, match="is damaged.*starting without it"):
        assert not resume(path, fresh, "abc")
    assert fresh.progress.total_steps == 0 and list(tmp_path.iterdir()) == []


def test_the_last_checkpoint_is_used_and_is_the_only_one(tiny_guide, tmp_path) -> None:
    path, trainer = tmp_path / "c.safetensors", make_trainer(tiny_guide, [Stage(resolution=12, steps=8)])
    trainer.run(after_window=lambda trainer: save_checkpoint(path, trainer, "abc"))
    assert list(tmp_path.iterdir()) == [path]
    fresh = make_trainer(tiny_guide, [Stage(resolution=12, steps=8)])
    assert resume(path, fresh, "abc")
    assert fresh.progress.total_steps == 8


def test_a_checkpoint_that_other_code_has_made_is_not_used(tiny_guide, tmp_path, monkeypatch) -> None:
    path, trainer = tmp_path / "c.safetensors", make_trainer(tiny_guide, [Stage(resolution=12, steps=8)])
    trainer.run(after_window=lambda trainer: save_checkpoint(path, trainer, "abc"))
    monkeypatch.setattr(checkpoint, "library_hash", lambda: "edited")
    fresh = make_trainer(tiny_guide, [Stage(resolution=12, steps=8)])
    with pytest.warns(UserWarning, match="other code"):
        assert not resume(path, fresh, "abc")
    assert fresh.progress.total_steps == 0 and list(tmp_path.iterdir()) == []


def test_without_a_checkpoint_there_is_nothing_to_resume(tiny_guide, tmp_path) -> None:
    assert not resume(tmp_path / "c.safetensors", make_trainer(tiny_guide), "abc")


def test_a_checkpoint_that_lacks_a_tensor_is_refused(tiny_guide, tmp_path) -> None:
    path, trainer = tmp_path / "c.safetensors", make_trainer(tiny_guide)
    save_checkpoint(path, trainer, "abc")
    tensors, metadata = load_tensors(path)
    tensors.pop("encoders.pose.logits.bias")
    save_tensors(path, tensors, **metadata)
    with pytest.raises(ArtifactError, match="damaged"):
        resume(path, make_trainer(tiny_guide), "abc")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.ones(3)}, note="old")

    def fail(beside) -> None:
        beside.write_bytes(b"half")
        raise OSError("no space left on device")

    with pytest.raises(ArtifactError, match=r"cannot be written \(no space left on device\)"):
        write_atomically(path, fail)
    assert load_tensors(path)[1]["note"] == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_progress_is_plain_data(tiny_guide) -> None:
    trainer = make_trainer(tiny_guide, [Stage(resolution=12, steps=3)])
    progress = trainer.run()
    assert asdict(progress)["total_steps"] == 3 and len(progress.snapshots) == 1


def test_a_plateau_is_not_a_settled_stage(tiny_guide) -> None:
    """A network that does not learn leaves the images unexplained, and the stage goes on to its last step."""
    stage = Stage(resolution=16, steps=12, learning_rate=1e-12, settle=0.5)
    trainer = make_trainer(tiny_guide, [stage])
    assert trainer.run().total_steps == 12
    last = trainer.progress.history[-1]["loss"]
    assert last > EXPLAINED * degrees_of_freedom(16)
