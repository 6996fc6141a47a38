"""Which splits were read, so that a result answers for the data that it comes from and for no other."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_READ: ContextVar[set[str] | None] = ContextVar("read", default=None)


@contextmanager
def noted() -> Iterator[set[str]]:
    """The splits that are read inside the context, each as ``card/split/fraction``."""
    sources: set[str] = set()
    token = _READ.set(sources)
    try:
        yield sources
    finally:
        _READ.reset(token)


def note(name: str, split: str, fraction: float) -> None:
    """Say that a split of a card, or a fraction of it, is read."""
    sources = _READ.get()
    if sources is not None:
        sources.add(f"{name}/{split}/{fraction:g}")
