"""Reading images and masks from a table: decoding, resizing, and reading ahead with threads.

An encoded picture is a dict with ``bytes`` or a ``path``, as the Hub stores images, and optionally ``row``, its row in the table. Every error
names the file and the row.

Pixels, sizes, boxes and masks are of the image as it is stored. The orientation in EXIF data turns nothing, as in Pillow and torchvision, with
which the papers' networks were trained; annotations of a turned image are refused where its annotated size shows that they are turned.
"""

import io
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from lib.data.views import normalise

T = TypeVar("T")
R = TypeVar("R")

# The errors of Pillow and the file system for a picture that is missing or damaged.
ERRORS = (OSError, ValueError, SyntaxError, EOFError, TypeError, OverflowError, Image.DecompressionBombError)
MASK_MODES = ("P", "L", "LA", "1", "I", "I;16")  # palettes and greys; alpha does not count
VOID = 255  # value of pixels that do not count, beside the numbers of objects or classes
MOST = 100  # objects in a mask; larger values are greys
AHEAD = 8  # pictures read in advance, one at a time
CHECKED = 32  # pixels a side at least, at which an image is decoded to check it


class Damage(UserWarning):
    """An image or mask could not be read and is left out."""


# ---- one picture ------------------------------------------------------------------------------------------------------


def encoded(table: pa.Table, row: int, column: str = "image") -> dict:
    """The encoded picture of a row of a table (see ``lib.data.layouts``); ``one_object`` is there where the set's card says so of its masks."""
    picture = table[column][row].as_py() or {"bytes": None, "path": None}
    return picture | {"row": row} | dict.fromkeys(["one_object"] if table.schema.field(column).metadata else [], True)


def name_of(picture: dict) -> str:
    """A picture's file and row, for errors."""
    row = "" if picture.get("row") is None else f" (row {picture['row']})"
    return f"{picture['path'] or 'picture without a name'}{row}"


@contextmanager
def opened(picture: dict, side: int | None = None, *, load: bool = True) -> Iterator[tuple[Image.Image, tuple[int, int]]]:
    """``Image.open`` with errors that name the file and the row, and the (height, width) of the stored image. With ``side``, a JPEG is
    decoded smaller, but to ``side`` pixels at least; without ``load``, nothing but its header is read.
    """
    try:
        image = Image.open(picture["path"] if picture["path"] and not picture["bytes"] else io.BytesIO(picture["bytes"] or b""))
        size = (image.height, image.width)
        if side is not None:
            image.draft(None, (side, side))
        if load:
            image.load()
    except ERRORS as error:
        raise ValueError(f"{name_of(picture)}: damaged or not an image ({error})") from error
    with closing(image):
        yield image, size


def in_rgb(image: Image.Image, name: str) -> Image.Image:
    """An opened image in RGB; 16 bits a pixel are scaled to 8.

    Raises:
        ValueError: other numbers than of 8 or 16 bits.
    """
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise ValueError(f"{name}: has pixels of the type {image.mode}, accepts 8 or 16 bits")
        image = Image.fromarray((values / 257).round().astype(np.uint8))
    return image.convert("RGB")


def read_image(picture: dict, box: list[float] | None = None) -> Image.Image:
    """An encoded image in RGB, or the part of it in a box (x0, y0, x1, y1 in pixels, rounded).

    Raises:
        ValueError: a file that is missing or damaged, or a box without any pixel of the image; the file is named.
    """
    with opened(picture) as (original, _):
        image = in_rgb(original, name_of(picture))
    if box is None:
        return image
    x0, y0, x1, y1 = map(round, box)
    x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, image.width), min(y1, image.height)
    if x0 >= x1 or y0 >= y1:
        raise ValueError(f"{name_of(picture)}: the box {box} holds none of its {image.width} x {image.height} pixels")
    return image.crop((x0, y0, x1, y1))


def read_mask(picture: dict, size: tuple[int, int] | None = None) -> Tensor:
    """A mask image as Long[H, W]: the indices of a palette of colours, the values of greys. ``size`` is (height, width) of its image.

    Raises:
        ValueError: a file that is missing or damaged, has colours, or is not of its image's size; the file is named.
    """
    with opened(picture) as (image, _):
        if image.mode not in MASK_MODES:
            raise ValueError(f"{name_of(picture)}: has colours ({image.mode}), accepts a palette or grey image")
        palette = np.array(image.getpalette() or [0] * 3).reshape(-1, 3)
        if image.mode == "LA" or (image.mode == "P" and (palette == palette[:, :1]).all()):
            image = image.convert("L")
        values = np.array(image)
    if size is not None and values.shape != tuple(size):
        raise ValueError(f"{name_of(picture)}: got a mask of {values.shape}, accepts {tuple(size)}, its image's size")
    return torch.from_numpy(values.astype(np.int64))


def read_objects(picture: dict, size: tuple[int, int] | None = None, *, count: int | None = None) -> Tensor:
    """The numbers of the objects in a mask image, Long[H, W]: 0 is background and -1 void, which is 255 beside other numbers.

    A mask of greys where one object is expected (``count`` is 1, or the set's card says ``one_object``) is cut at half of its highest grey,
    which soft edges need.

    Args:
        picture, size: as of ``read_mask``.
        count: how many objects are known; None is any number. A single one has the number 1, whatever its grey.

    Raises:
        ValueError: as of ``read_mask``; greys where numbers are expected, or a number above ``count``.
    """
    values = read_mask(picture, size)
    found = values.unique()
    highest, numbers = int(found[-1]), found[(found > 0) & (found != VOID)]
    numbered = len(numbers) > 0 and int(numbers[-1]) == len(numbers)  # 1, 2, …
    if highest > MOST and not numbered and (count == 1 or picture.get("one_object")):
        return torch.where(2 * values > highest, 1 if count == 1 else highest, 0)
    if len(numbers) > MOST or (highest == VOID and len(numbers) and numbers[-1] > MOST):
        soft = f"holds {len(numbers)} values up to {int(numbers[-1])} besides 0 and {VOID}, as soft edges have"
        raise ValueError(f"{name_of(picture)}: {soft}; accepts the numbers of at most {MOST} objects")
    if len(numbers) or count is not None:
        values = torch.where(values == VOID, -1, values)
    if count is not None and values.max() > count:
        raise ValueError(f"{name_of(picture)}: holds an object {int(values.max())}, accepts the numbers of {count} objects from 1")
    return values


def read_canvas(picture: dict, size: int) -> tuple[np.ndarray, tuple[int, int]]:
    """An encoded image squeezed to a square, uint8[size, size, 3], and its original (height, width)."""
    with opened(picture, side=2 * size) as (image, original):
        return np.asarray(in_rgb(image, name_of(picture)).resize((size, size), Image.Resampling.BICUBIC)), original


def fitted(size: tuple[int, int], *, shortest: int | None = None, longest: int | None = None, multiple: int = 1) -> tuple[int, int]:
    """The (height, width) to which an image is resized.

    Args:
        size: (height, width) of the original.
        shortest, longest: pixels of the shorter or of the longer side; the other one follows. Without both, images keep their size.
        multiple: sides are rounded down to multiples of it, at least one.

    Raises:
        ValueError: both sides given, or a number below 1.
    """
    for name, value in (("shortest", shortest), ("longest", longest), ("multiple", multiple)):
        if value is not None and value < 1:
            raise ValueError(f"{name}: got {value}, accepts 1 or more")
    if shortest is not None and longest is not None:
        raise ValueError(f"longest: got {longest} beside shortest {shortest}, accepts None there")
    scale = shortest / min(size) if shortest is not None else longest / max(size) if longest is not None else 1.0
    height, width = (max(multiple, int(side * scale + 1e-6) // multiple * multiple) for side in size)
    return height, width


def read_fitted(picture: dict, box: list[float] | None = None, **sides: Any) -> tuple[np.ndarray, tuple[int, int]]:
    """An image, or its part in a box, resized (bicubic) to the size from ``fitted``, uint8[h, w, 3], and its (height, width) before that."""
    image = read_image(picture, box)
    size = (image.height, image.width)
    height, width = fitted(size, **sides)
    if (height, width) != size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.array(image), size


# ---- many pictures ----------------------------------------------------------------------------------------------------


def processors() -> int:
    """The number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS has none


def read_ahead(read: Callable[[T], R], groups: Iterable[Iterable[T]], *, ahead: int) -> Iterator[list[R]]:
    """``[read(item) for item in group]`` for each group, computed in advance by threads.

    ``ahead`` groups are read in advance. Each thread uses one thread of torch: with torch's default, each would start a team of its own, and
    a training at the same time would be three times as slow.
    """
    with ThreadPoolExecutor(processors(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        waiting: deque[list[Future[R]]] = deque()
        for group in groups:
            waiting.append([pool.submit(read, item) for item in group])
            if len(waiting) > ahead:
                yield [future.result() for future in waiting.popleft()]
        while waiting:
            yield [future.result() for future in waiting.popleft()]


def read_intact(read: Callable[[int], R], rows: Sequence[int], title: str | None = None) -> Iterator[tuple[int, R]]:
    """(row, ``read(row)``) for each row, with a progress bar if there is a title.

    Rows for which ``read`` raises ``ValueError`` are left out; a ``Damage`` warning gives the reason.
    """

    def attempt(row: int) -> R | ValueError:
        try:
            return read(row)
        except ValueError as error:
            return error

    results = read_ahead(attempt, ([row] for row in rows), ahead=AHEAD)
    for [result], row in zip(tqdm(results, title, len(rows), disable=title is None, mininterval=2, unit="image"), rows):
        if isinstance(result, ValueError):
            warnings.warn(f"{result}; left out", Damage, stacklevel=2)
        else:
            yield row, result


def intact(table: pa.Table, *, progress: bool = False) -> pa.Table:
    """The rows of a table whose image, and mask if there are masks, can be read; a ``Damage`` warning names each of the others. Called
    before a long evaluation, so that a damaged file neither ends it nor goes unnoticed.

    Raises:
        ValueError: no row is left.
    """
    columns = [name for name in ("image", "mask") if name in table.column_names]

    def check(row: int) -> None:
        for column in columns:
            with opened(encoded(table, row, column), side=CHECKED):
                pass

    rows = [row for row, _ in read_intact(check, range(len(table)), "checking images" if progress else None)]
    if not rows:
        raise ValueError(f"table: got {len(table)} images, none of which could be read, accepts at least one")
    return table if len(rows) == len(table) else table.take(pa.array(rows, pa.int64()))


class FullImage(NamedTuple):
    """The input of a network: its row in the table, the normalised view Float[1, 3, h, w], and (height, width) of the original or its box."""

    row: int
    view: Tensor
    size: tuple[int, int]


def full_images(
    table: pa.Table, *, rows: Sequence[int] | None = None, device: str | torch.device = "cpu", title: str | None = None, **sides: Any
) -> Iterator[FullImage]:
    """Images one at a time at their own aspect ratio, resized (bicubic) to whole patches.

    A column ``box`` of the table restricts each image to that part. ``rows`` are those of the images to read, None reads all; ``sides`` are
    ``shortest`` or ``longest``, and ``multiple``, see ``fitted``; a title shows a progress bar. A ``Damage`` warning names each image that
    is missing or damaged and left out.
    """
    fitted((1, 1), **sides)  # so that a wrong argument does not look like a damaged image
    boxes = table["box"].to_pylist() if "box" in table.column_names else [None] * len(table)

    def read(row: int) -> tuple[np.ndarray, tuple[int, int]]:
        return read_fitted(encoded(table, row), boxes[row], **sides)

    for row, (pixels, size) in read_intact(read, range(len(table)) if rows is None else rows, title):
        yield FullImage(row, normalise(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255).to(device), size)
