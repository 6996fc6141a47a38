"""SIGTERM, which schedulers send, and Ctrl-C end a command as a spent time budget does: with a checkpoint."""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
ECHO = 3.0  # seconds in which further signals are taken for the first one: torchrun hands on what the terminal has sent already

_caught: list[float] = []  # when


@contextmanager
def stopping() -> Iterator[None]:
    """Inside, the first of the signals makes a training stop after its step; a later one ends the process as without this context."""

    def stop(number: int, frame: object) -> None:
        _caught.append(time.monotonic())
        if len(_caught) == 1:
            print("stopping after this step; once more ends at once", file=sys.stderr, flush=True)
        elif _caught[-1] - _caught[0] > ECHO:
            signal.signal(number, former[number])
            signal.raise_signal(number)

    former: dict[int, Any] = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    finally:
        _caught.clear()
        for number in SIGNALS:
            signal.signal(number, former[number])


def stop_wanted() -> bool:
    """Whether a signal has come."""
    return bool(_caught)
