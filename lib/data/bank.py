"""Splits for classification as tensors: decoded once onto the device, or streamed where they do not fit.

An image is squeezed onto a square uint8 canvas and its original size is kept beside it. So a split is one tensor, and crops still have the
original's aspect ratio (``lib.data.views``).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import tee
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from tqdm import tqdm

from lib import paths
from lib.data import loading
from lib.data.dataset import Dataset
from lib.data.fingerprint import fingerprint
from lib.data.reading import encoded, read_ahead, read_canvas
from lib.tensors import load_tensors, save_tensors

AHEAD = 2  # batches read in advance
CHUNK = 256  # images decoded at a time for a bank
LARGEST = 16 * 2**30  # bytes of a bank


@dataclass
class Bank(Dataset):
    """A decoded split: images uint8[n, 3, S, S], sizes Int[n, 2] (height, width of the originals), labels Long[n]."""

    images: Tensor
    sizes: Tensor
    labels: Tensor
    fingerprint: str

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, indices: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for rows in indices:
            rows = rows.to(self.images.device)
            yield self.images[rows], self.sizes[rows], self.labels[rows]


class Stream(Dataset):
    """A split, as a table of encoded images, that is decoded while it is used: the same batches as those of ``Bank``, but only a few of them
    are in memory at a time. Arguments as of ``bank``.
    """

    def __init__(self, table: pa.Table, size: int, device: str | torch.device = "cpu"):
        self.table, self.size, self.device = table, size, device
        labels = table["label"].to_pylist() if "label" in table.column_names else [-1] * len(table)  # -1 for images without a class
        self.labels = torch.tensor(labels, device=device)
        self.fingerprint = fingerprint(table)

    def __len__(self) -> int:
        return len(self.table)

    def batches(self, indices: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        to_decode, to_label = tee(indices)
        groups = (rows.tolist() for rows in to_decode)
        decoded = read_ahead(lambda row: read_canvas(encoded(self.table, row), self.size), groups, ahead=AHEAD)
        for pictures, rows in zip(decoded, to_label):
            images, sizes = zip(*pictures)
            batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous().to(self.device, non_blocking=True)
            yield batch, torch.tensor(sizes).to(self.device), self.labels[rows.to(self.labels.device)]


def bank(
    name: str,
    split: str,
    size: int,
    *,
    fraction: float = 1.0,
    root: str | Path | None = None,
    device: str | torch.device = "cpu",
    max_bytes: int = LARGEST,
    progress: bool = True,
) -> Bank | Stream:
    """A split of a card as a ``Bank``, which is kept decoded in the run store, or as a ``Stream`` when that would take more than ``max_bytes``.

    Args:
        name, split, fraction, root: see ``lib.data.loading.read_part``.
        size: pixels a side of the canvas.
        device: where the tensors lie.
        progress: show a bar while decoding.

    Raises:
        ValueError: an unknown name or split, a fraction that the local folder does not hold, or a damaged image, which is named.
    """
    table = loading.read_part(name, split, fraction, root=root)
    if len(table) * 3 * size * size > max_bytes:
        return Stream(table, size, device)
    content = fingerprint(table)
    file = paths.runs_folder() / "banks" / f"{name}-{split}-{size}-{content}.safetensors"
    if file.is_file():
        tensors, _ = load_tensors(file)
    else:
        tensors = _decode_all(table, size, f"decoding {name}/{split}" if progress else None)
        save_tensors(file, tensors)
    return Bank(**{part: tensor.to(device) for part, tensor in tensors.items()}, fingerprint=content)


def _decode_all(table: pa.Table, size: int, title: str | None) -> dict[str, Tensor]:
    stream, groups = Stream(table, size), torch.arange(len(table)).split(CHUNK)
    images, sizes = torch.empty(len(table), 3, size, size, dtype=torch.uint8), torch.empty(len(table), 2, dtype=torch.int32)
    with tqdm(total=len(table), desc=title, disable=title is None, mininterval=2, unit="image") as bar:
        for rows, (pixels, originals, _) in zip(groups, stream.batches(groups)):
            images[rows], sizes[rows] = pixels, originals.int()
            bar.update(len(rows))
    return {"images": images, "sizes": sizes, "labels": stream.labels}
