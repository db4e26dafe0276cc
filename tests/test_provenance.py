"""What made a result can be read beside it."""

import hashlib
import subprocess
import sys
from datetime import datetime

import numpy as np
import pytest
import torch

from cryoanm_lib.configuration import load_profile
from cryoanm_lib.experiment import fit
from cryoanm_lib.provenance import installed_packages, loaded_packages, now, provenance
from cryoanm_lib.storage import load_json

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
    started = now()
    record = provenance(torch.device("cpu"), started, fit="pose", config_hash="abc")
    assert (record["fit"], record["config_hash"]) == ("pose", "abc")
    assert record["packages"]["torch"] == record["torch"] == torch.__version__
    assert record["packages"]["numpy"] == np.__version__
    assert record["threads"] == torch.get_num_threads()
    assert {"version", "commit", "python", "platform", "device"} <= record.keys()
    times = [datetime.fromisoformat(record[key]) for key in ("started", "finished")]
    assert times == sorted(times) and times[0].utcoffset().total_seconds() == 0


def test_packages_that_were_imported_are_among_those_installed() -> None:
    everything = installed_packages()
    assert loaded_packages().items() <= everything.items()
    assert {"torch", "pyro-ppl", "ProDy"} <= everything.keys()


def test_code_and_packages_are_known_without_torch() -> None:
    asked = (
        "import sys; from cryoanm_lib.provenance import code, installed_packages; code(installed_packages())"
    )
    subprocess.run([sys.executable, "-c", f"{asked}; assert 'torch' not in sys.modules"], check=True)


@pytest.mark.parametrize("change", [False, True])
def test_a_fit_records_its_configuration_and_data(tmp_path, change) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY + "structure: adk_closed\n" * change)
    settings = load_profile(path)
    fit(settings, "one", tmp_path, show_progress=False)
    record = load_json(tmp_path / settings.artifact_path("one") / "provenance.json")
    atoms = settings.load_structure().coordinates.numpy().tobytes()
    assert record["data"] == {"atoms": hashlib.sha256(atoms).hexdigest()}
    assert record["config_hash"] == settings.config_hash("one")
    assert record["seed"] == settings.seed_of("one")


def test_kept_networks_are_data(tmp_path) -> None:
    settings = load_profile("laptop")
    name = next(name for name, section in settings.runs.items() if section.weights)
    assert {len(digest) for digest in settings.data_hashes(name).values()} == {64}
    assert settings.data_hashes(name).keys() == {"atoms", "weights"}
