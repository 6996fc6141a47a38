"""Images with a class each, some with boxes: parquet files, folders of classes, Tiny-ImageNet, ImageNet-9, CUB, wsolevaluation."""

import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from lib.data import shards
from lib.data.layouts.common import (
    by_key,
    class_names,
    corners,
    folders_in,
    images_in,
    lines_of,
    listed,
    single,
    sized,
    table_of_files,
    with_our_columns,
)


def read_parquet(folder: Path, split: str, columns: dict[str, list[str]], names: list[str]) -> pa.Table | None:
    """``<split>.parquet``, or all of the Hub's shards ``[data/]<split>-00000-of-00001.parquet``, whose names may end in a hash."""
    places = [folder, *(place for place in folders_in(folder) if place.name == "data")]
    files = [file for place in places for file in listed(place) if file.suffix == ".parquet" and f"{file.stem}-".startswith(f"{split}-")]
    if not files:
        return None
    parts = [re.fullmatch(r"-(\d+)-of-(\d+)(-[0-9a-f]+)?", file.stem.removeprefix(split)) for file in files]
    if [file.stem for file in files] != [split]:
        for file, part in zip(files, parts):
            if not part or not parts[0] or part[2] != parts[0][2] or file.parent != files[0].parent:
                raise ValueError(f"{file}: lies beside {files[0].name}; accepts {split}.parquet alone, or the shards of one set")
        numbers, count = [int(part[1]) for part in parts if part], int(parts[0][2]) if parts[0] else 0
        if numbers != list(range(count)):
            raise ValueError(f"{files[0].parent}: holds the shards {numbers} of {split}, accepts each from 0 to {count - 1} once")
    tables, large = [], sum(file.stat().st_size for file in files) > shards.LARGEST
    arrow_files = [shards.as_arrow(file) for file in tqdm(files, f"copying {split}", unit="shard", delay=1)] if large else None
    for file in arrow_files or files:
        try:
            tables.append(shards.mapped(file) if large else pq.read_table(file))
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{file}: damaged or not a parquet file ({error})") from error
        label = next((name for name in columns.get("label", ["label"]) if name in tables[0].column_names), "")
        if not tables[-1].schema.equals(tables[0].schema) or class_names(tables[-1], label) != class_names(tables[0], label):
            raise ValueError(f"{file}: has other columns or classes than {files[0].name}, accepts the same in each shard")
    return with_our_columns(pa.concat_tables(tables), columns, str(files[0]), names, arrow_files)


def read_image_folder(folder: Path, split: str, columns: dict[str, list[str]], names: list[str]) -> pa.Table | None:
    """``<split>/<class>/<file>``; classes are numbered as ``names`` lists them, or else the lines of ``classes.txt``. An empty folder says that
    a class has no image in the split.
    """
    base = next((folder / s for s in (split, {"validation": "val"}.get(split, split)) if (folder / s).is_dir()), None)
    if base is None:
        return None
    if not names and not (folder / "classes.txt").is_file():
        raise ValueError(
            f"{base}: its classes have no numbers; accepts a list of their names in the data card, or {folder / 'classes.txt'}"
        )
    classes = names or [line.strip() for line in lines_of(folder / "classes.txt")]
    for place in folders_in(base):
        if place.name not in classes and images_in(place):
            raise ValueError(f"{place}: is none of the {len(classes)} classes {', '.join(classes[:3])}, …")
    files = [(file, label) for label, name in enumerate(classes) for file in images_in(base / name)]
    if not files:
        raise ValueError(f"{base}: holds no images in class folders")
    return table_of_files([file for file, _ in files], label=[label for _, label in files])


def read_tiny_imagenet(folder: Path, split: str, columns: dict[str, list[str]], names: list[str]) -> pa.Table | None:
    """The official ``tiny-imagenet-200``: ``train/<wnid>/images`` with boxes files, ``val/val_annotations.txt``."""
    if not (folder / "wnids.txt").is_file():
        return None
    classes = names or sorted(line.strip() for line in lines_of(folder / "wnids.txt"))
    files, labels, boxes = [], [], []
    if split == "train":
        for label, name in enumerate(classes):
            annotations = by_key(folder / "train" / name / f"{name}_boxes.txt", "\t", corners)
            for file in images_in(folder / "train" / name / "images"):
                files.append(file)
                labels.append(label)
                boxes.append(annotations.get(file.name, []))
    else:
        listing = folder / "val" / "val_annotations.txt"
        lines = by_key(listing, "\t", lambda name, *box: (classes.index(name), corners(*box)))
        for file_name in lines:
            label, box = single(lines, file_name, listing)
            files.append(folder / "val" / "images" / file_name)
            labels.append(label)
            boxes.append([box])
    return table_of_files(files, label=labels, boxes=boxes)


def read_in9(folder: Path, split: str, columns: dict, names: list[str]) -> pa.Table | None:
    """ImageNet-9's release: ``<variant>/<split>/<number>_<class>/<file>``. Labels are the numbers, 0 to 8; a column names the variant."""
    variants = [place.name for place in folders_in(folder) if (place / split).is_dir()]
    if not variants:
        return None
    rows = []
    for variant in variants:
        for place in folders_in(folder / variant / split):
            number = place.name.partition("_")[0]
            if not number.isdecimal():
                raise ValueError(f"{place}: is not named <number>_<class>")
            rows += [(file, int(number), variant) for file in images_in(place)]
    files, labels, variants = (list(column) for column in zip(*rows)) if rows else ([], [], [])
    return table_of_files(files, label=labels, variant=variants)


def read_cub(folder: Path, split: str, columns: dict, names: list[str]) -> pa.Table | None:
    """``CUB/<split>`` of CUB-200-2011 as its authors pack it: ``images.txt``, ``image_class_labels.txt``, ``train_test_split.txt`` and
    ``bounding_boxes.txt`` (x, y, width, height), which share the images' numbers, and ``images/``. Labels are counted from 0.
    """
    if not (folder / "images.txt").is_file():
        return None
    files = [folder / f"{name}.txt" for name in ("images", "image_class_labels", "train_test_split", "bounding_boxes")]
    readers: list[Callable] = [lambda name: folder / "images" / name, lambda label: int(label) - 1, ("0", "1").index, sized]
    images, labels, parts, boxes = (by_key(file, None, read) for file, read in zip(files, readers))
    numbers = [number for number in images if single(parts, number, files[2]) == int(split == "CUB/train")]
    of_split = [
        [single(entries, number, file) for number in numbers]
        for entries, file in ((images, files[0]), (labels, files[1]), (boxes, files[3]))
    ]
    return table_of_files(of_split[0], label=of_split[1], boxes=[[box] for box in of_split[2]])


def read_wsol(folder: Path, split: str, columns: dict, names: list[str]) -> pa.Table | None:
    """``<dataset>/<split>`` of wsolevaluation: ``metadata/<dataset>/<split>/{image_ids,class_labels,localization}.txt``, images in
    ``dataset/<dataset>/``. Boxes are as the files have them; an image that ``localization.txt`` does not name has none.
    """
    base = folder / "metadata" / split
    if not base.is_dir():
        return None
    images = [line.strip() for line in lines_of(base / "image_ids.txt")]
    labels = by_key(base / "class_labels.txt", ",", lambda label: int(label))
    boxes = by_key(base / "localization.txt", ",", corners)
    of_images = [single(labels, name, base / "class_labels.txt") for name in images]
    files = [folder / "dataset" / Path(split).parent / name for name in images]
    return table_of_files(files, label=of_images, boxes=[boxes.get(name, []) for name in images])
