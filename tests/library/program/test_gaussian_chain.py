"""A Gaussian in links: their product is the whole, and drawing one by one gives its covariance."""

import pyro
import pytest
import torch

from cryoanm_lib.program.gaussian_chain import GaussianChain

SHAPES = {"shift": (2,), "amplitude": (1,), "defocus": ()}


def gaussian(seed: int = 0, batch: tuple[int, ...] = ()) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(*batch, 4, generator=generator, dtype=torch.float64)
    square = torch.randn(*batch, 4, 4, generator=generator, dtype=torch.float64)
    return mean, square.tril(-1) + torch.diag_embed(square.diagonal(dim1=-2, dim2=-1).abs() + 0.3)


def test_the_product_of_the_links_is_the_gaussian() -> None:
    mean, scale = gaussian(batch=(3, 5))
    values = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    drawn = {"shift": values[:, :2], "amplitude": values[:, 2:3], "defocus": values[:, 3]}
    chain = GaussianChain(mean, scale, SHAPES)
    found = sum(chain.conditional(name, drawn).log_prob(drawn[name]) for name in SHAPES)
    whole = torch.distributions.MultivariateNormal(mean, scale_tril=scale)
    torch.testing.assert_close(found, whole.log_prob(values))


def test_draws_one_by_one_have_its_covariance() -> None:
    """Of 40 000 draws, entry by entry within six standard errors: false alarm below 1e-7."""
    mean, scale = gaussian(2)
    n = 40_000
    chain, drawn = GaussianChain(mean.expand(n, 4), scale.expand(n, 4, 4), SHAPES), {}
    pyro.set_rng_seed(3)
    for name in SHAPES:
        drawn[name] = chain.conditional(name, drawn).sample()
    values = torch.cat([drawn["shift"], drawn["amplitude"], drawn["defocus"][:, None]], dim=1)
    covariance = scale @ scale.T
    variances = covariance.diagonal()
    error = ((covariance.square() + variances[:, None] * variances) / n).sqrt()
    assert ((values.T.cov() - covariance).abs() < 6 * error).all()
    assert ((values.mean(0) - mean).abs() < 6 * (variances / n).sqrt()).all()


def test_a_latent_that_is_not_a_link_is_refused() -> None:
    drawn = {"shift": torch.zeros(2).double(), "amplitude": torch.zeros(1).double()}
    drawn["defocus"] = torch.tensor(0.0).double()
    with pytest.raises(KeyError, match="contrast"):
        GaussianChain(*gaussian(), SHAPES).conditional("contrast", drawn)
