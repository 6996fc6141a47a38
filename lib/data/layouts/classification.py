"""Images with a class each, some with boxes: parquet files, folders of classes, Tiny-ImageNet, ImageNet-9, CUB, wsolevaluation."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lib.data.layouts.common import by_key, corners, images_in, labelled_table, lines_of, single, sized, table_of_files, with_our_columns


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
    rows, boxes = [], []
    if split == "train":
        for label, name in enumerate(classes):
            annotations = by_key(folder / "train" / name / f"{name}_boxes.txt", "\t", corners)
            for file in images_in(folder / "train" / name / "images"):
                rows.append((file, label))
                boxes.append(annotations.get(file.name, []))
    else:
        listing = folder / "val" / "val_annotations.txt"
        lines = by_key(listing, "\t", lambda name, *box: (classes.index(name), corners(*box)))
        for file_name in lines:
            label, box = single(lines, file_name, listing)
            rows.append((folder / "val" / "images" / file_name, label))
            boxes.append([box])
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
    rows = [(single(images, number, files[0]), single(labels, number, files[1])) for number in numbers]
    return labelled_table(rows, boxes=[[single(boxes, number, files[3])] for number in numbers])


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
    rows = [(folder / "dataset" / Path(split).parent / name, single(labels, name, base / "class_labels.txt")) for name in images]
    return labelled_table(rows, boxes=[boxes.get(name, []) for name in images])
