"""Readers of sets whose images have boxes or masks instead of a class: VOC, COCO, DAVIS, folders of images and masks.

Tables as in ``lib.data.layouts`` without ``label``: ``image``, ``filename`` and, as the set has them, ``boxes`` (x0, y0, x1,
y1 in pixels, x1 and y1 exclusive), ``mask`` (a struct as of an image; its pixels are the numbers of objects, 0 is
background) and ``sequence``. A reader's ``split`` says where the split lies in the folder, as the card's ``local_splits`` gives
it; None means that the folder does not hold it.
"""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pyarrow as pa

from lib.data.layouts import BOXES, IMAGE, images_in, lines_of, natural


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
    """
    split, _, listing = split.partition(":")
    file = folder / "annotations" / f"instances_{split}.json"
    if not file.is_file() or (listing and not (folder / listing).is_file()):
        return None
    try:
        described = json.loads(file.read_text())
        images = {image["id"]: image["file_name"] for image in described["images"]}
        boxes = {identity: [] for identity in images}
        for thing in described["annotations"]:
            if not thing.get("iscrowd"):
                x, y, width, height = map(float, thing["bbox"])
                boxes[thing["image_id"]].append([x, y, x + width, y + height])
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
    return _table([paths[i] for i in order], boxes=[boxes[i] for i in order])


def read_masked(folder: Path, split: str, columns: dict, names: list[str]) -> pa.Table | None:
    """``<images>/<masks>``: two folders with an image and a mask of the same name each."""
    images, masks = (folder / part for part in split.split("/"))
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


LAYOUTS = {"voc": read_voc, "coco": read_coco, "masked": read_masked, "davis": read_davis}


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
