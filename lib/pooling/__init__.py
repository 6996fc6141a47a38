"""Pooling: one algorithm, its fourteen instances, and SimPool."""

import inspect
from typing import Any

from torch import nn

from lib.pooling import methods  # noqa: F401  registers the methods
from lib.pooling.framework import POOLINGS, Pooled, Pooling, landscape
from lib.pooling.simpool import SimPool

__all__ = ["Pooled", "Pooling", "SimPool", "create_pooling", "landscape", "pooling_names"]


def pooling_names() -> list[str]:
    """The methods of the talk in its order, followed by any that were declared later."""
    return list(POOLINGS)


def create_pooling(name: str, dim: int, **options: Any) -> nn.Module:
    """Build a pooling method, a module that maps tokens Float[B, N, D] or a map Float[B, D, H, W] to ``Pooled``.

    Args:
        name: one of ``pooling_names()``.
        dim: channels D.
        options: options of the method, see its class.

    Raises:
        ValueError: an unknown name, an option that the method does not have, or a value that it does not accept.
    """
    if name not in POOLINGS:
        raise ValueError(f"name: got {name!r}, accepts {', '.join(POOLINGS)}")
    method: Any = POOLINGS[name]
    accepted = list(inspect.signature(method).parameters)[1:]
    for option in options:
        if option not in accepted:
            raise ValueError(f"{option}: unknown option of {name}, which accepts {', '.join(accepted) or 'none'}")
    return method(dim, **options)
