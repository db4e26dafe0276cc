"""Columns and latents are two ways to write the same."""

import math

import pytest
import torch

from cryoanm_lib.unknowns import Unknowns


@pytest.mark.parametrize("names", [("pose",), ("amplitude", "defocus"), ("pose", "amplitude", "defocus")])
def test_there_and_back(names) -> None:
    unknowns = Unknowns(names, n_modes=2)
    values = torch.linspace(-3, 3, 4 * len(unknowns.columns)).view(2, 2, -1)
    torch.testing.assert_close(unknowns.values(unknowns.latents(values)), values)


def test_names_follow_the_program(tiny_program) -> None:
    assert Unknowns.of(tiny_program(inferred=("defocus", "pose"))).columns == ("pose", "defocus")


def test_only_the_angle_goes_round(tiny_program) -> None:
    unknowns = Unknowns(("pose", "amplitude"), n_modes=1)
    wrapped = unknowns.moved(torch.tensor([0.0, 0.0]), torch.tensor([7.0, 7.0]))
    torch.testing.assert_close(wrapped, torch.tensor([7.0 - 2 * math.pi, 7.0]))
