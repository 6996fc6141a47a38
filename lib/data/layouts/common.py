"""What the readers of layouts share.

A table is a ``pyarrow.Table`` with the columns ``image`` (struct of ``bytes`` and ``path``, as the Hub stores images), ``filename`` (string)
and, where the dataset has them, ``label`` (int64), ``boxes`` (a list of x0, y0, x1, y1 in pixels, x1 and y1 exclusive), ``mask`` (a struct like
that of an image; its pixels are the numbers of objects, 0 is background) and ``sequence``. Sets with outlines have ``classes`` and
``polygons`` beside the boxes, and where there are any, ``rles``, a run-length encoding in place of the polygons of an object ("" for none),
and ``crowds``. Rows with labels are sorted by class and then by file name, in which numbers count by their value.

Every table is compared with its images by ``checked``.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lib.data.reading import encoded, name_of, opened, read_ahead

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
BOXES = pa.list_(pa.list_(pa.float32()))
_NUMBERS = pa.list_(pa.int64())
_TYPES = {"image": IMAGE, "label": pa.int64(), "filename": pa.string(), "boxes": BOXES, "classes": _NUMBERS, "polygons": pa.list_(BOXES)}
_TYPES |= {"mask": IMAGE, "sequence": pa.string(), "variant": pa.string(), "box": pa.list_(pa.float32())}
_TYPES |= {"rles": pa.list_(pa.string())}
_TYPES |= {"crowds": pa.list_(pa.struct([("box", pa.list_(pa.float32())), ("class", pa.int64()), ("rle", pa.string())]))}
_TYPES |= dict.fromkeys(("easy", "hard", "junk"), _NUMBERS)
EXTENSIONS = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}  # those of torchvision's ImageFolder
SLACK = 1.0  # pixels by which a box may exceed its image: some sets count from 1, or include the last pixel
AHEAD = 512  # headers of images read in advance

# ---- tables -----------------------------------------------------------------------------------------------------------


def table_of(**columns: list) -> pa.Table:
    """A table of the given columns, each with its type, in the order of the module's list."""
    return pa.table({name: pa.array(columns[name], kind) for name, kind in _TYPES.items() if name in columns})


def table_of_files(files: list[Path], *, masks: list | None = None, sizes: list | None = None, **columns: list) -> pa.Table:
    """A table of image files, with further columns. ``masks`` are the folders of their masks, PNG files that have the images' names;
    ``sizes`` are annotated, see ``checked``.
    """
    names = {"image": [str(file) for file in files]}
    if masks is not None:
        names["mask"] = [str(folder / f"{file.stem}.png") for folder, file in zip(masks, files)]
    for name, count in Counter(name for of_column in names.values() for name in of_column).items():
        if count > 1:
            raise ValueError(f"{name}: is listed {count} times, accepts each file once")
        if not name.isascii():
            try:
                name.encode()
            except UnicodeEncodeError:
                raise ValueError(f"{name!a}: is not a name in UTF-8, accepts no other") from None
    pictures = {column: [{"bytes": None, "path": name} for name in of_column] for column, of_column in names.items()}
    table = table_of(**pictures, filename=[file.name for file in files], **columns)
    return checked(by_class_and_name(table) if "label" in columns and "variant" not in columns else table, sizes)


def with_our_columns(table: pa.Table, columns: dict[str, list[str]], source: str, names: list[str]) -> pa.Table:
    """The columns of a table under our names. For each of our names, ``columns`` lists the possible names in the table; the first counts.
    Where the table names its classes, as the Hub does, labels become the numbers of these classes in ``names``, the card's list.
    """
    ours = {}
    for name, candidates in ({"image": ["image"], "label": ["label"]} | columns).items():
        present = [candidate for candidate in candidates if candidate in table.column_names]
        if present:
            ours[name] = table[present[0]]
        elif name in ("image", "label"):
            raise ValueError(f"{source}: has no column {' or '.join(candidates)}, only {', '.join(table.column_names)}")
        if name == "label":
            renumbered = _renumbered(class_names(table, present[0]), names, source)
    try:
        ours["image"] = ours["image"].cast(IMAGE)
        labels = ours["label"].cast(pa.int64()).to_pylist()
        if None in labels:
            raise pa.ArrowInvalid(f"row {labels.index(None)} has no label")
        ours["label"] = pa.chunked_array([pa.array([renumbered.get(label, label) for label in labels], pa.int64())])
        if "filename" not in ours:
            paths = pc.struct_field(ours["image"], "path").to_pylist()
            ours["filename"] = pa.chunked_array([[Path(path).name if path else f"{i:08d}" for i, path in enumerate(paths)]], pa.string())
        (entry, count), *_ = Counter(zip(ours["filename"].to_pylist(), labels)).most_common(1) or [(None, 0)]
        if count > 1:
            raise pa.ArrowInvalid(f"{count} rows are of the file {entry[0]} and the label {entry[1]}")
        if "boxes" in ours:
            boxes = [of_image or [] for of_image in ours["boxes"].to_pylist()]
            one = bool(pa.types.is_primitive(ours["boxes"].type.value_type))  # one box per image, not a list of them
            ours["boxes"] = pa.chunked_array([pa.array([[box] if box else [] for box in boxes] if one else boxes, BOXES)])
    except (pa.ArrowException, AttributeError, TypeError) as error:
        kinds = ", ".join(f"{name} {column.type}" for name, column in ours.items())
        raise ValueError(f"{source}: {error}; has {kinds}, accepts image {IMAGE}, integers as labels, lists of numbers as boxes") from error
    return checked(by_class_and_name(pa.table(ours)))


def class_names(table: pa.Table, column: str) -> list[str]:
    """The names of the classes in the Hub's metadata of a column; none where it has none."""
    try:
        return json.loads((table.schema.metadata or {})[b"huggingface"])["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError):
        return []


def _renumbered(theirs: list[str], names: list[str], source: str) -> dict[int, int]:
    """Their label of each class -> ours. Sets that name every class in another way (words instead of synsets) have the card's order."""
    if not theirs or not set(theirs) & set(names) and len(theirs) == len(names):
        return {}
    if sorted(theirs) != sorted(names):
        other = sorted(set(theirs) ^ set(names))[:1] or ["a class twice"]
        raise ValueError(f"{source}: names {len(theirs)} classes, the card {len(names)}; accepts the same ones, unlike {other[0]!r}")
    return {label: names.index(name) for label, name in enumerate(theirs)}


def checked(table: pa.Table, sizes: list[tuple[int | None, int | None]] | None = None) -> pa.Table:
    """A table whose boxes lie in its images, and whose images have their annotated ``sizes``, (height, width) with None where unknown.

    Images that cannot be read are not compared: whoever decodes them decides.

    Raises:
        ValueError: a box that is none or lies outside of its image, or another size; the file, the row and the box are named.
    """
    boxes: list = table["boxes"].to_pylist() if "boxes" in table.column_names else [[] for _ in range(len(table))]
    if "box" in table.column_names:
        boxes = [[box] for box in table["box"].to_pylist()]
    known = sizes or [(None, None)] * len(table)
    rows = [row for row in range(len(table)) if boxes[row] or any(known[row])]
    groups = (rows[start : start + AHEAD] for start in range(0, len(rows), AHEAD))
    found = (entry for group in read_ahead(lambda row: _stored_size(encoded(table, row)), groups, ahead=1) for entry in group)
    for row, (name, size) in zip(rows, found):
        if size and any(side not in (None, stored) for side, stored in zip(known[row], size)):
            turned = ", as turned by EXIF, which does not count here" if known[row] == size[::-1] else ""
            raise ValueError(f"{name}: has (height, width) {size}, its annotation says {known[row]}{turned}; accepts the same")
        check_boxes(boxes[row], size, name)
    return table


def _stored_size(picture: dict) -> tuple[str, tuple[int, int] | None]:
    name = name_of(picture)
    try:
        with opened(picture, load=False) as (_, size):
            return name, size
    except ValueError:
        return name, None


def check_boxes(boxes: list, size: tuple[int, int] | None, name: str) -> None:
    """Refuse boxes that are not x0, y0, x1, y1 or lie outside of an image of (height, width) ``size``, if that is known.

    Raises:
        ValueError: the box is named, after ``name``.
    """
    for number, box in enumerate(boxes):
        if not box or len(box) != 4 or None in box or not all(map(math.isfinite, box)) or box[0] > box[2] or box[1] > box[3]:
            raise ValueError(f"{name}: box {number} is {box}, accepts finite x0 <= x1 and y0 <= y1")
        if size and (min(box) < -SLACK or box[2] > size[1] + SLACK or box[3] > size[0] + SLACK):
            raise ValueError(f"{name}: box {number} is {box}, accepts boxes in its {size[1]} x {size[0]} pixels")


def first_of_each_class(table: pa.Table, count: int) -> pa.Table:
    """The first ``count`` rows of each class by the string order of file names (n01_10 before n01_9), as torchvision's ImageFolder and so
    the authors of AttMask sort them; they stay in the table's order.
    """
    labels, files = table["label"].to_pylist(), table["filename"].to_pylist()
    counts: Counter[int] = Counter()
    rows = []
    for row in sorted(range(len(table)), key=lambda row: files[row] or ""):
        counts[labels[row]] += 1
        if counts[labels[row]] <= count:
            rows.append(row)
    return table.take(pa.array(sorted(rows), pa.int64()))


def by_class_and_name(table: pa.Table) -> pa.Table:
    """The rows sorted by label and then by file name, in which numbers count by their value."""
    labels, files = table["label"].to_pylist(), table["filename"].to_pylist()
    order = sorted(range(len(labels)), key=lambda i: (labels[i], natural(files[i] or "")))
    return table.take(pa.array(order, pa.int64()))


def natural(name: str) -> list:
    """Sort key in which n01_2 comes before n01_10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


# ---- files ------------------------------------------------------------------------------------------------------------


def listed(folder: Path) -> Iterator[Path]:
    """What a folder holds, sorted, without hidden files and what macOS leaves in archives."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    return (path for path in sorted(folder.iterdir()) if not path.name.startswith((".", "__MACOSX")))


def images_in(folder: Path) -> list[Path]:
    """The image files of a folder, sorted."""
    return [path for path in listed(folder) if path.suffix.lower() in EXTENSIONS]


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, sorted."""
    return [path for path in listed(folder) if path.is_dir()]


def text_of(file: Path) -> str:
    """An annotation file's text."""
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"{file}: no such annotation file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: damaged or not a text file ({error})") from error


def lines_of(file: Path) -> list[str]:
    """The lines of an annotation file, without empty ones."""
    return [line for line in text_of(file).splitlines() if line.strip()]


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
    check_boxes([box], None, "not a box")
    return box


def sized(x: str, y: str, width: str, height: str) -> list[float]:
    """A box from its upper left corner and its size."""
    return corners(x, y, float(x) + float(width), float(y) + float(height))
