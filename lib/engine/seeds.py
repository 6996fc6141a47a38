"""All randomness of step t depends on (seed, t) alone, and the order of epoch e on (seed, e)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global CPU generator inside the context; its state outside does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def seed_step(seed: int, step: int, rank: int = 0) -> torch.Generator:
    """A CPU generator for one step; also seeds the global ones, from which dropout and drop-path draw."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) * 1009 + rank)
    torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
    return generator


def epoch_order(seed: int, epoch: int, count: int) -> Tensor:
    """The order of ``count`` images in an epoch, Long[count]."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 7919 + epoch))
