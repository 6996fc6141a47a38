"""The built book as a reader meets it: every page is whole and needs no network, and a telephone shows it in Chromium."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

from lib import paths

PACKAGES = ("sphinx", "sphinx_book_theme", "myst_nb", "nbconvert", "sphinx_revealjs", "sphinx-mathjax-offline")
MISSING = [name for name in PACKAGES if not find_spec(name)]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --hide-scrollbars --window-size=1400,900 --virtual-time-budget=8000"
PAGES = ("index", "teaching", "notebooks/11_pooling_landscape", "notebooks/99_replication_report")

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} not installed: make book installs what the book needs")

# A script at the head of a page, which tells the page around it what went wrong.
LISTENER = """<script>
const wrong = [], W = %d;
addEventListener("error", e => wrong.push(e.message || `not loaded: ${e.target.src || e.target.href}`), true);
addEventListener("unhandledrejection", e => wrong.push(`${e.reason}`));
console.error = (...words) => wrong.push(`console: ${words.join(" ")}`);
addEventListener("load", async () => {
    await window.MathJax?.startup?.promise;
    const page = document.documentElement;
    if (page.clientWidth != W) wrong.push(`is ${page.clientWidth} wide`);
    if (page.scrollWidth > W) wrong.push(`scrolls sideways: ${page.scrollWidth}`);
    for (const table of document.querySelectorAll("table")) {
        const box = table.closest(".scroll"), {left, right} = box.getBoundingClientRect();
        if (left < 0 || right > W || box.scrollWidth > box.clientWidth && getComputedStyle(box).overflowX != "auto")
            wrong.push(`a table is cut: ${table.innerText.slice(0, 40)}`);
    }
    if (document.querySelectorAll(".math").length > document.querySelectorAll("mjx-container").length) wrong.push("formulas are not set");
    if (document.querySelector("[data-mml-node=merror]")) wrong.push("a formula has an error");
    if (W > 1000 && document.querySelector(".claims")?.getBoundingClientRect().bottom > 900) wrong.push("the claims leave the first screen");
    parent.postMessage(JSON.stringify(wrong), "*");
});
</script>"""
FRAME = """<body style="margin: 0"><iframe src="%s" width=%d height=900 style="border: 0"></iframe>
<script>onmessage = message => document.body.textContent = `answer:${encodeURIComponent(message.data)};`</script>"""


class Page(HTMLParser):
    """A page's references, the places within it that others can point to, and what is wrong with its pictures, tables and text."""

    def __init__(self, file: Path):
        super().__init__()
        self.links, self.places, self.wrong, self.open = [], set(), [], []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.places |= {attrs.get("id"), attrs.get("name") if tag == "a" else None}
        link = attrs.get("href") or attrs.get("src") or ""
        if not link.startswith(("http:", "https:", "mailto:", "data:")):
            self.links.append(link)
        elif tag != "a" and not link.startswith("data:"):
            self.wrong.append(f"needs the network for {link}")
        if tag == "img" and not all(attrs.get(name) for name in ("alt", "width", "height")):
            self.wrong.append(f"a picture without text or size: {attrs.get('alt')}")
        elif tag == "table" and not any("scroll" in box for box in self.open):
            self.wrong.append("a table without a box to scroll in")
        elif tag in ("div", "script", "style"):
            self.open.append([tag, *(attrs.get("class") or "").split()])

    def handle_endtag(self, tag):
        if tag in ("div", "script", "style"):
            self.open.pop()

    def handle_data(self, data):
        if not (self.open and self.open[-1][0] in ("script", "style")):
            self.wrong += [f"shows {raw}" for raw in (":::", "<IPython.core.display") if raw in data]


def faults(folder: Path, pages: dict[Path, Page]) -> list[str]:
    """What is wrong with pages below a folder: references without a file or a place, and what each page says of itself."""
    wrong = []
    for file, page in pages.items():
        name = file.relative_to(folder)
        wrong += [f"{name}: {fault}" for fault in page.wrong]
        for link in filter(None, page.links):
            path, place = urldefrag(link)
            target = (file.parent / unquote(path.split("?")[0])).resolve() if path else file
            if not target.is_file() or place and target in pages and unquote(place) not in pages[target].places:
                wrong.append(f"{name}: {link}")
    return wrong


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The book as ``make book`` builds it, with the deck of one chapter."""
    folder = tmp_path_factory.mktemp("book") / "html"
    surroundings = os.environ | {"COMPANION_RUNS": str(folder.parent / "runs"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(paths.ROOT)}
    for command in (["-m", "sphinx", "-q", "book", str(folder)], ["book/slides.py", str(folder / "slides"), "09*"]):
        done = subprocess.run([sys.executable, *command], cwd=paths.ROOT, env=surroundings, capture_output=True, text=True)
        assert done.returncode == 0 and not done.stderr, done.stderr[-3000:]
    return folder


def test_every_page_is_whole_and_its_links_lead_somewhere(site):
    pages = {file: Page(file) for file in site.rglob("*.html") if not {"_static", "_modules", "slides"} & set(file.parts)}
    assert len(pages) > 70
    assert not faults(site, pages)


def test_a_chapter_has_a_deck(site):
    deck = site / "slides" / "09_video.html"
    pages = {file: Page(file) for file in (deck, site / "slides" / "index.html")}
    assert not faults(site, pages)
    text = deck.read_text(encoding="utf-8")
    assert text.count("<section") > 10 and text.count("<img") > 2 and "<table" in text and "data:image/gif" in text
    assert not re.search(r"</(p|ul|ol)>\s*<h2", text), "a heading begins a slide"


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome to open the book in")
@pytest.mark.parametrize(("name", "width"), [(name, 390) for name in PAGES] + [("index", 1400)])
def test_a_browser_shows_a_page_whole(site, tmp_path, name, width):
    file = site / f"{name}.html"
    copy, frame = file.with_name(f"{file.stem}_{width}.htm"), tmp_path / "frame.html"  # a copy beside the page keeps its links
    copy.write_text(file.read_text(encoding="utf-8").replace("<head>", f"<head>{LISTENER % width}", 1), encoding="utf-8")
    frame.write_text(FRAME % (copy.as_uri(), width), encoding="utf-8")  # a window is at least 500 wide, a frame is not
    command = [CHROMIUM, *FLAGS.split(), "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    with subprocess.Popen(
        [*command, frame.as_uri()], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    ) as browser:
        try:
            page = browser.communicate(timeout=30)[0]
        except subprocess.TimeoutExpired:
            os.killpg(browser.pid, signal.SIGKILL)  # its children as well, which hold the pipe
            raise
    assert "answer:" in page, "the page has not answered"
    assert not json.loads(unquote(page.partition("answer:")[2].partition(";")[0]))
