"""Arrows run one way: a module imports from its own package and from those before it in `PACKAGES` alone."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import cryoanm_lib

LIBRARY = Path(cryoanm_lib.__file__).parent
MODULES = sorted(
    path for path in LIBRARY.rglob("*.py") if path.parent != LIBRARY and "data" not in path.parts[-2:]
)


def package_of(path: Path) -> str:
    return path.relative_to(LIBRARY).parts[0]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(LIBRARY.parent).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path) -> set[str]:
    """Modules of the library that a file imports, by their whole names."""
    found, known = set(), {name_of(module) for module in MODULES}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cryoanm_lib."):
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & known
            found |= inner or {node.module}
    return found


def test_every_package_has_its_place() -> None:
    assert {package_of(path) for path in MODULES} == set(cryoanm_lib.PACKAGES)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_downwards(path) -> None:
    allowed = {
        "errors",
        "settings",
        *cryoanm_lib.PACKAGES[: cryoanm_lib.PACKAGES.index(package_of(path)) + 1],
    }
    assert {name.split(".")[1] for name in imported(path)} <= allowed


def test_arrows_between_packages_are_few() -> None:
    """Each pair counts once; 12 packages could have 66."""
    pairs = {(package_of(path), name.split(".")[1]) for path in MODULES for name in imported(path)}
    assert len({pair for pair in pairs if pair[0] != pair[1] and pair[1] in cryoanm_lib.PACKAGES}) <= 48


def test_no_modules_import_each_other() -> None:
    tuple(TopologicalSorter({name_of(path): imported(path) for path in MODULES}).static_order())


def test_what_a_fit_imports_is_what_trains_it_again() -> None:
    """The workflow names the files of which an edit does not retrain: no fit may need one of them."""
    rules = ast.parse((LIBRARY.parent / "workflow" / "rules" / "common.smk").read_text())
    named = {}
    for node in rules.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("ASSESSING", "SHOWING"):
            named[ast.unparse(node.targets[0])] = ast.literal_eval(_unpacked(node.value))
    left_out = tuple(f"cryoanm_lib/{part}" for parts in named.values() for part in parts)
    assert len(left_out) > 10
    by_name = {name_of(path): path for path in MODULES}
    needed, found = ["cryoanm_lib.experiments.fit"], set()
    while needed:
        if (name := needed.pop()) in by_name and name not in found:
            found.add(name)
            needed += imported(by_name[name])
    files = [by_name[name].relative_to(LIBRARY.parent).as_posix() for name in found]
    assert len(files) > 30
    assert not [file for file in files if file.startswith(left_out)]


def _unpacked(value: ast.expr) -> ast.Tuple:
    """A tuple of which some elements are tuples with a star, written out."""
    inner = [e.value.elts if isinstance(e, ast.Starred) else [e] for e in value.elts]
    return ast.Tuple([each for elements in inner for each in elements], ast.Load())


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_pickle(path) -> None:
    text = path.read_text()
    assert "torch.load" not in text and "import pickle" not in text


@pytest.mark.parametrize("name", sorted(set(cryoanm_lib.__all__)))
def test_public_names_are_where_the_stub_says(name: str) -> None:
    assert getattr(cryoanm_lib, name) is not None and name in dir(cryoanm_lib)


def test_a_name_that_is_not_public_is_refused() -> None:
    with pytest.raises(AttributeError, match=r"has no 'CryoProgram'; it offers .*Guide, .*Model"):
        cryoanm_lib.CryoProgram  # noqa: B018
