"""Checks each call against the library's annotations, shapes too: `python -m pytest -p tests.typechecked`."""

import pkgutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintPep585DeprecationWarning
from jaxtyping import install_import_hook

LIBRARY = Path(__file__).parents[1] / "cryoanm_lib"

# Numba compiles these from their source.
COMPILED = {"cryoanm_lib.imaging._fourier_loops", "cryoanm_lib.imaging._gridded_loops"}

# An integer will do where a number is asked for.
CHECK = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(annotated: Callable) -> Callable:
    """The same function, which looks at what it is given and at what it gives."""
    with warnings.catch_warnings():  # Pyro's distributions are made of what has a newer name by now
        warnings.simplefilter("ignore", BeartypeDecorHintPep585DeprecationWarning)
        return CHECK(annotated)


modules = {module.name for module in pkgutil.walk_packages([str(LIBRARY)], "cryoanm_lib.")}
install_import_hook(sorted(modules - COMPILED), f"{__name__}.checked")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of what the library says to mistaken arguments would end in the words of the checker."""
    for item in items:
        if item.get_closest_marker("mistyped"):
            item.add_marker(pytest.mark.skip(reason="gives what the annotations forbid"))
