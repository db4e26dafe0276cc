"""Scores by one matrix product against the model's own density, point by point."""

from dataclasses import replace

import pyro
import pytest
import torch

from cryoanm_lib.errors import CryoANMError
from cryoanm_lib.imaging.forward_model import ForwardModel
from cryoanm_lib.imaging.latents import in_plane
from cryoanm_lib.inference.templates import Lattice, Templates, same_projection
from cryoanm_lib.molecule.anm import normal_modes
from cryoanm_lib.program.log_joint import log_joint
from cryoanm_lib.program.prior import Prior
from cryoanm_lib.program.program import Model


@pytest.mark.parametrize("inferred", [("pose",), ("pose", "defocus"), ("pose", "amplitude", "defocus")])
def test_scores_are_the_log_joint(tiny_model, inferred) -> None:
    """Given latents are those of each image where they differ, as the amplitude does in the first two."""
    model = tiny_model(inferred=inferred, noise=0.3)
    pyro.set_rng_seed(0)
    particles = model.simulate(3, 16)
    templates = Templates(model, 8)
    scores = templates.log_joint(particles)
    some = torch.arange(0, len(templates.lattice), 7)
    at = model.unknowns.values(templates.lattice.centre[some].float())
    at = {name: value[:, None].expand(-1, 3, *value.shape[1:]) for name, value in at.items()}
    expected = log_joint(model, particles, at, 8).T
    torch.testing.assert_close(scores[:, some], expected, rtol=1e-5, atol=1e-2)


def test_kept_templates_are_those_of_the_given_latents(tiny_model) -> None:
    """A second call with another defocus makes new ones."""
    model = tiny_model(inferred=("pose", "amplitude"), noise=0.3)
    pyro.set_rng_seed(0)
    particles = model.simulate(2, 16)
    templates = Templates(model, 8)
    first = templates.log_joint(particles)
    other = replace(particles, given={"defocus": particles.given["defocus"] + 5})
    assert not torch.allclose(templates.log_joint(other), first)
    torch.testing.assert_close(templates.log_joint(particles), first)


def test_neighbours_differ_by_half_a_pixel_at_most(tiny_model) -> None:
    model = tiny_model(inferred=("pose", "amplitude"))
    forward, unknowns = model.forward_model, model.unknowns
    lattice = Lattice.covering(model, 16)
    assert (lattice.index.amax(0) % 2 == 1).all()  # even counts
    zero = torch.zeros(1, 2)
    for column in range(2):
        step = torch.zeros(1, 2)
        step[0, column] = lattice.spacing[column]
        places = []
        for values in (zero, zero + step):
            latents = unknowns.values(values)
            angle = torch.atan2(latents["pose"][:, 1], latents["pose"][:, 0])
            places.append(
                forward.positions(in_plane(angle, latents["amplitude"], defocus=torch.full((1,), 50.0)))
            )
        moved = (places[1] - places[0]).norm(dim=-1).max() * 16 / forward.box_size
        assert 0.1 < moved < 0.51


def test_cells_that_differ_in_defocus_share_a_projection(tiny_model) -> None:
    model = tiny_model(inferred=("pose", "amplitude", "defocus"))
    index = torch.tensor([[0, 1, 2], [0, 1, 5], [1, 1, 2], [0, 2, 2]])
    group = same_projection(model.unknowns, index)
    assert group[0] == group[1] and len(set(group.tolist())) == 3
    apart = same_projection(model.unknowns, index, torch.tensor([0, 1, 0, 0]))
    assert apart[0] != apart[1]


def test_too_many_unknowns_for_a_lattice_are_refused(cluster) -> None:
    modes = normal_modes(cluster, n_modes=6, cutoff=30.0).vectors.float()
    model = Model(ForwardModel(cluster.float(), modes, box_size=32), inferred=("pose", "amplitude"))
    with pytest.raises(CryoANMError, match="is larger than 4194304: infer fewer latents, or lower K"):
        Lattice.covering(model, 32)


@pytest.mark.parametrize("inferred", [("pose", "shift"), ("pose", "contrast"), ("pose", "amplitude")])
def test_shift_and_contrast_count_given_or_not(tiny_model, inferred) -> None:
    prior = Prior(shift_scale=0.4, contrast_scale=0.2)
    model = tiny_model(prior=prior, inferred=inferred, noise=0.3)
    pyro.set_rng_seed(9)
    particles, templates = model.simulate(3, 16), Templates(model, 12)
    cells = torch.arange(0, len(templates.lattice), max(1, len(templates.lattice) // 50))
    latents = model.unknowns.values(templates.lattice.centre[cells].float())
    spread = {k: v[:, None].expand(-1, 3, *v.shape[1:]) for k, v in latents.items()}
    expected = log_joint(model, particles, spread, 12)
    found = templates.log_joint(particles)[:, cells].T
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05)
