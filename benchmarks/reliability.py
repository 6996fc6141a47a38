"""Try what happens to results when processes are killed, disks are full and files are damaged, and write docs/reliability.md.

    python -m benchmarks.reliability
    python -m benchmarks.reliability --count 50

Each trial ends in one of three ways: ``unharmed``, the result is bit for bit what it would have been; ``refused``, an error names the file; or
``WRONG``, anything else.
"""

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from lib import files, paths
from lib.data import bank, loading
from lib.data.fingerprint import fingerprint
from lib.data.layouts.common import table_of
from lib.data.reading import read_image
from lib.engine.checkpoint import CHECKPOINT, load_checkpoint
from lib.engine.interrupts import stopping
from lib.results.records import append_line, read_lines
from lib.results.runs import RESULT, WEIGHTS, Run
from lib.tensors import load_tensors
from lib.train import find_run, run

PAGE = paths.ROOT / "docs" / "reliability.md"
ENTRY = "smoke/ibot_brief"
TINY = dict(
    fraction=0.02, epochs=2, batch_size=8, canvas=32, eval_size=16, train_size=16, local_size=8, local_crops=1, patch_size=8,
    out_dim=32, hidden_dim=32, bottleneck_dim=16, knn_epochs=1, knn_k=[1], checkpoint_steps=1, log_steps=1,
)  # fmt: skip
Row = tuple[str, Counter]


def train() -> Run:
    return run(ENTRY, device="cpu", progress=False, **TINY)


def outcome(get: Callable[[], object], expected: object, *names: str) -> str:
    """How a trial ended: ``names`` are those of which the error has to name one."""
    try:
        return "unharmed" if get() == expected else "WRONG"
    except ValueError as error:
        return "refused" if any(name in str(error) for name in names) else "WRONG"
    except Exception:
        return "WRONG"


def summary(folder: Path) -> list:
    """A finished run's figures, weights and checkpoint, comparable."""
    weights = {name: tensor.tolist() for name, tensor in load_tensors(folder / WEIGHTS)[0].items()}
    learner = {name: tensor.tolist() for name, tensor in load_checkpoint(folder)["learner"].items()}
    return [json.loads((folder / RESULT).read_text())["metrics"], weights, learner]


def forked(function: Callable[[], object]) -> int:
    """The id of a child process that calls a function."""
    if pid := os.fork():
        return pid
    code = 1
    with contextlib.suppress(BaseException), open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stderr.fileno())
        function()
        code = 0
    os._exit(code)


def fresh() -> Path:
    """An empty run store, in which the trial's run will lie."""
    shutil.rmtree(paths.runs_folder() / "smoke", ignore_errors=True)
    return find_run(ENTRY, **TINY).folder


def stopped_trainings(count: int, draw: random.Random) -> Iterator[Row]:
    """Children that train are stopped; then the same call is made again."""
    folder, started = fresh(), time.monotonic()
    train()
    whole, seconds = summary(folder), time.monotonic() - started
    size = (folder / CHECKPOINT).stat().st_size

    def signalled(number: int) -> str:
        folder, pid = fresh(), forked(lambda: [stopping().__enter__(), train()])
        time.sleep(draw.uniform(0, 1.2 * seconds))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        os.waitpid(pid, 0)
        return outcome(lambda: [train(), summary(folder)][1], whole, str(folder))

    def without_space() -> str:
        folder, limit = fresh(), draw.randrange(2 * size)

        def limited() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            train()

        os.waitpid(forked(limited), 0)
        return outcome(lambda: [train(), summary(folder)][1], whole, str(folder))

    def at_once() -> str:
        folder = fresh()
        for pid in [forked(train) for _ in range(2)]:
            os.waitpid(pid, 0)
        return outcome(lambda: [train(), summary(folder)][1], whole, str(folder))

    yield "`kill -9` while a run is trained, evaluated or written", Counter(signalled(signal.SIGKILL) for _ in range(count))
    yield "SIGTERM at the same", Counter(signalled(signal.SIGTERM) for _ in range(count))
    yield "no more space on the disk, after a random number of bytes a file", Counter(without_space() for _ in range(count))
    yield "two processes that ask for one run at once", Counter(at_once() for _ in range(count // 5 + 1))


def stopped_records(count: int, draw: random.Random) -> Iterator[Row]:
    """Children that add records are killed."""

    def killed() -> str:
        file = paths.runs_folder() / "records.jsonl"
        file.unlink(missing_ok=True)
        line = {"config": {}, "metrics": {"knn": 1.0}}
        pid = forked(lambda: [append_line(file, line | {"key": str(number)}) for number in range(10_000)])
        time.sleep(draw.uniform(0.05, 0.5))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return outcome(lambda: [one["key"] for one in read_lines(file)] == [str(n) for n in range(len(read_lines(file)))], True)

    yield "`kill -9` while records are written", Counter(killed() for _ in range(count))


def damaged_files(count: int, draw: random.Random, place: Path) -> Iterator[Row]:
    """Files are cut off, or one of their bits is flipped, before they are read."""
    folder = fresh()
    done = train()
    data = place / "data" / "imagenette"
    noise = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    for label, (kind, pixels) in enumerate(zip(("png", "jpg"), noise)):
        file = data / "train" / loading.card("imagenette").class_names[label] / f"0.{kind}"
        file.parent.mkdir(parents=True)
        Image.fromarray(pixels).save(file)
    banked = next((paths.runs_folder() / "banks").glob("scenes-train-32-*"))

    def picture(file: Path) -> Callable[[], object]:
        """Its pixels; if they are others, results of the former ones are refused by the fingerprint."""
        row: dict = {"bytes": None, "path": str(file)}
        content, pixels = fingerprint(_one(file)), np.asarray(read_image(row)).tolist()

        def read() -> object:
            found = np.asarray(read_image(row)).tolist()
            if found != pixels and fingerprint(_one(file)) != content:
                raise ValueError(f"{file}: has another fingerprint")
            return found

        return read

    kinds: dict[str, tuple[Path, Callable[[], object]]] = {
        "checkpoint": (folder / CHECKPOINT, lambda: [value.tolist() for value in load_checkpoint(folder)["learner"].values()]),
        "weights": (folder / WEIGHTS, lambda: [tensor.tolist() for tensor in done.encoder_weights().values()]),
        "result": (folder / RESULT, done.result),
        "decoded images": (banked, lambda: bank("scenes", "train", 32, fraction=0.02, progress=False).images.tolist()),
        "PNG image": (file := next(data.rglob("*.png")), picture(file)),
        "JPEG image": (other := next(data.rglob("*.jpg")), picture(other)),
    }
    for name, (file, read) in kinds.items():
        whole, expected = file.read_bytes(), read()
        for harm in ("cut off", "one bit flipped"):
            outcomes: Counter = Counter()
            for _ in range(count):
                at = draw.randrange(len(whole))
                flipped = whole[:at] + bytes([whole[at] ^ 1 << draw.randrange(8)]) + whole[at + 1 :]
                file.write_bytes(whole[:at] if harm == "cut off" else flipped)
                outcomes[outcome(read, expected, str(file))] += 1
            file.write_bytes(whole)
            yield f"{name}, {harm}", outcomes


def _one(file: Path) -> pa.Table:
    return table_of(image=[{"bytes": None, "path": str(file)}], filename=[file.name])


def rows(count: int, place: Path, seed: int = 0) -> Iterator[Row]:
    """All trials, with a run store in ``place``."""
    torch.set_num_threads(1)
    os.environ["COMPANION_RUNS"] = str(place / "runs")
    yield from stopped_trainings(count, random.Random(seed))
    yield from stopped_records(count, random.Random(seed + 1))
    yield from damaged_files(count, random.Random(seed + 2), place)


def page(table: list[Row]) -> str:
    lines = [
        "# Reliability",
        "",
        "What was tried, how often, and how it ended. *Unharmed*: the result is bit for bit what it would have been, after the same call was made",
        "once more. *Refused*: an error names the file. A picture whose pixels change has another fingerprint, and results that were computed",
        "with the former picture are refused. Not covered: `log.jsonl`, which is plain text without a checksum.",
        "",
        "| trial | times | unharmed | refused | wrong |",
        "|---|---:|---:|---:|---:|",
    ]
    for title, found in table:
        lines.append(f"| {title} | {found.total()} | {found['unharmed']} | {found['refused']} | {found['WRONG']} |")
    return "\n".join([*lines, "", "Written by `python -m benchmarks.reliability`.", ""])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reliability", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=50, help="times each trial is made (default 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments and places")
    options = parser.parse_args(arguments)
    table = []
    with tempfile.TemporaryDirectory() as place:
        for title, found in rows(options.count, Path(place), options.seed):
            print(f"{title:68} {dict(found)}", flush=True)
            table.append((title, found))
    files.write_text(PAGE, page(table))
    return 1 if any(found["WRONG"] for _, found in table) else 0


if __name__ == "__main__":
    sys.exit(main())
