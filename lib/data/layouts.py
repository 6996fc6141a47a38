"""Readers of the local layouts in which people have these data sets, each giving one table.

A table is a ``pyarrow.Table`` with the columns ``image`` (struct of ``bytes`` and ``path``, as the Hub stores images),
``label`` (int64), ``filename`` (string) and, where the set has them, ``boxes`` (a list of x0, y0, x1, y1 in pixels). Rows are
sorted by class and then by file name, so that "the first n images of each class" means the same everywhere.
"""

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
BOXES = pa.list_(pa.list_(pa.float32()))
EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}


def read_parquet(folder: Path, split: str, columns: dict[str, list[str]], names: list[str]) -> pa.Table | None:
    """``<split>.parquet``, or the Hub's shards ``[data/]<split>-00000-of-00001.parquet``."""
    files = sorted(p for pattern in (f"{split}.parquet", f"{split}-*.parquet", f"data/{split}-*.parquet") for p in folder.glob(pattern))
    if not files:
        return None
    tables = []
    for file in files:
        try:
            tables.append(pq.read_table(file))
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{file}: damaged or not a parquet file ({error})") from error
    table = pa.concat_tables(tables)
    return normalise(table, columns, str(files[0]))


def read_image_folder(folder: Path, split: str, columns: dict[str, list[str]], names: list[str]) -> pa.Table | None:
    """``<split>/<class>/<file>``; classes are numbered as ``names`` lists them, or sorted."""
    base = next((folder / s for s in (split, {"validation": "val"}.get(split, split)) if (folder / s).is_dir()), None)
    if base is None:
        return None
    classes = names or sorted(p.name for p in base.iterdir() if p.is_dir())
    rows = [(file, label) for label, name in enumerate(classes) for file in images_in(base / name)]
    if not rows:
        raise ValueError(f"{base}: holds no images in class folders")
    return from_files(rows)


def read_tiny_imagenet(folder: Path, split: str, columns: dict[str, list[str]], names: list[str]) -> pa.Table | None:
    """The official ``tiny-imagenet-200``: ``train/<wnid>/images`` with boxes files, ``val/val_annotations.txt``."""
    if not (folder / "wnids.txt").is_file():
        return None
    label_of = {name: label for label, name in enumerate(names or sorted((folder / "wnids.txt").read_text().split()))}
    rows, boxes = [], []
    if split == "train":
        for name, label in label_of.items():
            annotations = _box_lines(folder / "train" / name / f"{name}_boxes.txt", 5)
            for file in images_in(folder / "train" / name / "images"):
                rows.append((file, label))
                boxes.append([annotations[file.name]] if file.name in annotations else [])
    else:
        listing = folder / "val" / "val_annotations.txt"
        for line in lines_of(listing):
            fields = line.split("\t")
            if len(fields) < 6 or fields[1] not in label_of:
                raise ValueError(f"{listing}: line {line!r} is not 'file, wnid, x0, y0, x1, y1'")
            rows.append((folder / "val" / "images" / fields[0], label_of[fields[1]]))
            boxes.append([_box(fields[2:6], listing, line)])
    return from_files(rows, boxes)


LAYOUTS = {"parquet": read_parquet, "image_folder": read_image_folder, "tiny_imagenet": read_tiny_imagenet}


def normalise(table: pa.Table, columns: dict[str, list[str]], source: str) -> pa.Table:
    """A table with our columns from one with theirs: for each of ours the first of its possible names that theirs has."""
    found = {}
    for ours, candidates in columns.items():
        present = [theirs for theirs in candidates if theirs in table.column_names]
        if present:
            found[ours] = table[present[0]]
        elif ours in ("image", "label"):
            raise ValueError(f"{source}: has no column {' or '.join(candidates)}, only {', '.join(table.column_names)}")
    if "filename" not in found:
        paths = pc.struct_field(found["image"], "path").to_pylist()
        names = [Path(path).name if path else f"{i:08d}" for i, path in enumerate(paths)]
        found["filename"] = pa.chunked_array([pa.array(names, pa.string())])
    if "boxes" in found and not pa.types.is_nested(found["boxes"].type.value_type):  # one box an image, not a list of them
        found["boxes"] = pa.chunked_array([pa.array([[box] if box else [] for box in found["boxes"].to_pylist()], BOXES)])
    return _sorted(pa.table(found))


def first_of_each_class(table: pa.Table, count: int) -> pa.Table:
    """The first ``count`` rows of each class, in the table's order."""
    seen: dict[int, int] = {}
    keep = []
    for row, label in enumerate(table["label"].to_pylist()):
        seen[label] = seen.get(label, 0) + 1
        if seen[label] <= count:
            keep.append(row)
    return table.take(pa.array(keep, pa.int64()))


def natural(name: str) -> list:
    """Sort key in which n01_2 comes before n01_10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _sorted(table: pa.Table) -> pa.Table:
    labels, files = table["label"].to_pylist(), table["filename"].to_pylist()
    order = sorted(range(len(labels)), key=lambda i: (labels[i], natural(files[i] or "")))
    return table.take(pa.array(order, pa.int64()))


def from_files(rows: list[tuple[Path, int]], boxes: list | None = None) -> pa.Table:
    """A table of image files with their labels and, a list an image, their boxes; sorted."""
    columns = {
        "image": pa.array([{"bytes": None, "path": str(file)} for file, _ in rows], IMAGE),
        "label": pa.array([label for _, label in rows], pa.int64()),
        "filename": pa.array([file.name for file, _ in rows]),
    }
    if boxes is not None:
        columns["boxes"] = pa.array(boxes, BOXES)
    return _sorted(pa.table(columns))


def images_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of images")
    return [p for p in folder.iterdir() if p.suffix.lower() in EXTENSIONS]


def lines_of(file: Path) -> list[str]:
    if not file.is_file():
        raise ValueError(f"{file}: no such annotation file")
    try:
        return [line for line in file.read_text().splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: damaged or not a text file ({error})") from error


def _box_lines(file: Path, fields: int) -> dict[str, list[float]]:
    found = {}
    for line in lines_of(file):
        parts = line.split("\t")
        if len(parts) != fields:
            raise ValueError(f"{file}: line {line!r} is not 'file, x0, y0, x1, y1'")
        found[parts[0]] = _box(parts[1:], file, line)
    return found


def _box(numbers: list[str], file: Path, line: str) -> list[float]:
    try:
        return [float(number) for number in numbers]
    except ValueError as error:
        raise ValueError(f"{file}: line {line!r} holds a box that is not four numbers") from error
