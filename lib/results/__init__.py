"""Runs, records, the papers' figures, and whether they agree."""

from lib.results.papers import claims, paper_tables
from lib.results.verdicts import verdicts

__all__ = ["claims", "paper_tables", "verdicts"]
