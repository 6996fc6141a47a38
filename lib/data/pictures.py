"""Whole images with what is to be found in them: the objects, or the class of every pixel."""

import os
import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from lib.data.whole import Damage, fitted, read_image, read_mask

AHEAD = 2  # batches read in advance
VOID = 255  # of a pixel that counts nowhere


class Things(NamedTuple):
    """The objects of an image: boxes Float[n, 4] (x0, y0, x1, y1 in pixels), classes Long[n] from 0, masks Bool[n, h, w]."""

    boxes: Tensor
    classes: Tensor
    masks: Tensor


class Pictures(ABC):
    """A source for ``lib.training.train`` whose images keep their aspect ratio, so that a batch is a list, with targets instead of labels.

    Args:
        table: see ``lib.data.annotated``.
        device: where images and targets go.
        longest, shortest: pixels of that side; the other one follows.
    """

    columns: tuple[tuple[str, ...], ...] = ()  # of a table that has one of each

    def __init__(self, table: pa.Table, device="cpu", *, longest: int | None = None, shortest: int | None = None):
        if not all(set(table.column_names).intersection(names) for names in self.columns):
            wanted = ", ".join(" or ".join(names) for names in self.columns)
            raise ValueError(f"table: got the columns {', '.join(table.column_names)}, accepts {wanted} besides image")
        fitted((1, 1), longest=longest, shortest=shortest)  # a wrong argument is found here
        self.table, self.device, self.sides = table, device, dict(longest=longest, shortest=shortest)

    def __len__(self) -> int:
        return len(self.table)

    def batches(self, indices: Iterable[Tensor]) -> Iterator[tuple[list[Tensor], Tensor, list]]:
        """For each index tensor: images uint8[3, h, w], the originals' sizes Int[B, 2], targets.

        Raises:
            ValueError: a damaged image or mask, named.
        """
        # Else each reader would open a team of threads of its own, which slows the training down to a third.
        with ThreadPoolExecutor(len(os.sched_getaffinity(0)), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            waiting = deque()
            for chosen in indices:
                waiting.append([pool.submit(self.read, row) for row in chosen.tolist()])
                if len(waiting) > AHEAD:
                    yield self._collect(waiting.popleft())
            while waiting:
                yield self._collect(waiting.popleft())

    def read(self, row: int) -> tuple[Tensor, tuple[int, int], object]:
        """An image uint8[3, h, w], the original's (height, width), and its target."""
        picture = self.table.slice(row, 1).to_pylist()[0]
        image = read_image(picture["image"])
        size = (image.height, image.width)
        height, width = fitted(size, **self.sides)
        if (height, width) != size:
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return pixels.to(self.device), size, self.target(picture, size, (height, width))

    def whole(self, title: str | None = None) -> Iterator[tuple[Tensor, tuple[int, int], object]]:
        """Every picture as ``read`` gives it, with a bar under a title; of those that cannot be read a ``Damage`` warning says why not."""
        for row in tqdm(range(len(self)), title, disable=title is None, mininterval=2, unit="image"):
            try:
                picture = self.read(row)
            except ValueError as error:
                warnings.warn(f"{error}; left out", Damage, stacklevel=2)
                continue
            yield picture

    @abstractmethod
    def target(self, picture: dict, size: tuple[int, int], seen: tuple[int, int]):
        """What is to be found in an image of ``size`` that is resized to ``seen``."""

    def _collect(self, futures: list) -> tuple[list[Tensor], Tensor, list]:
        images, sizes, targets = zip(*(future.result() for future in futures))
        return list(images), torch.tensor(sizes), list(targets)


class ObjectPictures(Pictures):
    """With ``Things``: of tables with ``boxes``, ``classes``, and ``polygons`` or a ``mask`` that numbers the objects from 1."""

    columns = (("boxes",), ("classes",), ("polygons", "mask"))

    def target(self, picture: dict, size: tuple[int, int], seen: tuple[int, int]) -> Things:
        boxes = torch.tensor(picture["boxes"], dtype=torch.float32).view(-1, 4)
        if picture.get("polygons") is not None:
            masks = torch.stack([_filled(outline, size) for outline in picture["polygons"]]) if len(boxes) else torch.zeros(0, *size)
        else:
            numbers = torch.arange(1, len(boxes) + 1).view(-1, 1, 1)
            masks = _mask(picture, size) == numbers
        scale = boxes.new_tensor([seen[1] / size[1], seen[0] / size[0]]).repeat(2)
        things = Things(boxes * scale, torch.tensor(picture["classes"], dtype=torch.int64), _resized(masks, seen).bool())
        return Things(*(part.to(self.device) for part in things))


class PixelPictures(Pictures):
    """With the class of every pixel, Long[h, w] of the original's size, ``VOID`` where it counts nowhere.

    Of tables with ``mask``: its values are the classes, those above ``void`` one less; with ``classes`` too they are the numbers of objects,
    and 0 is a class of its own, the background.

    Args:
        table, device, sides: as of ``Pictures``.
        void: the value of pixels that count nowhere; -1 is none.
        num_classes: how many classes there are.
    """

    columns = (("mask",),)

    def __init__(self, table: pa.Table, device="cpu", *, void: int, num_classes: int, **sides):
        super().__init__(table, device, **sides)
        self.void, self.num_classes = void, num_classes

    def target(self, picture: dict, size: tuple[int, int], seen: tuple[int, int]) -> Tensor:
        values, void = _mask(picture, size), self.void
        if picture.get("classes") is not None:  # a number beyond the last object is of no class
            values, void = torch.tensor([0, *(label + 1 for label in picture["classes"])] + [self.num_classes] * 255)[values], -1
        classes = values - ((values > void) & (void >= 0)).long()
        wrong = values[(values != void) & (classes >= self.num_classes)]
        if len(wrong):
            besides = "" if void < 0 else f" besides {void}, void"
            raise ValueError(f"{_name(picture)}: holds the class {int(wrong[0])}, accepts {self.num_classes} classes{besides}")
        return torch.where(values == void, VOID, classes).to(self.device)


def _resized(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """[n, H, W] -> [n, h, w], nearest."""
    if tuple(masks.shape[1:]) == size or not len(masks):
        return masks.new_zeros(0, *size) if not len(masks) else masks
    return F.interpolate(masks[None].float(), size, mode="nearest-exact")[0]


def _filled(polygons: list[list[float]], size: tuple[int, int]) -> Tensor:
    """Bool[H, W]: the pixels within any of the polygons x, y, x, y, … as COCO's own tools count them."""
    from faster_coco_eval.core import mask

    outlines = [polygon for polygon in polygons if len(polygon) >= 6]
    if not outlines:
        return torch.zeros(size, dtype=torch.bool)
    return torch.from_numpy(mask.decode(mask.merge(mask.frPyObjects(outlines, *size)))).bool()


def _mask(picture: dict, size: tuple[int, int]) -> Tensor:
    """The mask of a picture, Long[H, W], which is as large as its image."""
    values = read_mask(picture["mask"])
    if tuple(values.shape) != size:
        raise ValueError(f"{_name(picture)}: has {tuple(values.shape)} pixels, accepts {size}, those of its image")
    return values


def _name(picture: dict) -> str:
    return picture["mask"]["path"] or "mask without a name"
