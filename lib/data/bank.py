"""Splits as tensors: decoded once onto the device, or streamed where they do not fit.

An image is squeezed onto a square uint8 canvas and its original size is kept beside it, so that a split is one tensor and
crops still have the original's aspect ratio (``lib.data.views``).
"""

import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from PIL import Image, UnidentifiedImageError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from lib import paths
from lib.data import layouts, loading, scenes


@dataclass
class Bank:
    """A decoded split: images uint8[n, 3, S, S], sizes Int[n, 2] (height, width of the originals), labels Long[n]."""

    images: Tensor
    sizes: Tensor
    labels: Tensor
    fingerprint: str  # of pixels, sizes and labels

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, indices: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(images, sizes, labels) for each index tensor."""
        for chosen in indices:
            chosen = chosen.to(self.images.device)
            yield self.images[chosen], self.sizes[chosen], self.labels[chosen]


class Stream:
    """A split that is decoded while it is used: the interface of ``Bank``, in the memory of a few batches.

    Args:
        table: encoded images, see ``lib.data.layouts``.
        size: pixels a side of the canvas.
        device: where batches go.
        workers: decoding threads; None is the number of processors.
        ahead: batches decoded in advance.
    """

    def __init__(self, table: pa.Table, size: int, device, *, workers: int | None = None, ahead: int = 2):
        self.table, self.size, self.device, self.ahead = table, size, device, ahead
        self.workers = workers or len(os.sched_getaffinity(0))
        self.labels = torch.tensor(_labels(table), device=device)
        self.fingerprint = table_fingerprint(table, size)

    def __len__(self) -> int:
        return len(self.table)

    def batches(self, indices: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        with ThreadPoolExecutor(self.workers) as pool:
            waiting = []
            for chosen in indices:
                rows = self.table["image"].take(pa.array(chosen.tolist())).to_pylist()
                waiting.append((chosen, [pool.submit(decode, row, self.size) for row in rows]))
                if len(waiting) > self.ahead:
                    yield self._collect(*waiting.pop(0))
            for batch in waiting:
                yield self._collect(*batch)

    def _collect(self, chosen: Tensor, futures: list) -> tuple[Tensor, Tensor, Tensor]:
        images, sizes = zip(*(future.result() for future in futures))
        images = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
        return images.to(self.device, non_blocking=True), torch.tensor(sizes).to(self.device), self.labels[chosen.to(self.labels.device)]


def bank(
    name: str,
    split: str,
    size: int,
    *,
    fraction: float = 1.0,
    root: str | Path | None = None,
    device="cpu",
    cache: str | Path | None = None,
    max_bytes: int = 16 * 2**30,
    progress: bool = True,
) -> Bank | Stream:
    """A split of a card as a ``Bank``, or as a ``Stream`` when the bank would take more than ``max_bytes``.

    Args:
        name: a card in ``data_cards/``.
        split: a split of it.
        size: pixels a side of the canvas.
        fraction: of every class, the first ``int(fraction * images_per_class)`` images in sorted order, where
            ``images_per_class`` is the full set's (AttMask: 20% of ImageNet-1k is the first 260 of each class).
        root: as in ``lib.data.load``.
        device: where the tensors lie.
        cache: folder for decoded banks; None is ``banks/`` in the run store.
        max_bytes: largest bank.
        progress: show a bar while decoding.

    Raises:
        ValueError: an unknown name or split, a fraction that the local folder does not hold, or a damaged image, which is
            named.
    """
    described = loading.card(name)
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction: got {fraction!r}, accepts a number in (0, 1]")
    if split not in described.splits:
        raise ValueError(f"split: got {split!r}, {name} accepts {', '.join(described.splits)}")
    if name == "scenes":
        return _scenes_bank(split, size, fraction, device, described)
    folder = loading.find_folder(name, root)
    if split == "train" and folder is not None and fraction > described.folders[folder.name] + 1e-9:
        raise ValueError(f"fraction: got {fraction}, {folder} accepts at most {described.folders[folder.name]}, the part that it holds")
    table = loading.read_table(name, split, root=root)
    if split == "train" and fraction < 1:
        table = layouts.first_of_each_class(table, _part(fraction, described.images_per_class))
    if len(table) * 3 * size * size > max_bytes:
        return Stream(table, size, device)

    file = (
        Path(cache) if cache is not None else paths.runs_folder() / "banks"
    ) / f"{name}-{split}-{size}-{table_fingerprint(table, size)}.safetensors"
    if file.is_file():
        try:
            tensors = load_file(file)
        except Exception as error:
            raise ValueError(f"{file}: damaged cache of decoded images ({error}); delete it and run again") from error
    else:
        tensors = _decode_all(table, size, f"decoding {name}/{split}" if progress else None)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}.partial")
        save_file(tensors, partial)
        os.replace(partial, file)
    return _make(tensors, device)


def decode(row: dict, size: int) -> tuple[np.ndarray, tuple[int, int]]:
    """An encoded image (``bytes`` or ``path``) as uint8[size, size, 3] and its original (height, width)."""
    try:
        with Image.open(io.BytesIO(row["bytes"]) if row["bytes"] else row["path"]) as image:
            width, height = image.size
            if min(width, height) > 2 * size:
                image.draft("RGB", (2 * size, 2 * size))  # lets JPEG decode at a fraction of its size
            image = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
            return np.asarray(image), (height, width)
    except (OSError, UnidentifiedImageError, ValueError) as error:
        raise ValueError(f"{row['path'] or 'image without a name'}: damaged or not an image ({error})") from error


def _decode_all(table: pa.Table, size: int, title: str | None) -> dict[str, Tensor]:
    images = torch.empty(len(table), 3, size, size, dtype=torch.uint8)
    sizes = torch.empty(len(table), 2, dtype=torch.int32)
    rows = (row for batch in table.select(["image"]).to_batches(max_chunksize=512) for row in batch["image"].to_pylist())
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        results = pool.map(lambda row: decode(row, size), rows)
        for i, (pixels, original) in enumerate(tqdm(results, title, len(table), disable=title is None, mininterval=2, unit="image")):
            images[i] = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
            sizes[i] = torch.tensor(original)
    return {"images": images, "sizes": sizes, "labels": torch.tensor(_labels(table))}


@lru_cache(8)
def _rendered(split: str, count: int, size: int) -> scenes.Scenes:
    return scenes.render(torch.arange(count), seed=scenes.SPLIT_SEEDS[split], size=size)


def _scenes_bank(split: str, size: int, fraction: float, device, described) -> Bank:
    if split not in ("train", "validation"):
        raise ValueError(f"split: got {split!r}, a bank of scenes accepts train, validation")
    count = _part(fraction, described.splits[split])
    scene, sizes = _rendered(split, count, size), torch.full((count, 2), size, dtype=torch.int32)
    return _make({"images": scene.images.clone(), "sizes": sizes, "labels": scene.labels.clone()}, device)


def _labels(table: pa.Table) -> list[int]:
    """-1 for images without a class."""
    return table["label"].to_pylist() if "label" in table.column_names else [-1] * len(table)


def _part(fraction: float, whole: int) -> int:
    count = int(fraction * whole + 1e-9)  # 0.29 * 100 is a little less than 29
    if count == 0:
        raise ValueError(f"fraction: got {fraction}, accepts at least {1 / whole:.2g}, one image of {whole}")
    return count


def _make(tensors: dict[str, Tensor], device) -> Bank:
    digest = hashlib.sha256()
    for name in ("images", "sizes", "labels"):
        digest.update(tensors[name].numpy().tobytes())
    return Bank(**{k: v.to(device) for k, v in tensors.items()}, fingerprint=digest.hexdigest()[:16])


def table_fingerprint(table: pa.Table, size: int = 0) -> str:
    """Of what would be decoded onto canvases of ``size``: labels, and the bytes or the files' names, sizes and times."""
    digest = hashlib.sha256(json.dumps([size, len(table), _labels(table)]).encode())
    for batch in table.select(["image"]).to_batches(max_chunksize=512):
        for row in batch["image"].to_pylist():
            if row["bytes"]:
                digest.update(row["bytes"])
            else:
                try:
                    stat = os.stat(row["path"])
                except OSError as error:
                    raise ValueError(f"{row['path']}: listed but not readable ({error})") from error
                digest.update(f"{row['path']}:{stat.st_size}:{stat.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]
