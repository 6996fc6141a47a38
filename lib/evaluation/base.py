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
    """How the measured network was trained; settings with the value ``own`` take theirs from here. The defaults are for networks that come
    from no run.
    """

    size: int = 224  # of the views at which it was evaluated
    crop: float = 0.875
    data: str = ""  # a card, of its training images
    fraction: float = 1.0  # of them
    seed: int = 0  # of its training


@dataclass(frozen=True)
class Inputs:
    """The data that a measurement has loaded; each documents its own ``test`` and ``train``."""

    test: Any
    train: Any = None
    fingerprints: dict[str, str] = field(default_factory=dict)  # of each part, see lib.data.fingerprint
    left_out: int | None = None  # damaged images that were left out at loading; None if the measurement itself counts them


@dataclass(frozen=True)
class Context:
    """How a measurement is run."""

    trained: bool = True  # False for the untrained network beside a trained one
    progress: bool = False  # show bars
    folder: Path | None = None  # of the checkpoints of measurements that train a network
    budget: float | None = None  # seconds after which these stop; None never stops


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
        """Read the data. ``root`` is the folder of the datasets, as in ``lib.data.load``; ``device`` that of the tensors.

        Raises:
            ValueError: missing or damaged data, or settings that do not fit the data.
        """

    @abstractmethod
    def measure(self, network: Model, inputs: Inputs, context: Context = DEFAULT) -> dict[str, float] | None:
        """The figures of one network, or None if the budget ended first. The network is left in evaluation mode."""


def evaluation_names() -> list[str]:
    """The sorted names of all measurements: those of this package, and those declared elsewhere."""
    package = importlib.import_module("lib.evaluation")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"lib.evaluation.{module.name}")
    return sorted(EVALUATIONS)


def evaluation_class(name: str) -> type[Evaluation]:
    """The class of a measurement; ValueError if there is no measurement of this name."""
    names = evaluation_names()
    if name not in names:
        raise ValueError(f"name: got {name!r}, accepts {', '.join(names)}")
    return EVALUATIONS[name]
