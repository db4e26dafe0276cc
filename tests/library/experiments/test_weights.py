"""Networks that come with the library: kept in half, found again, refused when they are another's."""

import json

import pytest
import torch

from cryoanm_lib.checks.residuals import pose_distance
from cryoanm_lib.errors import ArtifactError
from cryoanm_lib.experiments import weights
from cryoanm_lib.experiments.datasets import draw_test_images
from cryoanm_lib.experiments.fit import make_trainer
from cryoanm_lib.experiments.profile import load_profile
from cryoanm_lib.inference.amortised import propose
from cryoanm_lib.program.prior import Prior

SPACE = Prior(pose="space", shift_scale=0.5)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "weights_path", lambda name: tmp_path / f"{name}.safetensors")
    return tmp_path


def test_weights_come_back(tiny_guide, folder) -> None:
    first, second = (tiny_guide("shared", prior=SPACE, inferred=("pose", "shift")) for _ in range(2))
    weights.write_weights(first, weights.weights_path("mine"), made_by="a test")
    assert weights.load_weights(second, "mine") == weights.weights_made("mine") == {"made_by": "a test"}
    for name, value in first.encoders.state_dict().items():
        torch.testing.assert_close(second.encoders.state_dict()[name], value, rtol=1e-3, atol=1e-6)


def test_weights_that_do_not_exist_are_refused(tiny_guide, folder) -> None:
    with pytest.raises(ArtifactError, match="no weights came with the library under the name 'other'"):
        weights.load_weights(tiny_guide("shared", prior=SPACE), "other")
    assert weights.weights_made("other") == {}


def test_weights_of_another_guide_are_refused(tiny_guide, folder) -> None:
    weights.write_weights(tiny_guide("shared", prior=SPACE), weights.weights_path("mine"))
    with pytest.raises(ArtifactError, match="'mine' are of other networks, which differ in pose"):
        weights.load_weights(tiny_guide("shared", prior=SPACE, components=3), "mine")


def test_weights_of_other_images_are_refused(tiny_guide, folder) -> None:
    guide = tiny_guide("shared", prior=SPACE)
    weights.write_weights(guide, weights.weights_path("mine"), images="0123abcd")
    assert weights.load_weights(guide, "mine", "0123abcd")["images"] == "0123abcd"
    with pytest.raises(ArtifactError, match="'mine' have learned images of another molecule"):
        weights.load_weights(guide, "mine", "4567abcd")


@pytest.mark.parametrize("change", [{"structure": "adk_closed"}, {"stride": 3}])
def test_another_molecule_trains_networks_of_its_own(change) -> None:
    """The profile does not hand it the networks that have learned adenylate kinase."""
    laptop = load_profile("laptop")
    other = laptop.model_copy(update=change)
    ours, theirs = (profile.run("so3_all_latents") for profile in (laptop, other))
    assert ours.section.weights and not ours.stages
    assert theirs.section.weights is None and theirs.stages


def test_weights_that_are_not_numbers_are_refused(tiny_guide, folder) -> None:
    guide = tiny_guide("shared", prior=SPACE)
    with torch.no_grad():
        guide.encoders["pose"].bias[0] = torch.nan
    weights.write_weights(guide, weights.weights_path("mine"))
    with pytest.raises(ArtifactError, match="NaN"):
        weights.load_weights(tiny_guide("shared", prior=SPACE), "mine")


@pytest.mark.slow
def test_a_training_from_scratch_descends_as_it_did_then() -> None:
    """The mean loss over the first stage, on any machine within 0.2 nats of what it was then."""
    full = load_profile("full").model_copy(update={"test_images": 20})
    trainer = make_trainer(full.run("so3_all_latents"), "cpu")
    trainer.stages = trainer.stages[:1]
    trainer.run()
    (steps, loss), *_ = json.loads(weights.weights_made("so3_all_latents")["losses"])
    assert trainer.progress.total_steps == steps
    assert trainer.progress.history[0]["loss"] == pytest.approx(loss, abs=0.2)


@pytest.mark.parametrize("name", ["so3_all_latents", "so3_any_noise"])
def test_weights_of_the_book_are_those_of_their_configuration(name) -> None:
    """At most 10 MB, made by the profile as it is, and good for the first step of every user's pipeline."""
    made, run = weights.weights_made(name), load_profile("full").run(name)
    assert weights.weights_path(name).stat().st_size < 10e6
    assert made["config_hash"] == run.config_hash
    assert made["images"] == run.images_hash
    assert {"commit", "date", "device", "made_by", "train_seconds", "steps", "losses"} <= set(made)
    laptop = load_profile("laptop").model_copy(update={"test_images": 40}).run(name)
    weights.load_weights(guide := laptop.guide(), name, laptop.images_hash)
    images = draw_test_images(laptop, 0.084)
    nearest = pose_distance(propose(guide, images, 32)["pose"], images.truth["pose"][:, None]).amin(1)
    assert (torch.rad2deg(nearest) < 15).double().mean() > 0.9
