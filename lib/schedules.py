"""Schedules as arrays with one value for each step or epoch."""

import math

import torch
from torch import Tensor


def cosine_schedule(base: float, final: float, steps: int, *, warmup_steps: int = 0, warmup_start: float = 0.0) -> Tensor:
    """Float64[steps]: a linear warm-up from ``warmup_start`` to ``base``, then a half cosine towards ``final``.

    Args:
        base: value at the end of the warm-up, which the warm-up includes.
        final: value that the cosine approaches; it would be reached at index ``steps``.
        steps, warmup_steps: length of the schedule, and of the warm-up in it.
        warmup_start: first value of the warm-up.

    Raises:
        ValueError: a negative length, or a warm-up longer than the schedule.
    """
    if steps < 0:
        raise ValueError(f"steps: got {steps}, accepts 0 or more")
    if not 0 <= warmup_steps <= steps:
        raise ValueError(f"warmup_steps: got {warmup_steps}, accepts 0 to {steps} (steps)")
    warmup = torch.linspace(warmup_start, base, warmup_steps, dtype=torch.float64)
    phase = torch.arange(steps - warmup_steps, dtype=torch.float64) / max(steps - warmup_steps, 1)
    return torch.cat([warmup, final + 0.5 * (base - final) * (1 + torch.cos(math.pi * phase))])


def linear_then_constant(start: float, end: float, epochs: int, ramp_epochs: int) -> Tensor:
    """Float64[epochs]: the teacher's temperature. It changes linearly over the first ``ramp_epochs`` epochs, which include ``end``, and
    is constant afterwards. A ramp longer than the training is shortened to it.
    """
    ramp = torch.linspace(start, end, min(ramp_epochs, epochs), dtype=torch.float64)
    return torch.cat([ramp, torch.full((epochs - len(ramp),), end, dtype=torch.float64)])
