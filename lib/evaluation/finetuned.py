"""Shared by the measurements that train the whole network further: the start from its weights, and a training that can be resumed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from lib.engine.checkpoint import load_checkpoint
from lib.engine.loop import train
from lib.engine.seeds import seeded
from lib.evaluation.base import DEFAULT, Context, Evaluation, Inputs
from lib.learning.base import Learner
from lib.models import Model
from lib.models.factory import network_like

CLASSIFIERS = ("head.weight", "head.bias", "head.fc.", "fc.")  # starts of the names of a classifier's weights


class FineTunedEvaluation(Evaluation):
    """A measurement of a network that is first trained further. Its settings are the configuration of that training."""

    learner_class: ClassVar[Callable[..., Learner]]  # called with (settings, network)

    def learner(self, network: Model) -> Learner:
        """A learner that starts from a copy of the network."""
        copy = starting_from(network, seed=self.origin.seed, **self.options())
        with seeded(self.origin.seed):
            return self.learner_class(self.settings, copy).to(next(network.parameters()).device)

    def options(self) -> dict[str, Any]:
        """Arguments of ``create_model`` in which the network to train differs from the one it starts from."""
        return dict(num_classes=0, drop_path_rate=self.settings.drop_path, token_dropout=0.0, split_norm=0)

    def trained(self, network: Model, inputs: Inputs, context: Context = DEFAULT, **options) -> Learner | None:
        """The learner after its training, which continues from its last checkpoint; None if the budget ended first.

        Args:
            network, inputs, context: as of ``measure``; the context needs a folder.
            options: of ``lib.engine.loop.train``.
        """
        if context.folder is None:
            raise ValueError(f"context: got no folder, {self.name} accepts one for its checkpoints")
        learner = self.learner(network)
        options |= dict(seed=self.origin.seed, budget=context.budget, progress=context.progress)
        return learner if train(learner, inputs.train, self.settings, context.folder, **options) else None

    def restored(self, network: Model, folder: Path) -> Learner:
        """The learner of a finished training that started from a network, read from the folder of its checkpoint.

        Raises:
            ValueError: a missing or damaged checkpoint.
        """
        learner = self.learner(network)
        learner.load_state_dict(load_checkpoint(folder)["learner"])
        return learner


def starting_from(network: Model, *, seed: int, **options) -> Model:
    """A new network with the weights of another one, except for the classifier.

    Args:
        network: its weights are copied.
        seed: of the new weights.
        options: arguments of ``create_model`` that replace the network's own; ``num_classes`` adds a new classifier.

    Raises:
        ValueError: options with which the weights do not fit.
    """
    with seeded(seed):
        copy = network_like(network, **options)
    of_splits = ".aux_bn."  # the norms of all parts of a batch but the first
    weights = {name: value for name, value in network.state_dict().items() if not name.startswith(CLASSIFIERS) and of_splits not in name}
    missing, unexpected = copy.load_state_dict(weights, strict=False)
    if unexpected or not all(name.startswith(CLASSIFIERS) for name in missing):
        raise ValueError(f"network: lacks {missing} and has {unexpected}, accepts a network of the options {options}")
    return copy
