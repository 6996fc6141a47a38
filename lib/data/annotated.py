"""Readers of sets whose images have more than a class: VOC, COCO, DAVIS, ImageNet-9, CUB, revisited Oxford and Paris, and folders of
images and masks.

Tables as in ``lib.data.layouts``, without ``label`` unless the reader says so: ``image``, ``filename`` and, as the set has them, ``boxes`` (x0, y0, x1,
y1 in pixels, x1 and y1 exclusive), ``mask`` (a struct as of an image; its pixels are the numbers of objects, 0 is
background) and ``sequence``. A reader's ``split`` says where the split lies in the folder, as the card's ``local_splits`` gives
it; None means that the folder does not hold it.
"""

import json
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from lib.data.layouts import BOXES, IMAGE, from_files, images_in, lines_of, natural
from lib.data.pickled import read_plain


def read_voc(folder: Path, split: str, columns: dict, names: list[str]) -> pa.Table | None:
    """``<year>/<list>`` of a VOCdevkit: ``<year>/{JPEGImages,Annotations}`` and ``<year>/ImageSets/Main/<list>.txt``.

    Objects of every class count, difficult and truncated ones too. VOC counts pixels from 1 and includes the last one.
    """
    year, listing = split.split("/")
    base = folder / year
    listed = base / "ImageSets" / "Main" / f"{listing}.txt"
    if not listed.is_file():
        return None
    stems = [line.split()[0] for line in lines_of(listed)]
    boxes = [_voc_boxes(base / "Annotations" / f"{stem}.xml") for stem in stems]
    return _table([base / "JPEGImages" / f"{stem}.jpg" for stem in stems], boxes=boxes)


def _voc_boxes(file: Path) -> list[list[float]]:
    if not file.is_file():
        raise ValueError(f"{file}: no such annotation file")
    try:
        boxes = []
        for thing in ElementTree.parse(file).getroot().iter("object"):
            x0, y0, x1, y1 = (float(thing.find("bndbox").findtext(side)) for side in ("xmin", "ymin", "xmax", "ymax"))
            boxes.append([x0 - 1, y0 - 1, x1, y1])
        return boxes
    except (ElementTree.ParseError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: damaged annotation ({error})") from error


def read_coco(folder: Path, split: str, columns: dict, names: list[str]) -> pa.Table | None:
    """``<split>`` or ``<split>:<list>``: ``annotations/instances_<split>.json``, images in ``<split>/``, and with a list only
    those whose file names it holds, a line each. Crowds do not count as objects.

    Where the file has categories, with ``classes``, a number an object, from 0 in the order of the categories' ids, and ``polygons``,
    a list an object of polygons x, y, x, y, …
    """
    split, _, listing = split.partition(":")
    file = folder / "annotations" / f"instances_{split}.json"
    if not file.is_file() or (listing and not (folder / listing).is_file()):
        return None
    try:
        described = json.loads(file.read_text())
        images = {image["id"]: image["file_name"] for image in described["images"]}
        number = {identity: n for n, identity in enumerate(sorted(category["id"] for category in described.get("categories", [])))}
        boxes, classes, polygons = ({identity: [] for identity in images} for _ in range(3))
        for thing in described["annotations"]:
            if not thing.get("iscrowd"):
                x, y, width, height = map(float, thing["bbox"])
                boxes[thing["image_id"]].append([x, y, x + width, y + height])
                if number:
                    classes[thing["image_id"]].append(number[thing["category_id"]])
                    polygons[thing["image_id"]].append([list(map(float, polygon)) for polygon in thing["segmentation"]])
        order = sorted(images, key=images.get)
        paths = {identity: folder / split / name for identity, name in images.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: damaged annotations ({error!r})") from error
    if listing:
        wanted = {Path(line.strip()).name for line in lines_of(folder / listing)}
        missing = wanted - set(images.values())
        if missing:
            raise ValueError(f"{folder / listing}: lists {sorted(missing)[0]}, which {file} does not hold ({len(missing)} such names)")
        order = [identity for identity in order if images[identity] in wanted]
    table = _table([paths[i] for i in order], boxes=[boxes[i] for i in order])
    if not number:
        return table
    table = table.append_column("classes", pa.array([classes[i] for i in order], pa.list_(pa.int64())))
    return table.append_column("polygons", pa.array([polygons[i] for i in order], pa.list_(pa.list_(pa.list_(pa.float32())))))


def read_masked(folder: Path, split: str, columns: dict, names: list[str]) -> pa.Table | None:
    """``<images>:<masks>``: two folders with an image and a mask of the same name each."""
    images, masks = (folder / part for part in split.split(":"))
    if not images.is_dir():
        return None
    files = sorted(images_in(images))
    if not files:
        raise ValueError(f"{images}: holds no images")
    return _table(files, masks=[_beside(masks, file) for file in files])


def read_davis(folder: Path, split: str, columns: dict, names: list[str]) -> pa.Table | None:
    """``<folder>/<list>``: ``{JPEGImages,Annotations}/480p/<sequence>/<frame>`` for the sequences that
    ``ImageSets/<folder>/<list>.txt`` names, or whose frames it names; without that file, for all that are there.
    """
    frames, masks = folder / "JPEGImages" / "480p", folder / "Annotations" / "480p"
    if not frames.is_dir():
        return None
    listing = folder / "ImageSets" / f"{split}.txt"
    if listing.is_file():
        named = [line.split()[0] for line in lines_of(listing)]
        sequences = list(dict.fromkeys(Path(name).parent.name if "/" in name else name for name in named))
    else:
        sequences = sorted(p.name for p in frames.iterdir() if p.is_dir())
    if not sequences:
        raise ValueError(f"{frames}: holds no sequences")
    files = [(sequence, file) for sequence in sequences for file in sorted(images_in(frames / sequence), key=lambda f: natural(f.name))]
    empty = set(sequences) - {sequence for sequence, _ in files}
    if empty:
        raise ValueError(f"{frames / min(empty)}: holds no images")
    return _table([f for _, f in files], masks=[_beside(masks / s, f) for s, f in files], sequences=[s for s, _ in files])


def read_in9(folder: Path, split: str, columns: dict, names: list[str]) -> pa.Table | None:
    """ImageNet-9's release: ``<variant>/<split>/<number>_<class>/<file>`` for every variant, which a column names.

    Labels are the numbers, 0 to 8.
    """
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
    table = _table([file for file, _, _ in rows])
    labels, kinds = pa.array([label for _, label, _ in rows], pa.int64()), pa.array([variant for _, _, variant in rows], pa.string())
    return table.append_column("label", labels).append_column("variant", kinds)


def read_cub(folder: Path, split: str, columns: dict, names: list[str]) -> pa.Table | None:
    """``CUB/<split>`` of CUB-200-2011 as its authors pack it: ``images.txt``, ``image_class_labels.txt``,
    ``train_test_split.txt`` and ``bounding_boxes.txt``, which share the images' numbers, and ``images/``.

    With ``label``, from 0. A box is x, y, width, height there.
    """
    if not (folder / "images.txt").is_file():
        return None
    images = _by_key(folder / "images.txt", None, lambda name: folder / "images" / name)
    labels = _by_key(folder / "image_class_labels.txt", None, lambda label: int(label) - 1)
    trained = _by_key(folder / "train_test_split.txt", None, ("0", "1").index)
    boxes = _by_key(folder / "bounding_boxes.txt", None, _sized)
    wanted = int(split == "CUB/train")
    numbers = [number for number in images if _only(trained, number, folder / "train_test_split.txt") == wanted]
    rows = [(_only(images, number, folder / "images.txt"), _only(labels, number, folder / "image_class_labels.txt")) for number in numbers]
    return from_files(rows, [[_only(boxes, number, folder / "bounding_boxes.txt")] for number in numbers])


def read_wsol(folder: Path, split: str, columns: dict, names: list[str]) -> pa.Table | None:
    """``<set>/<split>`` of wsolevaluation: ``metadata/<set>/<split>/{image_ids,class_labels,localization}.txt``, images in
    ``dataset/<set>/``.

    With ``label``. Boxes are as the files have them; an image that ``localization.txt`` does not name has none.
    """
    base = folder / "metadata" / split
    if not base.is_dir():
        return None
    images = [line.strip() for line in lines_of(base / "image_ids.txt")]
    labels = _by_key(base / "class_labels.txt", ",", lambda label: int(label))
    boxes = _by_key(base / "localization.txt", ",", _corners)
    rows = [(folder / "dataset" / Path(split).parent / name, _only(labels, name, base / "class_labels.txt")) for name in images]
    return from_files(rows, [boxes.get(name, []) for name in images])


def read_revisited(folder: Path, split: str, columns: dict, names: list[str]) -> pa.Table | None:
    """``<file>:imlist`` or ``<file>:qimlist``: the database or the queries that the pickle of revisited Oxford or Paris lists; images
    lie in ``jpg/``.

    Queries have ``box``, the part that is asked for, and ``easy``, ``hard`` and ``junk``, rows of the database.
    """
    name, _, listing = split.partition(":")
    file = folder / name
    if not file.is_file():
        return None
    described = read_plain(file)
    try:
        stems = [str(stem) for stem in described[listing]]
        if any(Path(stem).name != stem for stem in stems):
            raise ValueError(f"{listing} holds what is no name of a file")
        table = _table([folder / "jpg" / f"{stem}.jpg" for stem in stems])
        if listing == "qimlist":
            truth = [_revisited_truth(query, len(described["imlist"])) for query in described["gnd"]]
            if len(truth) != len(stems):
                raise ValueError(f"{len(truth)} entries in gnd for {len(stems)} queries")
            table = table.append_column("box", pa.array([query["bbx"] for query in truth], pa.list_(pa.float32())))
            for kind in ("easy", "hard", "junk"):
                table = table.append_column(kind, pa.array([query[kind] for query in truth], pa.list_(pa.int64())))
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{file}: damaged or not the ground truth of a revisited set ({error!r})") from error
    return table


def _revisited_truth(query: dict, count: int) -> dict:
    box = [float(edge) for edge in np.ravel(query["bbx"])]
    if len(box) != 4 or not all(map(math.isfinite, box)):
        raise ValueError(f"bbx is {box}")
    truth = {"bbx": box}
    for kind in ("easy", "hard", "junk"):
        truth[kind] = [int(image) for image in np.ravel(query[kind])]
        if truth[kind] != np.ravel(query[kind]).tolist() or not all(0 <= image < count for image in truth[kind]):
            raise ValueError(f"{kind} holds what is no image of the {count} in imlist")
    return truth


def _by_key(file: Path, separator: str | None, read: Callable) -> dict[str, list]:
    """What ``read`` makes of the values in a file's lines ``key, value, …``: a list a key, an entry a line."""
    found: dict[str, list] = {}
    for line in lines_of(file):
        key, *values = (part.strip() for part in line.split(separator))
        try:
            found.setdefault(key, []).append(read(*values))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file}: line {line!r} is damaged ({error})") from error
    return found


def _only(found: dict[str, list], key: str, file: Path):
    lines = found.get(key, [])
    if len(lines) != 1:
        raise ValueError(f"{file}: has {len(lines)} lines for {key}, accepts one")
    return lines[0]


def _corners(x0: str | float, y0: str | float, x1: str | float, y1: str | float) -> list[float]:
    box = [float(x0), float(y0), float(x1), float(y1)]
    if not all(map(math.isfinite, box)) or box[0] > box[2] or box[1] > box[3]:
        raise ValueError("not a box")
    return box


def _sized(x: str, y: str, width: str, height: str) -> list[float]:
    return _corners(x, y, float(x) + float(width), float(y) + float(height))


LAYOUTS = {
    "voc": read_voc,
    "coco": read_coco,
    "masked": read_masked,
    "davis": read_davis,
    "in9": read_in9,
    "cub": read_cub,
    "wsol": read_wsol,
    "revisited": read_revisited,
}


def _beside(folder: Path, image: Path) -> Path:
    """The mask of an image; that it is missing is found out where it is read."""
    return folder / f"{image.stem}.png"


def _table(
    files: list[Path], *, boxes: list | None = None, masks: list[Path] | None = None, sequences: list[str] | None = None
) -> pa.Table:
    table = {
        "image": pa.array([{"bytes": None, "path": str(file)} for file in files], IMAGE),
        "filename": pa.array([file.name for file in files]),
    }
    if boxes is not None:
        table["boxes"] = pa.array(boxes, BOXES)
    if masks is not None:
        table["mask"] = pa.array([{"bytes": None, "path": str(mask)} for mask in masks], IMAGE)
    if sequences is not None:
        table["sequence"] = pa.array(sequences)
    return pa.table(table)
