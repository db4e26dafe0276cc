"""A molecule with two modes and an image whose latents are known, for tests of the likelihood."""

import torch
from torch import Tensor

from cryoanm_lib.imaging.forward_model import ForwardModel
from cryoanm_lib.imaging.latents import in_plane
from cryoanm_lib.molecule.anm import normal_modes
from cryoanm_lib.molecule.structure import load_structure

TRUTH = {"pose": 0.4, "amplitude": 1.5, "amplitude_2": -2.0, "defocus": 50.0, "shift_x": 0.5, "shift_y": -1.0}


def two_modes() -> ForwardModel:
    reference = load_structure("adk_open").coordinates
    return ForwardModel(reference, normal_modes(reference, n_modes=2).vectors, pixel_size=1.5)


def latents_of(values: dict[str, float]) -> dict[str, Tensor]:
    """By keyword, as `landscape` names them, and not by its own code."""
    number = {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
    return in_plane(
        number["pose"],
        torch.stack([number["amplitude"], number["amplitude_2"]]),
        defocus=number["defocus"],
        shift=torch.stack([number["shift_x"], number["shift_y"]]),
    )
