"""Where the objects are in the view that a network sees, computed from boxes or masks of the whole image."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import masks_to_boxes

from lib.data.bank import Stream
from lib.data.reading import encoded, read_objects


def true_objects(source: Stream, *, crop: float | None = 1.0, size: int = 224) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Where the objects are in the centre view of every image.

    Args:
        source: M images whose table has ``boxes``, ``mask`` or both. Without boxes, the box of an object encloses the pixels that have its
            number in the mask.
        crop: part of the shorter side that the centre view cuts out; None squeezes the whole image onto a square.

    Returns:
        M tensors [n_i, 4], the boxes, cut at the edges of the view, ends included; and maps Float[M, size, size] in [0, 1] that are 1 on
        an object: ``"box_area"`` inside the boxes and, if there are masks, ``"mask_area"`` inside the masks.

    Raises:
        ValueError: neither boxes nor masks, or a mask that is missing, damaged or not of the size of its image; the message names it.
    """
    columns = source.table.column_names
    if not {"boxes", "mask"} & set(columns):
        raise ValueError(f"source: got the columns {', '.join(columns)}, accepts boxes, mask or both")
    sizes = torch.cat([sizes for _, sizes, _ in source.batches(torch.arange(len(source)).split(512))]).cpu()
    areas, boxes = {}, []
    if "mask" in columns:
        masks = []
        for row, (height, width) in enumerate(sizes.tolist()):
            single = "boxes" in columns and len(source.table["boxes"][row]) == 1
            mask = read_objects(encoded(source.table, row, "mask"), (height, width), count=1 if single else None)
            masks.append(_mask_in_view(mask > 0, crop, size))
            numbers = mask[mask > 0].unique()
            boxes.append(masks_to_boxes(mask == numbers.view(-1, 1, 1)) + torch.tensor([0, 0, 1, 1]))  # x1 and y1 exclusive
        areas["mask_area"] = torch.stack(masks)
    if "boxes" in columns:
        boxes = [torch.tensor(of_image) for of_image in source.table["boxes"].to_pylist()]
    uncut = [_moved(of_image, original, crop, size) for of_image, original in zip(boxes, sizes)]
    areas["box_area"] = torch.stack([_cover(of_image, size) for of_image in uncut])
    return [of_image.clamp(0, size - 1) for of_image in uncut], areas


def boxes_in_view(boxes: Tensor, original: Tensor, crop: float | None, size: int) -> Tensor:
    """Boxes [n, 4] of an image of (height, width) ``original``, in pixels of its view and cut at its edges; crop and size as above."""
    return _moved(boxes, original, crop, size).clamp(0, size - 1)


def _window(size: Sequence[int] | Tensor, crop: float | None) -> tuple[float, float, float, float]:
    """(left, top, width, height) of the visible part of an image, in its pixels."""
    height, width = map(int, size)
    if crop is None:
        return 0.0, 0.0, float(width), float(height)
    side = min(height, width) * crop
    return (width - side) / 2, (height - side) / 2, side, side


def _moved(boxes: Tensor, original: Tensor, crop: float | None, size: int) -> Tensor:
    """As ``boxes_in_view``, not cut."""
    left, top, width, height = _window(original, crop)
    return (boxes - torch.tensor([left, top] * 2)) * torch.tensor([size / width, size / height] * 2)


def _cover(boxes: Tensor, size: int) -> Tensor:
    """Float[size, size], 1 inside any of the boxes."""
    places = torch.arange(size) + 0.5
    x = (places > boxes[:, 0:1]) & (places < boxes[:, 2:3])  # [n, size]
    y = (places > boxes[:, 1:2]) & (places < boxes[:, 3:4])
    return (y[:, :, None] & x[:, None, :]).any(0).float()


def _mask_in_view(mask: Tensor, crop: float | None, size: int) -> Tensor:
    """A mask Bool[H, W] of an image in its view, Float[size, size]; a pixel takes the value at its centre."""
    left, top, width, height = _window(mask.shape, crop)
    places = torch.arange(size) + 0.5
    rows, columns = top + places * (height / size), left + places * (width / size)
    return mask[rows.long()][:, columns.long()].float()


def sides_of(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of an ``image_size``, which is that pair or one number for both."""
    size = tuple(image_size) if isinstance(image_size, (tuple, list)) else (image_size, image_size)
    if len(size) != 2 or not all(isinstance(side, int) and side >= 1 for side in size):
        raise ValueError(f"image_size: got {image_size!r}, accepts a positive number of pixels or a pair (height, width) of them")
    return size[0], size[1]
