"""Sets for image retrieval: queries, a database, and what should be found in it."""

from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from lib.data.loading import card, card_names, read_table

KINDS = ("easy", "hard", "junk")


class Retrieval(NamedTuple):
    """database: images; queries: images, with ``box`` (x0, y0, x1, y1 in pixels) where only that part of them is asked for;
    ground_truth: for each query ``{"easy", "hard", "junk"}``, each a list of rows of the database.
    """

    database: pa.Table
    queries: pa.Table
    ground_truth: list[dict[str, list[int]]]


def load_retrieval(name: str, *, root: str | Path | None = None) -> Retrieval:
    """A set for retrieval.

    Args:
        name: a card with the splits ``queries`` and ``database``.
        root: as of ``lib.data.load``.

    Raises:
        ValueError: another card, missing data, or a damaged file, which is named.
    """
    known = [known for known in card_names() if {"queries", "database"} <= set(card(known).splits)]
    if name not in known:
        raise ValueError(f"name: got {name!r}, accepts {', '.join(known)}")
    queries = read_table(name, "queries", root=root)
    truth = queries.select(KINDS).to_pylist()
    return Retrieval(read_table(name, "database", root=root), queries.drop_columns(list(KINDS)), truth)
