"""The built book: every page is there, its links open tracked files, and it needs no network."""

import re
from html.parser import HTMLParser
from urllib.parse import parse_qs, urlsplit

from cryoanm_lib.io.provenance import origin

from .conftest import HTML

ERROR_MARKS = (
    'class="system-message',
    'class="problematic',
    "papermill-error-cell",
    "Traceback (most recent",
)


class Links(HTMLParser):
    """Collects the addresses that a page opens by itself, and those that a reader may follow."""

    def __init__(self, text):
        super().__init__()
        self.loaded, self.followed = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "a" and attributes.get("href"):
            self.followed.append(attributes["href"])
        elif tag == "link" and "canonical" not in attributes.get("rel", ""):
            self.loaded.append(attributes.get("href") or "")
        else:
            self.loaded += [attributes[k] for k in ("src", "srcset", "data", "poster") if attributes.get(k)]


def outside(address):
    return bool(urlsplit(address).netloc)


def test_front_page_leads_to_the_first_page(toc, pages):
    assert f"{toc[0]}.html" in (HTML / "index.html").read_text() or toc[0] == "index"


def test_pages_load_nothing_from_the_network(pages):
    for name, text in pages.items():
        assert not [address for address in Links(text).loaded if outside(address)], name
        assert not re.search(r"@import\s+(?:url\()?['\"]?(?:https?:)?//", text), name


def test_styles_load_nothing_from_the_network(pages):
    remote = re.compile(r"(?:url\(\s*['\"]?|@import\s+['\"])(?:https?:)?//")
    assert not [path.name for path in (HTML / "_static").rglob("*.css") if remote.search(path.read_text())]


def test_pages_with_equations_use_the_mathjax_that_is_beside_them(pages):
    with_equations = {name: text for name, text in pages.items() if 'class="math' in text}
    assert with_equations
    for name, text in with_equations.items():
        (script,) = (address for address in Links(text).loaded if "mathjax" in address.lower())
        assert (HTML / name).parent.joinpath(script.split("?")[0]).resolve().is_file(), name


def test_every_local_link_leads_somewhere(pages):
    for name, text in pages.items():
        links = Links(text)
        for address in links.loaded + links.followed:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc or not parts.path:
                continue
            assert (HTML / name).parent.joinpath(parts.path).resolve().exists(), f"{name} links to {address}"


def test_launch_buttons_open_tracked_files(config, pages, tracked):
    """Of the address that is set or the clone's origin; without either there are none."""
    url, branch = config["repository"]["url"] or origin(), config["repository"]["branch"]
    ours = url.removeprefix("https://github.com/")
    for name in (name for name in pages if name.startswith("notebooks/")):
        opened = {}
        for address in Links(pages[name]).followed:
            parts = urlsplit(address)
            if parts.netloc == "mybinder.org":
                assert parts.path == f"/v2/gh/{ours}/{branch}"
                opened["binder"] = parse_qs(parts.query)["urlpath"][0].removeprefix("lab/tree/")
            elif parts.netloc == "colab.research.google.com":
                opened["colab"] = parts.path.removeprefix(f"/github/{ours}/blob/{branch}/")
        assert opened == ({"binder": f"{name}.ipynb", "colab": f"{name}.ipynb"} if url else {})
        assert set(opened.values()) <= tracked


def test_no_page_shows_an_error(pages):
    for name, text in pages.items():
        shown = [mark for mark in ERROR_MARKS if mark in text]
        assert not shown, name


def test_notebook_pages_show_the_values_they_were_run_with(pages):
    for name in (name for name in pages if name.startswith("notebooks/")):
        assert "# Parameters" in pages[name], name


def test_no_stale_page_is_left(toc, pages):
    built = {path.relative_to(HTML).with_suffix("").as_posix() for path in HTML.rglob("*.html")}
    made_by_sphinx = {"index", "search", "genindex"}
    assert {name for name in built if not name.startswith("_")} - made_by_sphinx == set(toc) - made_by_sphinx
