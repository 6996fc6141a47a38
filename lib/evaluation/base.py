"""The base of all measurements: settings, loaded data, and the figures of one network.

``lib.measure`` runs a measurement on a trained network and on the untrained network from which it started, and records the figures.
"""

import importlib
import pkgutil
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from lib.keys import Keys
from lib.models import Model

EVALUATIONS: dict[str, type["Evaluation"]] = {}  # by name; evaluation_names() declares all of this package


@dataclass(frozen=True)
class Origin:
    """How the measured network was trained; settings with the value ``own`` take theirs from here.

    size, crop: of the views at which it was evaluated; data, fraction: of its training images; seed: of its training. The defaults are for
    networks that come from no run.
    """

    size: int = 224
    crop: float = 0.875
    data: str = ""
    fraction: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Inputs:
    """The data that a measurement has loaded.

    test, train: each measurement documents its own; fingerprints: of each part, see ``lib.data.fingerprint``; left_out: the number of
    damaged images that were left out at loading, or None if the measurement itself counts them.
    """

    test: Any
    train: Any = None
    fingerprints: dict[str, str] = field(default_factory=dict)
    left_out: int | None = None


@dataclass(frozen=True)
class Context:
    """How a measurement is run.

    trained: False for the untrained network beside a trained one; progress: show bars. For measurements that train a network, folder: of
    their checkpoints; budget: seconds after which to stop, or None for no limit.
    """

    trained: bool = True
    progress: bool = False
    folder: Path | None = None
    budget: float | None = None


DEFAULT = Context()


class Evaluation(ABC):
    """A measurement. A subclass with a name, ``class Knn(Evaluation, name="knn")``, is registered under it.

    Args:
        settings: an instance of the class's ``Settings``; the recipes state the values under ``measurements``.
        origin: of the networks to measure.
    """

    Settings: ClassVar[type[Keys]]
    once: ClassVar[tuple[str, ...]] = ()  # figures that do not depend on the network, not repeated for the untrained one
    name: ClassVar[str]
    settings: Any  # of the class Settings

    def __init_subclass__(cls, *, name: str | None = None) -> None:
        if name is not None:
            cls.name = name
            EVALUATIONS[name] = cls

    def __init__(self, settings: Any, origin: Origin | None = None):
        self.settings, self.origin = settings, origin or Origin()

    @abstractmethod
    def load(self, *, root: str | Path | None = None, device: str | torch.device = "cpu", progress: bool = False) -> Inputs:
        """Read the data.

        Args:
            root: folder of the datasets; None as in ``lib.data.load``.
            device: of the tensors.
            progress: show bars.

        Raises:
            ValueError: missing or damaged data, or settings that do not fit the data.
        """

    @abstractmethod
    def measure(self, network: Model, inputs: Inputs, context: Context = DEFAULT) -> dict[str, float] | None:
        """The figures of one network, or None if the budget ended first. The network is left in evaluation mode."""


def evaluation_names() -> list[str]:
    """The names of all measurements: those of this package, and those declared elsewhere."""
    package = importlib.import_module("lib.evaluation")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"lib.evaluation.{module.name}")
    return list(EVALUATIONS)


def evaluation_class(name: str) -> type[Evaluation]:
    """The class of a measurement; ValueError if there is no measurement of this name."""
    names = evaluation_names()
    if name not in names:
        raise ValueError(f"name: got {name!r}, accepts {', '.join(names)}")
    return EVALUATIONS[name]
