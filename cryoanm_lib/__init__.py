"""Physics-aware inference for cryo-EM: from an elastic network to the posterior of an image's latents.

What a notebook needs is to be had from here: `__init__.pyi` lists it. Each is loaded when first asked for.
"""

import ast
import importlib
from pathlib import Path

#: Packages from the ground up: a module imports from its own package and from those before it alone.
PACKAGES = (
    *("numerics", "io", "molecule", "imaging", "particles", "program"),
    *("checks", "inference", "analysis", "experiments", "book", "commands"),
)

_STUB = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
_PLACES = {
    alias.name: str(node.module)
    for node in _STUB.body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}
__all__ = ["PACKAGES", *_PLACES]


def __getattr__(name: str) -> object:
    """A public name, from the module that the stub says."""
    if name not in _PLACES:
        raise AttributeError(f"module 'cryoanm_lib' has no {name!r}; it offers {', '.join(sorted(__all__))}")
    place = importlib.import_module(_PLACES[name])
    found = getattr(place, name, None) or importlib.import_module(f"{_PLACES[name]}.{name}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
