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
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from lib import files, paths
from lib.data import loading
from lib.data.dataset import Dataset
from lib.data.fingerprint import fingerprint
from lib.data.reading import encoded, read_ahead, read_canvas

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
    """A split that is decoded while it is used: the same batches as those of ``Bank``, but only a few of them are in memory at a time.

    Args:
        table: encoded images, see ``lib.data.layouts``.
        size: pixels a side of the canvas.
        device: where batches go.
        workers: decoding threads; None is the number of processors.
    """

    def __init__(self, table: pa.Table, size: int, device: str | torch.device = "cpu", *, workers: int | None = None):
        self.table, self.size, self.device, self.workers = table, size, device, workers
        self.labels = torch.tensor(loading.labels_of(table), device=device)
        self.fingerprint = fingerprint(table)

    def __len__(self) -> int:
        return len(self.table)

    def batches(self, indices: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        to_decode, to_label = tee(indices)
        groups = (rows.tolist() for rows in to_decode)
        decoded = read_ahead(lambda row: read_canvas(encoded(self.table, row), self.size), groups, ahead=AHEAD, workers=self.workers)
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
    cache: str | Path | None = None,
    max_bytes: int = LARGEST,
    progress: bool = True,
) -> Bank | Stream:
    """A split of a card as a ``Bank``, or as a ``Stream`` when the bank would take more than ``max_bytes``.

    Args:
        name: a card in ``data_cards/``.
        split: a split of it.
        size: pixels a side of the canvas.
        fraction, root: see ``lib.data.loading.read_part``.
        device: where the tensors lie.
        cache: folder for decoded banks; None is ``banks/`` in the run store.
        max_bytes: largest bank.
        progress: show a bar while decoding.

    Raises:
        ValueError: an unknown name or split, a fraction that the local folder does not hold, or a damaged image, which is named.
    """
    table = loading.read_part(name, split, fraction, root=root)
    if len(table) * 3 * size * size > max_bytes:
        return Stream(table, size, device)
    content = fingerprint(table)
    folder = Path(cache) if cache is not None else paths.runs_folder() / "banks"
    file = folder / f"{name}-{split}-{size}-{content}.safetensors"
    if file.is_file():
        try:
            tensors = load_file(file)
        except Exception as error:
            raise ValueError(f"{file}: damaged cache of decoded images ({error}); delete it and run again") from error
    else:
        tensors = _decode_all(table, size, f"decoding {name}/{split}" if progress else None)
        with files.replacing(file) as partial:
            save_file(tensors, partial)
    return Bank(**{part: tensor.to(device) for part, tensor in tensors.items()}, fingerprint=content)


def _decode_all(table: pa.Table, size: int, title: str | None) -> dict[str, Tensor]:
    images, sizes = torch.empty(len(table), 3, size, size, dtype=torch.uint8), torch.empty(len(table), 2, dtype=torch.int32)
    groups = (range(start, min(start + CHUNK, len(table))) for start in range(0, len(table), CHUNK))
    row = 0
    with tqdm(total=len(table), desc=title, disable=title is None, mininterval=2, unit="image") as bar:
        for pictures in read_ahead(lambda row: read_canvas(encoded(table, row), size), groups, ahead=1):
            for pixels, original in pictures:
                images[row] = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
                sizes[row] = torch.tensor(original)
                row += 1
            bar.update(len(pictures))
    return {"images": images, "sizes": sizes, "labels": torch.tensor(loading.labels_of(table))}
