"""Measurements of networks that are trained already: of a finished run, or of a checkpoint that the authors released.

python -m lib.measure localization small/supervised_cpu pooling=simpool seed=0 --record
python -m lib.measure localization small/supervised_cpu pooling=simpool localization.data=horses localization.split=test
python -m lib.measure discovery small/ibot_cpu masking=attmask_high seed=0 --record
python -m lib.measure finetune small/ibot_cpu masking=attmask_high seed=0 --budget 30
python -m lib.measure released attmask_high checkpoint.pth
"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import torch

from lib import recipes
from lib.data.bank import Stream, bank, table_fingerprint
from lib.data.loading import read_table
from lib.data.revisited import Retrieval, load_retrieval
from lib.data.whole import readable
from lib.downstream import FINE_TUNED, fine_tune_run
from lib.evaluation.backgrounds import measure_backgrounds
from lib.evaluation.discovery import measure_discovery
from lib.evaluation.features import accuracy, features_and_logits, pooled_features
from lib.evaluation.knn import evaluate_knn, measure_knn
from lib.evaluation.linear import measure_linear
from lib.evaluation.localization import measure_localization
from lib.evaluation.retrieval import measure_retrieval
from lib.evaluation.video import measure_video
from lib.models import load_released
from lib.results.papers import paper_table
from lib.results.runs import Measurement, Run
from lib.train import default_device, find_run, load_encoder, untrained_encoder

# measurement -> function of (network, its untrained twin, images, **settings), giving metrics. Where the settings have a canvas, the
# images are a Stream and are seen as the run's own evaluation sees them, or cropped as the settings say; without one, they are a table of
# whole images. Where they name a split to train on, of ``train_data`` or else of the same set, its images are a Bank. Where they name no
# split, the images are a Retrieval.
MEASUREMENTS: dict[str, Callable[..., dict[str, float]]] = {
    "knn": measure_knn,
    "linear": measure_linear,
    "backgrounds": measure_backgrounds,
    "localization": measure_localization,
    "discovery": measure_discovery,
    "retrieval": measure_retrieval,
    "video": measure_video,
}


def measure(
    name: str,
    found: Run,
    *,
    root: str | Path | None = None,
    device=None,
    budget: float | None = None,
    record: bool = False,
    progress: bool = True,
    **overrides,
) -> Measurement:
    """Measure a finished run, or load what was measured before.

    Args:
        name: one of ``MEASUREMENTS`` or ``FINE_TUNED``; its settings stand in the recipes of the run's scale.
        found: a finished run.
        root: folder of the data set; None as in ``lib.data.load``.
        budget: seconds of training after which to stop with a checkpoint, of measurements that train the network; None never stops.
        device: None is the GPU if there is one, else the CPU.
        record: leave a line in ``records/``.
        progress: show bars.
        overrides: settings of the measurement and other values for them.

    Returns:
        The measurement; ``finished`` is False when the budget ended first.

    Raises:
        ValueError: an unknown measurement or setting, a run that is not finished, missing data, or more than one process.
    """
    if (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise ValueError(f"processes: got {processes} of torchrun, measurements accept one")
    made = measurement_of(found, name, **overrides)
    if not made.finished:
        found.result()  # says so where the run is not finished
        device = torch.device(device or default_device())
        if name in FINE_TUNED:
            with found.lock():
                if not made.finished:  # by who held the lock before
                    fine_tune_run(made, root=root, device=device, budget=budget, progress=progress)
        else:
            settings = made.settings
            images, fingerprints, left_out = _images(found, settings, root=root, device=device, progress=progress)
            networks = load_encoder(found, device), untrained_encoder(found, device)
            metrics = MEASUREMENTS[name](*networks, images, **settings, progress=progress)
            metrics.setdefault("left_out", float(left_out))
            made.finish(metrics, data=fingerprints, device=device)
    if record and made.finished:
        made.record()
    return made


def measurement_of(found: Run, name: str, **overrides) -> Measurement:
    """A run's measurement, finished or not; arguments and errors as of ``measure``."""
    if name not in (*MEASUREMENTS, *FINE_TUNED):
        raise ValueError(f"name: got {name!r}, accepts {', '.join((*MEASUREMENTS, *FINE_TUNED))}")
    return Measurement(found, name, recipes.measurement(found.scale, name, overrides))


def _images(found: Run, settings: dict, *, root, device, progress: bool) -> tuple[pa.Table | Stream | Retrieval, dict[str, str], int]:
    """What a measurement looks at, its fingerprints, and how many damaged images were left out; the settings are left with what the
    measurement itself takes.
    """
    data, split = settings.pop("data"), settings.pop("split", None)
    if split is None:
        retrieval = load_retrieval(data, root=root)
        return retrieval, {name: table_fingerprint(getattr(retrieval, name)) for name in ("database", "queries")}, 0
    table = read_table(data, split, root=root)
    if "train" in settings:
        source = settings.pop("train_data", data)
        fraction = found.config["fraction"] if source == found.config["data"] else 1.0
        options = dict(fraction=fraction, root=root, device=device, progress=progress)
        settings["train"] = bank(source, settings["train"], settings["canvas"], **options)
    elif "boxes" in table.column_names:
        table = table.filter([len(boxes) > 0 for boxes in table["boxes"].to_pylist()])
    if "canvas" not in settings:
        return table, {"test": table_fingerprint(table)}, 0  # such measurements leave them out by themselves
    kept = readable(table, progress=progress)
    images = Stream(kept, settings.pop("canvas"), device)
    settings.setdefault("size", found.config["eval_size"])
    settings.setdefault("crop", found.config["eval_crop"])
    return images, {"test": images.fingerprint}, len(table) - len(kept)


def measure_released(name: str, file: str | Path, *, root: str | Path | None = None, device=None, progress: bool = True) -> pd.DataFrame:
    """k-NN or classification accuracy of a released checkpoint, without training.

    Args:
        name: an entry of ``released`` in the paper-scale recipes.
        file: the authors' file.
        root, device, progress: as in ``measure``.

    Returns:
        A row a metric, in percent: ``ours, published``.

    Raises:
        ValueError: an unknown name, a file that is missing, damaged or of another network, or missing data.
    """
    settings = recipes.released(name)
    device = torch.device(device or default_device())
    network = load_released(file, settings["arch"], source=settings["source"]).to(device)
    size, view = settings["canvas"], dict(size=settings["size"], crop=settings["crop"], batch_size=settings["batch_size"])
    test = bank(settings["data"], "validation", size, root=root, device=device, progress=progress)
    published = settings["published"]
    if "knn" in published:
        train = bank(settings["data"], "train", size, root=root, device=device, progress=progress)
        features = (pooled_features(network, source, progress=progress, **view) for source in (train, test))
        figures = evaluate_knn(*features, neighbours=settings["knn_k"], num_classes=int(train.labels.max()) + 1, few=False)
    else:
        _, labels, logits = features_and_logits(network, test, progress=progress, **view)
        figures = accuracy(logits, labels)
    expected = paper_table(published["paper"], published["table"]).loc[published["row"]]
    return pd.DataFrame({m: {"ours": figures[m], "published": expected[published[m]]} for m in ("knn", "accuracy") if m in published}).T


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m lib.measure", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("measurement", choices=(*MEASUREMENTS, *FINE_TUNED, "released"))
    parser.add_argument("entry", metavar="ENTRY", help="recipe entry of a finished run, scale/name; or the name of a released checkpoint")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="keys of the entry, or MEASUREMENT.key for its own, and other values for them; or the checkpoint",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1 …; the default is a GPU if there is one")
    parser.add_argument("--root", help="folder of the data set; the default is $COMPANION_DATA, then the Hub")
    parser.add_argument("--budget", type=float, metavar="MINUTES", help="stop a fine-tuning after this time; the same command resumes it")
    parser.add_argument("--record", action="store_true", help="leave a line in records/")
    options = parser.parse_intermixed_args(arguments)
    try:
        if options.measurement == "released":
            if len(options.overrides) != 1:
                raise ValueError(f"file: got {options.overrides}, accepts one file after the name of the released checkpoint")
            print(measure_released(options.entry, options.overrides[0], root=options.root, device=options.device).round(1).to_string())
            return 0
        overrides = dict(recipes.parse(assignment) for assignment in options.overrides)
        prefix = f"{options.measurement}."
        settings = {key.removeprefix(prefix): overrides.pop(key) for key in list(overrides) if key.startswith(prefix)}
        found = find_run(options.entry, **overrides)
        budget = None if options.budget is None else 60 * options.budget
        made = measure(
            options.measurement, found, root=options.root, device=options.device, budget=budget, record=options.record, **settings
        )
    except (ImportError, RuntimeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not made.finished:
        print("stopped at the time budget; the same command continues")
        return 3
    for metric, value in made.metrics.items():
        print(f"{metric:28} {value:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
