"""The interface of image datasets to the training loop and the evaluations."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

Batch = tuple[Any, Tensor, Any]  # images, sizes Int[B, 2] (height, width of the originals), targets


class Dataset(ABC):
    """Images and their targets, read in batches by the images' numbers.

    ``lib.data.bank`` has images on square canvases with labels as targets: one tensor (``Bank``), or images that are decoded while they are
    used (``Stream``). ``lib.data.segmentation`` has images at their own aspect ratio with instances, or with a class for every pixel.
    """

    fingerprint: str  # of the content, see lib.data.fingerprint

    @abstractmethod
    def __len__(self) -> int:
        """The number of images."""

    @abstractmethod
    def batches(self, indices: Iterable[Tensor]) -> Iterator[Batch]:
        """Images, sizes and targets for each tensor of numbers Long[B].

        Raises:
            ValueError: a damaged image or mask, named.
        """
