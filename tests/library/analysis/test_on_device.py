"""A run whose posteriors are computed on a device: its answers are those of the CPU, to rounding."""

import shutil
from pathlib import Path

import pytest
import torch

import cryoanm_lib
from cryoanm_lib import Plan, RunFolder, infer, infer_shards, prepare, read_star, write_star
from cryoanm_lib.analysis import infer as module
from cryoanm_lib.analysis import learn
from cryoanm_lib.commands.cryoanm import main
from cryoanm_lib.numerics.rotation import quaternion_distance
from tests.library.emulated import DEVICE, emulated

DATA = Path(cryoanm_lib.__file__).parent / "data"
FEW = 24
#: Largest difference of an answer, in deviations that it claims: rounds of learning carry rounding on.
TOLERANCE = 0.05


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("particles")
    write_star(read_star(DATA / "adk_particles.star")[torch.arange(FEW)], folder / "few.star")
    shutil.copy(DATA / "adk_particles.mrcs", folder)
    return folder / "few.star"


@pytest.mark.parametrize(
    "pose",
    [
        pytest.param("star", marks=pytest.mark.thorough),
        pytest.param("search", marks=pytest.mark.slow),
    ],
)
def test_a_run_on_a_device_answers_as_on_the_cpu(table: Path, tmp_path: Path, monkeypatch, pose) -> None:
    """Prepared, inferred in a shard and ended with its twin, each by itself."""
    molecule = {"reference": "adk_open", "towards": "adk_closed", "beads": True, "modes": 1, "detail": 24.0}
    sizes = {"learn_from": 20, "shard": 12, "twin": 4, "nulls": 2}
    monkeypatch.setattr(learn, "ROUNDS", 1)
    plan = Plan.model_validate({"particles": str(table), "pose": pose, **molecule, **sizes})
    expected = infer(plan, tmp_path / "cpu", progress=False).answers()
    monkeypatch.setattr(module, "pick_device", lambda device: {"cuda": DEVICE}[device])
    with emulated() as device:
        run = prepare(plan, tmp_path / "there", device="cuda")
        infer_shards(run.path, [1], device="cuda")
        assert device.waits["copy"] > 0
        run = infer(plan, run.path, progress=False, device="cuda")
    found = RunFolder(run.path).answers()
    assert run.twin.exists() and found.row.tolist() == expected.row.tolist()
    amplitude = found.mean["amplitude"] - expected.mean["amplitude"]
    claimed = expected.deviation[:, 5:6]  # after three columns of the pose and two of the shift
    assert (amplitude.abs() / claimed).max() < TOLERANCE
    turned = quaternion_distance(found.mean["pose"].double(), expected.mean["pose"].double())
    assert (turned / expected.deviation[:, :3].amin(1)).max() < TOLERANCE


def test_a_device_that_is_not_there_is_refused(table: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """In one line, and before anything is written."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = tmp_path / "run"
    asked = [str(table), "--reference", "adk_open", "--out", str(out), "--device", "cuda"]
    assert main(["infer", *asked]) == 1
    assert capsys.readouterr().err == (
        "error: device = 'cuda', but torch finds no CUDA device: choose 'auto' or 'cpu'\n"
    )
    asked[-1] = "gpu"
    assert main(["infer", *asked]) == 1
    assert "device = 'gpu' is not usable: choose one of auto, cpu, cuda" in capsys.readouterr().err
    assert not out.exists()
