"""Networks that come with the library: kept in half, found again, refused when they are another's."""

import pytest
import torch

from cryoanm_lib import weights
from cryoanm_lib.errors import ArtifactError
from cryoanm_lib.prior import Prior

SPACE = Prior(pose="space", shift_scale=0.5)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "weights_path", lambda name: tmp_path / f"{name}.safetensors")
    return tmp_path


def test_weights_come_back(tiny_program, folder) -> None:
    first, second = (tiny_program("shared", prior=SPACE, inferred=("pose", "shift")) for _ in range(2))
    weights.write_weights(first, weights.weights_path("mine"), made_by="a test")
    assert weights.load_weights(second, "mine") == weights.weights_made("mine") == {"made_by": "a test"}
    for name, value in first.encoders.state_dict().items():
        torch.testing.assert_close(second.encoders.state_dict()[name], value, rtol=1e-3, atol=1e-6)


def test_weights_that_do_not_exist_are_refused(tiny_program, folder) -> None:
    with pytest.raises(ArtifactError, match="no weights came with the library under the name 'other'"):
        weights.load_weights(tiny_program("shared", prior=SPACE), "other")
    assert weights.weights_made("other") == {}


def test_weights_of_another_program_are_refused(tiny_program, folder) -> None:
    weights.write_weights(tiny_program("shared", prior=SPACE), weights.weights_path("mine"))
    with pytest.raises(ArtifactError, match=r"mine\.safetensors is damaged"):
        weights.load_weights(tiny_program("shared", prior=SPACE, components=3), "mine")


def test_weights_that_are_not_numbers_are_refused(tiny_program, folder) -> None:
    program = tiny_program("shared", prior=SPACE)
    with torch.no_grad():
        program.encoders["pose"].bias[0] = torch.nan
    weights.write_weights(program, weights.weights_path("mine"))
    with pytest.raises(ArtifactError, match="NaN"):
        weights.load_weights(tiny_program("shared", prior=SPACE), "mine")
