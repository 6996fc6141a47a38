"""The run store and the records.

A run is a recipe entry plus overrides. The hash of its configuration names its folder in the run store, so asking for a run
that is there loads it. A record is the line that a finished run leaves in ``records/<scale>/<experiment>.jsonl``.
"""

import dataclasses
import hashlib
import json
import os
import platform
import subprocess
from abc import ABC, abstractmethod
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import pandas as pd
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file

from lib import paths, recipes
from lib.training import read_log

CONFIG, RESULT, WEIGHTS = "config.json", "result.json", "encoder.safetensors"
PACKAGES = ("torch", "torchvision", "timm", "numpy")


@dataclass(frozen=True)
class Result(ABC):
    """Something that is computed once and kept: a configuration, a place in the store, figures with their provenance."""

    entry: str
    experiment: str
    config: dict

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
            result = json.loads(self.file.read_text())
            result["metrics"]
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
            "command": f"{self.command} {recipes.words(recipes.overrides(self.entry, self.config))}".strip(),
            "config": self.config,
            "metrics": metrics,
            "seconds": None if seconds is None else round(seconds, 1),
            "data": data,
            **provenance(device),
        }
        write_atomically(self.file, json.dumps(result, indent=1))

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
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):
            if self.key not in {line["key"] for line in read_lines(file)}:
                append_line(file, self.result())
        return file


class Run(Result):
    """A training run's place in the store.

    ``entry`` is scale/name, ``config`` the resolved configuration as plain data.
    """

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
    def lock(self):
        """Held while training, so that two who ask for a run at once train it once."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / "lock"):
            write_atomically(self.folder / CONFIG, json.dumps({"entry": self.entry, "config": self.config}, indent=1))
            yield

    def log(self) -> pd.DataFrame:
        """The run's log, a row a line."""
        return pd.DataFrame(read_log(self.folder))

    def save_encoder(self, encoder: torch.nn.Module) -> None:
        partial = self.folder / f"{WEIGHTS}.partial"
        save_file({name: tensor.contiguous().cpu() for name, tensor in encoder.state_dict().items()}, partial)
        os.replace(partial, self.folder / WEIGHTS)

    def encoder_weights(self) -> dict[str, torch.Tensor]:
        file = self.folder / WEIGHTS
        try:
            return load_file(file)
        except Exception as error:
            raise ValueError(f"{file}: missing or damaged weights ({error})") from error


class Measurement(Result):
    """A measurement of a run, kept in the run's folder; its configuration is the run's and its own settings."""

    def __init__(self, run: Run, name: str, settings: dict):
        super().__init__(run.entry, name, run.config | {f"{name}.{key}": value for key, value in settings.items()})
        object.__setattr__(self, "run", run)

    @property
    def settings(self) -> dict:
        """Its own settings."""
        prefix = f"{self.experiment}."
        return {key.removeprefix(prefix): value for key, value in self.config.items() if key.startswith(prefix)}

    @property
    def file(self) -> Path:
        return self.run.folder / f"{self.experiment}-{self.key}.json"

    @property
    def command(self) -> str:
        return f"python -m lib.measure {self.experiment} {self.entry}"


def open_run(entry: str, experiment: str, config) -> Run:
    """The run of a configuration (a dataclass)."""
    return Run(entry, experiment, dataclasses.asdict(config))


def records(experiment: str | None = None) -> pd.DataFrame:
    """All records, a row a run: ``scale, experiment, command, key, seconds, device, …`` and columns ``config.*`` and ``metrics.*``.

    Raises:
        ValueError: a damaged line, with its file and number.
    """
    rows = []
    for file in sorted(paths.RECORDS.glob("*/*.jsonl")):
        if experiment in (None, file.stem):
            lines = {line["key"]: line for line in read_lines(file)}  # the last line of a key counts
            for line in lines.values():
                flat = {f"{part}.{name}": value for part in ("config", "metrics") for name, value in line[part].items()}
                rest = {name: value for name, value in line.items() if name not in ("config", "metrics")}
                rows.append({"scale": file.parent.name, "experiment": file.stem, "seconds": None, **rest, **flat})
    return pd.DataFrame(rows)


def read_lines(file: Path) -> list[dict]:
    """The records of a file.

    Raises:
        ValueError: a damaged line, with its file and number.
    """
    lines = []
    for number, line in enumerate(file.read_bytes().splitlines() if file.is_file() else [], 1):
        try:
            lines.append(json.loads(line))
            for part in ("key", "config", "metrics"):
                lines[-1][part]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{file}:{number}: damaged record ({error!r})") from error
    return lines


def append_line(file: Path, line: dict) -> None:
    """Add a record to a file in one write."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a") as stream:
        stream.write(json.dumps(line) + "\n")


def write_atomically(file: Path, text: str) -> None:
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    partial.write_text(text)
    os.replace(partial, file)


def provenance(device: torch.device) -> dict:
    """When, where and with what something was measured."""
    return {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "commit": _commit(),
    }


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU {platform.machine()}, {len(os.sched_getaffinity(0))} cores"


def _commit() -> str:
    """The commit of the sources, with ``+`` when they were changed since."""
    try:
        git = ["git", "-C", str(paths.ROOT)]
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "--", "lib", "recipes"], capture_output=True, text=True, check=True).stdout
        return commit + "+" * bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
