"""What the readers of layouts share.

A table is a ``pyarrow.Table`` with the columns ``image`` (struct of ``bytes`` and ``path``, as the Hub stores images), ``filename`` (string)
and, where the dataset has them, ``label`` (int64), ``boxes`` (a list of x0, y0, x1, y1 in pixels, x1 and y1 exclusive), ``mask`` (a struct like
that of an image; its pixels are the numbers of objects, 0 is background) and ``sequence``. Rows with labels are sorted by class and then by
file name, so that "the first n images of each class" means the same everywhere.
"""

import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
BOXES = pa.list_(pa.list_(pa.float32()))
_NUMBERS = pa.list_(pa.int64())
_TYPES = {"image": IMAGE, "label": pa.int64(), "filename": pa.string(), "boxes": BOXES, "classes": _NUMBERS, "polygons": pa.list_(BOXES)}
_TYPES |= {"mask": IMAGE, "sequence": pa.string(), "variant": pa.string(), "box": pa.list_(pa.float32())}
_TYPES |= dict.fromkeys(("easy", "hard", "junk"), _NUMBERS)
EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}

# ---- tables -----------------------------------------------------------------------------------------------------------


def table_of(**columns: list) -> pa.Table:
    """A table of the given columns, each with its type, in the order of the module's list."""
    return pa.table({name: pa.array(columns[name], kind) for name, kind in _TYPES.items() if name in columns})


def table_of_files(files: list[Path], *, masks: list | None = None, **columns: list) -> pa.Table:
    """A table of image files, with further columns. ``masks`` are the folders of their masks, PNG files that have the images' names."""
    if masks is not None:
        columns["mask"] = [{"bytes": None, "path": str(folder / f"{file.stem}.png")} for folder, file in zip(masks, files)]
    images = [{"bytes": None, "path": str(file)} for file in files]
    return table_of(image=images, filename=[file.name for file in files], **columns)


def labelled_table(rows: list[tuple[Path, int]], **columns: list) -> pa.Table:
    """A sorted table of image files with their labels and further columns."""
    return by_class_and_name(table_of_files([file for file, _ in rows], label=[label for _, label in rows], **columns))


def with_our_columns(table: pa.Table, columns: dict[str, list[str]], source: str) -> pa.Table:
    """The columns of a table under our names. For each of our names, ``columns`` lists the possible names in the table; the first counts."""
    ours = {}
    for name, candidates in columns.items():
        present = [candidate for candidate in candidates if candidate in table.column_names]
        if present:
            ours[name] = table[present[0]]
        elif name in ("image", "label"):
            raise ValueError(f"{source}: has no column {' or '.join(candidates)}, only {', '.join(table.column_names)}")
    if "filename" not in ours:
        paths = pc.struct_field(ours["image"], "path").to_pylist()
        names = [Path(path).name if path else f"{i:08d}" for i, path in enumerate(paths)]
        ours["filename"] = pa.chunked_array([pa.array(names, pa.string())])
    if "boxes" in ours and not pa.types.is_nested(ours["boxes"].type.value_type):  # one box per image, not a list of them
        ours["boxes"] = pa.chunked_array([pa.array([[box] if box else [] for box in ours["boxes"].to_pylist()], BOXES)])
    return by_class_and_name(pa.table(ours))


def first_of_each_class(table: pa.Table, count: int) -> pa.Table:
    """The first ``count`` rows of each class, in the table's order."""
    counts: Counter[int] = Counter()
    rows = []
    for row, label in enumerate(table["label"].to_pylist()):
        counts[label] += 1
        if counts[label] <= count:
            rows.append(row)
    return table.take(pa.array(rows, pa.int64()))


def by_class_and_name(table: pa.Table) -> pa.Table:
    """The rows sorted by label and then by file name."""
    labels, files = table["label"].to_pylist(), table["filename"].to_pylist()
    order = sorted(range(len(labels)), key=lambda i: (labels[i], natural(files[i] or "")))
    return table.take(pa.array(order, pa.int64()))


def natural(name: str) -> list:
    """Sort key in which n01_2 comes before n01_10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


# ---- files ------------------------------------------------------------------------------------------------------------


def images_in(folder: Path) -> list[Path]:
    """The image files of a folder, in any order."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of images")
    return [p for p in folder.iterdir() if p.suffix.lower() in EXTENSIONS]


def lines_of(file: Path) -> list[str]:
    """The lines of an annotation file, without empty ones."""
    if not file.is_file():
        raise ValueError(f"{file}: no such annotation file")
    try:
        return [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: damaged or not a text file ({error})") from error


def by_key(file: Path, separator: str | None, read: Callable) -> dict[str, list]:
    """Read a file whose lines are ``key, value, …``: for each key, ``read(*values)`` of each of its lines."""
    entries: dict[str, list] = {}
    for line in lines_of(file):
        key, *values = (part.strip() for part in line.split(separator))
        try:
            entries.setdefault(key, []).append(read(*values))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file}: line {line!r} is damaged ({error})") from error
    return entries


def single(entries: dict[str, list], key: str, file: Path) -> Any:
    """The one entry of a key, where ``entries`` is what ``by_key`` read from the file."""
    values = entries.get(key, [])
    if len(values) != 1:
        raise ValueError(f"{file}: has {len(values)} lines for {key}, accepts one")
    return values[0]


def corners(x0: str | float, y0: str | float, x1: str | float, y1: str | float) -> list[float]:
    """A box from its corners."""
    box = [float(x0), float(y0), float(x1), float(y1)]
    if not all(map(math.isfinite, box)) or box[0] > box[2] or box[1] > box[3]:
        raise ValueError("not a box")
    return box


def sized(x: str, y: str, width: str, height: str) -> list[float]:
    """A box from its upper left corner and its size."""
    return corners(x, y, float(x) + float(width), float(y) + float(height))
