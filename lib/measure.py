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
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from lib import recipes
from lib.data.bank import bank
from lib.data.sources import noted
from lib.engine.checkpoint import CHECKPOINT, load_checkpoint
from lib.engine.interrupts import stopping
from lib.engine.processes import default_device
from lib.evaluation.base import Context, Evaluation, Inputs, Origin, evaluation_class, evaluation_names
from lib.evaluation.features import accuracy, features_and_logits, pooled_features
from lib.evaluation.finetuned import FineTunedEvaluation
from lib.evaluation.knn import evaluate_knn
from lib.models import Model, load_released
from lib.results.basis import check_basis, write_basis
from lib.results.papers import paper_table
from lib.results.runs import Measurement, Run
from lib.train import configuration_of, find_run, load_encoder, origin_of, untrained_encoder


def evaluate(
    name: str,
    network: Model,
    *,
    untrained: Model | None = None,
    scale: str = "small",
    origin: Origin | None = None,
    root: str | Path | None = None,
    progress: bool = True,
    **overrides,
) -> dict[str, float]:
    """Measure any network: ``evaluate("localization", network, data="horses", split="test")``.

    Args:
        name: of a measurement, see ``lib.evaluation.base.evaluation_names``.
        network: any of ``lib.models.create_model``'s, on its device.
        untrained: a network from which it started, whose figures come with ``untrained_`` before their names.
        scale: whose recipes state the settings.
        origin: how the network was trained; None takes its image size and the defaults of ``Origin``.
        root: folder of the data set; None as in ``lib.data.load``.
        progress: show bars.
        overrides: settings of the measurement and other values for them.

    Returns:
        Figures, in percent unless their names say otherwise.

    Raises:
        ValueError: an unknown measurement or setting, or missing or damaged data.
    """
    evaluation = create_evaluation(name, scale, origin=origin or _origin_of(network), **overrides)
    inputs = evaluation.load(root=root, device=next(network.parameters()).device, progress=progress)
    networks: dict[bool, Callable[[], Model]] = {True: lambda: network}
    if untrained is not None:
        networks[False] = lambda: untrained
    with tempfile.TemporaryDirectory() as folder:
        figures = _figures(evaluation, inputs, networks, lambda trained: Path(folder) / str(trained), progress=progress)
    assert figures is not None  # there was no budget
    return figures


def create_evaluation(name: str, scale: str, *, origin: Origin | None = None, **overrides) -> Evaluation:
    """A measurement with the settings of a scale's recipes, some of them overridden.

    Raises:
        ValueError: an unknown measurement or setting, or a value of another type.
    """
    kind = evaluation_class(name)
    return kind(kind.Settings.of(f"{scale}/{name}", recipes.measurement(scale, name), overrides), origin)


def measure(
    name: str,
    run: Run,
    *,
    root: str | Path | None = None,
    device=None,
    budget: float | None = None,
    record: bool = False,
    progress: bool = True,
    **overrides,
) -> Measurement:
    """Measure a finished run and the network from which it started, or load what was measured before.

    Args:
        name: of a measurement; its settings stand in the recipes of the run's scale.
        run: a finished run.
        root: folder of the data set; None as in ``lib.data.load``.
        device: None is the GPU if there is one, else the CPU.
        budget: seconds of training after which to stop with a checkpoint, of measurements that train the network; None never stops.
        record: leave a line in ``records/``.
        progress: show bars.
        overrides: settings of the measurement and other values for them.

    Returns:
        The measurement; ``finished`` is False when the budget ended first.

    Raises:
        ValueError: an unknown measurement or setting, a run that is not finished, missing data, data other than those that were measured
            before, see ``lib.results.basis``, or more than one process.
    """
    if (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise ValueError(f"processes: got {processes} of torchrun, measurements accept one")
    measurement = measurement_of(run, name, **overrides)
    run.result()  # says so where the run is not finished
    with nullcontext() if measurement.finished else run.lock():
        check_basis(measurement.basis, root=root, finished=measurement.finished)
        if not measurement.finished:  # by who held the lock before
            _make(measurement, root, torch.device(device or default_device()), budget, progress)
    if record and measurement.finished:
        measurement.record()
    return measurement


def measurement_of(run: Run, name: str, **overrides) -> Measurement:
    """A run's measurement, finished or not; arguments and errors as of ``measure``."""
    settings = create_evaluation(name, run.scale, **overrides).settings
    return Measurement(run, name, settings, settings.changes(recipes.measurement(run.scale, name)))


def evaluation_of(measurement: Measurement) -> Evaluation:
    """What a measurement does, for the run that it measures."""
    return evaluation_class(measurement.experiment)(measurement.settings, origin_of(configuration_of(measurement.run)))


def load_tuned(measurement: Measurement, *, trained: bool = True, device="cpu") -> nn.Module:
    """The classifier, detector or segmenter of a finished measurement that trains, in evaluation mode.

    Args:
        measurement: of a subclass of ``FineTunedEvaluation``.
        trained: False gives the one that started from the untrained network.
        device: where it lies.

    Raises:
        ValueError: it is not finished, trains nothing, or its checkpoint is damaged.
    """
    measurement.result()
    evaluation = evaluation_of(measurement)
    if not isinstance(evaluation, FineTunedEvaluation):
        raise ValueError(f"measurement: got {measurement.experiment}, accepts one that trains the network")
    learner = evaluation.restored(untrained_encoder(measurement.run), measurement.training_folder(trained=trained))
    return learner.encoder.to(device).eval()


def _make(measurement: Measurement, root, device: torch.device, budget: float | None, progress: bool) -> None:
    """Finish a measurement, or stop at the budget."""
    run, evaluation = measurement.run, evaluation_of(measurement)
    with noted() as sources:
        inputs = evaluation.load(root=root, device=device, progress=progress)
    write_basis(measurement.basis, sources)
    networks = {True: lambda: load_encoder(run, device), False: lambda: untrained_encoder(run, device)}

    def folder(trained: bool) -> Path:
        return measurement.training_folder(trained=trained)

    figures = _figures(evaluation, inputs, networks, folder, budget=budget, progress=progress)
    if figures is not None:
        trainings = [folder(trained) for trained in networks if (folder(trained) / CHECKPOINT).is_file()]
        seconds = sum(load_checkpoint(training)["seconds"] for training in trainings) if trainings else None
        measurement.finish(figures, data=inputs.fingerprints, device=device, seconds=seconds)


def _figures(
    evaluation: Evaluation,
    inputs: Inputs,
    networks: dict[bool, Callable[[], Model]],
    folder: Callable[[bool], Path],
    *,
    budget: float | None = None,
    progress: bool = True,
) -> dict[str, float] | None:
    """Figures of the trained network (True) and, with ``untrained_`` before them, of the untrained one (False); None when the budget ended
    first.
    """
    started = time.monotonic()
    figures: dict[str, float] = {}
    for trained, network in networks.items():
        left = None if budget is None else max(0.0, budget - (time.monotonic() - started))
        context = Context(trained=trained, progress=progress, folder=folder(trained), budget=left)
        measured = evaluation.measure(network(), inputs, context)
        if measured is None:
            return None
        prefix = "" if trained else "untrained_"
        figures |= {prefix + name: round(value, 3) for name, value in measured.items() if trained or name not in evaluation.once}
    return figures if inputs.left_out is None else figures | {"left_out": float(inputs.left_out)}


def _origin_of(network: Model) -> Origin:
    """Of a network that is no run: its image size."""
    size = getattr(network, "_hub_mixin_config", {}).get("img_size", Origin.size)
    return Origin(size=size if isinstance(size, int) else max(size))


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
    statistics = {key: settings[key] for key in ("mean", "std") if key in settings}
    network = load_released(file, settings["arch"], source=settings["source"], **statistics).to(device)
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
    parser.add_argument("measurement", choices=(*evaluation_names(), "released"))
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
        overrides: dict[str, Any] = recipes.parse(options.overrides)
        prefix = f"{options.measurement}."
        settings: dict[str, Any] = {key.removeprefix(prefix): overrides.pop(key) for key in list(overrides) if key.startswith(prefix)}
        budget = None if options.budget is None else 60 * options.budget
        common: dict[str, Any] = dict(root=options.root, device=options.device, budget=budget, record=options.record)
        with stopping():
            measurement = measure(options.measurement, find_run(options.entry, **overrides), **common, **settings)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not measurement.finished:
        print("stopped early; the same command continues")
        return 3
    for metric, value in measurement.metrics.items():
        print(f"{metric:28} {value:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
