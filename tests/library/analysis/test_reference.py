"""A run whose reference was displaced, on images of the right one, at the poses of a table."""

from pathlib import Path

import pytest
import torch

import cryoanm_lib
from cryoanm_lib import (
    Plan,
    infer,
    learn_reference,
    load_atoms,
    molecule_of,
    read_star,
    simulate_stack,
    write_star,
)
from cryoanm_lib.analysis.folder import RunFolder
from cryoanm_lib.commands.cryoanm import main
from cryoanm_lib.errors import CryoANMError
from cryoanm_lib.io.storage import load_json, load_tensors
from cryoanm_lib.molecule.movie import write_models

torch.set_num_threads(1)
DATA = Path(cryoanm_lib.__file__).parent / "data"
COUNT, DIRECTIONS, FAR = 90, 6, 1.5


def plan_of(table: Path, reference: str) -> Plan:
    small = {"learn_from": 40, "shard": 40, "twin": 0, "nulls": 10, "detail": 12.0, "beads": True}
    # a model lies where its file says, and the centroid of a displaced one where that of the right one does
    return Plan.model_validate({"particles": str(table), "reference": reference, "modes": 2, **small})


@pytest.fixture(scope="module")
def displaced(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, torch.Tensor]:
    """A run with a reference that is off along further modes, and by what."""
    folder = tmp_path_factory.mktemp("displaced")
    table, model = folder / "few.star", folder / "off.cif"
    write_star(read_star(DATA / "adk_particles.star")[torch.arange(COUNT)], table)
    plan = plan_of(table, "adk_open")
    table = simulate_stack(plan, folder / "made.mrcs", snr=0.3, progress=False)
    further = molecule_of(plan.model_copy(update={"modes": 2 + DIRECTIONS})).of_atoms[2:]
    generator = torch.Generator().manual_seed(1)
    away = torch.tensordot(torch.randn(DIRECTIONS, generator=generator).double(), further, dims=1)
    away *= FAR / away.square().sum(1).mean().sqrt()
    atoms = load_atoms("adk_open")
    write_models(atoms, (atoms.coordinates + away)[None], model)
    return infer(plan_of(table, str(model)), folder / "run", progress=False), away


def test_a_reference_moves_along_a_direction_at_least(tmp_path) -> None:
    with pytest.raises(CryoANMError, match="directions = 0 is not usable"):
        learn_reference(tmp_path, directions=0)


@pytest.mark.slow
def test_a_displaced_reference_comes_back(displaced, capsys) -> None:
    run, away = displaced
    assert main(["reference", str(run.path), "--directions", "20", "--quiet"]) == 0
    written = [Path(line) for line in capsys.readouterr().out.split()]
    assert [path.name for path in written] == [
        "moved.cif",
        "moved.pdb",
        "places.safetensors",
        "reference.json",
    ]
    moved, _ = load_tensors(written[2])
    found = load_json(written[3])
    assert found["images"] == COUNT
    left = (moved["displacement"] + away).square().sum(1).mean().sqrt()
    assert left < 0.5 * FAR
    on_file = load_atoms(str(written[0]))
    expected = load_atoms(str(run.plan().reference)).coordinates + moved["displacement"]
    expected = expected - expected.mean(0)
    torch.testing.assert_close(on_file.coordinates, expected, atol=2e-3, rtol=0)
