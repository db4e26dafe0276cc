"""What made a result can be read beside it."""

import hashlib
import subprocess
import sys
from datetime import datetime
from importlib.metadata import version

import numpy as np
import pytest
import torch

from cryoanm_lib.experiments.fit import fit
from cryoanm_lib.experiments.profile import load_profile
from cryoanm_lib.io.provenance import (
    beginning,
    commit,
    installed_packages,
    library_hash,
    loaded_packages,
    provenance,
)
from cryoanm_lib.io.storage import load_json

TINY = """
test_images: 4
window: 2
model: {box_size: 24, pixel_size: 4.0}
experiments:
  one:
    title: One
    infer: [defocus]
    guide: {image_size: 12, references: 4, components: 1}
    batch_size: 4
    stages: [{resolution: 12, steps: 2}]
"""


def test_a_record_says_what_made_it() -> None:
    record = provenance(beginning(), torch.device("cpu"), fit="pose", config_hash="abc")
    assert (record["fit"], record["config_hash"]) == ("pose", "abc")
    assert record["torch"] == torch.__version__
    assert record["packages"]["torch"] == version("torch")  # which may lack the build, as in +cu121
    assert record["packages"]["numpy"] == np.__version__
    assert record["threads"] == torch.get_num_threads()
    assert {"version", "commit", "python", "platform", "device"} <= record.keys()
    times = [datetime.fromisoformat(record[key]) for key in ("started", "finished")]
    assert times == sorted(times) and times[0].utcoffset().total_seconds() == 0


def test_a_library_installed_into_another_project_is_not_of_its_commit(tmp_path, monkeypatch) -> None:
    (tmp_path / "provenance.py").touch()
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "another project"]):
        author = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run(["git", *author, *command], cwd=tmp_path, check=True)
    monkeypatch.setattr("cryoanm_lib.io.provenance.__file__", str(tmp_path / "provenance.py"))
    assert commit() == "unknown"
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    assert commit().endswith("-dirty")


def test_an_edit_of_the_library_is_another_library(tmp_path, monkeypatch) -> None:
    fresh = library_hash.__wrapped__
    known = library_hash()  # before the file moves, or it would be kept for the tests that follow
    assert fresh() == known
    (tmp_path / "provenance.py").write_text("one")
    monkeypatch.setattr("cryoanm_lib.io.provenance.__file__", str(tmp_path / "provenance.py"))
    before = fresh()
    (tmp_path / "provenance.py").write_text("two")
    assert len({known, before, fresh()}) == 3 and library_hash() == known


def test_packages_that_were_imported_are_among_those_installed() -> None:
    everything = installed_packages()
    assert loaded_packages().items() <= everything.items()
    assert {"torch", "pyro-ppl", "ProDy"} <= everything.keys()


def test_code_and_packages_are_known_without_torch() -> None:
    asked = "import sys; from cryoanm_lib.io.provenance import *; beginning(), installed_packages()"
    subprocess.run([sys.executable, "-c", f"{asked}; assert 'torch' not in sys.modules"], check=True)


@pytest.mark.parametrize("change", [False, True])
def test_a_fit_records_its_configuration_and_data(tmp_path, change) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY + "structure: adk_closed\n" * change)
    settings = load_profile(path)
    fit(settings, "one", tmp_path, show_progress=False)
    record = load_json(tmp_path / settings.run("one").path / "provenance.json")
    atoms = settings.load_structure().coordinates.numpy().tobytes()
    assert record["data"] == {"atoms": hashlib.sha256(atoms).hexdigest()}
    assert record["config_hash"] == settings.run("one").config_hash
    assert record["seed"] == settings.run("one").seed


def test_kept_networks_are_data(tmp_path) -> None:
    settings = load_profile("laptop")
    name = next(name for name, section in settings.runs.items() if section.weights)
    digests = settings.run(name).data_hashes
    assert {len(digest) for digest in digests.values()} == {64}
    assert digests.keys() == {"atoms", "weights"}
