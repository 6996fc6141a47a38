"""A deck of slides of each chapter, made from its notebook: python book/slides.py FOLDER [CHAPTERS]

CHAPTERS is a pattern of their names, such as 09*; without it all are made. A heading begins a slide; what does not fit beneath it goes
on below. Code is hidden until the key C is pressed.
"""

import html
import re
import shutil
import sys
from importlib.resources import files
from pathlib import Path

import nbformat
from nbconvert import SlidesExporter
from nbformat.v4 import new_markdown_cell
from pages import fit

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
TEMPLATE = Path(__file__).resolve().parent / "slides.html.j2"
ROOM = 700  # pixels that a slide takes below its title: 580 at full size, and what is more is made smaller
PARTS = ("dist/reveal.js", "dist/reveal.css", "dist/reset.css", "dist/theme/white.css", "dist/theme/fonts")


def deck(notebook: Path) -> str:
    """The slides of a notebook, as HTML; pictures are in it, reveal.js and MathJax in ``assets`` beside it."""
    content = nbformat.read(notebook, as_version=4)
    content.cells = [part for cell in content.cells if _shown(cell) for part in _parts(cell)]
    used = 0.0
    for cell in content.cells:
        heading = cell.cell_type == "markdown" and cell.source.startswith("#")
        height = _height(cell)
        kind = "slide" if heading else "subslide" if used and used + height > ROOM else "-"
        used = height if kind != "-" else used + height
        cell.metadata["slideshow"] = {"slide_type": kind}
        for data in (out["data"] for out in cell.get("outputs", []) if "image/gif" in out.get("data", {})):
            data["text/html"] = f'<img src="data:image/gif;base64,{data["image/gif"]}">'  # nbconvert knows no GIF
    content.metadata["title"] = content.cells[0].source.splitlines()[0].removeprefix("# ")
    exporter = SlidesExporter(template_file=str(TEMPLATE), exclude_anchor_links=True)
    return fit(exporter.from_notebook_node(content)[0], content.metadata["title"])


def _shown(cell) -> bool:
    """Prose and results; no versions, no parameters, no checks of answers."""
    if cell.cell_type == "markdown":
        return True
    return any("data" in out or out.get("name") == "stdout" for out in cell.get("outputs", [])) and not any(
        word in cell.source for word in ("__version__", "exercises.")
    )


def _parts(cell) -> list:
    """The parts of prose, each with a heading of its own; a cell of results as it is."""
    if cell.cell_type != "markdown":
        return [cell]
    return [new_markdown_cell(text) for text in re.split("^(?=##)", cell.source, flags=re.MULTILINE) if text.strip()]


def _height(cell) -> float:
    """About how many pixels of a slide a cell takes; what is misjudged is made smaller when it is shown."""
    if cell.cell_type == "markdown":
        return sum(34 * (1 + len(line) // 95) for line in cell.source.split("\n\n")) + 120 * cell.source.count("$$") / 2
    heights = []
    for out in cell.outputs:
        data = out.get("data", {})
        if "image/png" in data or "image/gif" in data:
            heights.append(400.0)
        elif "text/html" in data:
            heights.append(40.0 * data["text/html"].count("<tr"))
        else:
            heights.append(26.0 * (1 + (out.get("text") or data.get("text/plain", "")).count("\n")))
    return min(sum(heights), ROOM)


def main(folder: Path, chapters: str = "[0-9]*") -> None:
    assets = folder / "assets"
    shutil.rmtree(folder, ignore_errors=True)
    assets.mkdir(parents=True)
    reveal = Path(str(files("sphinx_revealjs") / "_static" / "revealjs"))
    for part in PARTS:
        target = assets / part
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (reveal / part).is_dir() else shutil.copy)(reveal / part, target)
    shutil.copy(str(files("sphinx-mathjax-offline") / "static" / "mathjax" / "tex-svg.js"), assets)
    lines = []
    for notebook in sorted(NOTEBOOKS.glob(f"{chapters}.ipynb")):
        (folder / f"{notebook.stem}.html").write_text(deck(notebook), encoding="utf-8")
        title = nbformat.read(notebook, as_version=4).cells[0].source.splitlines()[0].removeprefix("# ")
        lines.append(f'<li><a href="{notebook.stem}.html">{html.escape(title)}</a></li>')
    page = (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Slides</title>'
        "<style>body { font: 18px/1.7 system-ui, sans-serif; max-width: 40rem; margin: 2rem auto; padding: 0 1rem }"
        " ul { list-style: none; padding: 0 }</style></head><body><h1>Slides</h1>"
        "<p>A deck a chapter. Arrows go on, right to the next question and down to what belongs to this one; C shows the code.</p>"
        f'<ul>{"".join(lines)}</ul><p><a href="../index.html">The book</a></p></body></html>\n'
    )
    (folder / "index.html").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
