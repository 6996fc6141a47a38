"""The evidence: train, measure and record what is missing of it, the most wanted first.

python -m lib.evidence small
python -m lib.evidence small --budget 60
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lib import recipes
from lib.engine.interrupts import stop_wanted, stopping
from lib.engine.processes import default_device
from lib.measure import measure, measurement_of
from lib.results.records import records
from lib.results.runs import Result
from lib.train import find_run, run


def record_evidence(scale: str, *, budget: float | None = None, device=None, root: str | Path | None = None, progress: bool = True) -> bool:
    """Train, measure and record what is missing of a scale's evidence, in its order.

    What fails is reported, and the next goes on. What the budget ends is resumed by the next call. A run that is recorded but no longer in
    the store is trained again only where a measurement of it is missing.

    Args:
        scale: whose recipes say what the evidence consists of.
        budget: seconds after which to stop; None never stops. Measurements that train nothing are finished once they have begun.
        device: None is the GPU if there is one, else the CPU.
        root: folder of the data sets; None as in ``lib.data.load``.
        progress: show bars.

    Returns:
        Whether nothing is missing now.

    Raises:
        ValueError: a device on which the scale has no evidence.
    """
    started = time.monotonic()
    device = torch.device(device or default_device())
    items = _items(scale, device.type)
    recorded = set(records().get("key", []))
    failed: set[str] = set()  # runs
    complete = True
    for title, run_key, key, make in items:
        left = None if budget is None else max(0.0, budget - (time.monotonic() - started))
        if key in recorded:
            print(f"{title}: recorded")
        elif run_key in failed:  # what is not trained can't be measured
            complete = False
        elif left == 0 or stop_wanted():
            print(f"{title}: no time left; the same command continues here")
            return False
        else:
            print(title, flush=True)
            try:
                result = make(budget=left, device=device, root=root, record=True, progress=progress)
            except (ImportError, OSError, RuntimeError, ValueError) as error:
                print(f"{title}: failed: {error}", file=sys.stderr)
                complete = False
                failed |= {run_key} if key == run_key else set()
                continue
            if not result.finished:
                print(f"{title}: stopped early; the same command continues here")
                return False
            figures = {metric: value for metric, value in result.metrics.items() if isinstance(value, float)}
            print(f"{title}: " + ", ".join(f"{metric} {value:.1f}" for metric, value in list(figures.items())[:4]), flush=True)
    return complete


class Item(NamedTuple):
    """A run of the evidence or a measurement of it: a title, the keys of the run and of the result, and what makes the result."""

    title: str
    run_key: str
    key: str
    make: Callable[..., Result]


def _items(scale: str, device: str) -> list[Item]:
    """Every run of a scale's evidence, each followed by its measurements."""
    runs = recipes.evidence(scale, device)
    if not runs:
        raise ValueError(f"device: got {device}, on which recipes/{scale}.yaml has no evidence")
    items = []
    for number, (entry, overrides, measurements) in enumerate(runs, 1):
        trained = find_run(entry, **overrides)
        for name, settings in (("", {}), *measurements):  # the run itself, then its measurements
            words = [f"[{number}/{len(runs)}]", entry, recipes.words(overrides), name, recipes.words(settings)]
            result = measurement_of(trained, name, **settings) if name else trained
            items.append(Item(" ".join(filter(None, words)), trained.key, result.key, partial(_make, entry, overrides, name, settings)))
    return items


def _make(entry: str, overrides: dict, name: str, settings: dict, *, budget: float | None, **options: Any) -> Result:
    """Train a run and, where a measurement is named, measure it; a run that has left the store is trained again."""
    started = time.monotonic()
    trained = run(entry, budget=budget, **options, **overrides)
    if not (name and trained.finished):
        return trained
    left = None if budget is None else max(0.0, budget - (time.monotonic() - started))
    return measure(name, trained, budget=left, **options, **settings)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m lib.evidence", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scale", choices=[scale for scale in recipes.SCALES if scale != "smoke"], help="whose evidence; see recipes/")
    parser.add_argument("--budget", type=float, metavar="MINUTES", help="stop after this time; the same command continues")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 …; the default is a GPU if there is one")
    parser.add_argument("--root", help="folder of the data sets; the default is $COMPANION_DATA, then the Hub")
    options = parser.parse_args(arguments)
    budget = None if options.budget is None else 60 * options.budget
    try:
        with stopping():
            return 0 if record_evidence(options.scale, budget=budget, device=options.device, root=options.root) else 3
    except (OSError, RuntimeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
