"""Images with a class each: parquet files, folders of classes, Tiny-ImageNet, ImageNet-9."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lib.data.layouts.common import images_in, labelled_table, lines_of, table_of_files, with_our_columns


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
    return with_our_columns(pa.concat_tables(tables), columns, str(files[0]))


def read_image_folder(folder: Path, split: str, columns: dict[str, list[str]], names: list[str]) -> pa.Table | None:
    """``<split>/<class>/<file>``; classes are numbered as ``names`` lists them, or sorted."""
    base = next((folder / s for s in (split, {"validation": "val"}.get(split, split)) if (folder / s).is_dir()), None)
    if base is None:
        return None
    classes = names or sorted(p.name for p in base.iterdir() if p.is_dir())
    rows = [(file, label) for label, name in enumerate(classes) for file in images_in(base / name)]
    if not rows:
        raise ValueError(f"{base}: holds no images in class folders")
    return labelled_table(rows)


def read_tiny_imagenet(folder: Path, split: str, columns: dict[str, list[str]], names: list[str]) -> pa.Table | None:
    """The official ``tiny-imagenet-200``: ``train/<wnid>/images`` with boxes files, ``val/val_annotations.txt``."""
    if not (folder / "wnids.txt").is_file():
        return None
    classes = names or sorted((folder / "wnids.txt").read_text(encoding="utf-8").split())
    label_of = {name: label for label, name in enumerate(classes)}
    rows, boxes = [], []
    if split == "train":
        for name, label in label_of.items():
            annotations = _box_lines(folder / "train" / name / f"{name}_boxes.txt")
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
    return labelled_table(rows, boxes=boxes)


def read_in9(folder: Path, split: str, columns: dict, names: list[str]) -> pa.Table | None:
    """ImageNet-9's release: ``<variant>/<split>/<number>_<class>/<file>``. Labels are the numbers, 0 to 8; a column names the variant."""
    variants = sorted(place.parent.name for place in folder.glob(f"*/{split}") if place.is_dir())
    if not variants:
        return None
    rows = []
    for variant in variants:
        for place in sorted(p for p in (folder / variant / split).iterdir() if p.is_dir()):
            number = place.name.partition("_")[0]
            if not number.isdigit():
                raise ValueError(f"{place}: is not named <number>_<class>")
            rows += [(file, int(number), variant) for file in sorted(images_in(place))]
    files, labels, variants = (list(column) for column in zip(*rows)) if rows else ([], [], [])
    return table_of_files(files, label=labels, variant=variants)


def _box_lines(file: Path) -> dict[str, list[float]]:
    boxes = {}
    for line in lines_of(file):
        parts = line.split("\t")
        if len(parts) != 5:
            raise ValueError(f"{file}: line {line!r} is not 'file, x0, y0, x1, y1'")
        boxes[parts[0]] = _box(parts[1:], file, line)
    return boxes


def _box(numbers: list[str], file: Path, line: str) -> list[float]:
    try:
        return [float(number) for number in numbers]
    except ValueError as error:
        raise ValueError(f"{file}: line {line!r} holds a box that is not four numbers") from error
