"""Images at their own aspect ratio with their instances, or with the class of every pixel."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from lib.data.dataset import Dataset
from lib.data.fingerprint import fingerprint
from lib.data.loading import read_part, read_table
from lib.data.reading import VOID, encoded, fitted, name_of, read_ahead, read_fitted, read_intact, read_mask, read_objects

AHEAD = 2  # batches read in advance


class Instances(NamedTuple):
    """The objects of an image: boxes Float[n, 4] (x0, y0, x1, y1 in pixels), classes Long[n] from 0, masks Bool[n, h, w]."""

    boxes: Tensor
    classes: Tensor
    masks: Tensor


class AnnotatedDataset(Dataset):
    """Images of a table that keep their aspect ratio, so that a batch is a list, and their targets, on a device. ``sides`` are ``longest`` or
    ``shortest``, pixels of that side; the other one follows.
    """

    columns: tuple[tuple[str, ...], ...] = ()  # the table has one column of each

    def __init__(self, table: pa.Table, device: str | torch.device = "cpu", **sides: Any):
        if not all(set(table.column_names).intersection(names) for names in self.columns):
            accepted = ", ".join(" or ".join(names) for names in self.columns)
            raise ValueError(f"table: got the columns {', '.join(table.column_names)}, accepts {accepted} besides image")
        fitted((1, 1), **sides)  # raises the error of a wrong argument here
        self.table, self.device, self.sides = table, device, sides
        self.fingerprint = fingerprint(table)

    @classmethod
    def splits(cls, name: str, fraction: float, *, root: str | Path | None = None, **options: Any) -> tuple[Self, Self]:
        """A fraction of the training split of a card, and its validation split; of ``scenes``, the splits with several objects."""
        several = "several_" if name == "scenes" else ""
        part, whole = read_part(name, f"{several}train", fraction, root=root), read_table(name, f"{several}validation", root=root)
        return cls(part, **options), cls(whole, **options)

    def __len__(self) -> int:
        return len(self.table)

    def batches(self, indices: Iterable[Tensor]) -> Iterator[tuple[list[Tensor], Tensor, list]]:
        for pictures in read_ahead(self.read, (rows.tolist() for rows in indices), ahead=AHEAD):
            images, sizes, targets = zip(*pictures)
            yield list(images), torch.tensor(sizes), list(targets)

    def read(self, row: int) -> tuple[Tensor, tuple[int, int], Any]:
        """An image uint8[3, h, w], the original's (height, width), and its target."""
        pixels, size = read_fitted(encoded(self.table, row), **self.sides)
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        return image.to(self.device), size, self.target(row, size, (image.shape[1], image.shape[2]))

    def intact(self, title: str | None = None) -> Iterator[tuple[Tensor, tuple[int, int], Any]]:
        """``read`` of every image that can be read; a ``Damage`` warning names each of the others. A title shows a progress bar."""
        return (picture for _, picture in read_intact(self.read, range(len(self)), title))

    @abstractmethod
    def target(self, row: int, size: tuple[int, int], input_size: tuple[int, int]) -> Any:
        """The target of an image whose original (height, width) is ``size`` and that is resized to ``input_size``."""


class InstanceDataset(AnnotatedDataset):
    """Images with ``Instances``; the table has ``boxes``, ``classes``, and ``polygons`` or a ``mask`` that numbers the objects from 1."""

    columns = (("boxes",), ("classes",), ("polygons", "mask"))

    def target(self, row: int, size: tuple[int, int], input_size: tuple[int, int]) -> Instances:
        boxes, classes = self._of("boxes", row), self._of("classes", row)
        if "polygons" in self.table.column_names:
            outlines = self._of("polygons", row)
            objects = [_filled(*outline, size) for outline in zip(outlines, self._of("rles", row) or [""] * len(outlines))]
        elif boxes:
            numbers = read_objects(encoded(self.table, row, "mask"), size, count=len(boxes))
            objects = [numbers == number for number in range(1, len(boxes) + 1)]
        else:
            objects = []
        return self._instances(boxes, classes, objects, size, input_size)

    def outlined(self, row: int) -> Tensor:
        """Whether each object has an outline or a mask, Bool[n]. One without has a box alone, and its mask is empty."""
        if "polygons" not in self.table.column_names:
            return torch.ones(len(self._of("boxes", row)), dtype=torch.bool)
        outlines = self._of("polygons", row)
        return torch.tensor([bool(outline or rle) for outline, rle in zip(outlines, self._of("rles", row) or [""] * len(outlines))]).bool()

    def crowds(self, row: int, size: tuple[int, int], input_size: tuple[int, int]) -> Instances:
        """The crowds of an image, regions in which detections count neither as right nor as wrong. Arguments as of ``target``."""
        crowds = self._of("crowds", row)
        boxes = [crowd["box"] for crowd in crowds]
        outlines = [([], crowd["rle"]) if crowd["rle"] else ([_corners(crowd["box"])], "") for crowd in crowds]
        objects = [_filled(*outline, size) for outline in outlines]
        return self._instances(boxes, [crowd["class"] for crowd in crowds], objects, size, input_size)

    def _of(self, column: str, row: int) -> list:
        return self.table[column][row].as_py() if column in self.table.column_names else []

    def _instances(
        self, boxes: list, classes: list, objects: list[Tensor], size: tuple[int, int], input_size: tuple[int, int]
    ) -> Instances:
        """``Instances`` of objects Bool[H, W] of an image of ``size``, resized with it to ``input_size``."""
        masks = torch.zeros(0, *input_size)
        if objects:
            masks = F.interpolate(torch.stack(objects)[None].float(), input_size, mode="nearest-exact")[0]
        scale = torch.tensor([input_size[1] / size[1], input_size[0] / size[0]]).repeat(2)
        parts = torch.tensor(boxes, dtype=torch.float32).view(-1, 4) * scale, torch.tensor(classes, dtype=torch.int64), masks.bool()
        return Instances(*(part.to(self.device) for part in parts))


class SemanticDataset(AnnotatedDataset):
    """Images with the class of every pixel, Long[h, w] at the original's size; ``VOID`` marks pixels that do not count.

    The values of the column ``mask`` are classes; those above ``void``, the value of pixels that do not count (-1 is none), are lowered by
    one. In tables with ``classes``, the values are the numbers of objects instead, and class 0 is the background.
    """

    columns = (("mask",),)

    def __init__(self, table: pa.Table, device: str | torch.device = "cpu", *, void: int, num_classes: int, **sides: Any):
        super().__init__(table, device, **sides)
        self.void, self.num_classes = void, num_classes

    def target(self, row: int, size: tuple[int, int], input_size: tuple[int, int]) -> Tensor:
        picture, void = encoded(self.table, row, "mask"), self.void
        if "classes" in self.table.column_names:
            classes = self.table["classes"][row].as_py()
            values, void = read_objects(picture, size, count=len(classes)), VOID
            values = torch.tensor([0, *(label + 1 for label in classes), VOID])[values]  # the void -1 is the last one
        else:
            values = read_mask(picture, size)
        labels = values - ((values > void) & (void >= 0)).long()
        invalid = values[(values != void) & (labels >= self.num_classes)]
        if len(invalid):
            besides = "" if void < 0 else f" besides {void}, void"
            raise ValueError(f"{name_of(picture)}: holds the class {int(invalid[0])}, accepts {self.num_classes} classes{besides}")
        return torch.where(values == void, VOID, labels).to(self.device)


def _corners(box: list[float]) -> list[float]:
    x0, y0, x1, y1 = box
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def _filled(polygons: list[list[float]], rle: str, size: tuple[int, int]) -> Tensor:
    """Bool[H, W]: the pixels of a run-length encoding, or inside any of the polygons x, y, x, y, …, by the rule of COCO's own tools."""
    from faster_coco_eval.core import mask

    outlines = [polygon for polygon in polygons if len(polygon) >= 6]
    if not rle and not outlines:
        return torch.zeros(size, dtype=torch.bool)
    encoding = {"size": list(size), "counts": rle.encode()} if rle else mask.merge(mask.frPyObjects(outlines, *size))
    return torch.from_numpy(mask.decode(encoding)).bool()
