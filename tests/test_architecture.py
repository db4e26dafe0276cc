"""Arrows run one way: a module imports from those above it in `cryoanm_lib.ORDER` alone."""

import ast
from pathlib import Path

import pytest

import cryoanm_lib

LIBRARY = Path(cryoanm_lib.__file__).parent
FOLDERS = ("plots", "widgets")
MODULES = sorted(p for p in LIBRARY.glob("*.py") if p.name != "__init__.py") + sorted(
    p for folder in FOLDERS for p in LIBRARY.glob(f"{folder}/*.py")
)


def module_of(path: Path) -> str:
    return path.relative_to(LIBRARY).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Modules of the library that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cryoanm_lib"):
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return found


def test_every_module_has_its_place() -> None:
    assert {module_of(p) for p in MODULES} == set(cryoanm_lib.ORDER)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(LIBRARY).as_posix())
def test_imports_point_upwards(path) -> None:
    place = cryoanm_lib.ORDER.index(module_of(path))
    allowed = {*cryoanm_lib.ORDER[:place], module_of(path) if path.parent.name in FOLDERS else ""}
    assert imported(path) <= allowed


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(LIBRARY).as_posix())
def test_no_pickle(path) -> None:
    text = path.read_text()
    assert "torch.load" not in text and "import pickle" not in text
