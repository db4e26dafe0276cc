"""What the book is made of fits together, before anything is built."""

import importlib
import inspect
import json
import pkgutil
import re

import nbformat
import pytest

import cryoanm_lib

from .conftest import ROOT

MODULES = {
    module.name
    for module in pkgutil.walk_packages(cryoanm_lib.__path__, "cryoanm_lib.")
    if not module.name.startswith(("cryoanm_lib.data", "cryoanm_lib.__main__"))
}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PARAMETERS = {"profile": "smoke", "structure": "adk_open"}


def source_of(page):
    """Where the text of a page comes from: pages under notebooks/ come from notebooks of that name."""
    return f"{page}.ipynb" if page.startswith("notebooks/") else f"book/{page}.md"


def test_toc_and_sources_are_the_same_set(toc, tracked):
    sources = {p for p in tracked if re.fullmatch(r"notebooks/[^/]+\.ipynb|book/[^/]+\.md", p)}
    assert {source_of(page) for page in toc} == sources
    assert len(set(toc)) == len(toc)


def test_generated_pages_are_not_tracked(tracked):
    generated = ("results/", "book/_build/", "book/notebooks/", "book/generated/")
    assert not [path for path in tracked if path.startswith(generated)]


def test_every_test_file_that_a_page_names_is_there():
    named = set(re.findall(r"`((?:\w+/)*test_\w+)`", (ROOT / "book" / "testing.md").read_text()))
    assert len(named) > 15
    assert not [path for path in sorted(named) if not (ROOT / "tests" / f"{path}.py").is_file()]


def test_every_figure_of_the_tests_has_its_test():
    """A test that is renamed or gone takes its figures out of the book."""
    for node in json.loads((ROOT / "tests" / "counts.json").read_text()):
        path, _, name = node.partition("::")
        text = (ROOT / path).read_text()
        assert f"def {name}(" in text and "count(" in text, node


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_committed_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not [cell.id for cell in code if cell.outputs or cell.execution_count is not None]
    assert "widgets" not in notebook.metadata
    assert notebook.metadata.kernelspec.name == "python3"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_has_one_parameters_cell_with_smoke_defaults(path):
    notebook = nbformat.read(path, as_version=4)
    (cell,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    values = {}
    exec(cell.source, values)
    assert {name: values[name] for name in PARAMETERS} == PARAMETERS
    assert isinstance(values["results"], str)


def repository_links(text):
    """Repositories, as owner/name, that launch links and badges in a text point at."""
    services = r"(?:mybinder\.org/v2/gh|colab\.research\.google\.com/github)"
    return set(re.findall(services + r"/([\w-]+/[\w.-]+)", text))


def test_the_repository_address_stands_in_one_place(config, tracked):
    """Files that must repeat it (a README cannot compute) say exactly what _config.yml says."""
    url, branch = config["repository"]["url"], config["repository"]["branch"]
    ours = url.removeprefix("https://github.com/")
    readme = (ROOT / "README.md").read_text()
    assert repository_links(readme) == {ours}
    assert f"mybinder.org/v2/gh/{ours}/{branch}" in readme
    assert f"colab.research.google.com/github/{ours}/blob/{branch}/" in readme

    may_repeat = {"_config.yml", "README.md", "CITATION.cff"}
    for path in sorted(tracked):
        if path.endswith((".safetensors", ".gz", ".png")):
            continue
        text = (ROOT / path).read_text(errors="ignore")
        assert repository_links(text) <= {ours}, path
        if not path.startswith("notebooks/"):  # they install the library in Colab
            assert path in may_repeat or url not in text, f"{path} repeats the repository's address"
        for found in re.findall(rf"github\.com/([\w-]+/{ours.split('/')[1]})\b", text):
            assert found == ours, path


def test_launch_links_open_tracked_files(config, toc, tracked):
    """Computed as the theme does: path_to_book, the page's name, .ipynb."""
    folder = config["repository"]["path_to_book"].strip("/")
    for page in (page for page in toc if page.startswith("notebooks/")):
        assert f"{folder}/{page}.ipynb".lstrip("/") in tracked


@pytest.mark.parametrize("name", ["README", "CONTRIBUTING"])
def test_links_of_a_page_open_tracked_files(name, tracked):
    page = (ROOT / f"{name}.md").read_text()
    linked = re.findall(r"urlpath=lab/tree/([\w./-]+)", page) + re.findall(r"/blob/\w+/([\w./-]+)", page)
    linked += [path for path in re.findall(r"\]\(([\w./-]+)\)", page) if "://" not in path]
    assert linked
    assert not [path for path in linked if path not in tracked]


def test_every_citation_is_known_and_every_reference_can_be_looked_up(tracked):
    entries = re.split(r"^@", (ROOT / "book/references.bib").read_text(), flags=re.MULTILINE)[1:]
    known = {re.match(r"\w+\{([^,]+),", entry)[1]: entry for entry in entries}
    findable = re.compile(r"^\s*(doi|url)\s*=", re.MULTILINE)
    unpublished = {"woollard2022"}  # a manuscript: no DOI is known to us
    assert {key for key, entry in known.items() if not findable.search(entry)} <= unpublished

    cited = set()
    for path in tracked:
        if path.endswith(".ipynb"):
            text = "\n".join(cell.source for cell in nbformat.read(ROOT / path, as_version=4).cells)
        elif path.startswith("book/") and path.endswith(".md"):
            text = (ROOT / path).read_text()
        else:
            continue
        for keys in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", text):
            cited |= {key.strip() for key in keys.split(",")}
    assert cited
    assert cited <= set(known)


def _resolve(name):
    """What a name of the symbols page stands for: of a module, of a class, or a parameter in parentheses."""
    thing, _, parameter = name.rstrip(")").partition("(")
    first, *rest = thing.split(".")
    modules = {name.rpartition(".")[2]: importlib.import_module(name) for name in sorted(MODULES)}
    if first in modules:
        found = modules[first]
    else:
        (found,) = {getattr(module, first) for module in modules.values() if hasattr(module, first)}
    for part in rest:
        declared = {**getattr(found, "__annotations__", {}), **getattr(found, "model_fields", {})}
        found = declared[part] if part in declared else getattr(found, part, None) or _argument(found, part)
    return _argument(found, parameter) if parameter else found


def _argument(function, name):
    return inspect.signature(function).parameters[name]


def test_every_name_of_the_symbols_page_exists():
    names = re.findall(r"`([^`]+)`", (ROOT / "book/symbols.md").read_text())
    assert len(names) > 40
    for name in names:
        assert _resolve(name), name


def test_every_package_is_on_the_page_of_the_library():
    shown = re.findall(r"<!-- api: (\w+) -->", (ROOT / "book/api.md").read_text())
    assert sorted(shown) == sorted(cryoanm_lib.PACKAGES)
