"""Shared by the measurements of frozen networks: settings, test images, and the training images of a probe."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import torch

from lib.data.bank import Bank, Stream, bank
from lib.data.loading import read_table
from lib.data.reading import intact
from lib.evaluation.base import Evaluation, Inputs
from lib.keys import Keys


@dataclass(frozen=True, kw_only=True)
class ViewSettings(Keys):
    """Settings of measurements that see every image in a square view."""

    data: str  # a card in data_cards/
    split: str  # of the test images
    canvas: int  # pixels a side of the decoded images
    images: int = 0  # how many of the test images to take, from the first on; 0 takes all
    size: int | Literal["own"] = "own"  # pixels a side that the network sees; own: as in the evaluation during its training
    crop: float | None | Literal["own"] = "own"  # visible part of the shorter side; null squeezes the whole image; own: as above


@dataclass(frozen=True, kw_only=True)
class ProbeSettings(ViewSettings):
    """Settings of measurements that also learn from training images."""

    train: str  # the split to learn from
    train_data: str | None = None  # its card; null is that of the test images
    fraction: float | Literal["own"] = "own"  # of the split; own: the network's own fraction if it was trained on this dataset, else all


class ViewEvaluation(Evaluation):
    """A measurement of square views."""

    def view(self) -> dict[str, Any]:
        """``size`` and ``crop`` of the views."""
        size, crop = self.settings.size, self.settings.crop
        return dict(size=self.origin.size if size == "own" else size, crop=self.origin.crop if crop == "own" else crop)

    def test_stream(
        self, *, root: str | Path | None = None, device: str | torch.device = "cpu", progress: bool = False, boxed: bool = False
    ) -> tuple[Stream, int]:
        """The test images, and the number of damaged images that were left out. Arguments as of ``load``; ``boxed`` also leaves out images
        without boxes if the table has a column of boxes.
        """
        table = read_table(self.settings.data, self.settings.split, root=root)
        table = first(with_boxes(table) if boxed else table, self.settings.images)
        readable = intact(table, progress=progress)
        return Stream(readable, self.settings.canvas, device), len(table) - len(readable)

    def train_bank(self, *, root: str | Path | None = None, device: str | torch.device = "cpu", progress: bool = False) -> Bank | Stream:
        """The training images. Arguments as of ``load``."""
        settings, origin = self.settings, self.origin
        data, fraction = settings.train_data or settings.data, settings.fraction
        if fraction == "own":
            fraction = origin.fraction if data == origin.data else 1.0
        return bank(data, settings.train, settings.canvas, fraction=fraction, root=root, device=device, progress=progress)


class ProbeEvaluation(ViewEvaluation):
    """A measurement of square views that learns from training images."""

    def load(self, *, root: str | Path | None = None, device: str | torch.device = "cpu", progress: bool = False) -> Inputs:
        test, left_out = self.test_stream(root=root, device=device, progress=progress)
        train = self.train_bank(root=root, device=device, progress=progress)
        return Inputs(test, train, {"train": train.fingerprint, "test": test.fingerprint}, left_out)


class FullResolutionEvaluation(Evaluation):
    """A measurement of whole images at their own aspect ratio."""

    @property
    def options(self) -> dict[str, Any]:
        """The settings that are not about the dataset, as arguments of the functions of the measurement."""
        return {name: value for name, value in vars(self.settings).items() if name not in ("data", "split", "images")}


def with_boxes(table: pa.Table) -> pa.Table:
    """The rows that have boxes; all rows of a table without a column of boxes."""
    if "boxes" not in table.column_names:
        return table
    return table.filter([len(boxes) > 0 for boxes in table["boxes"].to_pylist()])


def first(table: pa.Table, count: int) -> pa.Table:
    """The first ``count`` rows; 0 takes all."""
    if count < 0:
        raise ValueError(f"images: got {count}, accepts 0, for all, or more")
    return table.slice(0, count or None)
