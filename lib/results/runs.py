"""The run store.

A run is a recipe entry plus overrides. The hash of its configuration names its folder in the run store, so asking for a run
that is there loads it. A measurement of a run lies in the run's folder.
"""

import hashlib
import json
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lib import files, paths, recipes
from lib.engine.log import read_log
from lib.keys import Keys
from lib.results.provenance import provenance
from lib.results.records import append_line
from lib.tensors import CHECKSUM, load_tensors, save_tensors

CONFIG, RESULT, WEIGHTS = "config.json", "result.json", "encoder.safetensors"


@dataclass(frozen=True)
class Result(ABC):
    """Something that is computed once and kept: a configuration, a place in the store, figures with their provenance.

    ``entry`` is scale/name; ``config`` is the configuration as ``lib.keys.Keys.stated`` gives it; ``changes`` are the keys in which it
    differs from the recipes.
    """

    entry: str
    experiment: str
    config: dict[str, Any]
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Hash of the configuration."""
        return hashlib.sha256(json.dumps(self.config, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def scale(self) -> str:
        return self.entry.partition("/")[0]

    @property
    @abstractmethod
    def file(self) -> Path:
        """Where the result lies."""

    @property
    def basis(self) -> Path:
        """Where it is written what the result is based on, see ``lib.results.basis``."""
        return self.file.with_suffix(".basis.json")

    @property
    @abstractmethod
    def command(self) -> str:
        """That makes it, without the overrides."""

    @property
    def finished(self) -> bool:
        return self.file.is_file()

    def result(self) -> dict:
        """Figures and provenance of what is finished.

        Raises:
            ValueError: it is not finished, or its result is damaged.
        """
        if not self.file.is_file():
            raise ValueError(f"{self.file}: not finished; make it with {self.command}")
        try:
            result = json.loads(self.file.read_text(encoding="utf-8"))
            result["metrics"]
            stated = result.pop(CHECKSUM, None)
            if stated != _checksum(result) and (stated or self.basis.is_file()):  # results without a basis are older and have none
                raise ValueError("its content does not have its checksum")
            return result
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{self.file}: damaged ({error}); delete it to evaluate the run again") from error

    @property
    def metrics(self) -> dict:
        return self.result()["metrics"]

    def finish(self, metrics: dict, *, data: dict[str, str], device: torch.device, seconds: float | None = None) -> None:
        """Write the result, which marks it as finished."""
        result = {
            "entry": self.entry,
            "key": self.key,
            "command": f"{self.command} {recipes.words(self.changes)}".strip(),
            "config": self.config,
            "metrics": metrics,
            "seconds": None if seconds is None else round(seconds, 1),
            "data": data,
            **provenance(device),
        }
        files.write_text(self.file, json.dumps(result | {CHECKSUM: _checksum(result)}, indent=1))

    def record(self) -> Path:
        """Append the result to ``records/``, unless it is there.

        Returns:
            The file.

        Raises:
            ValueError: not finished, or of the smoke scale, whose figures are no evidence.
        """
        if self.scale == "smoke":
            raise ValueError(f"record: {self.entry} shows a mechanism and is no evidence; small and paper entries are recorded")
        file = paths.RECORDS / self.scale / f"{self.experiment}.jsonl"
        append_line(file, self.result(), again=False)
        return file


class Run(Result):
    """A training run's place in the store."""

    @property
    def folder(self) -> Path:
        return paths.runs_folder() / f"{self.entry}-{self.key}"

    @property
    def file(self) -> Path:
        return self.folder / RESULT

    @property
    def command(self) -> str:
        return f"python -m lib.train {self.entry}"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Held while training, so that two who ask for a run at once train it once."""
        with files.locked(self.folder / "run"):
            files.write_text(self.folder / CONFIG, json.dumps({"entry": self.entry, "config": self.config}, indent=1))
            yield

    def log(self) -> pd.DataFrame:
        """The run's log, a row a line."""
        return pd.DataFrame(read_log(self.folder))

    def save_encoder(self, encoder: torch.nn.Module) -> None:
        """Keep the trained network's weights."""
        save_tensors(self.folder / WEIGHTS, encoder.state_dict())

    def encoder_weights(self) -> dict[str, torch.Tensor]:
        """The trained network's weights.

        Raises:
            ValueError: a missing or damaged file, named.
        """
        return load_tensors(self.folder / WEIGHTS)[0]


class Measurement(Result):
    """A measurement of a run, kept in the run's folder; its configuration is the run's and its own settings.

    Args:
        run: what is measured.
        name: of the measurement.
        settings: its settings.
        changes: those that differ from the recipes.
    """

    def __init__(self, run: Run, name: str, settings: Keys, changes: dict[str, Any]):
        own = {f"{name}.{key}": value for key, value in settings.stated().items()}
        super().__init__(run.entry, name, run.config | own, run.changes | {f"{name}.{key}": value for key, value in changes.items()})
        object.__setattr__(self, "run", run)
        object.__setattr__(self, "settings", settings)

    run: Run
    settings: Keys

    @property
    def file(self) -> Path:
        return self.run.folder / f"{self.experiment}-{self.key}.json"

    def training_folder(self, *, trained: bool) -> Path:
        """Where a measurement that trains leaves the checkpoints of the trained network, or of the untrained one beside it."""
        return self.run.folder / f"{self.experiment}-{self.key}" / ("trained" if trained else "untrained")

    @property
    def command(self) -> str:
        return f"python -m lib.measure {self.experiment} {self.entry}"


def _checksum(result: dict) -> str:
    return f"{zlib.crc32(json.dumps(result, sort_keys=True).encode()):08x}"
