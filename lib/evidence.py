"""The evidence: train, measure and record what is missing of it, the most wanted first.

python -m lib.evidence small
python -m lib.evidence small --budget 60
"""

import argparse
import sys
import time
from pathlib import Path

import torch

from lib import recipes
from lib.measure import measure, measurement_of
from lib.results.runs import Result, records
from lib.train import default_device, find_run, run


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
    wanted = recipes.evidence(scale, device.type)
    if not wanted:
        raise ValueError(f"device: got {device.type}, on which recipes/{scale}.yaml has no evidence")
    recorded = set(records().get("key", []))
    complete = True

    def left() -> float | None:
        return None if budget is None else max(0.0, budget - (time.monotonic() - started))

    def make(entry: str, overrides: dict, name: str, settings: dict) -> Result:
        options = dict(device=device, root=root, record=True, progress=progress)
        trained = run(entry, budget=left(), **options, **overrides)
        return measure(name, trained, budget=left(), **options, **settings) if name and trained.finished else trained

    for number, (entry, overrides, measurements) in enumerate(wanted, 1):
        found = find_run(entry, **overrides)
        for name, settings in (("", {}), *measurements):  # the run itself, then its measurements
            title = " ".join(filter(None, [f"[{number}/{len(wanted)}]", entry, recipes.words(overrides), name, recipes.words(settings)]))
            result = measurement_of(found, name, **settings) if name else found
            if result.key in recorded:
                print(f"{title}: recorded")
                continue
            if left() == 0:
                print(f"{title}: no time left; the same command continues here")
                return False
            print(title, flush=True)
            try:
                result = make(entry, overrides, name, settings)
            except (ImportError, RuntimeError, ValueError) as error:
                print(f"{title}: failed: {error}", file=sys.stderr)
                complete = False
                if name:
                    continue
                break  # what is not trained can't be measured
            if not result.finished:
                print(f"{title}: stopped at the time budget; the same command continues here")
                return False
            figures = {metric: value for metric, value in result.metrics.items() if isinstance(value, float)}
            print(f"{title}: " + ", ".join(f"{metric} {value:.1f}" for metric, value in list(figures.items())[:4]), flush=True)
    return complete


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
        return 0 if record_evidence(options.scale, budget=budget, device=options.device, root=options.root) else 3
    except (RuntimeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
