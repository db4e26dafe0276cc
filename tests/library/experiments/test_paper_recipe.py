"""The paper's recipe as the profile `paper` has it, for ten steps a stage: its figures 2 and 3."""

import json
from pathlib import Path

import pytest
import torch
from pyro.infer import Trace_ELBO

from cryoanm_lib.experiments.fit import fit, load_fit, make_trainer
from cryoanm_lib.experiments.profile import Profile, load_profile

#: Of 16 000 a stage.
STEPS = 10

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def paper() -> Profile:
    """Everything else is as the paper has it; a record each five steps."""
    profile = load_profile("paper")
    length = profile.length.model_copy(update={"paper": STEPS / 16_000})
    experiments = {
        name: section.model_copy(update={"window": 5}) for name, section in profile.experiments.items()
    }
    return profile.model_copy(update={"length": length, "experiments": experiments, "test_images": 200})


def test_pose_by_frequency_marching(paper: Profile, tmp_path: Path) -> None:
    """Fig. 2: K = 32, 48, 64 with networks that see 64 pixels throughout, by Pyro's own ELBO."""
    name = "pose_marching_paper"
    assert type(make_trainer(paper.run(name), "cpu")._objective()) is Trace_ELBO
    fit(paper, name, tmp_path, show_progress=False)
    found = load_fit(paper, name, tmp_path)
    assert [r["resolution"] for r in found.history] == [32, 32, 48, 48, 64, 64]
    assert found.metrics["steps"] == 3 * STEPS and found.metrics["epochs"] == 3 * STEPS / 4
    assert found.metrics["resolution_seen"] == 64
    assert all(abs(r["loss"]) < 1e6 for r in found.history)
    assert 0 < found.metrics["pose_residual_mean_deg"] <= 180
    assert json.loads((tmp_path / found.run.path / "provenance.json").read_text())["seed"] == found.run.seed


def test_pose_then_amplitude_with_the_pose_frozen(paper: Profile) -> None:
    """Fig. 3: in each stage the network of one latent learns, and the other's weights stay to the bit."""
    trainer = make_trainer(paper.run("pose_then_amplitude_paper"), "cpu")
    assert [stage.train for stage in trainer.stages] == [("pose",), ("amplitude",)]

    def weights(name: str) -> torch.Tensor:
        return torch.cat([p.detach().flatten().clone() for p in trainer.guide.encoders[name].parameters()])

    for learning, still in (("pose", "amplitude"), ("amplitude", "pose")):
        before = weights(learning), weights(still)
        trainer.take_steps(STEPS)
        assert torch.equal(weights(still), before[1]) and not torch.equal(weights(learning), before[0])
        trainer.progress.stage, trainer.progress.step = 1, 0
