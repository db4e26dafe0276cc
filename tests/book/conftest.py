import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
HTML = ROOT / "book" / "_build" / "html"


@pytest.fixture(scope="session")
def config():
    return yaml.safe_load((ROOT / "_config.yml").read_text())


@pytest.fixture(scope="session")
def tracked():
    """Paths that git tracks, or would once what is new here is added."""
    command = ["git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard"]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        pytest.skip(f"not a git checkout: {process.stderr.strip()}")
    return {line for line in process.stdout.splitlines() if (ROOT / line).exists()}


@pytest.fixture(scope="session")
def toc():
    """Names of the book's pages, in order, as the table of contents lists them."""
    content = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    return [content["root"], *(page["file"] for part in content["parts"] for page in part["chapters"])]


@pytest.fixture(scope="session")
def pages(toc):
    """The built pages by name, read into text; skips where no book has been built."""
    if not (HTML / "index.html").exists():
        pytest.skip("no book in book/_build/html; `make book PROFILE=smoke` builds one")
    return {name: (HTML / f"{name}.html").read_text() for name in toc}
