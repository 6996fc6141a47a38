"""The papers' published figures and claims, as data."""

from functools import cache
from pathlib import Path

import pandas as pd

from lib import files

PUBLISHED = Path(__file__).parent / "published"


def paper_tables() -> pd.DataFrame:
    """Every published number that the talk shows.

    Returns:
        A row a number: ``paper, table, row, column, value, note``. Values are percentages unless the column says otherwise.
    """
    return pd.read_csv(PUBLISHED / "values.csv", keep_default_na=False)


def paper_table(paper: str, table: str) -> pd.DataFrame:
    """One published table as the paper prints it: rows and columns in its order, NaN where it is blank.

    Raises:
        ValueError: no such table.
    """
    values = paper_tables()
    rows = values[(values.paper == paper) & (values.table == table)]
    if rows.empty:
        known = (values.paper + "/" + values.table).unique()
        raise ValueError(f"table: got {paper}/{table}, accepts {', '.join(known)}")
    return rows.pivot(index="row", columns="column", values="value").loc[rows.row.unique(), rows.column.unique()]


def published_landscape() -> pd.DataFrame:
    """The talk's table of pooling methods: a row a method, a column a part of the one algorithm; empty where it has none."""
    return pd.read_csv(PUBLISHED / "landscape.csv", keep_default_na=False, index_col="method")


def claims() -> pd.DataFrame:
    """The talk's claims.

    Returns:
        A row a claim: ``id, paper, text, metric, better, worse, paper_gap``. ``paper_gap`` is the published advantage of
        ``better`` over the strongest of ``worse``, mean over the claim's columns; NaN where the talk gives no numbers.
    """
    rows = []
    for claim in claim_details():
        published = claim["published"] or {"better": "", "worse": []}
        rows.append(
            {
                "id": claim["id"],
                "paper": claim["paper"],
                "text": claim["text"],
                "metric": claim["metric"],
                "better": published["better"],
                "worse": ", ".join(published["worse"]),
                "paper_gap": paper_gap(claim, published_columns(claim)),
            }
        )
    return pd.DataFrame(rows)


@cache
def claim_details() -> list[dict]:
    """The claims with the place of their published figures and of our evidence."""
    return files.read_yaml(PUBLISHED / "claims.yaml")


def claim(identity: str) -> str:
    """A claim in the talk's words.

    Raises:
        ValueError: no such claim.
    """
    for one in claim_details():
        if one["id"] == identity:
            return one["text"]
    raise ValueError(f"identity: got {identity!r}, accepts {', '.join(c['id'] for c in claim_details())}")


def paper_gap(claim: dict, columns: list[str]) -> float:
    """The paper's gap of a claim: the mean over columns of its published table; NaN without any."""
    published = claim["published"]
    if not published or not columns:
        return float("nan")
    table = paper_table(claim["paper"], published["table"])[columns]
    return float((table.loc[published["better"]] - table.loc[published["worse"]].max()).mean())


def published_columns(claim: dict) -> list[str]:
    """The columns of the published table on which a claim rests."""
    return (claim["published"] or {}).get("columns") or []
