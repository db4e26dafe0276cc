"""A new prior: two states of a molecule, open and closed, each with a width."""

import pyro.distributions as dist
import torch

from cryoanm_lib import LatticeSearch, Model, Prior, refine


class TwoStates(Prior):
    """Amplitudes from two equal Gaussians at ± `separation`, each `width` wide."""

    separation: float = 6.0
    width: float = 1.0

    def distribution(self, name, n_modes, like):
        if name != "amplitude":
            return super().distribution(name, n_modes, like)
        middles = self.separation * like.new_tensor([-1.0, 1.0]).expand(n_modes, 2)
        states = dist.Normal(middles, self.width)
        return dist.MixtureSameFamily(dist.Categorical(torch.ones_like(middles)), states).to_event(1)


def test_two_states_have_honest_error_bars(forward, all_the_way):
    model = Model(forward(), TwoStates(), noise=0.3, inferred=("pose", "amplitude"))
    torch.manual_seed(4)
    images = model.simulate(200, 32)
    amplitude = images.truth["amplitude"][:, 0]
    # Both states are drawn: fewer than 60 of 200 in one happen once in 10⁸ times.
    assert 60 < int((amplitude > 0).sum()) < 140
    all_the_way(model, images)


def test_a_search_finds_the_state_whatever_it_is(forward):
    model = Model(forward(), TwoStates(), noise=0.1, inferred=("pose", "amplitude"))
    torch.manual_seed(5)
    images = model.simulate(50, 32)
    search = LatticeSearch(model, 32)
    posterior = refine(model, images, 32, search.starts(images), search)
    mean = posterior.mean()["amplitude"][:, 0]
    assert ((mean > 0) == (images.truth["amplitude"][:, 0] > 0)).all()
