"""Shared by the measurements of frozen networks: settings, test images, and the training images of a probe."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import torch

from lib.data.bank import Bank, Stream, bank
from lib.data.fingerprint import fingerprint
from lib.data.loading import read_table
from lib.data.reading import intact
from lib.evaluation.base import Evaluation, Inputs
from lib.keys import Count, Keys, Number, Part


@dataclass(frozen=True, kw_only=True)
class ViewSettings(Keys):
    """Settings of measurements that see every image in a square view."""

    data: str  # a card in data_cards/
    split: str  # of the test images
    canvas: Count  # pixels a side of the decoded images
    images: Number = 0  # how many of the test images to take, from the first on; 0 takes all
    size: Count | Literal["own"] = "own"  # pixels a side that the network sees; own: as in the evaluation during its training
    crop: Part | None | Literal["own"] = "own"  # visible part of the shorter side; null squeezes the whole image; own: as above


@dataclass(frozen=True, kw_only=True)
class ProbeSettings(ViewSettings):
    """Settings of measurements that also learn from training images."""

    train: str  # the split to learn from
    train_data: str | None = None  # its card; null is that of the test images
    fraction: Part | Literal["own"] = "own"  # of the split; own: the network's own fraction if it was trained on this dataset, else all


class ViewEvaluation(Evaluation):
    """A measurement of square views."""

    def view(self) -> dict[str, Any]:
        """``size`` and ``crop`` of the views."""
        size, crop = self.settings.size, self.settings.crop
        return dict(size=self.origin.size if size == "own" else size, crop=self.origin.crop if crop == "own" else crop)

    def test_stream(
        self, *, root: str | Path | None = None, device: str | torch.device = "cpu", progress: bool = False, boxed: bool = False
    ) -> tuple[Stream, int]:
        """The test images, and the number of damaged images that were left out. Arguments as of ``load`` and ``test_table``."""
        table = test_table(self.settings, root, boxed=boxed)
        readable = intact(table, progress=progress)
        return Stream(readable, self.settings.canvas, device), len(table) - len(readable)

    def train_bank(self, **options: Any) -> Bank | Stream:
        """The training images. Arguments as of ``load``."""
        settings, origin = self.settings, self.origin
        data, fraction = settings.train_data or settings.data, settings.fraction
        if fraction == "own":
            fraction = origin.fraction if data == origin.data else 1.0
        return bank(data, settings.train, settings.canvas, fraction=fraction, **options)


class ProbeEvaluation(ViewEvaluation):
    """A measurement of square views that learns from training images."""

    def load(self, **options: Any) -> Inputs:
        (test, left_out), train = self.test_stream(**options), self.train_bank(**options)
        return Inputs(test, train, {"train": train.fingerprint, "test": test.fingerprint}, left_out)


class FullResolutionEvaluation(Evaluation):
    """A measurement of whole images at their own aspect ratio."""

    @property
    def options(self) -> dict[str, Any]:
        """The settings that are not about the dataset, as arguments of the functions of the measurement."""
        return {name: value for name, value in vars(self.settings).items() if name not in ("data", "split", "images")}

    def load(self, *, root: str | Path | None = None, **options: Any) -> Inputs:
        """``test`` is a table."""
        table = test_table(self.settings, root, boxed=True)
        return Inputs(table, fingerprints={"test": fingerprint(table)})


def test_table(settings: Any, root: str | Path | None, *, boxed: bool) -> pa.Table:
    """The first ``images`` rows of the test split; 0 takes all. ``boxed`` leaves out rows without boxes if there is a column of boxes."""
    table, count = read_table(settings.data, settings.split, root=root), getattr(settings, "images", 0)
    if boxed and "boxes" in table.column_names:
        table = table.filter([len(boxes) > 0 for boxes in table["boxes"].to_pylist()])
    return table.slice(0, count or None)
