"""The built documentation as a reader sees it, in headless Chromium: `make test-web`.

Without playwright, a browser or the built pages, every test here skips and says what is missing.
"""

from __future__ import annotations

import functools
import http.server
import os
import re
import shutil
import threading
import urllib.parse
from pathlib import Path

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test-web")
sync_api.expect.set_options(timeout=30_000)

SITE = Path(__file__).resolve().parents[2] / "build" / "site"
CHROMIUM = os.environ.get("COPYLESS_TEST_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
if not (SITE / "index.html").exists():
    pytest.skip("the documentation is not built: make test-web", allow_module_level=True)
if CHROMIUM is None:
    pytest.skip("no Chromium is installed: make test-web", allow_module_level=True)

PAGES = sorted(str(page.relative_to(SITE)) for page in SITE.rglob("*.html"))
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
PHONE = {"width": 360, "height": 740}
WIDER = """() => {
    const wide = document.documentElement.scrollWidth, width = document.documentElement.clientWidth;
    if (wide <= width) return [];
    const scrolls = each => { for (let up = each.parentElement; up; up = up.parentElement)
        if (getComputedStyle(up).overflowX !== "visible") return true; return false; };
    return [...document.querySelectorAll("body *")]
        .filter(each => each.getBoundingClientRect().right > width + 1 && !scrolls(each))
        .map(each => each.tagName + "." + each.className + ": " + each.textContent.trim().slice(0, 60)).slice(0, 5)
        .concat(wide + " px wide");
}"""
LINKS = """() => [...document.querySelectorAll("a[href]")].map(each => each.href)"""
ANCHORS = """() => [...document.querySelectorAll("[id]")].map(each => each.id)"""


HOME = urllib.parse.urlsplit(re.search(r'<link rel="canonical" href="([^"]+)"', (SITE / "index.html").read_text())[1])
BELOW = HOME.path.removesuffix("index.html")  # the path of the site's address, where 404.html looks for its parts


class Quiet(http.server.SimpleHTTPRequestHandler):
    def translate_path(self, path: str) -> str:
        return super().translate_path("/" + path.removeprefix(BELOW) if path.startswith(BELOW) else "/nowhere")

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="session")
def address():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=SITE))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}{BELOW}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="session")
def browser():
    with sync_api.sync_playwright() as play:
        started = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


class Told:
    """What a page complains of, and what it asks of the network."""

    def __init__(self, page, address):
        self.page, self.address, self.wrong = page, address, []
        page.on("console", lambda said: said.type in ("error", "warning") and self.note(said.text))
        page.on("pageerror", self.note)
        page.on("requestfailed", self.failed)
        page.on("response", lambda got: got.status >= 400 and self.note(f"{got.url} is {got.status}"))
        page.on("request", self.asked)

    def note(self, what):
        self.wrong.append(f"{self.page.url}: {what}")

    def failed(self, request):
        if request.failure != "net::ERR_ABORTED":  # the page was left before its search was loaded
            self.note(f"{request.url} failed: {request.failure}")

    def asked(self, request):
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.note(f"it asks {request.url}")


@pytest.fixture
def page(browser, address):
    made = browser.new_page()
    made.told = Told(made, address)
    yield made
    made.close()


def test_no_page_complains_or_asks_another_machine_and_every_link_leads_somewhere(page, address):
    anchors, links = {}, {}
    for name in PAGES:
        page.goto(address + name, wait_until="load")
        anchors[name] = set(page.evaluate(ANCHORS))
        links[name] = page.evaluate(LINKS)
    assert page.told.wrong == []
    nowhere, followed = [], 0
    for name, each in ((name, link) for name, some in links.items() for link in some):
        place = urllib.parse.urlsplit(each)
        if not each.startswith(address):
            if place.scheme not in ("https", "http", "mailto"):
                nowhere.append(f"{name}: {each}")
            continue
        to = urllib.parse.unquote(place.path).removeprefix(BELOW)
        to += "index.html" if to.endswith("/") or not to else ""
        anchor = urllib.parse.unquote(place.fragment)
        followed += 1
        if to not in anchors:
            if not (SITE / to).is_file():
                nowhere.append(f"{name}: {each}")
        elif anchor and anchor not in anchors[to]:
            nowhere.append(f"{name}: {each} (no such anchor)")
    assert nowhere == []
    assert followed > len(PAGES)


def test_no_page_scrolls_sideways_on_a_phone(page, address):
    page.set_viewport_size(PHONE)
    wide = {}
    for name in PAGES:
        page.goto(address + name, wait_until="load")
        if found := page.evaluate(WIDER):
            wide[name] = found
    assert wide == {}


SEARCH = "dialog[aria-label=Search]"
# The size, and how a reader opens the search: by its field on wide screens, its sign on narrow ones.
WIDE = ({"width": 1280, "height": 800}, ".md-search__button")
NARROW = (PHONE, "label[for=__search]")


@pytest.mark.parametrize(("size", "button"), [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("served", [True, False], ids=["http", "file"])
def test_the_search_finds_a_class_and_opens_its_entry(browser, address, served, size, button):
    home = address if served else SITE.as_uri() + "/"
    page = browser.new_page(viewport=size)
    told = Told(page, home)
    page.goto(home + "guide.html", wait_until="load")
    results = search(page, button, "RingBuffer")
    sync_api.expect(results.first).to_contain_text("RingBuffer")
    results.and_(page.locator('[href$="#copyless.rings.RingBuffer"]')).click()
    page.wait_for_url(home + "api/rings.html*#copyless.rings.RingBuffer")
    entry = page.locator('h2[id="copyless.rings.RingBuffer"]')
    sync_api.expect(entry).to_contain_text("RingBuffer")
    sync_api.expect(entry).to_be_in_viewport()
    assert told.wrong == []
    page.close()


def test_the_search_finds_nothing_for_a_word_that_no_page_has(page, address):
    page.goto(address + "index.html", wait_until="load")
    results = search(page, WIDE[1], "RingBuffer")
    page.get_by_role("combobox", name="Search").fill("xyzzyplugh")
    sync_api.expect(page.locator(SEARCH).get_by_role("status")).to_have_text("No results")
    sync_api.expect(results).to_have_count(0)
    assert page.told.wrong == []


def search(page, button, word):
    """The results for a word, which is entered as a reader does it.

    The search's dialogue is in a shadow tree. It is made when the index is loaded, and only then does the button open
    it; a second click would close it.
    """
    dialogue = page.locator(SEARCH)
    dialogue.wait_for(state="attached")
    page.locator(button).click()
    dialogue.get_by_role("combobox", name="Search").fill(word)
    results = dialogue.locator("a[href]")
    results.first.wait_for()
    return results


def test_light_and_dark_follow_the_reader_s_choice_and_can_be_switched(browser, address):
    shades = {}
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme)
        page.goto(address + "guide.html", wait_until="load")
        shades[scheme] = brightness(page)
        page.locator("[data-md-component=palette] label").filter(visible=True).first.click()
        switched = brightness(page)
        assert (switched > 128) != (shades[scheme] > 128)
        page.close()
    assert shades["light"] > 200
    assert shades["dark"] < 80


def brightness(page):
    """Of the background, 0 to 255."""
    colour = page.evaluate(
        """() => { const c = document.createElement("canvas").getContext("2d");
        c.fillStyle = getComputedStyle(document.body).backgroundColor; c.fillRect(0, 0, 1, 1);
        return [...c.getImageData(0, 0, 1, 1).data] }"""
    )
    return sum(colour[:3]) / 3


def test_every_picture_is_shown(page, address):
    broken, pictures = [], 0
    for name in PAGES:
        if "<img" not in (SITE / name).read_text(encoding="utf-8"):
            continue
        page.goto(address + name, wait_until="load")
        for source, width in page.evaluate("() => [...document.images].map(each => [each.src, each.naturalWidth])"):
            pictures += 1
            if width == 0:
                broken.append(f"{name}: {source}")
    assert broken == []
    assert pictures >= 2
