"""Whole images at their own aspect ratio, one at a time, for what is measured in the pixels of the original."""

import io
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from lib.data.views import normalise

AHEAD = 8  # images decoded in advance
CHECKED = 32  # pixels a side at least, of an image that is decoded to see whether it can be


class Whole(NamedTuple):
    """An image as a network sees it.

    row: its place in the table; view: Float[1, 3, h, w], normalised; size: (height, width) of the original, or of its box.
    """

    row: int
    view: Tensor
    size: tuple[int, int]


class Damage(UserWarning):
    """An image or mask could not be read and is left out."""


def whole_images(
    table: pa.Table,
    *,
    shortest: int | None = None,
    longest: int | None = None,
    multiple: int = 1,
    device="cpu",
    title: str | None = None,
) -> Iterator[Whole]:
    """Every image of a table, resized (bicubic) to whole patches.

    Args:
        table: see ``lib.data.layouts``; with a column ``box``, that part of an image is all that is seen of it.
        shortest: pixels of the shorter side; the longer one follows.
        longest: pixels of the longer side, instead. Without both, images keep their size.
        multiple: sides are rounded down to multiples of it, at least one.
        device: where the views lie.
        title: of a progress bar; None shows none.

    Yields:
        Whole. An image that is missing or damaged is named in a ``Damage`` warning and left out.
    """
    fitted((1, 1), shortest=shortest, longest=longest, multiple=multiple)  # a wrong argument is no damaged image
    rows = range(len(table))
    boxes = table["box"].to_pylist() if "box" in table.column_names else [None] * len(table)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        waiting = []
        for row in tqdm(rows, title, disable=title is None, mininterval=2, unit="image"):
            waiting.append((row, pool.submit(_read, table["image"][row].as_py(), boxes[row], shortest, longest, multiple)))
            if len(waiting) > AHEAD or row == rows[-1]:
                for number, future in waiting if row == rows[-1] else [waiting.pop(0)]:
                    try:
                        pixels, size = future.result()
                    except ValueError as error:
                        warnings.warn(f"{error}; left out", Damage, stacklevel=2)
                        continue
                    yield Whole(number, as_view(pixels).to(device), size)


def readable(table: pa.Table, *, progress: bool = False) -> pa.Table:
    """The rows whose image, and mask where there are masks, can be read; of the others a ``Damage`` warning says why not.

    To be asked before a long evaluation, of which a damaged file shall neither be the end nor go unnoticed.

    Args:
        table: see ``lib.data.layouts``.
        progress: show a bar.

    Raises:
        ValueError: no row is left.
    """
    columns = [name for name in ("image", "mask") if name in table.column_names]

    def complaint(row: int) -> ValueError | None:
        try:
            for column in columns:
                with _opened(table[column][row].as_py(), side=CHECKED):
                    pass
        except ValueError as error:
            return error
        return None

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        rows = tqdm(
            pool.map(complaint, range(len(table))), "checking images", len(table), disable=not progress, mininterval=2, unit="image"
        )
        complaints = list(rows)
    for error in filter(None, complaints):
        warnings.warn(f"{error}; left out", Damage, stacklevel=2)
    kept = table.filter(pa.array([error is None for error in complaints], pa.bool_()))
    if not len(kept):
        raise ValueError(f"table: got {len(table)} images, none of which could be read, accepts at least one")
    return kept


def as_view(pixels: np.ndarray) -> Tensor:
    """uint8[h, w, 3] -> Float[1, 3, h, w], normalised."""
    return normalise(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255)


def fitted(size: tuple[int, int], *, shortest: int | None = None, longest: int | None = None, multiple: int = 1) -> tuple[int, int]:
    """(height, width) at which an image of ``size`` is seen, see ``whole_images``.

    Raises:
        ValueError: both sides given, or a number below 1.
    """
    for name, value in (("shortest", shortest), ("longest", longest), ("multiple", multiple)):
        if value is not None and value < 1:
            raise ValueError(f"{name}: got {value}, accepts 1 or more")
    if shortest is not None and longest is not None:
        raise ValueError(f"longest: got {longest} beside shortest {shortest}, accepts None there")
    scale = 1.0
    if shortest is not None:
        scale = shortest / min(size)
    elif longest is not None:
        scale = longest / max(size)
    return tuple(max(multiple, int(side * scale + 1e-6) // multiple * multiple) for side in size)


def read_mask(row: dict) -> Tensor:
    """A mask image as Long[H, W]: of a palette image the indices, of others the values.

    Raises:
        ValueError: a file that is missing or damaged, or has colours, named.
    """
    with _opened(row) as image:
        if image.mode not in ("P", "L", "1", "I", "I;16"):
            raise ValueError(f"{row['path'] or 'mask without a name'}: has colours ({image.mode}), accepts a palette or grey image")
        values = np.array(image)
    return torch.from_numpy(values.astype(np.int64))


def read_image(row: dict, box: list[float] | None = None) -> Image.Image:
    """An encoded image in RGB, or the part of it in a box (x0, y0, x1, y1 in pixels, rounded).

    Raises:
        ValueError: a file that is missing or damaged, or a box without any pixel of it; the file is named.
    """
    with _opened(row) as image:
        image = image.convert("RGB")
    if box is None:
        return image
    x0, y0, x1, y1 = map(round, box)
    x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, image.width), min(y1, image.height)
    if x0 >= x1 or y0 >= y1:
        raise ValueError(f"{row['path'] or 'image without a name'}: the box {box} holds none of its {image.width} x {image.height} pixels")
    return image.crop((x0, y0, x1, y1))


class _opened:
    """``Image.open`` whose errors name the file; with ``side``, a JPEG is decoded at a fraction of its size, at least so many pixels."""

    def __init__(self, row: dict, side: int | None = None):
        self.row, self.side = row, side

    def __enter__(self) -> Image.Image:
        try:
            self.image = Image.open(
                self.row["path"] if self.row["path"] and not self.row["bytes"] else io.BytesIO(self.row["bytes"] or b"")
            )
            if self.side is not None:
                self.image.draft(None, (self.side, self.side))
            self.image.load()
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"{self.row['path'] or 'image without a name'}: damaged or not an image ({error})") from error
        return self.image

    def __exit__(self, *_):
        self.image.close()


def _read(row: dict, box, shortest, longest, multiple) -> tuple[np.ndarray, tuple[int, int]]:
    image = read_image(row, box)
    size = (image.height, image.width)
    height, width = fitted(size, shortest=shortest, longest=longest, multiple=multiple)
    if (height, width) != size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.array(image), size
