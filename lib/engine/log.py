"""A training's log: JSON lines, and TensorBoard's files where it is installed."""

import json
import math
from pathlib import Path
from typing import Any, TextIO

from lib import files

LOG = "log.jsonl"


def read_log(folder: str | Path) -> list[dict]:
    """The lines of a run's ``log.jsonl``, without an incomplete last line."""
    file = Path(folder) / LOG
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


class Log:
    """Writes lines of figures to the log in a folder; its lines after ``step``, from which the training continues, are dropped. Without
    ``enabled``, as in all processes but the first, nothing is written.
    """

    def __init__(self, folder: Path, step: int, *, enabled: bool):
        self.file: TextIO | None = None
        self.board: Any = None  # TensorBoard's writer
        if not enabled:
            return
        lines = [line for line in read_log(folder) if line["step"] <= step] if step else []
        files.write_text(folder / LOG, "".join(json.dumps(line) + "\n" for line in lines))
        self.file = open(folder / LOG, "a", encoding="utf-8")
        try:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step)
        except ImportError:  # a compute node without it
            pass

    def write(self, step: int, **figures: Any) -> None:
        """Add a line with the step and the figures."""
        if self.file is None:
            return
        self.file.write(json.dumps({"step": step, **figures}) + "\n")
        self.file.flush()
        for name, value in figures.items() if self.board else ():
            if isinstance(value, (int, float)) and math.isfinite(value):
                self.board.add_scalar(name, value, step)

    def close(self) -> None:
        for writer in (self.file, self.board):
            if writer is not None:
                writer.close()
