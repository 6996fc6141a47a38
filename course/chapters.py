"""The notebooks of the project: what they are, and how they are made from ``notebooks/percent``."""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
from tqdm import tqdm

from lib import paths
from lib.batch import settle_kernels

# What an execution leaves in a notebook besides its outputs.
TRACES = "metadata.papermill cell.metadata.papermill cell.metadata.execution metadata.companion metadata.language_info"


def chapters() -> pd.DataFrame:
    """A row a notebook, by its number: ``title, question``."""
    rows = {}
    for file in sorted(paths.NOTEBOOKS.glob("[0-9]*.ipynb")):
        text = nbformat.read(file, as_version=4).cells[0].source
        title = re.search(r"^# \d+ · (.+)$", text, re.M).group(1)
        question = " ".join(re.search(r"\*\*Question\.\*\* (.+?)(?:\n\n|$)", text, re.S).group(1).split())
        rows[file.stem[:2]] = {"title": title, "question": question}
    return pd.DataFrame(rows).T


def write(source: Path) -> Path:
    """Make a notebook from its percent script: sync the cells, execute them where they stand, strip the traces.

    Returns:
        The notebook.
    """
    import papermill

    settle_kernels()
    folder = paths.NOTEBOOKS / "solutions" if source.stem.endswith("_solutions") else paths.NOTEBOOKS
    target = folder / f"{source.stem}.ipynb"
    run = [sys.executable, "-m"]
    subprocess.run([*run, "jupytext", "--quiet", "--to", "ipynb", "--update", "--output", str(target), str(source)], check=True)
    papermill.execute_notebook(str(target), str(target), cwd=str(folder), progress_bar=False)
    drop_progress(target)
    keep = ["--keep-output", "--keep-count", "--keep-id"]
    subprocess.run([*run, "nbstripout", *keep, "--extra-keys", TRACES, str(target)], check=True)
    return target


def drop_progress(file: Path) -> None:
    """Take the progress bars out of a notebook's outputs: they are for whoever waits, and differ from run to run."""
    notebook = nbformat.read(file, as_version=4)
    for cell in notebook.cells:
        outputs = cell.get("outputs", [])
        bars = [o for o in outputs if o.get("name") == "stderr" and ("%|" in o.text or not o.text.strip())]
        if bars:
            cell.outputs = [o for o in outputs if o not in bars]
    nbformat.write(notebook, file)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m course.chapters", description="List the notebooks, or make them from notebooks/percent."
    )
    parser.add_argument("--write", action="store_true", help="sync and execute the notebooks")
    parser.add_argument("notebooks", nargs="*", metavar="NN", help="starts of names; the default is all")
    options = parser.parse_args()
    if not options.write:
        print(chapters().to_string())
        return
    chosen = [
        p
        for p in sorted((paths.NOTEBOOKS / "percent").glob("*.py"))
        if not options.notebooks or p.name.startswith(tuple(options.notebooks))
    ]
    for source in tqdm(chosen, unit="notebook"):
        tqdm.write(str(write(source)))


if __name__ == "__main__":
    main()
