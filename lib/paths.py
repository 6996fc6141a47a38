"""Where the project keeps things: beside its own sources, unless an environment variable says otherwise."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ROOT / "recipes"
CARDS = ROOT / "data_cards"
NOTEBOOKS = ROOT / "notebooks"
RECORDS = ROOT / "records"


def runs_folder() -> Path:
    """The run store: ``$COMPANION_RUNS``, or ``runs/`` (not committed)."""
    return Path(os.environ.get("COMPANION_RUNS", ROOT / "runs")).expanduser()


def data_folder() -> Path | None:
    """The folder of local data sets, ``$COMPANION_DATA``, or None when it is unset."""
    return Path(os.environ["COMPANION_DATA"]).expanduser() if os.environ.get("COMPANION_DATA") else None
