"""Which splits were read, so that a result answers for the data that it comes from and for no other."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import pyarrow as pa

_READ: ContextVar[dict[str, pa.Table] | None] = ContextVar("read", default=None)


@contextmanager
def noted() -> Iterator[dict[str, pa.Table]]:
    """The tables that are read inside the context, each by its ``card/split/fraction``."""
    sources: dict[str, pa.Table] = {}
    token = _READ.set(sources)
    try:
        yield sources
    finally:
        _READ.reset(token)


def note(name: str, split: str, fraction: float, table: pa.Table) -> pa.Table:
    """The table itself, of which it is noted that it holds a split of a card, or a fraction of it."""
    sources = _READ.get()
    if sources is not None:
        sources[f"{name}/{split}/{fraction:g}"] = table
    return table
