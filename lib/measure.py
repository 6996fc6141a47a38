"""One measurement of a finished run: what its network is worth beyond the figures that training leaves.

python -m lib.measure localization small/supervised_cpu pooling=simpool seed=0 --record
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from lib import recipes
from lib.data.bank import Stream
from lib.data.loading import read_table
from lib.evaluation.localization import measure_localization
from lib.results.runs import Measurement, Run
from lib.train import default_device, find_run, load_encoder, untrained_encoder

# measurement -> function of (network, its untrained twin, a Stream with boxes, **settings), giving metrics
MEASUREMENTS: dict[str, Callable[..., dict[str, float]]] = {"localization": measure_localization}


def measure(
    name: str, found: Run, *, root: str | Path | None = None, device=None, record: bool = False, progress: bool = True
) -> Measurement:
    """Measure a finished run, or load what was measured before.

    Args:
        name: one of ``MEASUREMENTS``; its settings stand in the recipes of the run's scale.
        found: a finished run.
        root: folder of the data set; None as in ``lib.data.load``.
        device: None is the GPU if there is one, else the CPU.
        record: leave a line in ``records/``.
        progress: show bars.

    Raises:
        ValueError: an unknown measurement, a run that is not finished, or missing data.
    """
    if name not in MEASUREMENTS:
        raise ValueError(f"name: got {name!r}, accepts {', '.join(MEASUREMENTS)}")
    settings = recipes.measurement(found.scale, name)
    made = Measurement(found, name, settings)
    if not made.finished:
        device = torch.device(device or default_device())
        settings = dict(settings)
        table = read_table(settings.pop("data"), settings.pop("split"), root=root)
        table = table.filter([len(boxes) > 0 for boxes in table["boxes"].to_pylist()])
        source = Stream(table, settings.pop("canvas"), device)
        networks = load_encoder(found, device), untrained_encoder(found, device)
        view = dict(size=found.config["eval_size"], crop=found.config["eval_crop"])
        metrics = MEASUREMENTS[name](*networks, source, **view, **settings, progress=progress)
        made.finish(metrics, data={"test": source.fingerprint}, device=device)
    if record:
        made.record()
    return made


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m lib.measure", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("measurement", choices=MEASUREMENTS)
    parser.add_argument("entry", metavar="ENTRY", help="recipe entry of a finished run, scale/name")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the entry and other values for them")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 …; the default is a GPU if there is one")
    parser.add_argument("--root", help="folder of the data set; the default is $COMPANION_DATA, then the Hub")
    parser.add_argument("--record", action="store_true", help="leave a line in records/")
    options = parser.parse_intermixed_args(arguments)
    try:
        found = find_run(options.entry, **dict(recipes.parse(assignment) for assignment in options.overrides))
        made = measure(options.measurement, found, root=options.root, device=options.device, record=options.record)
    except (ImportError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for metric, value in made.metrics.items():
        print(f"{metric:28} {value:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
