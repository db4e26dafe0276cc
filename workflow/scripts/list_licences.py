"""What the book stands on: every package that it needs and the licence of each, as their own metadata say."""

import argparse
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cryoanm_lib.book.tables import markdown_table

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# Each with what the ones before it do not need.
PARTS = {"The library": "cryoanm", "The book": "cryoanm[book]", "The tests": "cryoanm[test]"}

# Short names of the licences that metadata spell out.
_SHORT = {
    "Apache 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD",
    "GNU General Public License (GPL)": "GPL",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF",
}

# Labels under which projects give their address, the best first.
_HOMES = (
    "homepage",
    "home",
    "repository",
    "source",
    "source code",
    "github",
    "code",
    "home-page",
    "documentation",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, help="the page's table, in Markdown")
    path = parser.parse_args().path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(licences() + "\n", encoding="utf-8")


def licences() -> str:
    """A table in Markdown for each part whose packages are installed: name, version and licence."""
    sections, known = [], set()
    for title, requirement in PARTS.items():
        packages = needed(requirement)
        rows = [_row(packages[name]) for name in sorted(packages.keys() - known)]
        known |= packages.keys()
        if rows:
            sections.append(f"## {title}\n\n{markdown_table(['package', 'version', 'licence'], rows)}")
    return "\n\n".join(sections)


def needed(requirement: str) -> dict[str, Distribution]:
    """Installed packages that this project with its extras needs on this system, directly or not, by name."""
    found, seen, waiting = {}, set(), [Requirement(requirement)]
    while waiting:
        wanted = waiting.pop()
        if (wanted.name, *wanted.extras) in seen:
            continue
        seen.add((wanted.name, *wanted.extras))
        if wanted.name == PROJECT["name"]:
            lists = [PROJECT["dependencies"], *map(PROJECT["optional-dependencies"].get, wanted.extras)]
            waiting += [Requirement(line) for lines in lists for line in lines]
            continue
        try:
            package = distribution(wanted.name)
        except PackageNotFoundError:  # of an extra that is not installed
            continue
        found[canonicalize_name(wanted.name)] = package
        chosen = [{"extra": extra} for extra in ("", *wanted.extras)]
        asked = map(Requirement, package.requires or ())
        waiting += [each for each in asked if not each.marker or any(map(each.marker.evaluate, chosen))]
    return found


def licence(package: Distribution) -> str:
    """What a package says of its licence: in SPDX, by classifiers, in a word, or in the title of its text."""
    stated = package.metadata
    if expression := stated.get("License-Expression"):
        return expression
    classifiers = [
        c.split(" :: ")[-1] for c in stated.get_all("Classifier", []) if c.startswith("License ::")
    ]
    if classifiers:
        return ", ".join(_SHORT.get(name, name) for name in classifiers)
    word = (stated.get("License") or "").strip() or _title(package)
    return _SHORT.get(word, word) if word and "\n" not in word else "not stated"


def _title(package: Distribution) -> str:
    """First line of the licence's text that a package comes with."""
    paths = [path for path in package.files or () if path.name.upper().startswith(("LICENSE", "LICENCE"))]
    return paths[0].read_text().strip().partition("\n")[0] if paths else ""


def _row(package: Distribution) -> list[str]:
    name, address = package.metadata["Name"], _home(package)
    return [f"[{name}]({address})" if address else name, package.version, licence(package)]


def _home(package: Distribution) -> str | None:
    """Where a project is at home, if it says so."""
    entries = (entry.partition(",") for entry in package.metadata.get_all("Project-URL", []))
    addresses = {label.strip().lower(): address.strip() for label, _, address in entries}
    addresses["home-page"] = package.metadata.get("Home-page", "")
    found = (addresses.get(label, "") for label in _HOMES)
    return next((address for address in found if address.startswith("http")), None)


if __name__ == "__main__":
    main()
