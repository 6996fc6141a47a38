"""Datasets for image retrieval: queries, a database, and the images of it that belong to each query."""

from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from lib.data.layouts.retrieval import KINDS
from lib.data.loading import card, card_names, read_table


class RetrievalSet(NamedTuple):
    """What ``load_retrieval`` returns."""

    database: pa.Table
    queries: pa.Table  # with ``box`` (x0, y0, x1, y1 in pixels) where only that part of the image is the query
    ground_truth: list[dict[str, list[int]]]  # for each query ``{"easy", "hard", "junk"}``, each a list of rows of the database


def load_retrieval(name: str, *, root: str | Path | None = None) -> RetrievalSet:
    """A dataset for retrieval, from a card with the splits ``queries`` and ``database``; ``root`` as in ``lib.data.load``.

    Raises:
        ValueError: another card, missing data, or a damaged file, which is named.
    """
    accepted = [other for other in card_names() if {"queries", "database"} <= set(card(other).splits)]
    if name not in accepted:
        raise ValueError(f"name: got {name!r}, accepts {', '.join(accepted)}")
    queries = read_table(name, "queries", root=root)
    truth = queries.select(list(KINDS)).to_pylist()
    return RetrievalSet(read_table(name, "database", root=root), queries.drop_columns(list(KINDS)), truth)
