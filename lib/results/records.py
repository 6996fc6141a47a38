"""The records: a line of ``records/<scale>/<experiment>.jsonl`` for each finished run or measurement."""

import json
from pathlib import Path

import pandas as pd

from lib import files, paths


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


def append_line(file: Path, line: dict, *, again: bool = True) -> None:
    """Add a record to a file, which is whole at every moment; without ``again``, only if the file has no record of its key."""
    with files.locked(file):
        if again or line["key"] not in {other["key"] for other in read_lines(file)}:
            before = file.read_text(encoding="utf-8") if file.is_file() else ""
            files.write_text(file, before + json.dumps(line) + "\n")
