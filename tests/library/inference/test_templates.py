"""Scores by one matrix product against the model's own density, point by point."""

import pyro
import pytest
import torch

from cryoanm_lib.errors import CryoANMError
from cryoanm_lib.imaging.forward_model import ForwardModel
from cryoanm_lib.imaging.latents import Latents
from cryoanm_lib.inference.templates import Lattice, Templates, same_projection
from cryoanm_lib.molecule.anm import normal_modes
from cryoanm_lib.program.prior import Prior
from cryoanm_lib.program.program import CryoProgram
from cryoanm_lib.program.unknowns import Unknowns


@pytest.mark.parametrize("inferred", [("pose",), ("pose", "defocus"), ("pose", "amplitude", "defocus")])
def test_scores_are_the_log_joint(tiny_program, inferred) -> None:
    """Given latents are those of each image where they differ, as the amplitude does in the first two."""
    program = tiny_program(inferred=inferred, noise=0.3)
    pyro.set_rng_seed(0)
    particles = program.simulate(3, 16)
    templates = Templates(program, 8)
    scores = templates.log_joint(particles)
    some = torch.arange(0, len(templates.lattice), 7)
    at = Unknowns.of(program).latents(templates.lattice.centre[some].float())
    at = {name: value[:, None].expand(-1, 3, *value.shape[1:]) for name, value in at.items()}
    expected = program.log_joint(particles, at, 8).T
    torch.testing.assert_close(scores[:, some], expected, rtol=1e-5, atol=1e-2)


def test_kept_templates_are_those_of_the_given_latents(tiny_program) -> None:
    """A second call with another defocus makes new ones."""
    program = tiny_program(inferred=("pose", "amplitude"), noise=0.3)
    pyro.set_rng_seed(0)
    particles = program.simulate(2, 16)
    templates = Templates(program, 8)
    first = templates.log_joint(particles)
    other = type(particles)(
        particles.coefficients, {**particles.latents, "defocus": particles.latents["defocus"] + 5}
    )
    assert not torch.allclose(templates.log_joint(other), first)
    torch.testing.assert_close(templates.log_joint(particles), first)


def test_neighbours_differ_by_half_a_pixel_at_most(tiny_program) -> None:
    program = tiny_program(inferred=("pose", "amplitude"))
    model, unknowns = program.forward_model, Unknowns.of(program)
    lattice = Lattice.covering(program, 16)
    assert (lattice.index.amax(0) % 2 == 1).all()  # even counts
    zero = torch.zeros(1, 2)
    for column in range(2):
        step = torch.zeros(1, 2)
        step[0, column] = lattice.spacing[column]
        places = []
        for values in (zero, zero + step):
            latents = unknowns.latents(values)
            angle = torch.atan2(latents["pose"][:, 1], latents["pose"][:, 0])
            places.append(
                model.positions(Latents.in_plane(angle, latents["amplitude"], torch.full((1,), 50.0)))
            )
        moved = (places[1] - places[0]).norm(dim=-1).max() * 16 / model.box_size
        assert 0.1 < moved < 0.51


def test_cells_that_differ_in_defocus_share_a_projection(tiny_program) -> None:
    program = tiny_program(inferred=("pose", "amplitude", "defocus"))
    index = torch.tensor([[0, 1, 2], [0, 1, 5], [1, 1, 2], [0, 2, 2]])
    group = same_projection(program, index)
    assert group[0] == group[1] and len(set(group.tolist())) == 3
    apart = same_projection(program, index, torch.tensor([0, 1, 0, 0]))
    assert apart[0] != apart[1]


def test_too_many_unknowns_for_a_lattice_are_refused(cluster) -> None:
    modes = normal_modes(cluster, n_modes=6, cutoff=30.0).vectors.float()
    program = CryoProgram(ForwardModel(cluster.float(), modes, box_size=32), inferred=("pose", "amplitude"))
    with pytest.raises(CryoANMError, match="is larger than 4194304: infer fewer latents, or lower K"):
        Lattice.covering(program, 32)


@pytest.mark.parametrize("inferred", [("pose", "shift"), ("pose", "contrast"), ("pose", "amplitude")])
def test_shift_and_contrast_count_given_or_not(tiny_program, inferred) -> None:
    prior = Prior(shift_scale=0.4, contrast_scale=0.2)
    program = tiny_program("shared", prior=prior, inferred=inferred, noise=0.3)
    pyro.set_rng_seed(9)
    particles, templates = program.simulate(3, 16), Templates(program, 12)
    cells = torch.arange(0, len(templates.lattice), max(1, len(templates.lattice) // 50))
    latents = Unknowns.of(program).latents(templates.lattice.centre[cells].float())
    spread = {k: v[:, None].expand(-1, 3, *v.shape[1:]) for k, v in latents.items()}
    expected = program.log_joint(particles, spread, 12)
    found = templates.log_joint(particles)[:, cells].T
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05)
