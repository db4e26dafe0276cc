"""A run whose reference was displaced, on images of the right one, at the poses of a table."""

from pathlib import Path
from types import SimpleNamespace

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
from cryoanm_lib.analysis.reference import _written
from cryoanm_lib.commands.cryoanm import main
from cryoanm_lib.errors import CryoANMError
from cryoanm_lib.inference.moved_reference import MovedReference
from cryoanm_lib.inference.place_error import PlaceError
from cryoanm_lib.inference.reference_error import ReferenceEstimate, ReferenceStatistics
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


@pytest.mark.mistyped
@pytest.mark.parametrize("settled", [True, False])
def test_no_model_is_written_where_an_alarm_rings(tmp_path: Path, settled: bool) -> None:
    """Nor left from before; what was found is told in either case."""
    atoms, run = load_atoms("adk_open"), RunFolder(tmp_path)
    directions = torch.randn(2, *atoms.coordinates.shape, generator=torch.Generator().manual_seed(0)).double()
    eye = torch.eye(2, dtype=torch.float64)
    halves = tuple(ReferenceStatistics(torch.zeros(2).double(), eye, eye, 50) for _ in range(2))
    error = ReferenceEstimate(0.01 * torch.ones(2).double(), 1e-4 * eye, 0.1, 3.0, 0.01)
    moved = MovedReference(error, halves, (0.02,), settled)
    again = SimpleNamespace(
        scores=[torch.zeros(100)],
        explained=[torch.ones(100, dtype=torch.bool)],
        learned={0: SimpleNamespace(place=PlaceError(0.0, 0.0))},
    )
    model = tmp_path / "reference" / "moved.cif"
    model.parent.mkdir()
    model.write_text("of a run before")
    asked = (run, plan_of(tmp_path / "few.star", "adk_open"), atoms, directions, moved, again)
    if settled:
        assert model in _written(*asked)
        assert len(load_atoms(str(model))) == len(atoms)
    else:
        with pytest.warns(UserWarning, match="no moved model is written, for alarms ring: unsettled"):
            written = _written(*asked)
        assert not model.exists() and model not in written
    assert list(load_json(tmp_path / "reference" / "reference.json")["alarms"]) == (
        [] if settled else ["unsettled"]
    )
