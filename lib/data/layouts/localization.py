"""Images with a class and boxes each, for localization: CUB-200-2011, and the datasets of wsolevaluation."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from lib.data.layouts.common import by_key, corners, labelled_table, lines_of, single, sized


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
