"""One run: train a recipe entry, evaluate it, and keep both in the run store.

python -m lib.train small/ibot masking=attmask_high seed=1
python -m lib.train small/ibot_cpu masking=block --keep ibot_cpu-block
torchrun --nproc-per-node 4 -m lib.train paper/ibot_20pct masking=attmask_high
"""

import argparse
import importlib
import pkgutil
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from lib import recipes
from lib.data import Dataset, bank
from lib.data.loading import check_num_classes
from lib.data.sources import noted
from lib.distillation.methods import IBOT
from lib.engine.checkpoint import load_checkpoint
from lib.engine.interrupts import stopping
from lib.engine.log import read_log
from lib.engine.loop import train, training_steps
from lib.engine.processes import default_device, first_process, wait_for_all
from lib.engine.seeds import seeded
from lib.evaluation.base import Evaluation, Inputs, Origin, evaluation_class
from lib.evaluation.features import accuracy, features_and_logits, pooled_features
from lib.evaluation.hiding import fill_in_losses
from lib.evaluation.knn import evaluate_knn
from lib.evaluation.pretext import pretext_accuracy
from lib.keep import fingerprint, keep, load_kept
from lib.learning.base import METHODS, Learner, MethodConfig
from lib.models import Model, network_of
from lib.results.basis import check_basis, write_basis
from lib.results.runs import Run


def method_names() -> list[str]:
    """The names of all methods: those of ``lib.distillation`` and ``lib.learning``, and those declared elsewhere."""
    for package in ("lib.distillation", "lib.learning"):
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
            importlib.import_module(f"{package}.{module.name}")
    return sorted(METHODS)


def find_run(entry: str, **overrides) -> Run:
    """The run of an entry with some keys overridden, finished or not.

    Args:
        entry: ``scale/name`` of a recipe entry.
        overrides: keys of the entry and other values for them.

    Raises:
        ValueError: an unknown entry or key, or a value of the wrong type.
    """
    recipe = recipes.entry(entry)
    config = configure(recipe, overrides)
    return Run(entry, recipe.experiment, config.stated(), config.changes(recipe.settings))


def configure(entry: recipes.Entry, overrides: dict) -> MethodConfig:
    """The configuration of an entry with some keys overridden; errors as of ``find_run``."""
    method = overrides.get("method", entry.settings.get("method"))
    if method not in method_names():
        raise ValueError(f"method: got {method!r}, accepts {', '.join(method_names())}")
    return cast(MethodConfig, METHODS[method].Config.of(f"{entry.scale}/{entry.name}", entry.settings, overrides))


def run(
    entry: str,
    *,
    budget: float | None = None,
    device=None,
    root: str | Path | None = None,
    record: bool = False,
    progress: bool = True,
    **overrides,
) -> Run:
    """Train and evaluate a run, or load it where it is finished; an unfinished one is resumed.

    Args:
        entry: ``scale/name`` of a recipe entry.
        budget: seconds of training after which to stop with a checkpoint; None never stops.
        device: None is the GPU if there is one, else the CPU.
        root: folder of the data set; None as in ``lib.data.load``.
        record: leave a line in ``records/``.
        progress: show bars.
        overrides: keys of the entry and other values for them.

    Returns:
        The run; ``finished`` is False when the budget ended first.

    Raises:
        ValueError: an unknown entry or key, missing data, a damaged file, or a run that was computed with other data, see
            ``lib.results.basis``.
        NonFiniteLoss: the training diverged.
    """
    result, config = find_run(entry, **overrides), configure(recipes.entry(entry), overrides)
    with result.lock() if first_process() and not result.finished else nullcontext():
        check_basis(result.basis, root=root, finished=result.finished, **_guide(config))
        if not result.finished:
            _make(result, config, torch.device(device or default_device()), budget, root, progress)
    if record and result.finished and first_process():
        result.record()
    return result


def entry_for(scale: str, role: str) -> str:
    """The entry for a role at a scale on this machine, see ``lib.recipes.entry_for``."""
    return recipes.entry_for(scale, role, default_device().type)


def fractions_for(scale: str) -> list[float]:
    """The fractions of the data that are compared at a scale on this machine."""
    return recipes.fractions(scale, default_device().type)


def load_encoder(run: Run, device="cpu") -> Model:
    """The network that a finished run has trained, in evaluation mode."""
    encoder = network_of(run.config)
    encoder.load_state_dict(run.encoder_weights())
    return encoder.to(device).eval()


def build(config: MethodConfig, steps: int, device) -> Learner:
    """A run's learner at its start, the same for the same seed on every machine."""
    with seeded(config.seed):
        learner = METHODS[config.method](config, steps)
    if guide := getattr(config, "guide", ""):
        learner.guide = load_kept(guide).requires_grad_(False)
    return learner.to(device)


def untrained_encoder(run: Run, device="cpu") -> Model:
    """The network from which a run started."""
    config = configuration_of(run)
    return build(config, config.epochs, device).encoder.eval()


def configuration_of(run: Run) -> MethodConfig:
    """The configuration of a run."""
    return cast(MethodConfig, METHODS[run.config["method"]].Config.of(run.entry, run.config))


def origin_of(config: MethodConfig) -> Origin:
    """How a run's network was trained, for measurements of it."""
    return Origin(config.eval_size, config.eval_crop, config.data, config.fraction, config.seed)


def _guide(config: MethodConfig) -> dict[str, str]:
    """The fingerprint of the kept network that the masks follow, if there is one."""
    return {"guide": fingerprint(name)} if (name := getattr(config, "guide", "")) else {}


def _make(run: Run, config: MethodConfig, device: torch.device, budget: float | None, root, progress: bool) -> None:
    """Train a run and evaluate it, as far as the budget allows."""
    options: dict[str, Any] = dict(root=root, device=device, progress=progress)
    with noted() as sources:
        dataset = bank(config.data, "train", config.canvas, fraction=config.fraction, **options)
        test = bank(config.data, "validation", config.canvas, **options)
        checks = [(check, check.load(**options)) for check in _checks(config)]
    classes = check_num_classes(getattr(config, "num_classes", None), config.data, dataset.labels)
    learner = build(config, training_steps(dataset, config)[1], device)
    fingerprints = {"train": dataset.fingerprint, "validation": test.fingerprint} | _guide(config)
    for check, inputs in checks:
        fingerprints |= {f"{check.name}.{part}": value for part, value in inputs.fingerprints.items()}
    if first_process():
        write_basis(run.basis, sources, **_guide(config))

    def evaluate(encoder: nn.Module, epoch: int) -> dict[str, float]:
        figures = _checked(learner, checks)
        ends = epoch in (0, config.epochs)
        if ends or (config.knn_epochs and epoch % config.knn_epochs == 0):
            figures |= _evaluated(learner, dataset, test, config, classes, few=ends)
        return figures

    every = 1 if checks else config.knn_epochs
    loop: dict[str, Any] = dict(seed=config.seed, budget=budget, evaluate=evaluate, evaluation_epochs=every, progress=progress)
    if not train(learner, dataset, config, run.folder, **loop):
        return
    if first_process():
        run.save_encoder(learner.encoder)
        seconds = load_checkpoint(run.folder)["seconds"]
        run.finish(_metrics(read_log(run.folder), checks), seconds=seconds, data=fingerprints, device=device)
    wait_for_all()


def _checks(config: MethodConfig) -> list[Evaluation]:
    """The measurements that a run makes after each epoch."""
    kinds = {name: evaluation_class(name) for name in config.checks}
    return [kind(kind.Settings.of(f"checks.{name}", config.checks[name]), origin_of(config)) for name, kind in kinds.items()]


def _checked(learner: Learner, checks: list[tuple[Evaluation, Inputs]]) -> dict[str, float]:
    """The figures of the measurements that a run makes after each epoch."""
    figures: dict[str, float] = {}
    for check, inputs in checks:
        figures |= check.measure(learner.encoder, inputs) or {}
    return figures


def _evaluated(learner: Learner, dataset: Dataset, test: Dataset, config: MethodConfig, classes: int, *, few: bool) -> dict[str, float]:
    """k-NN accuracy, of classifiers their own too, and of pretext tasks the pretext accuracy, in percent; of iBOT the patch losses."""
    encoder, size, crop = learner.encoder, config.eval_size, config.eval_crop
    figures: dict[str, float] = {}
    if isinstance(encoder.classifier, nn.Linear):
        features, labels, logits = features_and_logits(encoder, test, size=size, crop=crop)
        figures |= accuracy(logits, labels)
    else:
        features, labels = pooled_features(encoder, test, size=size, crop=crop)
    train_features = pooled_features(encoder, dataset, size=size, crop=crop)
    figures |= evaluate_knn(train_features, (features, labels), neighbours=config.knn_k, num_classes=classes, few=few)
    figures |= pretext_accuracy(learner, test, batch_size=config.batch_size) if learner.pretext else {}
    return figures | (fill_in_losses(learner, test) if few and isinstance(learner, IBOT) else {})


def _metrics(log: list[dict], checks: list[tuple[Evaluation, Inputs]]) -> dict:
    """The figures at the end, with ``untrained_`` before them those at the start, and curves over the epochs, from a run's log."""
    lines = [line for line in log if "loss" not in line]
    ends = [line for line in lines if "knn" in line]
    before, after = ({k: round(v, 3) for k, v in line.items() if k not in ("step", "epoch")} for line in (ends[0], ends[-1]))
    once = {name for check, _ in checks for name in check.once}
    metrics = after | {f"untrained_{name}": value for name, value in before.items() if name not in once}
    always = set.intersection(*map(set, lines)) - {"step", "epoch"} - once if checks else set()  # the figures of the checks
    for name in sorted({"knn", "accuracy"} & after.keys() | always):
        metrics[f"{name}_curve"] = [[line["epoch"], round(line[name], 3)] for line in lines if name in line]
    return metrics


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lib.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("entry", nargs="?", metavar="ENTRY", help="recipe entry, scale/name; without one, all entries are listed")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the entry and other values for them")
    parser.add_argument("--budget", type=float, metavar="MINUTES", help="stop after this time, leaving a run that can be resumed")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 …; the default is a GPU if there is one")
    parser.add_argument("--root", help="folder of the data set; the default is $COMPANION_DATA, then the Hub")
    parser.add_argument("--record", action="store_true", help="leave a line in records/ when finished")
    parser.add_argument("--keep", metavar="NAME", help="keep the finished encoder in records/checkpoints/ under this name")
    options = parser.parse_intermixed_args(arguments)
    budget = None if options.budget is None else 60 * options.budget
    if options.entry is None:
        for name in recipes.names():
            print(f"{name:32} {recipes.entry(name).about}")
        return 0
    try:
        overrides: dict[str, Any] = recipes.parse(options.overrides)
        with stopping():
            result = run(options.entry, budget=budget, device=options.device, root=options.root, record=options.record, **overrides)
    except (OSError, RuntimeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not result.finished:
        if first_process():
            print(f"stopped early; the same command continues {result.folder}")
        return 3
    metrics = result.metrics
    if first_process():
        if options.keep:
            keep(options.keep, result)
        print(
            f"{result.folder}\nk-NN {metrics['knn']:.1f}% (untrained {metrics['untrained_knn']:.1f}%) after {result.result()['seconds']:.0f} s"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
