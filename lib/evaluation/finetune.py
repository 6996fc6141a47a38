"""Fine-tuning: all weights of a pre-trained network learn to classify another set.

Source: the recipe of DeiT (Touvron et al., ICML 2021, table 9), as AttMask section 4.3 uses it on CIFAR; the layers' falling rates are BEiT's
(Bao et al., ICLR 2022, appendix).
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from lib.evaluation.features import accuracy, features_and_logits
from lib.learning.supervised import Supervised, SupervisedConfig
from lib.training import Learner, TrainingConfig, read_log, seeded, train


@dataclass(frozen=True, kw_only=True)
class FineTuneConfig(SupervisedConfig):
    """Keys of the measurement ``finetune``; those of the network come from the run that is measured."""

    layer_decay: float  # of the learning rate from each layer to the one below it; 1 is none

    def __post_init__(self):
        super().__post_init__()
        check_layer_decay(self.layer_decay)
        if self.optimizer != "adamw":
            raise ValueError(f"optimizer: got {self.optimizer!r}, fine-tuning accepts adamw")


def check_counts(config: TrainingConfig, *names: str) -> None:
    """Keys that accept 1 or more."""
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name}: got {getattr(config, name)}, accepts 1 or more")


def check_layer_decay(layer_decay: float) -> None:
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay: got {layer_decay}, accepts a number in (0, 1]")


class FineTuning(Supervised):
    """``Supervised`` from a network that has learned something.

    Args:
        config: the recipe.
        network: with a classifier of ``config.num_classes``; it is trained.
    """

    def __init__(self, config: FineTuneConfig, network: nn.Module):
        super().__init__(config, 0, network)

    def make_optimizer(self) -> torch.optim.Optimizer:
        return layerwise_optimizer(self.student, self.config.layer_decay)


def layerwise_optimizer(network: nn.Module, decay: float, *heads: nn.Module) -> torch.optim.Optimizer:
    """AdamW whose rate falls by a factor from each of a timm network's layers to the one below it.

    Args:
        network: whose last layer has the full rate, or without a classifier of its own is one step below the heads.
        decay: the factor.
        heads: what was put on top of it, at the full rate.
    """
    groups = param_groups_layer_decay(network, weight_decay=1.0, layer_decay=decay)
    if heads:
        last = max(group["lr_scale"] for group in groups)  # parts that learn nothing may have been the last layers
        for group in groups:
            group["lr_scale"] *= decay / last
    for head in heads:
        parameters = [p for p in head.parameters() if p.requires_grad]
        groups += [
            {"params": [p for p in parameters if (p.ndim > 1) == bool(wd)], "weight_decay": wd, "lr_scale": 1.0} for wd in (0.0, 1.0)
        ]
    for group in groups:
        group["decays"] = group["weight_decay"] > 0
    return torch.optim.AdamW([group for group in groups if group["params"]], fused=True)


def trained_from(network: nn.Module, kind: type[Learner], source, config: TrainingConfig, folder: str | Path, **options) -> Learner | None:
    """A learner of a kind that is made from (configuration, network), trained; None when the budget ended first. Options are ``train``'s."""
    with seeded(config.seed):
        learner = kind(config, network).to(next(network.parameters()).device)
    return learner if train(learner, source, config, folder, **options) else None


def fine_tune(
    network: nn.Module, source, test, config: FineTuneConfig, folder: str | Path, *, budget: float | None = None, progress: bool = True
) -> dict[str, float] | None:
    """Train a classifier from a network's weights, and test it.

    Args:
        network: with a classifier of ``config.num_classes``; it is trained.
        source, test: a ``lib.data.Bank`` or ``Stream`` to train and to test on.
        config: the recipe.
        folder: of the log and the checkpoint; a folder with a checkpoint is resumed.
        budget: seconds after which to stop with a checkpoint; None never stops.
        progress: show a bar.

    Returns:
        ``finetune``, the accuracy after the last epoch in percent, and ``finetune_best``, the best of the epochs after which it was tested;
        None when the budget ended first.
    """

    def evaluate(classifier: nn.Module, epoch: int) -> dict[str, float]:
        _, labels, logits = features_and_logits(classifier, test, size=config.eval_size, crop=config.eval_crop)
        return accuracy(logits, labels)

    if trained_from(network, FineTuning, source, config, folder, budget=budget, evaluate=evaluate, progress=progress) is None:
        return None
    curve = [line["accuracy"] for line in read_log(folder) if "accuracy" in line and line["epoch"] > 0]
    return {"finetune": curve[-1], "finetune_best": max(curve)}
