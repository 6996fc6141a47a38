"""Measurements of networks that are trained already: of a finished run, or of a checkpoint that the authors released.

python -m lib.measure localization small/supervised_cpu pooling=simpool seed=0 --record
python -m lib.measure discovery small/ibot_cpu masking=attmask_high seed=0 --record
python -m lib.measure finetune small/ibot_cpu masking=attmask_high seed=0 --budget 30
python -m lib.measure released attmask_high checkpoint.pth
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import torch

from lib import recipes
from lib.data.bank import Stream, bank, table_fingerprint
from lib.data.loading import read_table
from lib.data.pictures import ObjectPictures, PixelPictures
from lib.data.revisited import Retrieval, load_retrieval
from lib.data.whole import readable
from lib.evaluation.backgrounds import measure_backgrounds
from lib.evaluation.detection import Detection, DetectionConfig, train_detector
from lib.evaluation.discovery import measure_discovery
from lib.evaluation.features import accuracy, features_and_logits, pooled_features
from lib.evaluation.finetune import FineTuneConfig, FineTuning, fine_tune
from lib.evaluation.knn import evaluate_knn, measure_knn
from lib.evaluation.linear import measure_linear
from lib.evaluation.localization import measure_localization
from lib.evaluation.retrieval import measure_retrieval
from lib.evaluation.segmentation import Segmentation, SegmentationConfig, train_segmenter
from lib.evaluation.video import measure_video
from lib.models import load_released, network_of
from lib.results.papers import paper_table
from lib.results.runs import Measurement, Run
from lib.train import default_device, find_run, load_encoder, untrained_encoder
from lib.training import CHECKPOINT, Learner, TrainingConfig, load_checkpoint, seeded

# measurement -> function of (network, its untrained twin, images, **settings), giving metrics. Where the settings have a canvas, the
# images are a Stream and are seen as the run's own evaluation sees them; without one, they are a table of whole images. Where they
# name a split to train on, its images are a Bank. Where they name no split, the images are a Retrieval.
MEASUREMENTS: dict[str, Callable[..., dict[str, float]]] = {
    "knn": measure_knn,
    "linear": measure_linear,
    "backgrounds": measure_backgrounds,
    "localization": measure_localization,
    "discovery": measure_discovery,
    "retrieval": measure_retrieval,
    "video": measure_video,
}

# Measurement that trains all of a network -> its configuration, its learner, made from (configuration, network), and a function of
# (network, images to train and to test on, configuration, folder) giving metrics, or None when its budget ended first.
FINE_TUNED: dict[str, tuple[type[TrainingConfig], type[Learner], Callable[..., dict[str, float] | None]]] = {
    "finetune": (FineTuneConfig, FineTuning, fine_tune),
    "detection": (DetectionConfig, Detection, train_detector),
    "segmentation": (SegmentationConfig, Segmentation, train_segmenter),
}
CLASSIFIERS = ("head.weight", "head.bias", "head.fc.", "fc.")  # starts of the names of a classifier's weights
FROM_RUN = ("method", "seed", "arch", "patch_size", "pooling", "gamma")  # keys of the configuration that the run has set


def measure(
    name: str,
    found: Run,
    *,
    root: str | Path | None = None,
    device=None,
    budget: float | None = None,
    record: bool = False,
    progress: bool = True,
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

    Returns:
        The measurement; ``finished`` is False when the budget ended first.

    Raises:
        ValueError: an unknown measurement, a run that is not finished, or missing data.
    """
    if name not in (*MEASUREMENTS, *FINE_TUNED):
        raise ValueError(f"name: got {name!r}, accepts {', '.join((*MEASUREMENTS, *FINE_TUNED))}")
    settings = recipes.measurement(found.scale, name)
    made = Measurement(found, name, settings)
    if not made.finished:
        found.result()  # says so where the run is not finished
        device = torch.device(device or default_device())
        if name in FINE_TUNED:
            with found.lock():
                _fine_tune(made, settings, root=root, device=device, budget=budget, progress=progress)
        else:
            images, fingerprints, left_out = _images(found, settings, root=root, device=device, progress=progress)
            networks = load_encoder(found, device), untrained_encoder(found, device)
            metrics = MEASUREMENTS[name](*networks, images, **settings, progress=progress)
            metrics.setdefault("left_out", float(left_out))
            made.finish(metrics, data=fingerprints, device=device)
    if record and made.finished:
        made.record()
    return made


def _fine_tune(made: Measurement, settings: dict, *, root, device, budget: float | None, progress: bool) -> None:
    """Finish a measurement of ``FINE_TUNED``, or stop at the budget: the run's network and its untrained twin are trained alike."""
    started, found = time.monotonic(), made.run
    config, function = _configure(made, settings), FINE_TUNED[made.experiment][2]
    source, test, fingerprints = _targets(config, root=root, device=device, progress=progress)
    figures = {}
    for prefix, encoder in (("", load_encoder), ("untrained_", untrained_encoder)):
        folder = _folder(made, untrained=bool(prefix))
        network = starting_from(encoder(found), found.config, config).to(device)
        left = None if budget is None else max(0.0, budget - (time.monotonic() - started))
        metrics = function(network, source, test, config, folder, budget=left, progress=progress)
        if metrics is None:
            return
        figures |= {prefix + name: round(value, 3) for name, value in metrics.items() if not (prefix and name in ("images", "left_out"))}
    made.finish(figures, data=fingerprints, device=device, seconds=time.monotonic() - started)


def load_tuned(made: Measurement, *, untrained: bool = False, device="cpu") -> torch.nn.Module:
    """The classifier, detector or segmenter of a finished measurement of ``FINE_TUNED``, in evaluation mode.

    Args:
        made: the measurement.
        untrained: the one that started from the untrained network.
        device: where it lies.

    Raises:
        ValueError: it is not finished, or its checkpoint is damaged.
    """
    made.result()
    config = _configure(made, recipes.measurement(made.scale, made.experiment))
    learner = FINE_TUNED[made.experiment][1](config, starting_from(untrained_encoder(made.run), made.run.config, config))
    learner.load_state_dict(load_checkpoint(_folder(made, untrained=untrained) / CHECKPOINT)["learner"])
    return learner.encoder.to(device).eval()


def tested_on(made: Measurement, *, root: str | Path | None = None, device="cpu"):
    """The images on which a measurement of ``FINE_TUNED`` is tested: a ``lib.data.Bank`` or ``Stream``, or ``lib.data.pictures``."""
    config = _configure(made, recipes.measurement(made.scale, made.experiment))
    return _targets(config, root=root, device=device, progress=False)[1]


def _configure(made: Measurement, settings: dict) -> TrainingConfig:
    settings = settings | {key: made.run.config[key] for key in FROM_RUN}
    return recipes.configure(recipes.Entry(made.scale, made.experiment, "", "", settings), FINE_TUNED[made.experiment][0], {})


def _folder(made: Measurement, *, untrained: bool) -> Path:
    return made.run.folder / f"{made.experiment}-{made.key}" / ("untrained" if untrained else "trained")


def starting_from(encoder: torch.nn.Module, learned: dict, config: TrainingConfig) -> torch.nn.Module:
    """A network with an encoder's weights, and the classifier and the stochastic depth that a configuration asks for.

    Args:
        encoder: a trained network.
        learned: the configuration with which it was.
        config: that of what follows. Where it has ``num_classes`` and classifies whole images, a new classifier is put on top.
    """
    options = dict(drop_rate=config.dropout) if isinstance(config, FineTuneConfig) else {}
    classes = config.num_classes if isinstance(config, FineTuneConfig) else 0
    with seeded(config.seed):
        network = network_of(learned | {"num_classes": classes}, drop_path_rate=config.drop_path, **options)
    weights = {name: value for name, value in encoder.state_dict().items() if not name.startswith(CLASSIFIERS)}
    missing, unexpected = network.load_state_dict(weights, strict=False)
    if unexpected or not all(name.startswith(CLASSIFIERS) for name in missing):
        raise ValueError(f"encoder: lacks {missing} and has {unexpected}, accepts a network of the configuration {learned}")
    return network


def _targets(config: TrainingConfig, *, root, device, progress: bool) -> tuple:
    """Images to train and to test on, with what is to be found in them, and their fingerprints."""
    options = dict(root=root, device=device, progress=progress)
    if isinstance(config, FineTuneConfig):
        source = bank(config.data, "train", config.canvas, fraction=config.fraction, **options)
        test = bank(config.data, "validation", config.canvas, **options)
        return source, test, {"train": source.fingerprint, "test": test.fingerprint}
    prefix = "several_" if config.data == "scenes" else ""
    tables = [read_table(config.data, prefix + split, root=root) for split in ("train", "validation")]
    tables[0] = tables[0].slice(0, max(1, int(config.fraction * len(tables[0]) + 1e-9)))
    if isinstance(config, DetectionConfig):
        pictures = [ObjectPictures(table, device, longest=config.canvas) for table in tables]
    else:
        options = dict(shortest=config.canvas, void=config.void, num_classes=config.num_classes)
        pictures = [PixelPictures(table, device, **options) for table in tables]
    return *pictures, dict(zip(("train", "test"), map(table_fingerprint, tables)))


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
        fraction = found.config["fraction"] if data == found.config["data"] else 1.0
        options = dict(fraction=fraction, root=root, device=device, progress=progress)
        settings["train"] = bank(data, settings["train"], settings["canvas"], **options)
    elif "boxes" in table.column_names:
        table = table.filter([len(boxes) > 0 for boxes in table["boxes"].to_pylist()])
    if "canvas" not in settings:
        return table, {"test": table_fingerprint(table)}, 0  # such measurements leave them out by themselves
    kept = readable(table, progress=progress)
    images = Stream(kept, settings.pop("canvas"), device)
    settings |= dict(size=found.config["eval_size"], crop=found.config["eval_crop"])
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
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the entry and other values for them; or the checkpoint")
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
        found = find_run(options.entry, **dict(recipes.parse(assignment) for assignment in options.overrides))
        budget = None if options.budget is None else 60 * options.budget
        made = measure(options.measurement, found, root=options.root, device=options.device, budget=budget, record=options.record)
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
