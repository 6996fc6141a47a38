"""Pooling: one algorithm, its fourteen instances, and SimPool."""

import inspect

from torch import nn

from lib.pooling import methods  # noqa: F401  declares the methods
from lib.pooling.framework import POOLINGS, Pooled, Pooling, landscape
from lib.pooling.simpool import SimPool

__all__ = ["Pooled", "Pooling", "SimPool", "create_pooling", "landscape", "pooling_names"]


def pooling_names() -> list[str]:
    """The methods of the talk, in its order, and those declared since."""
    return list(POOLINGS)


def create_pooling(name: str, dim: int, **options) -> nn.Module:
    """A pooling by name.

    Args:
        name: one of ``pooling_names()``.
        dim: channels D.
        options: the method's own, see its class.

    Returns:
        A module that is called with tokens Float[B, N, D] or a map Float[B, D, H, W] and returns ``Pooled``.

    Raises:
        ValueError: an unknown name, an option that the method does not have, or a value that it does not accept.
    """
    if name not in POOLINGS:
        raise ValueError(f"name: got {name!r}, accepts {', '.join(POOLINGS)}")
    method = POOLINGS[name]
    accepted = list(inspect.signature(method).parameters)[1:]
    for option in options:
        if option not in accepted:
            raise ValueError(f"{option}: unknown option of {name}, which accepts {', '.join(accepted) or 'none'}")
    return method(dim, **options)
