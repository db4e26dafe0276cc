"""The built book as a reader meets it, in a browser: on a desk, on a phone, in light and in the dark."""

import html
import re
from collections.abc import Callable
from functools import cache
from urllib.error import HTTPError
from urllib.parse import unquote, urldefrag, urlsplit
from urllib.request import urlopen

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, Page

from .conftest import HTML, table_of_contents

pytestmark = pytest.mark.thorough  # minutes, in a browser

DESK = {"width": 1280, "height": 2000}  # so high that the sidebar needs no scrolling
PHONE = {"width": 390, "height": 844}
MOST_MEGABYTES = 3.0
MOST_ENTRIES = 40

PAGES = [*table_of_contents(), "search"]


def moving_figures():
    """Each moving figure of the book as it is built: its page, and its place among those of the page."""
    for name in table_of_contents():
        file = HTML / f"{name}.html"
        text = file.read_text() if file.exists() else ""
        yield from ((name, place) for place in range(len(re.findall(r'<figure class="cryoanm-', text))))


class Visit:
    """A page that a browser has opened and set, with what it asked for and complained of meanwhile."""

    def __init__(self, page: Page, address: str):
        self.page = page
        self.asked, self.complaints = [], []
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        page.goto(address)
        page.evaluate("async () => { await window.MathJax?.startup?.promise }")

    def attributes(self, selector: str, name: str) -> list:
        """Property of that name of all that a selector finds."""
        return self.page.eval_on_selector_all(selector, f"all => all.map((each) => each.{name})")


@pytest.fixture
def visit(site, chromium):
    """Open a page of the book: `visit(name, **context)`."""
    contexts = []

    def open_page(name: str, **options) -> Visit:
        contexts.append(chromium.new_context(reduced_motion="reduce", has_touch=True, **options))
        return Visit(contexts[-1].new_page(), f"{site}/{name}")

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="module", params=PAGES)
def desk(request, site, chromium):
    """One page of the book after the other, in light, on a desk."""
    context = chromium.new_context(reduced_motion="reduce", viewport=DESK)
    yield Visit(context.new_page(), f"{site}/{request.param}.html")
    context.close()


@cache
def fragments(address):
    """What a fragment can point at in a page of the book; none where nothing answers."""
    try:
        with urlopen(address) as answer:
            text = answer.read().decode() if answer.headers.get_content_type() == "text/html" else ""
    except HTTPError as error:
        error.close()
        return None
    return {html.unescape(each) for each in re.findall(r'\bid="([^"]+)"', text)}


def test_page_loads_without_complaint_and_asks_for_nothing_outside(desk, site):
    assert not desk.complaints
    assert not [address for address in desk.asked if not address.startswith((f"{site}/", "data:", "blob:"))]


def test_links_lead_somewhere(desk, site):
    links = {link for link in desk.attributes("a[href]", "href") if link.startswith(f"{site}/")}
    assert links
    for address, fragment in map(urldefrag, sorted(links)):
        assert fragments(address) is not None, address
        assert not fragment or unquote(fragment) in fragments(address), f"{address}#{fragment}"


def test_images_are_seen_and_described(desk):
    images = desk.page.eval_on_selector_all(
        "img", "all => all.map((image) => [image.naturalWidth, image.alt.trim(), image.src.slice(0, 80)])"
    )
    assert not [source for width, alt, source in images if not width or not alt]


def test_equations_are_set(desk):
    """No TeX is left in the text, as where a line of it begins like an item of a list, and none is faulty."""
    left = r"""(main) => {
        const walker = document.createTreeWalker(main, NodeFilter.SHOW_TEXT), found = [];
        while (walker.nextNode()) {
            const { data, parentElement } = walker.currentNode;
            const elsewhere = parentElement.closest("pre, code, script, style, mjx-container");
            if (!elsewhere && /\\[a-z]{2,}/i.test(data)) found.push(data);
        }
        return found;
    }"""
    assert not desk.page.locator("main").evaluate(left)
    assert desk.page.locator("mjx-merror").count() == 0


def test_page_is_light(desk, site):
    sources = {s for s in [desk.page.url, *desk.attributes("img", "currentSrc")] if s.startswith(f"{site}/")}
    weight = sum((HTML / unquote(urlsplit(source).path).lstrip("/")).stat().st_size for source in sources)
    assert weight < MOST_MEGABYTES * 1e6


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_page_is_accessible(desk, theme):
    """No serious finding of axe, contrast among them; of hundreds of like entries the first are looked at."""
    desk.page.emulate_media(color_scheme=theme, reduced_motion="reduce")
    desk.page.wait_for_selector(f"html[data-theme={theme}]")
    desk.page.eval_on_selector_all(
        "dl.py", "(all, most) => all.slice(most).forEach((each) => each.remove())", MOST_ENTRIES
    )
    # Without preload, which asks again for style sheets and gets the address of one of them wrong.
    found = Axe().run(desk.page, options={"resultTypes": ["violations"], "preload": False}).response
    serious = [rule for rule in found["violations"] if rule["impact"] in ("serious", "critical")]
    assert not [
        (rule["id"], node["html"], node["failureSummary"]) for rule in serious for node in rule["nodes"]
    ]


@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_wider_than_a_phone(visit, name):
    page = visit(f"{name}.html", viewport=PHONE).page
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


WIDE = """() => {
    const room = (part) => Math.min(part.clientWidth, part.parentElement.clientWidth || Infinity);
    const width = (part) => part.querySelector(":scope > mjx-math")?.offsetWidth ?? part.scrollWidth;
    const parts = [...document.querySelectorAll(
        ".bd-article mjx-container, .bd-article pre, .pst-scrollable-table-container, .output.text_html"
    )].filter((part) => width(part) > room(part) + 2);
    return parts.map((part) => {
        const words = ["::before", "::after"].map((at) => getComputedStyle(part, at).content).join(" ");
        return [words.includes("scroll"), part.textContent.slice(0, 60)];
    });
}"""


def test_nothing_scrolls_sideways_on_a_desk(desk):
    assert not desk.page.evaluate(WIDE)


@pytest.mark.parametrize("name", PAGES)
def test_what_scrolls_sideways_on_a_phone_says_so(visit, name):
    page = visit(f"{name}.html", viewport=PHONE).page
    page.wait_for_load_state("networkidle")
    assert not [text for says, text in page.evaluate(WIDE) if not says]


def test_search_finds_a_word(visit):
    page = visit("search.html?q=defocus").page
    page.wait_for_selector("#search-results li a")
    page.locator("#search-results li a").first.click()
    assert "defocus" in page.locator("article").inner_text().lower()


def pictures(figure: Locator) -> list[str]:
    """What the canvases of a figure show."""
    return figure.locator("canvas").evaluate_all("all => all.map((canvas) => canvas.toDataURL())")


def changes(figure: Locator, act: Callable[[], None]) -> bool:
    """Whether an action changes what a figure shows, which stands still before."""
    figure.page.wait_for_timeout(100)
    before = pictures(figure)
    figure.page.wait_for_timeout(100)
    assert pictures(figure) == before, "moves by itself, though less motion is asked for"
    act()
    for _ in range(20):
        if pictures(figure) != before:
            return True
        figure.page.wait_for_timeout(100)
    return False


@pytest.mark.parametrize(("name", "place"), [*moving_figures()])
def test_moving_figure_obeys_the_reader(visit, name, place):
    page = visit(f"{name}.html").page
    figure = page.locator('figure[class^="cryoanm-"]').nth(place)
    figure.scroll_into_view_if_needed()

    colours = """all => all.map(({ width, height }, i) => {
        const copy = new OffscreenCanvas(width, height).getContext("2d");
        copy.drawImage(all[i], 0, 0);
        return new Set(new Uint32Array(copy.getImageData(0, 0, width, height).data.buffer)).size;
    })"""
    shown = figure.locator("canvas").evaluate_all(colours)
    assert shown
    assert min(shown) > 1, "a canvas is blank"

    for slider in figure.locator("input[type=range]").all():
        key = slider.evaluate("s => 2 * s.value < Number(s.min) + Number(s.max) ? 'PageUp' : 'PageDown'")
        assert changes(figure, lambda slider=slider, key=key: slider.press(key)), slider.get_attribute("name")

    if figure.get_attribute("data-turns") == "true":
        canvas = figure.locator("canvas").first
        assert changes(figure, lambda: drag_by_mouse(page, canvas)), "the mouse turns nothing"
        assert changes(figure, lambda: drag_by_finger(page, canvas)), "a finger turns nothing"


def drag(canvas: Locator) -> list[tuple[float, float]]:
    """A way across the middle of a canvas."""
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    return [(x + 8 * step, y + 4 * step) for step in range(6)]


def drag_by_mouse(page: Page, canvas: Locator) -> None:
    start, *way = drag(canvas)
    page.mouse.move(*start)
    page.mouse.down()
    for point in way:
        page.mouse.move(*point)
    page.mouse.up()


def drag_by_finger(page: Page, canvas: Locator) -> None:
    """By the browser's own protocol: Playwright can only tap."""
    devtools = page.context.new_cdp_session(page)
    start, *way = ({"x": x, "y": y} for x, y in drag(canvas))
    for kind, points in [("Start", [start]), *(("Move", [point]) for point in way), ("End", [])]:
        devtools.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})
