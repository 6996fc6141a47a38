"""Sphinx settings of the book: the executed notebooks, the evidence, the data cards and the modules, built offline and read offline."""

import sys
import tomllib
from importlib.resources import files
from pathlib import Path

BOOK = Path(__file__).resolve().parent
sys.path[:0] = [str(BOOK), str(BOOK.parent)]

from pages import setup  # noqa: E402, F401

project = "Leveraging attention: the companion"
author = "The companion's authors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
nb_execution_mode = "off"  # the committed outputs are shown
nb_ipywidgets_js = {}  # sliders need a running kernel; their scripts would come from a network
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["mystnb.unknown_mime_type"]

html_title = project
html_use_index = html_domain_indices = False  # no page leads there; the search finds every name
html_context = {"default_mode": "auto"}
html_theme = "sphinx_book_theme"
html_static_path = ["book.css", str(files("sphinx-mathjax-offline") / "static" / "mathjax" / "tex-svg.js")]
html_css_files = ["book.css"]
mathjax_path = "tex-svg.js"

# Where the project says that its repository is, every notebook has buttons that open it in Colab and in Binder.
repository = tomllib.loads((BOOK.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"].get("urls", {}).get("Repository", "")
launch = {"colab_url": "https://colab.research.google.com", "binderhub_url": "https://mybinder.org", "notebook_interface": "jupyterlab"}
html_theme_options = {"collapse_navbar": True, "show_navbar_depth": 1, "navbar_persistent": []}
if repository:
    html_theme_options |= {
        "repository_url": repository,
        "repository_branch": "main",
        "use_repository_button": True,
        "launch_buttons": launch,
    }
