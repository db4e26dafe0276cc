"""A run in parts: prepared, each shard by its number, and ended, as by one command to the bit."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import cryoanm_lib
from cryoanm_lib import Plan, RunFolder, infer, infer_shards, prepare, read_star, write_star
from cryoanm_lib.analysis import infer as module
from cryoanm_lib.commands.cryoanm import main
from cryoanm_lib.errors import ArtifactError, CryoANMError
from cryoanm_lib.io.storage import load_json, load_tensors, save_tensors
from tests.sameness import differences

DATA = Path(cryoanm_lib.__file__).parent / "data"
ALL = ("plan.json", "check.json", "learned/*", "shards/*", "shown.safetensors", "twin.json")


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Of two microscopes, of which the second has one shard."""
    folder = tmp_path_factory.mktemp("particles")
    write_star(read_star(DATA / "adk_particles.star")[torch.arange(64)], folder / "few.star")
    text = (folder / "few.star").read_text()
    (optics,) = (line for line in text.splitlines() if line.startswith("1 group1"))
    text = text.replace(optics, f"{optics}\n{optics.replace('1 group1 300', '2 group2 200')}")
    lines = text.splitlines()
    rows = [number for number, line in enumerate(lines) if "@adk_particles" in line]
    for number in rows[40:]:
        lines[number] = lines[number].replace(" 1 0", " 2 0")
    (folder / "few.star").write_text("\n".join(lines) + "\n")
    shutil.copy(DATA / "adk_particles.mrcs", folder)
    molecule = {"reference": "adk_open", "towards": "adk_closed", "beads": True, "modes": 1, "detail": 24.0}
    sizes = {"learn_from": 20, "shard": 25, "twin": 10, "nulls": 5}
    return Plan.model_validate({"particles": str(folder / "few.star"), **molecule, **sizes})


@pytest.fixture(scope="module")
def prepared(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return prepare(plan, tmp_path_factory.mktemp("prepared") / "run")


@pytest.fixture
def copied(prepared: RunFolder, tmp_path: Path) -> RunFolder:
    shutil.copytree(prepared.path, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def test_parts_in_any_order_are_the_whole(plan: Plan, copied: RunFolder, tmp_path: Path) -> None:
    """Shards by different calls, one of them left for the end."""
    assert copied.missing() == [0, 1, 2] and load_json(copied.asked)["shards"] == 3
    infer_shards(copied.path, [2])
    infer_shards(copied.path, [0, 2])
    assert copied.missing() == [1]
    infer(plan, copied.path, progress=False)
    whole = infer(plan, tmp_path / "whole", progress=False)
    assert len(whole.shards()) == 3 and whole.learned(1).optics.voltage == 200
    assert differences(copied.path, whole.path, ALL) == []


def test_a_shard_may_be_of_one_particle(plan: Plan, tmp_path: Path) -> None:
    """As the last one of 501; its answer differs from that beside others by its random numbers alone."""
    alone = prepare(plan.model_copy(update={"shard": 1}), tmp_path / "run")
    infer_shards(alone.path, [3])
    answers = alone.answers(draws=True)
    assert answers.row.tolist() == [3] and answers.draws["amplitude"].shape == (1, 16, 1)


def test_shards_move_as_was_prepared(copied: RunFolder) -> None:
    """Where another machine takes the other sign of a mode, amplitudes would be told with either."""
    infer_shards(copied.path, [0])
    before = copied.answers().mean["amplitude"]
    copied.shard(0).unlink()
    for path in (copied.path / "learned").glob("*"):
        tensors, told = load_tensors(path)
        save_tensors(path, {**tensors, "directions": -tensors["directions"]}, **told)
    infer_shards(copied.path, [0])
    after = copied.answers().mean["amplitude"]
    torch.testing.assert_close(after, -before, rtol=1e-2, atol=1.0)


def test_what_an_older_version_learned_is_read(copied: RunFolder) -> None:
    """It has no directions, and can be reported all the same."""
    before, path = copied.learned(0), copied.path / "learned" / "0.safetensors"
    tensors, told = load_tensors(path)
    save_tensors(
        path, {name: v for name, v in tensors.items() if name not in ("directions", "of_atoms")}, **told
    )
    assert torch.equal(copied.learned(0).power, before.power)


def test_answers_of_an_older_version_are_refused_by_name(copied: RunFolder) -> None:
    infer_shards(copied.path, [0])
    path = copied.shard(0)
    tensors, told = load_tensors(path)
    save_tensors(path, {name: v for name, v in tensors.items() if name != "narrower"}, **told)
    with pytest.raises(ArtifactError, match="another version and lacks narrower: infer into another folder"):
        copied.answers()


def test_a_shard_that_fails_costs_itself_alone(copied: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    infers = module._infer_shard

    def failing(*given: object) -> None:
        if given[-1].number == 1:
            raise MemoryError("no room")
        infers(*given)

    monkeypatch.setattr(module, "_infer_shard", failing)
    with pytest.raises(CryoANMError, match=r"shard 1: MemoryError: no room; go on by cryoanm shard .*run 1$"):
        infer_shards(copied.path, [0, 1, 2])
    assert copied.missing() == [1]


def test_a_run_that_is_not_prepared_has_no_shards(plan: Plan, copied: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no run"):
        infer_shards(tmp_path / "nothing", [0])
    with pytest.raises(CryoANMError, match=r"has no shard 3: they are from 0 to 2"):
        infer_shards(copied.path, [3])
    (copied.path / "learned" / "1.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"is not prepared: run cryoanm infer --prepare"):
        infer_shards(copied.path, [2])
    asked = load_json(copied.asked) | {"library": "older"}
    copied.asked.write_text(json.dumps(asked))
    with pytest.raises(ArtifactError, match="holds a run with other library"):
        infer_shards(copied.path, [0])


def test_the_command_line_takes_numbers(
    plan: Plan, copied: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    molecule = [
        "--reference",
        "adk_open",
        "--towards",
        "adk_closed",
        "--beads",
        "--modes",
        "1",
        "--detail",
        "24",
    ]
    sizes = ["--learn-from", "20", "--shard", "25", "--twin", "10", "--nulls", "5"]
    run = str(copied.path)
    assert main(["infer", plan.particles, *molecule, *sizes, "--out", run, "--prepare"]) == 0
    assert f"3 shards are to be inferred: cryoanm shard {run} NUMBER" in capsys.readouterr().out
    assert main(["shard", run, "2"]) == 0 and copied.missing() == [0, 1]
    assert main(["shard", run, "7"]) == 1
    assert "has no shard 7" in capsys.readouterr().err
