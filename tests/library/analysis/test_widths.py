"""How wide a prior is to be: found from numbers that are known to some error each, or left as expected."""

import pytest
import torch

from cryoanm_lib.analysis.widths import _seen, prior_width

torch.set_num_threads(1)


def numbers(width: float, middle: float, error: float) -> tuple[torch.Tensor, torch.Tensor]:
    """What images say of 2000 numbers of a mean and width, with errors that differ by a factor of three."""
    count = 2000
    generator = torch.Generator().manual_seed(1)
    draws = torch.randn(2, count, generator=generator, dtype=torch.float64)
    errors = error * torch.linspace(0.5, 1.5, count, dtype=torch.float64)
    return middle + width * draws[0] + errors * draws[1], errors**-2


@pytest.mark.parametrize("error", [0.1, 1.0, 3.0])
def test_a_width_is_found_through_the_errors(error: float) -> None:
    """Within five standard errors, about 2^-1/2 (1 + error²) / n^1/2 of it; false alarm below 1e-5."""
    middle, width = prior_width(*numbers(1.0, 0.0, error), expected=2.0)
    assert middle == 0.0
    assert abs(width - 1.0) < 5 * (1 + error**2) / (2 * 2000) ** 0.5


def test_a_mean_is_found_where_it_is_free() -> None:
    middle, width = prior_width(*numbers(1.0, 4.0, 0.5), expected=2.0, free=True)
    assert abs(middle - 4.0) < 5 * 1.2 / 2000**0.5
    assert abs(width - 1.0) < 5 * 1.25 / 4000**0.5
    # held at 0, the mean is part of the width
    assert prior_width(*numbers(1.0, 4.0, 0.5), expected=2.0)[1] == pytest.approx(17**0.5, rel=0.05)


def test_numbers_that_say_nothing_leave_what_was_expected() -> None:
    nothing = torch.zeros(50, dtype=torch.float64), torch.full((50,), 1e-12, dtype=torch.float64)
    assert prior_width(*nothing, expected=0.3)[1] == pytest.approx(0.3, rel=0.2)


def test_a_width_of_nothing_is_found_to_be_small() -> None:
    assert prior_width(*numbers(0.0, 0.0, 0.01), expected=1.0)[1] < 0.02


def test_what_images_say_is_the_posterior_less_the_prior() -> None:
    """Of a normal prior and a normal likelihood, whose product is given."""
    middle, width = torch.tensor([0.5]).double(), torch.tensor([2.0]).double()
    said, error = torch.tensor([[3.0], [-1.0]]).double(), torch.tensor([[1.5], [0.2]]).double()
    precision = error**-2 + width**-2
    mean = (said / error**2 + middle / width**2) / precision
    seen, found = _seen(mean, 1 / precision, middle, width)
    torch.testing.assert_close(seen, said)
    torch.testing.assert_close(found, error**-2)
