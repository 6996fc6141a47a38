"""What the book adds to Sphinx: pages made from the project's own files and records, and pictures and tables that fit every screen."""

import base64
import html
import io
import pkgutil
import shutil
from pathlib import Path

import torch
from bs4 import BeautifulSoup
from docutils.nodes import make_id
from matplotlib import pyplot
from PIL import Image
from sphinx.application import Sphinx

import lib
from lib import paths
from lib.data.views import denormalise
from lib.keep import network_to_show
from lib.masking import attention_mask
from lib.results import papers
from lib.results.figures import drawn_grid, hide_patches, overlay, photographs, use_style
from lib.results.verdicts import VERDICTS, verdicts

PAPERS = {"attmask": "AttMask", "simpool": "SimPool"}
NO_TEXT = "No description has been provided for this image"  # of nbconvert
SIGNS = dict(zip(VERDICTS, "✓✗≈?–"))


def setup(app: Sphinx) -> None:
    app.connect("builder-inited", _gather, priority=1)
    app.connect("html-page-context", _finish, priority=900)


def _gather(app: Sphinx) -> None:
    """Copy the project's own pages into the book's folder, where Sphinx looks for them, and write those that are made."""
    book = Path(app.srcdir)
    for folder in ("notebooks", "data_cards", "docs"):
        if (book / folder).is_symlink():
            (book / folder).unlink()
        shutil.rmtree(book / folder, ignore_errors=True)
        shutil.copytree(paths.ROOT / folder, book / folder)  # with their times: what is unchanged is not read again
    made = book / "made"
    made.mkdir(exist_ok=True)
    pages = {"claims.html": claims()} | {f"{name}.md": page for name, page in modules().items()}
    for name, page in pages.items():
        if not (made / name).exists() or (made / name).read_text(encoding="utf-8") != page:  # what is unchanged is not read again
            (made / name).write_text(page, encoding="utf-8")
    banner().savefig(made / "attention.png", dpi=110, bbox_inches="tight")


def claims() -> str:
    """The talk's claims and our verdicts on them, as HTML: how many of each, then a line a claim that leads to its evidence."""
    given = verdicts().set_index("id").verdict
    counts = given.value_counts().reindex(VERDICTS, fill_value=0)
    parts = [f'<span class="{make_id(v)}" style="flex-grow: {n}">{SIGNS[v]} {n} {v}</span>' for v, n in counts.items() if n]
    lists = []
    for paper, title in PAPERS.items():
        lines = []
        for claim in papers.claim_details():
            if claim["paper"] == paper:
                verdict, address = given[claim["id"]], make_id(f"{claim['id']}: {claim['text']}")
                sign = f'<b class="{make_id(verdict)}" title="{verdict}" aria-label="{verdict}">{SIGNS[verdict]}</b>'
                lines.append(f'<li><a href="docs/evidence.html#{address}">{sign} {html.escape(claim["text"])}</a></li>')
        lists.append(f"<div><strong>{title}</strong><ul>{''.join(lines)}</ul></div>")
    return f'<div class="claims"><p>{"".join(parts)}</p>{"".join(lists)}</div>\n'


def banner():
    """Photographs, a small network's attention, and what AttMask-High hides by it."""
    pyplot.switch_backend("Agg")
    use_style()
    views = photographs("smoke", 5, 224)
    with torch.no_grad():
        features = network_to_show("best").features(views)
    pictures, attention, grid = denormalise(views), features.attention.mean(1), features.grid
    hidden = attention_mask(attention, 0.4, strategy="high")
    rows = {
        "picture": list(pictures),
        "attention": [overlay(p, a.view(grid)) for p, a in zip(pictures, attention)],
        "AttMask-High": [hide_patches(p, m, grid) for p, m in zip(pictures, hidden)],
    }
    return drawn_grid(rows)


def modules() -> dict[str, str]:
    """A page of reference for each package of the library, and one for the modules beside them."""
    pages: dict[str, str] = {"lib": "# lib\n"}
    for module in pkgutil.walk_packages(lib.__path__, "lib."):
        package = ".".join(module.name.split(".")[:2])
        place = package if module.ispkg or package != module.name else "lib"
        members = "" if module.ispkg else "\n   :members:"  # a package's names are its modules'
        pages[place] = (
            pages.get(place, f"# {place}\n") + f"\n## {module.name}\n\n```{{eval-rst}}\n.. automodule:: {module.name}{members}\n```\n"
        )
    return pages


def _finish(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """Make a page's pictures and tables fit."""
    if doctree is not None:
        sources = {name: Path(app.srcdir) / path for path, name in app.builder.images.items()}
        context["body"] = fit(context["body"], context["title"], sources)


def fit(body: str, title: str, sources: dict[str, Path] | None = None) -> str:
    """Give every picture its size and a text, and every table a box of its own in which it scrolls.

    Args:
        body: HTML of a page.
        title: the page's title, for the text of pictures that have none.
        sources: the file of each picture that the page refers to by name; pictures within the page need none.
    """
    if not ("<img" in body or "<table" in body):
        return body
    page = BeautifulSoup(body, "html.parser")
    for image in page.find_all("img"):
        name = Path(image["src"]).name
        inside = image["src"].startswith("data:")
        if inside or name in (sources or {}):
            source = io.BytesIO(base64.b64decode(image["src"].partition(",")[2])) if inside else sources[name]
            with Image.open(source) as picture:
                image["width"], image["height"] = picture.size
        image["loading"] = "lazy"
        if Path(image.get("alt", name)).name in (name, NO_TEXT):
            heading = image.find_previous(["h1", "h2", "h3"])
            image["alt"] = f"Figure: {heading.find(string=True)} ({title})" if heading else f"Figure ({title})"
    for style in page.select("style[scoped]"):
        style.decompose()
    for table in page.find_all("table"):
        del table["border"]
        table.wrap(page.new_tag("div", attrs={"class": "scroll", "tabindex": "0", "role": "region", "aria-label": "table"}))
    return str(page)
