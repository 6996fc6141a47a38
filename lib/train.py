"""One run: train a recipe entry, evaluate it, and keep both in the run store.

python -m lib.train small/ibot masking=attmask_high seed=1
torchrun --nproc-per-node 4 -m lib.train paper/ibot_20pct masking=attmask_high
"""

import argparse
import os
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn

from lib import recipes
from lib.data import bank, card
from lib.distillation.methods import Distillation, DistillationConfig, MSTConfig
from lib.evaluation.features import accuracy, features_and_logits, pooled_features
from lib.evaluation.knn import evaluate_knn
from lib.evaluation.task import task_accuracy
from lib.learning.contrastive import Contrastive, ContrastiveConfig
from lib.learning.pretext import Colorization, ColorizationConfig, Jigsaw, JigsawConfig, Rotation, RotationConfig
from lib.learning.supervised import Supervised, SupervisedConfig
from lib.models import network_of
from lib.results.runs import Run, open_run
from lib.training import CHECKPOINT, TrainingConfig, load_checkpoint, read_log, seeded, train, training_steps, wait_for_all

# method -> (its configuration, its learner); a learner is made from (configuration, steps)
METHODS: dict[str, tuple[type, type]] = {
    "dino": (DistillationConfig, Distillation),
    "ibot": (DistillationConfig, Distillation),
    "mst": (MSTConfig, Distillation),
    "supervised": (SupervisedConfig, Supervised),
    "rotation": (RotationConfig, Rotation),
    "jigsaw": (JigsawConfig, Jigsaw),
    "colorization": (ColorizationConfig, Colorization),
    "contrastive": (ContrastiveConfig, Contrastive),
}


FIGURES = ("knn", "accuracy", "task")  # starts of the names of what is evaluated


def find_run(entry: str, **overrides) -> Run:
    """The run of an entry with some keys overridden, finished or not.

    Args:
        entry: ``scale/name`` of a recipe entry.
        overrides: keys of the entry and other values for them.

    Raises:
        ValueError: an unknown entry or key, or a value of the wrong type.
    """
    chosen = recipes.entry(entry)
    return open_run(entry, chosen.experiment, configure(chosen, overrides))


def configure(chosen: recipes.Entry, overrides: dict) -> TrainingConfig:
    method = overrides.get("method", chosen.settings.get("method"))
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(f"method: got {method!r}, accepts {', '.join(METHODS)}")
    return recipes.configure(chosen, METHODS[method][0], overrides)


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
        ValueError: an unknown entry or key, missing data, or a damaged file.
        NonFiniteLoss: the training diverged.
    """
    chosen = recipes.entry(entry)
    config = configure(chosen, overrides)
    found = open_run(entry, chosen.experiment, config)
    device = torch.device(device or default_device())
    with found.lock() if first_process() else nullcontext():
        if not found.finished:
            _make(found, config, device, budget, root, progress)
    if record and found.finished and first_process():
        found.record()
    return found


def entry_for(scale: str, role: str) -> str:
    """The entry for a role at a scale on this machine, see ``lib.recipes.entry_for``."""
    return recipes.entry_for(scale, role, default_device().type)


def fractions_for(scale: str) -> list[float]:
    """The fractions of the data that are compared at a scale on this machine."""
    return recipes.fractions(scale, default_device().type)


def first_process() -> bool:
    """Whether this is the only process, or the first of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def default_device() -> torch.device:
    """This process's GPU, or the CPU where there is none."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if torch.cuda.is_available() else torch.device("cpu")


def load_encoder(found: Run, device="cpu") -> nn.Module:
    """The network that a finished run has trained, in evaluation mode."""
    encoder = network_of(found.config)
    encoder.load_state_dict(found.encoder_weights())
    return encoder.to(device).eval()


def build(config: TrainingConfig, steps: int, device) -> nn.Module:
    """A run's learner at its start, the same for the same seed on every machine."""
    with seeded(config.seed):
        return METHODS[config.method][1](config, steps).to(device)


def untrained_encoder(found: Run, device="cpu") -> nn.Module:
    """The network from which a run started."""
    return build(configure(recipes.entry(found.entry), found.config), found.config["epochs"], device).encoder.eval()


def check_classes(config: TrainingConfig, source) -> int:
    """How many classes a set has.

    Raises:
        ValueError: the configuration has another number.
    """
    classes = len(card(config.data).class_names) or int(source.labels.max()) + 1
    if getattr(config, "num_classes", classes) != classes:
        raise ValueError(f"num_classes: got {config.num_classes}, {config.data} accepts {classes}")
    return classes


def _make(found: Run, config: TrainingConfig, device, budget, root, progress) -> None:
    source = bank(config.data, "train", config.canvas, fraction=config.fraction, root=root, device=device, progress=progress)
    test = bank(config.data, "validation", config.canvas, root=root, device=device, progress=progress)
    classes = check_classes(config, source)
    _, steps = training_steps(source, config)
    learner = build(config, steps, device)

    def evaluate(encoder: nn.Module, epoch: int) -> dict[str, float]:
        view = dict(size=config.eval_size, crop=config.eval_crop)
        see = features_and_logits if config.method == "supervised" else pooled_features
        features, labels, *logits = see(encoder, test, **view)
        seen = pooled_features(encoder, source, **view), (features, labels)
        figures = evaluate_knn(*seen, neighbours=config.knn_k, num_classes=classes, few=epoch in (0, config.epochs))
        figures |= accuracy(*logits, labels) if logits else {}
        return figures | (task_accuracy(learner, test, batch_size=config.batch_size) if learner.answers else {})

    if not train(learner, source, config, found.folder, budget=budget, evaluate=evaluate, progress=progress):
        return
    if first_process():
        curve = [line for line in read_log(found.folder) if "knn" in line]
        before, after = ({k: round(v, 3) for k, v in line.items() if k.startswith(FIGURES)} for line in (curve[0], curve[-1]))
        figures = after | {f"untrained_{name}": value for name, value in before.items()}
        for name in {"knn", "accuracy"} & after.keys():
            figures[f"{name}_curve"] = [[line["epoch"], round(line[name], 3)] for line in curve]
        found.save_encoder(learner.encoder)
        seconds = load_checkpoint(found.folder / CHECKPOINT)["seconds"]
        found.finish(figures, seconds=seconds, data={"train": source.fingerprint, "validation": test.fingerprint}, device=device)
    wait_for_all()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lib.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("entry", nargs="?", metavar="ENTRY", help="recipe entry, scale/name; without one, all entries are listed")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the entry and other values for them")
    parser.add_argument("--budget", type=float, metavar="MINUTES", help="stop after this time, leaving a run that can be resumed")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 …; the default is a GPU if there is one")
    parser.add_argument("--root", help="folder of the data set; the default is $COMPANION_DATA, then the Hub")
    parser.add_argument("--record", action="store_true", help="leave a line in records/ when finished")
    options = parser.parse_intermixed_args(arguments)
    budget = None if options.budget is None else 60 * options.budget
    if options.entry is None:
        for name in recipes.names():
            print(f"{name:32} {recipes.entry(name).about}")
        return 0
    try:
        overrides = dict(recipes.parse(assignment) for assignment in options.overrides)
        found = run(options.entry, budget=budget, device=options.device, root=options.root, record=options.record, **overrides)
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not found.finished:
        if first_process():
            print(f"stopped at the time budget; the same command continues {found.folder}")
        return 3
    metrics = found.metrics
    if first_process():
        print(
            f"{found.folder}\nk-NN {metrics['knn']:.1f}% (untrained {metrics['untrained_knn']:.1f}%) after {found.result()['seconds']:.0f} s"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
