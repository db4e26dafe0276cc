"""The licences of what this project stands on are known, and go with its own."""

import contextlib
import re
from importlib.metadata import PackageNotFoundError, distribution

import pytest

from .conftest import ROOT
from .test_pages import script

# Without the CUDA libraries that torch.txt names: NVIDIA's own, and not needed.
LOCKED = {
    name
    for file in ("build", "torch_cpu", "book", "test")
    for name in re.findall(r"^([\w-]+)==", (ROOT / "requirements" / f"{file}.txt").read_text(), re.MULTILINE)
}

# Licences that ask for no more than to be named.
PERMISSIVE = {
    *("0BSD", "BSD", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "HPND", "ISC", "MIT", "MIT-CMU", "Zlib"),
    *("Apache-2.0", "Apache-2.0 WITH LLVM-exception", "PSF", "PSF-2.0"),
    *("CC0-1.0", "Public Domain", "Unlicense"),
    "LicenseRef-Biopython-License-Agreement",  # words of the HPND
}

# A file of theirs that is changed must stay under these. None is changed: they are imported as they are, and
# pip fetches them from their own makers.
WEAK_COPYLEFT = {"MPL-2.0"}

# Of docutils, the mode for Emacs alone is under the GPL, and it is not among the files that are installed.
EXCEPTIONS = {"docutils": "GPL"}


@pytest.fixture(scope="module")
def lister():
    return script("list_licences")


@pytest.fixture(scope="module")
def stated(lister) -> dict[str, str]:
    """The licence of each locked package that is installed; others are for other systems."""
    found = {}
    for name in LOCKED:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = lister.licence(distribution(name))
    assert len(found) > 100
    return found


def test_licences_go_with_ours(stated):
    def terms(name):
        found = {term.strip() for term in re.split(r",|\bAND\b|[()]", stated[name])}
        return found - {EXCEPTIONS.get(name)}

    assert not {name: stated[name] for name in stated if terms(name) - PERMISSIVE - WEAK_COPYLEFT}


def test_the_part_of_docutils_under_the_gpl_is_not_installed():
    assert not [path for path in distribution("docutils").files if path.suffix == ".el"]


def test_list_has_every_locked_package_once(lister, stated):
    table = lister.licences()
    rows = re.findall(r"^\| \[?([\w.-]+)(?:\]\(https?://[^ )]+\))? \| \S+ \| .+ \|$", table, re.MULTILINE)
    listed = [re.sub("[._]", "-", name).lower() for name in rows if name not in ("package", "---")]
    assert len(listed) == len(set(listed))
    assert stated.keys() <= set(listed)
    assert re.findall("^## (.*)", table, re.MULTILINE) == ["The library", "The book", "The tests"]


def test_the_library_stands_on_less_than_the_book(lister):
    library, book = lister.needed("cryoanm"), lister.needed("cryoanm[book]")
    assert {"torch", "sympy"} <= library.keys() < book.keys()
    assert not {"matplotlib", "sphinx", "pytest"} & library.keys()
