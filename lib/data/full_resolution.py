"""Images at full resolution and their own aspect ratio, one at a time, for measurements in the pixels of the original."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from lib.data.reading import encoded, fitted, read_fitted, read_intact
from lib.data.views import normalise


class FullImage(NamedTuple):
    """The input of a network: its row in the table, the normalised view Float[1, 3, h, w], and (height, width) of the original or its box."""

    row: int
    view: Tensor
    size: tuple[int, int]


def full_images(table: pa.Table, *, device: str | torch.device = "cpu", title: str | None = None, **sides: Any) -> Iterator[FullImage]:
    """Every image of a table, resized (bicubic) to whole patches.

    Args:
        table: see ``lib.data.layouts``; a column ``box`` restricts each image to that part.
        device: where the views lie.
        title: of a progress bar; None shows none.
        sides: ``shortest`` or ``longest``, and ``multiple``, see ``lib.data.reading.fitted``.

    Yields:
        FullImage. A ``Damage`` warning names each image that is missing or damaged and left out.
    """
    fitted((1, 1), **sides)  # so that a wrong argument does not look like a damaged image
    boxes = table["box"].to_pylist() if "box" in table.column_names else [None] * len(table)

    def read(row: int) -> tuple[np.ndarray, tuple[int, int]]:
        return read_fitted(encoded(table, row), boxes[row], **sides)

    for row, (pixels, size) in read_intact(read, len(table), title):
        yield FullImage(row, as_view(pixels).to(device), size)


def as_view(pixels: np.ndarray) -> Tensor:
    """uint8[h, w, 3] -> Float[1, 3, h, w], normalised."""
    return normalise(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255)
