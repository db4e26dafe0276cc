"""Write the repository's address into files that cannot look it up: notebooks, README, citation, settings.

    python workflow/scripts/write_address.py [https://github.com/someone/something]

Without one, it is that of the clone's own origin; "" takes it out of all of them. Notebooks that are opened
in Colab install the library from there, so it should be a copy whose code one trusts.
"""

import argparse
import re
from pathlib import Path

from cryoanm_lib.io.provenance import github_address, origin

# Where the address stands in a file of each kind, between what is before and after it on its line or lines.
_PLACES = {
    "_config.yml": r'(?m)(^  url: ")(.*)("$)',
    "notebooks/*.ipynb": r'("repository = \\")(.*?)(\\")',
    "README.md": r"(?s)(<!-- launch -->\n)(.*?)(<!-- /launch -->)",
    "CITATION.cff": r'(?m)(^repository-code: ")(.*)("$)',
}


def write(folder: Path, address: str) -> None:
    """Put the address, or nothing, into all places below a folder.

    Raises
    ------
    SystemExit
        If a file has no place for it.
    """
    branch = "main"
    for pattern, place in _PLACES.items():
        for path in sorted(folder.glob(pattern)):
            new = badges(address, branch) if path.name == "README.md" else address
            text = path.read_text(encoding="utf-8")
            changed, count = re.subn(place, lambda found, new=new: f"{found[1]}{new}{found[3]}", text)
            if count != 1:
                raise SystemExit(f"error: {path} has {count} places for the address instead of one")
            path.write_text(changed, encoding="utf-8")


def badges(address: str, branch: str) -> str:
    """Launch badges for a README, or nothing."""
    if not address:
        return ""
    repository, first = address.removeprefix("https://github.com/"), "notebooks/01_anm.ipynb"
    launched = {
        "[![Binder](https://mybinder.org/badge_logo.svg)]": f"https://mybinder.org/v2/gh/{repository}/{branch}"
        f"?urlpath=lab/tree/{first}",
        "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]": "https://colab.research"
        f".google.com/github/{repository}/blob/{branch}/{first}",
    }
    return "".join(f"{badge}({link})\n" for badge, link in launched.items())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("address", nargs="?")
    given = parser.parse_args().address
    address = origin() if given is None else given and github_address(given)
    if not address and given != "":
        what = "the clone's origin" if given is None else f"'{given}'"
        raise SystemExit(
            f"error: {what} is no repository on GitHub: give https://github.com/someone/something"
        )
    write(Path(), address)
    print(f"The repository's address is now {address or 'nowhere'}.")


if __name__ == "__main__":
    main()
