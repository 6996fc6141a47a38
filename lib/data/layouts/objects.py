"""Images and videos with the boxes, outlines or masks of their objects: VOC, COCO, folders of masks, DAVIS."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pyarrow as pa

from lib.data.layouts.common import check_boxes, folders_in, images_in, lines_of, natural, table_of_files, text_of


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
    entries = [_voc_entry(base / "Annotations" / f"{stem}.xml") for stem in stems]
    boxes, sizes = ([entry[part] for entry in entries] for part in (0, 1))
    return table_of_files([base / "JPEGImages" / f"{stem}.jpg" for stem in stems], boxes=boxes, sizes=sizes)


def _voc_entry(file: Path) -> tuple[list[list[float]], tuple[int | None, int | None]]:
    """The boxes, and (height, width)."""
    try:
        root, boxes = ElementTree.parse(file).getroot(), []
        for thing in root.iter("object"):
            x0, y0, x1, y1 = (float(thing.findtext(f"bndbox/{side}", "")) for side in ("xmin", "ymin", "xmax", "ymax"))
            boxes.append([x0 - 1, y0 - 1, x1, y1])
        height, width = (int(text) if (text := root.findtext(f"size/{side}")) else None for side in ("height", "width"))
        check_boxes(boxes, None, "object")
        return boxes, (height, width)
    except (ElementTree.ParseError, LookupError, OSError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: missing or damaged annotation ({error})") from error


def read_coco(folder: Path, split: str, columns: dict, names: list[str]) -> pa.Table | None:
    """``<split>`` or ``<split>:<list>``: ``annotations/instances_<split>.json`` and images in ``<split>/``; a list restricts the images to
    the file names in its lines.

    Where the file has categories, the table has ``classes``, one number per object: the place of the category's name in ``names``, the card's
    list, or else of its id among the file's ids. It then has ``polygons``, for each object a list of polygons x, y, x, y, …; ``rles``, where
    an object has a run-length encoding instead; and ``crowds``, where there are crowds, which do not count as objects.
    """
    split, _, listing = split.partition(":")
    file = folder / "annotations" / f"instances_{split}.json"
    if not file.is_file() or (listing and not (folder / listing).is_file()):
        return None
    try:
        contents = json.loads(text_of(file))
        images = _by_id(contents["images"], "image")
        number = _coco_classes(contents.get("categories", []), names)
        objects: dict[Any, dict[str, list]] = {i: {"boxes": [], "classes": [], "polygons": [], "rles": [], "crowds": []} for i in images}
        sizes = {identity: (image.get("height"), image.get("width")) for identity, image in images.items()}
        file_names = {identity: str(Path(image["file_name"])) for identity, image in images.items()}
        _by_id([annotation for annotation in contents["annotations"] if "id" in annotation], "annotation")
        for row, annotation in enumerate(contents["annotations"]):
            try:
                _add_coco_object(annotation, objects, sizes, number)
            except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
                raise ValueError(f"annotation {row}: {error!r}") from error
        order = sorted(images, key=lambda identity: file_names[identity])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file}: damaged annotations ({error})") from error
    if listing:
        listed = {Path(line.strip()).name for line in lines_of(folder / listing)}
        missing = listed - set(file_names.values())
        if missing:
            raise ValueError(f"{folder / listing}: lists {sorted(missing)[0]}, which {file} does not hold ({len(missing)} such names)")
        order = [identity for identity in order if file_names[identity] in listed]
    optional = [name for name in ("rles", "crowds") if number and any(any(objects[i][name]) for i in order)]
    of_objects = {name: [objects[i][name] for i in order] for name in ["boxes", *(["classes", "polygons"] if number else []), *optional]}
    return table_of_files([folder / split / file_names[i] for i in order], sizes=[sizes[i] for i in order], **of_objects)


def _by_id(entries: list[dict], kind: str) -> dict[Any, dict]:
    """Entries by their ``id``."""
    found: dict[Any, dict] = {}
    for entry in entries:
        if found.setdefault(entry["id"], entry) is not entry:
            raise ValueError(f"the id {entry['id']} is of two {kind} entries, accepts one")
    return found


def _coco_classes(categories: list[dict], names: list[str]) -> dict[Any, int]:
    """The class of each category id."""
    found = _by_id(categories, "category")
    if not names:
        return {identity: n for n, identity in enumerate(sorted(found))}
    unknown = [category["name"] for category in categories if category["name"] not in names]
    if unknown:
        raise ValueError(f"the category {unknown[0]!r} is none of the card's {len(names)} classes {', '.join(names[:3])}, …")
    return {identity: names.index(category["name"]) for identity, category in found.items()}


def _add_coco_object(annotation: dict, objects: dict, sizes: dict, number: dict) -> None:
    """Add an annotation to the lists of its image."""
    identity = annotation["image_id"]
    lists = objects[identity]
    x, y, width, height = map(float, annotation["bbox"])
    box = [x, y, x + width, y + height]
    check_boxes([box], None, "bbox")
    shape, crowd = annotation.get("segmentation") if number else None, bool(annotation.get("iscrowd"))
    rle, polygons = "", [] if isinstance(shape, dict) else [[float(edge) for edge in polygon] for polygon in shape or []]
    if any(len(polygon) % 2 for polygon in polygons):
        raise ValueError("a polygon with an odd number of coordinates")
    if isinstance(shape, dict) or (crowd and polygons):
        rle, size = run_lengths(shape if isinstance(shape, dict) else polygons, sizes[identity])
        sizes[identity] = size
    if crowd:
        lists["crowds"] += [{"box": box, "class": number[annotation["category_id"]], "rle": rle}] if number else []
        return
    lists["boxes"].append(box)
    if number:
        lists["classes"].append(number[annotation["category_id"]])
        lists["polygons"].append(polygons)
        lists["rles"].append(rle)


def run_lengths(shape: dict | list, size: tuple[int | None, int | None]) -> tuple[str, tuple[int, int]]:
    """COCO's compressed run-length encoding, of one that may be uncompressed or of polygons, and the (height, width) that it is of.

    Raises:
        ValueError, RuntimeError, TypeError: an encoding that is damaged, or of another size than ``size``.
    """
    from faster_coco_eval.core import mask

    height, width = shape["size"] if isinstance(shape, dict) else size
    if not all(known in (None, own) for known, own in zip(size, (height, width))):
        raise ValueError(f"a run-length encoding of {(height, width)}, accepts {size}, the image's (height, width)")
    if isinstance(shape, list):
        encoding = mask.merge(mask.frPyObjects(shape, height, width))
    else:
        encoding = mask.frPyObjects(shape, height, width) if isinstance(shape["counts"], list) else shape
    mask.decode(encoding)  # refuses what is damaged
    counts = encoding["counts"]
    return counts.decode() if isinstance(counts, bytes) else counts, (height, width)


def read_masked(folder: Path, split: str, columns: dict, names: list[str]) -> pa.Table | None:
    """``<images>:<masks>``: two folders with an image and a mask of the same name each."""
    images, masks = (folder / part for part in split.split(":"))
    if not images.is_dir():
        return None
    files = images_in(images)
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
        sequences = [place.name for place in folders_in(frames)]
    if not sequences:
        raise ValueError(f"{frames}: holds no sequences")
    files = [(sequence, file) for sequence in sequences for file in sorted(images_in(frames / sequence), key=lambda f: natural(f.name))]
    empty = set(sequences) - {sequence for sequence, _ in files}
    if empty:
        raise ValueError(f"{frames / min(empty)}: holds no images")
    return table_of_files([f for _, f in files], masks=[masks / s for s, _ in files], sequence=[s for s, _ in files])
