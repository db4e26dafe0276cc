import os
import shutil
import subprocess
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import yaml
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[2]
HTML = ROOT / "book" / "_build" / "html"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def table_of_contents():
    """Names of the book's pages, in order."""
    content = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    return [content["root"], *(page["file"] for part in content["parts"] for page in part["chapters"])]


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
    return table_of_contents()


@pytest.fixture(scope="session")
def pages(toc):
    """The built pages by name, read into text; skips where no book has been built."""
    if not (HTML / "index.html").exists():
        pytest.skip("no book in book/_build/html; `make book PROFILE=smoke` builds one")
    return {name: (HTML / f"{name}.html").read_text() for name in toc}


class Files(SimpleHTTPRequestHandler):
    """Serves without a word; a browser that leaves a page may hang up on what it no longer needs."""

    def log_message(self, *args):
        pass

    def copyfile(self, source, outputfile):
        with suppress(ConnectionError):
            super().copyfile(source, outputfile)


@pytest.fixture(scope="module")
def site(pages):
    """Address at which the built book is served, on this machine and to it alone."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=HTML)) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def chromium():
    """The system's Chromium, driven by Playwright; skips where there is none, but for CI."""
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no browser: none of {', '.join(BROWSERS)}")
    quiet = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    quiet += ["--disable-background-networking", "--disable-component-update"]
    as_root = hasattr(os, "geteuid") and os.geteuid() == 0  # who may not have Chromium's sandbox
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable, chromium_sandbox=not as_root, args=quiet
        )
        yield browser
        browser.close()
