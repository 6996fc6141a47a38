"""Pairs of times, and the peak memory of each version in a process of its own."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Row:
    """``make(device)`` gives the two versions, functions without arguments that do the same work.

    ``title`` says which is divided by which, ``asked`` what the ratio should be. ``repeats`` calls make one measurement.
    ``memory`` also compares the versions' peak memory. ``metric`` is the name under which records keep the ratio.
    """

    title: str
    asked: str
    make: Callable
    repeats: int = 1
    memory: bool = False
    metric: str | None = None


def measure(name: str, row: Row, device: torch.device, pairs: int) -> dict:
    """Median, least and greatest ratio of times over ``pairs`` pairs, after one warm-up of each version."""
    first, second = row.make(device)
    first(), second()
    ratios = []
    for pair in range(pairs):
        order = (first, second) if pair % 2 == 0 else (second, first)  # neither version always goes first
        times = {version: _seconds(version, row.repeats, device) for version in order}
        ratios.append(times[first] / times[second])
    found = {"time_ratio": statistics.median(ratios), "time_ratio_low": min(ratios), "time_ratio_high": max(ratios), "pairs": ratios}
    if row.memory:
        peaks = [_peak(name, version, device) for version in (0, 1)]
        found |= {"memory_ratio": peaks[0] / peaks[1], "memory_bytes": peaks}
    return found


def _seconds(version: Callable, repeats: int, device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    for _ in range(repeats):
        version()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak(name: str, version: int, device: torch.device) -> int:
    command = [sys.executable, "-m", "benchmarks", name, "--peak-of", str(version), "--device", str(device)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def peak_bytes(row: Row, version: int, device: torch.device) -> int:
    """Bytes by which two calls of one version raise this process's memory at its peak."""
    work = row.make(device)[version]
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work(), work()
        return torch.cuda.max_memory_allocated(device) - before
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts anew; it is inherited from the parent otherwise
    work(), work()
    return _resident("VmHWM") - before


def _resident(key: str) -> int:
    """Bytes of this process's memory now (VmRSS) or at its peak (VmHWM)."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status[key].split()[0])
