"""Images and videos with the boxes, outlines or masks of their objects: VOC, COCO, folders of masks, DAVIS."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pyarrow as pa

from lib.data.layouts.common import images_in, lines_of, natural, table_of_files


def read_voc(folder: Path, split: str, columns: dict, names: list[str]) -> pa.Table | None:
    """``<year>/<list>`` of a VOCdevkit: ``<year>/{JPEGImages,Annotations}`` and ``<year>/ImageSets/Main/<list>.txt``.

    Objects of every class count, difficult and truncated ones too. VOC counts pixels from 1 and includes the last one.
    """
    year, listing = split.split("/")
    base = folder / year
    file = base / "ImageSets" / "Main" / f"{listing}.txt"
    if not file.is_file():
        return None
    stems = [line.split()[0] for line in lines_of(file)]
    boxes = [_voc_boxes(base / "Annotations" / f"{stem}.xml") for stem in stems]
    return table_of_files([base / "JPEGImages" / f"{stem}.jpg" for stem in stems], boxes=boxes)


def _voc_boxes(file: Path) -> list[list[float]]:
    if not file.is_file():
        raise ValueError(f"{file}: no such annotation file")
    try:
        boxes = []
        for thing in ElementTree.parse(file).getroot().iter("object"):
            x0, y0, x1, y1 = (float(thing.findtext(f"bndbox/{side}", "")) for side in ("xmin", "ymin", "xmax", "ymax"))
            boxes.append([x0 - 1, y0 - 1, x1, y1])
        return boxes
    except (ElementTree.ParseError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: damaged annotation ({error})") from error


def read_coco(folder: Path, split: str, columns: dict, names: list[str]) -> pa.Table | None:
    """``<split>`` or ``<split>:<list>``: ``annotations/instances_<split>.json`` and images in ``<split>/``; a list restricts the images to
    the file names in its lines. Crowds do not count as objects.

    Where the file has categories, the table has ``classes``, one number per object, from 0 in the order of the categories' ids, and
    ``polygons``, for each object a list of polygons x, y, x, y, …
    """
    split, _, listing = split.partition(":")
    file = folder / "annotations" / f"instances_{split}.json"
    if not file.is_file() or (listing and not (folder / listing).is_file()):
        return None
    try:
        contents = json.loads(file.read_text(encoding="utf-8"))
        images = {image["id"]: image["file_name"] for image in contents["images"]}
        number = {identity: n for n, identity in enumerate(sorted(category["id"] for category in contents.get("categories", [])))}
        objects: dict[int, dict[str, list]] = {identity: {"boxes": [], "classes": [], "polygons": []} for identity in images}
        for annotation in contents["annotations"]:
            if not annotation.get("iscrowd"):
                lists = objects[annotation["image_id"]]
                x, y, width, height = map(float, annotation["bbox"])
                lists["boxes"].append([x, y, x + width, y + height])
                if number:
                    lists["classes"].append(number[annotation["category_id"]])
                    lists["polygons"].append([list(map(float, polygon)) for polygon in annotation["segmentation"]])
        order = sorted(images, key=lambda identity: images[identity])
        paths = {identity: folder / split / name for identity, name in images.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: damaged annotations ({error!r})") from error
    if listing:
        file_names = {Path(line.strip()).name for line in lines_of(folder / listing)}
        missing = file_names - set(images.values())
        if missing:
            raise ValueError(f"{folder / listing}: lists {sorted(missing)[0]}, which {file} does not hold ({len(missing)} such names)")
        order = [identity for identity in order if images[identity] in file_names]
    columns_of_objects = ("boxes", "classes", "polygons") if number else ("boxes",)
    return table_of_files([paths[i] for i in order], **{name: [objects[i][name] for i in order] for name in columns_of_objects})


def read_masked(folder: Path, split: str, columns: dict, names: list[str]) -> pa.Table | None:
    """``<images>:<masks>``: two folders with an image and a mask of the same name each."""
    images, masks = (folder / part for part in split.split(":"))
    if not images.is_dir():
        return None
    files = sorted(images_in(images))
    if not files:
        raise ValueError(f"{images}: holds no images")
    return table_of_files(files, masks=[masks] * len(files))


def read_davis(folder: Path, split: str, columns: dict, names: list[str]) -> pa.Table | None:
    """``<folder>/<list>``: ``{JPEGImages,Annotations}/480p/<sequence>/<frame>``. The lines of ``ImageSets/<folder>/<list>.txt`` name
    sequences or their frames; without that file, all sequences are taken.
    """
    frames, masks = folder / "JPEGImages" / "480p", folder / "Annotations" / "480p"
    if not frames.is_dir():
        return None
    listing = folder / "ImageSets" / f"{split}.txt"
    if listing.is_file():
        lines = [line.split()[0] for line in lines_of(listing)]
        sequences = list(dict.fromkeys(Path(name).parent.name if "/" in name else name for name in lines))
    else:
        sequences = sorted(p.name for p in frames.iterdir() if p.is_dir())
    if not sequences:
        raise ValueError(f"{frames}: holds no sequences")
    files = [(sequence, file) for sequence in sequences for file in sorted(images_in(frames / sequence), key=lambda f: natural(f.name))]
    empty = set(sequences) - {sequence for sequence, _ in files}
    if empty:
        raise ValueError(f"{frames / min(empty)}: holds no images")
    return table_of_files([f for _, f in files], masks=[masks / s for s, _ in files], sequence=[s for s, _ in files])
