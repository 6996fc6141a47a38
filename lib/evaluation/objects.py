"""Where the objects are in what a network sees of an image, known from boxes or masks of the whole image."""

import torch
from torch import Tensor

from lib.data.whole import read_mask


def true_objects(source, *, crop: float | None = 1.0, size: int = 224) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Where the objects are in every image's centre view, or in the whole image squeezed onto a square.

    Args:
        source: a ``lib.data.Stream`` of M images whose table has ``boxes``, ``mask`` or both. Without boxes, an object's box is
            the extent of its number in the mask.
        crop: part of the shorter side that the centre view cuts out; None squeezes the whole image.
        size: pixels a side.

    Returns:
        M tensors [n_i, 4], the boxes, cut at the view's edges, ends included; and Float[M, size, size] in [0, 1], 1 on an
        object: ``"box_area"`` inside the boxes and, where there are masks, ``"mask_area"`` inside these.

    Raises:
        ValueError: neither boxes nor masks, or a mask that is missing, damaged or not of its image's size, named.
    """
    columns = source.table.column_names
    if not {"boxes", "mask"} & set(columns):
        raise ValueError(f"source: got the columns {', '.join(columns)}, accepts boxes, mask or both")
    sizes = torch.cat([sizes for _, sizes, _ in source.batches(torch.arange(len(source)).split(512))]).cpu()
    inside, extents = {}, []
    if "mask" in columns:
        shown = []
        for row, original in zip(source.table["mask"].to_pylist(), sizes.tolist()):
            mask = read_mask(row)
            if list(mask.shape) != original:
                raise ValueError(f"{row['path']}: got a mask of {tuple(mask.shape)}, accepts {tuple(original)}, its image's size")
            shown.append(_mask_in_view(mask > 0, crop, size))
            extents.append(_extents(mask))
        inside["mask_area"] = torch.stack(shown)
    if "boxes" in columns:
        extents = [torch.tensor(boxes) for boxes in source.table["boxes"].to_pylist()]
    seen = [_moved(boxes, original, crop, size) for boxes, original in zip(extents, sizes)]
    inside["box_area"] = torch.stack([_cover(boxes, size) for boxes in seen])
    return [boxes.clamp(0, size - 1) for boxes in seen], inside


def boxes_in_view(boxes: Tensor, original: Tensor, crop: float | None, size: int) -> Tensor:
    """Boxes [n, 4] of an image of (height, width) ``original`` as its view at ``size`` pixels shows them, cut at the edges; crop as above."""
    return _moved(boxes, original, crop, size).clamp(0, size - 1)


def _window(height: int, width: int, crop: float | None) -> tuple[float, float, float, float]:
    """(left, top, width, height) of what is seen of an image, in its pixels."""
    if crop is None:
        return 0.0, 0.0, float(width), float(height)
    side = min(height, width) * crop
    return (width - side) / 2, (height - side) / 2, side, side


def _moved(boxes: Tensor, original: Tensor, crop: float | None, size: int) -> Tensor:
    """As ``boxes_in_view``, not cut."""
    left, top, width, height = _window(*original.tolist(), crop)
    return (boxes - torch.tensor([left, top] * 2)) * torch.tensor([size / width, size / height] * 2)


def _cover(boxes: Tensor, size: int) -> Tensor:
    """Float[size, size], 1 inside any of the boxes."""
    places = torch.arange(size) + 0.5
    x = (places > boxes[:, 0:1]) & (places < boxes[:, 2:3])  # [n, size]
    y = (places > boxes[:, 1:2]) & (places < boxes[:, 3:4])
    return (y[:, :, None] & x[:, None, :]).any(0).float()


def _mask_in_view(mask: Tensor, crop: float | None, size: int) -> Tensor:
    """Bool[H, W] of an image as its view shows it, Float[size, size]; a pixel takes what lies at its centre."""
    left, top, width, height = _window(*mask.shape, crop)
    places = torch.arange(size) + 0.5
    rows, columns = top + places * (height / size), left + places * (width / size)
    return mask[rows.long()][:, columns.long()].float()


def _extents(mask: Tensor) -> Tensor:
    """The box of each object of Long[H, W] (0 is background), Float[n, 4], x1 and y1 exclusive."""
    boxes = []
    for number in mask[mask > 0].unique():
        y, x = (mask == number).nonzero(as_tuple=True)
        boxes.append([x.min(), y.min(), x.max() + 1, y.max() + 1])
    return torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
