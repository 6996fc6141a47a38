"""Measurements of a finished run that train all of its network further: classification of another set, detection, segmentation."""

import time
from collections.abc import Callable
from pathlib import Path

import torch

from lib import recipes
from lib.data.bank import bank, table_fingerprint
from lib.data.loading import read_table
from lib.data.pictures import ObjectPictures, PixelPictures
from lib.evaluation.detection import Detection, DetectionConfig, train_detector
from lib.evaluation.finetune import FineTuneConfig, FineTuning, fine_tune
from lib.evaluation.segmentation import Segmentation, SegmentationConfig, train_segmenter
from lib.models import network_of
from lib.results.runs import Measurement
from lib.train import check_classes, load_encoder, untrained_encoder
from lib.training import CHECKPOINT, Learner, TrainingConfig, load_checkpoint, seeded

# Measurement that trains all of a network -> its configuration, its learner, made from (configuration, network), and a function of
# (network, images to train and to test on, configuration, folder) giving metrics, or None when its budget ended first.
FINE_TUNED: dict[str, tuple[type[TrainingConfig], type[Learner], Callable[..., dict[str, float] | None]]] = {
    "finetune": (FineTuneConfig, FineTuning, fine_tune),
    "detection": (DetectionConfig, Detection, train_detector),
    "segmentation": (SegmentationConfig, Segmentation, train_segmenter),
}
CLASSIFIERS = ("head.weight", "head.bias", "head.fc.", "fc.")  # starts of the names of a classifier's weights
FROM_RUN = ("method", "seed", "arch", "patch_size", "pooling", "gamma")  # keys of the configuration that the run has set


def fine_tune_run(
    made: Measurement, *, root: str | Path | None = None, device="cpu", budget: float | None = None, progress: bool = True
) -> None:
    """Finish a measurement of ``FINE_TUNED``, or stop at the budget: the run's network and its untrained twin are trained alike.

    Args:
        made: the measurement; its checkpoints lie beside it in the run's folder.
        root, device, budget, progress: as of ``lib.measure.measure``.
    """
    started, found = time.monotonic(), made.run
    config, function = _configure(made), FINE_TUNED[made.experiment][2]
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
    seconds = sum(load_checkpoint(_folder(made, untrained=untrained) / CHECKPOINT)["seconds"] for untrained in (False, True))
    made.finish(figures, data=fingerprints, device=device, seconds=seconds)


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
    config = _configure(made)
    learner = FINE_TUNED[made.experiment][1](config, starting_from(untrained_encoder(made.run), made.run.config, config))
    learner.load_state_dict(load_checkpoint(_folder(made, untrained=untrained) / CHECKPOINT)["learner"])
    return learner.encoder.to(device).eval()


def tested_on(made: Measurement, *, root: str | Path | None = None, device="cpu"):
    """The images on which a measurement of ``FINE_TUNED`` is tested: a ``lib.data.Bank`` or ``Stream``, or ``lib.data.pictures``."""
    config = _configure(made)
    return _targets(config, root=root, device=device, progress=False)[1]


def _configure(made: Measurement) -> TrainingConfig:
    settings = made.settings | {key: made.run.config[key] for key in FROM_RUN}
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
        check_classes(config, source)
        return source, test, {"train": source.fingerprint, "test": test.fingerprint}
    prefix = "several_" if config.data == "scenes" else ""
    tables = [read_table(config.data, prefix + split, root=root) for split in ("train", "validation")]
    tables[0] = tables[0].slice(0, max(1, int(config.fraction * len(tables[0]) + 1e-9)))
    if isinstance(config, DetectionConfig):
        pictures = [ObjectPictures(table, device, longest=config.canvas) for table in tables]
        largest = max((label for table in tables for labels in table["classes"].to_pylist() for label in labels), default=-1)
        if largest >= config.num_classes:
            raise ValueError(f"num_classes: got {config.num_classes}, {config.data} accepts {largest + 1} or more")
    else:
        options = dict(shortest=config.canvas, void=config.void, num_classes=config.num_classes)
        pictures = [PixelPictures(table, device, **options) for table in tables]
    return *pictures, dict(zip(("train", "test"), map(table_fingerprint, tables)))
