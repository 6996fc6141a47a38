"""Sphinx settings of the book: the executed notebooks, the data cards and the modules, built offline."""

from pathlib import Path

project = "Leveraging attention: the companion"
author = "The companion's authors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "sphinx_book_theme"
nb_execution_mode = "off"  # the committed outputs are shown
myst_enable_extensions = ["dollarmath"]
exclude_patterns = ["_build"]
suppress_warnings = ["myst.xref_missing", "mystnb.unknown_mime_type"]


def _gather(app) -> None:
    """Link the notebooks and the cards into the book's folder, where Sphinx looks for its pages."""
    book, root = Path(app.srcdir), Path(app.srcdir).parent
    for name, target in (("notebooks", root / "notebooks"), ("data_cards", root / "data_cards")):
        link = book / name
        if not link.exists():
            link.symlink_to(target, target_is_directory=True)


def setup(app) -> None:
    app.connect("builder-inited", _gather, priority=1)
