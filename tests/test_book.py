"""The built book as a reader meets it: opened from disk in headless Chromium, wide and narrow, without a network."""

import json
import os
import select
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

from lib import paths

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --disable-background-networking"
WIDE, NARROW = 1400, 390  # pixels: a laptop's window and a telephone's

# What is wrong with a page of the width W: sideways scroll, tables without a box, boxes that leave the page, unnamed or unsized pictures.
COMPLAINTS = """(W) => {
    const wrong = [], outside = e => {const b = e.getBoundingClientRect(); return b.width && (b.left < -1 || b.right > W + 1)};
    const deck = document.querySelector(".reveal");
    if (document.documentElement.scrollWidth > W) wrong.push(`scrolls sideways: ${document.documentElement.scrollWidth}`);
    for (const i of document.images) {
        if (!i.naturalWidth) wrong.push(`picture is missing: ${i.src.slice(0, 80)}`);
        if (!i.alt || !(i.getAttribute("width") > 0) || !(i.getAttribute("height") > 0)) wrong.push(`picture without text or size: ${i.alt}`);
    }
    for (const t of document.querySelectorAll("table")) {
        const box = t.closest(".scroll");
        if (!box) wrong.push("a table has no box to scroll in");
        else if (!deck && (outside(box) || box.scrollWidth > box.clientWidth && getComputedStyle(box).overflowX != "auto"))
            wrong.push(`a table is cut: ${t.innerText.slice(0, 40)}`);
    }
    if (!deck) for (const p of document.querySelectorAll("pre")) if (outside(p)) wrong.push(`code is cut: ${p.innerText.slice(0, 40)}`);
    if (document.querySelector("[data-mml-node=merror]")) wrong.push("a formula has an error");
    if (document.querySelector(".math") && !document.querySelector("mjx-container")) wrong.push("formulas are not set");
    return wrong;
}"""
LOADED = """(async () => {
    await window.MathJax?.startup?.promise;
    await Promise.all([...document.images].map(i => {i.loading = "eager"; return i.decode().catch(() => 0)}));
})()"""


class Page:
    """A tab of a headless Chromium, driven over two pipes by the DevTools protocol."""

    def __init__(self, profile: Path):
        commands, self.write = os.pipe()
        self.read, answers = os.pipe()
        run = ["bash", "-c", f'exec "$0" "$@" 3<&{commands} 4>&{answers}', CHROMIUM, *FLAGS.split()]
        self.process = subprocess.Popen(
            [*run, "--remote-debugging-pipe", f"--user-data-dir={profile}"], pass_fds=(commands, answers), stderr=subprocess.DEVNULL
        )
        os.close(commands), os.close(answers)
        self.buffer, self.count, self.session, self.events = b"", 0, None, []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")

    def message(self) -> dict:
        while b"\0" not in self.buffer:
            assert select.select([self.read], [], [], 60)[0], "Chromium has not answered for a minute"
            part = os.read(self.read, 1 << 20)
            assert part, "Chromium has ended"
            self.buffer += part
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def __call__(self, method: str, **params) -> dict:
        self.count += 1
        session = {"sessionId": self.session} if self.session else {}
        os.write(self.write, json.dumps({"id": self.count, "method": method, "params": params} | session).encode() + b"\0")
        while (message := self.message()).get("id") != self.count:
            self.events.append(message)
        assert "error" not in message, (method, message)
        return message["result"]

    def js(self, expression: str):
        return self("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)["result"].get("value")

    def resize(self, width: int) -> None:
        self("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width == NARROW)

    def open(self, address: str) -> list[str]:
        """Load a page; what the console and the network say against it."""
        self("Page.navigate", url="about:blank")
        self.events.clear()
        self("Page.navigate", url=address)
        while not any(e["method"] == "Page.loadEventFired" for e in self.events):
            self.events.append(self.message())
        self.js(LOADED)
        wrong = []
        for event in self.events:
            method, what = event["method"], event["params"]
            if method == "Network.requestWillBeSent" and not what["request"]["url"].startswith(("file:", "data:", "blob:", "about:")):
                wrong.append(f"asks the network for {what['request']['url']}")
            elif method == "Runtime.exceptionThrown" or method == "Runtime.consoleAPICalled" and what["type"] in ("error", "assert"):
                wrong.append(f"console: {json.dumps(what)[:300]}")
            elif method == "Log.entryAdded" and what["entry"]["level"] == "error":
                wrong.append(f"console: {what['entry']['text']} {what['entry'].get('url', '')}")
        return wrong


class Links(HTMLParser):
    """A page's references, and the places within it that others can point to."""

    def __init__(self, file: Path):
        super().__init__()
        self.links, self.places = [], set()
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name == "id" or tag == "a" and name == "name":
                self.places.add(value)
            elif name in ("href", "src") and value and not value.startswith(("http:", "https:", "mailto:", "data:", "javascript:")):
                self.links.append(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The book and its slides, built as ``make book`` builds them."""
    missing = [name for name in ("sphinx_book_theme", "myst_nb", "sphinx_revealjs", "sphinx-mathjax-offline") if not find_spec(name)]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: make book installs what the book needs")
    folder = tmp_path_factory.mktemp("book") / "html"
    surroundings = os.environ | {"COMPANION_RUNS": str(folder.parent / "runs"), "OMP_NUM_THREADS": "1"}
    for command in (["-m", "sphinx", "-q", "book", str(folder)], ["book/slides.py", str(folder / "slides")]):
        done = subprocess.run([sys.executable, *command], cwd=paths.ROOT, env=surroundings, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "WARNING" not in done.stderr, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def page(site, tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no chromium, chromium-browser or google-chrome to open the book in")
    page = Page(tmp_path_factory.mktemp("profile"))
    yield page
    page.process.kill()
    page.process.wait()


def test_every_link_leads_somewhere(site):
    pages = {file: Links(file) for file in site.rglob("*.html") if "_static" not in file.parts}
    assert len(pages) > 100
    wrong = []
    for file, found in pages.items():
        for link in found.links:
            path, place = urldefrag(link)
            target = (file.parent / unquote(path.split("?")[0])).resolve() if path else file
            slide = place.startswith("/")  # reveal.js addresses its slides so
            if not target.is_file() or place and not slide and target in pages and unquote(place) not in pages[target].places:
                wrong.append(f"{file.relative_to(site)}: {link}")
    assert not wrong


def test_every_page_is_whole_wide_and_narrow(site, page):
    wrong = []
    for file in sorted(site.rglob("*.html")):
        if not {"_static", "_modules"} & set(file.relative_to(site).parts):
            page.resize(WIDE)
            found = page.open(file.as_uri())
            for width in (WIDE, NARROW):
                page.resize(width)
                found += [f"at {width}: {complaint}" for complaint in page.js(f"({COMPLAINTS})({width})")]
            wrong += [f"{file.relative_to(site)}: {complaint}" for complaint in found]
    assert not wrong, "\n".join(wrong)


def test_the_first_page_answers_on_one_screen(site, page):
    page.resize(WIDE)
    page.open((site / "index.html").as_uri())
    assert page.js("document.querySelector('.claims').getBoundingClientRect().bottom") <= 900
    assert page.js("document.querySelectorAll('.claims li').length") == 22


def test_search_finds_a_word_of_the_chapters(site, page):
    page.open((site / "search.html").as_uri() + "?q=Sinkhorn")
    found = "[...document.querySelectorAll('#search-results li a')].map(a => a.getAttribute('href').split('?')[0])"
    wait = "(async () => { for (let i = 0; i < 100 && !document.querySelector('#search-results li a'); i++)"
    page.js(wait + " await new Promise(r => setTimeout(r, 100)); })()")
    assert "notebooks/11_pooling_landscape.html" in page.js(found)
