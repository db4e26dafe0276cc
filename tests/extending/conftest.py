"""What the examples of extension share: a molecule to be seen, and what they must hold to."""

from collections.abc import Callable

import pytest

from cryoanm_lib import ForwardModel
from tests.all_the_way import adenylate_kinase, goes_all_the_way


@pytest.fixture
def forward() -> Callable[..., ForwardModel]:
    """See `adenylate_kinase`."""
    return adenylate_kinase


@pytest.fixture
def all_the_way() -> Callable[..., None]:
    """See `goes_all_the_way`."""
    return goes_all_the_way
