"""Fine-tuning: all weights of a pre-trained network are trained to classify another dataset.

Source: the recipe of DeiT (Touvron et al., ICML 2021, table 9), as AttMask section 4.3 uses it on CIFAR.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch

from lib.data.bank import bank
from lib.data.loading import check_num_classes
from lib.engine.log import read_log
from lib.evaluation.base import DEFAULT, Context, Inputs
from lib.evaluation.features import accuracy, features_and_logits
from lib.evaluation.finetuned import FineTunedEvaluation
from lib.keys import Part
from lib.learning.optimizers import layerwise_optimizer
from lib.learning.supervised import Classification, ClassificationConfig
from lib.models import Model


@dataclass(frozen=True, kw_only=True)
class FineTuneSettings(ClassificationConfig):
    """Settings of the measurement ``finetune``."""

    FORMER = {"knn_k": [1], "depth": 0}

    optimizer: Literal["adamw"]
    layer_decay: Part  # factor of the learning rate from each layer to the one below it; 1 is none


class FineTuning(Classification):
    """``Classification`` that starts from a pre-trained network, with a learning rate of its own for each layer."""

    config: FineTuneSettings

    def make_optimizer(self) -> torch.optim.Optimizer:
        return layerwise_optimizer(self.student, self.config.layer_decay)


class FineTune(FineTunedEvaluation, name="finetune"):
    """Accuracy of the fine-tuned classifier in percent: ``finetune`` of the last epoch, ``finetune_best`` of the best tested epoch."""

    settings: FineTuneSettings
    Settings = FineTuneSettings
    learner_class = FineTuning

    def load(self, **options: Any) -> Inputs:
        settings = self.settings
        train = bank(settings.data, "train", settings.canvas, fraction=settings.fraction, **options)
        test = bank(settings.data, "validation", settings.canvas, **options)
        check_num_classes(settings.num_classes, settings.data, train.labels)
        return Inputs(test, train, {"train": train.fingerprint, "test": test.fingerprint})

    def options(self) -> dict[str, Any]:
        return super().options() | dict(num_classes=self.settings.num_classes, drop_rate=self.settings.dropout)

    def measure(self, network: Model, inputs: Inputs, context: Context = DEFAULT) -> dict[str, float] | None:
        settings = self.settings

        def evaluate(classifier: Any, epoch: int) -> dict[str, float]:
            _, labels, logits = features_and_logits(classifier, inputs.test, size=settings.eval_size, crop=settings.eval_crop)
            return accuracy(logits, labels)

        if self.trained(network, inputs, context, evaluate=evaluate, evaluation_epochs=settings.knn_epochs) is None:
            return None
        assert context.folder is not None  # checked by trained()
        curve = [line["accuracy"] for line in read_log(context.folder) if "accuracy" in line and line["epoch"] > 0]
        return {"finetune": curve[-1], "finetune_best": max(curve)}
