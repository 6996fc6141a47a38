"""Maps of where a network looks, compared with the boxes of the objects: MaxBoxAcc and MaxBoxAccV2; the share of a map on the objects.

Source: Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020, sections 3.2 and 4. The boxes of all
binarisations of a map come from two component trees (``lib.evaluation.components``), one of the foreground and one of the holes in it.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from lib.data.bank import Stream
from lib.data.dataset import Dataset
from lib.evaluation.base import DEFAULT, Context, Inputs
from lib.evaluation.components import FORWARD_4, FORWARD_8, THRESHOLDS, component_boxes
from lib.evaluation.features import centre_views
from lib.evaluation.frozen import ViewEvaluation, ViewSettings
from lib.evaluation.objects import sides_of, true_objects
from lib.keys import Count
from lib.models import Model

CONTOURS = ("all", "largest")
CENTRED_SIDES = np.arange(10, 101) / 100  # sides of the centred boxes, as fractions of the sides of the image
NOWHERE = np.zeros((1, 4), int)  # the box of a map without contours


def max_box_accuracy(
    maps: Tensor,
    boxes: list[Tensor],
    *,
    image_size: int | tuple[int, int] = 224,
    iou_thresholds: tuple[float, ...] = (0.3, 0.5, 0.7),
    step: float = 0.001,
    contours: str = "all",
    progress: bool = False,
) -> dict[float | str, float]:
    """Percent of the maps with a contour whose box matches a true box, at the best threshold for each IoU level.

    A map is resized (bicubic), scaled to 8 bits and binarised at ``> int(t * 255)`` for t = 0, step, 2 step, … < 1. A contour is the border
    of an 8-connected object or of a hole in one; its box ends one pixel after it, inside the image. A map without contours (a constant one)
    has the box (0, 0, 0, 0). All this follows the authors' code, except that maps are resized in float64 and a constant map stays constant.

    Args:
        maps: Float[M, h, w], finite, of any range, on any device; one map for each image, high on the object.
        boxes: M tensors [n_i, 4], n_i >= 1: x0, y0, x1, y1 in pixels of ``image_size``, ends included. The authors round them down to whole
            pixels; here they are not rounded.
        image_size: pixels a side, or (height, width).
        iou_thresholds: levels, in (0, 1]: a box is right at this IoU or more.
        step: distance between the thresholds t, in (0, 1].
        contours: ``"all"`` uses every contour (MaxBoxAccV2), ``"largest"`` only that of the largest area (MaxBoxAcc), which needs OpenCV
            and is slower.

    Returns:
        ``{level: percent, …, "mean": percent}``: each level at its own best t, and the mean over the levels.

    Raises:
        ValueError: maps that are not finite floats [M, h, w], an image without boxes, or an argument out of range.
    """
    if not 0 < step <= 1:
        raise ValueError(f"step: got {step}, accepts more than 0 and at most 1")
    _check_levels(iou_thresholds)
    best = threshold_ious(maps, boxes, image_size=image_size, contours=contours, progress=progress).numpy()
    return _accuracies(best[:, np.unique((np.arange(0, 1, step) * 255).astype(int))], iou_thresholds)


def threshold_ious(
    maps: Tensor, boxes: list[Tensor], *, image_size: int | tuple[int, int] = 224, contours: str = "all", progress: bool = False
) -> Tensor:
    """The best IoU of the box of any contour with a true box, at each threshold: Float64[M, 255]; column t binarises at ``> t``. Arguments
    and errors as of ``max_box_accuracy``.
    """
    if maps.ndim != 3 or not maps.numel() or not maps.is_floating_point():
        raise ValueError(f"maps: got {maps.dtype} of shape {tuple(maps.shape)}, accepts floats of shape [M, h, w], none of them 0")
    if not maps.isfinite().all():
        raise ValueError("maps: got infinite values or NaN, accepts finite values")
    if len(boxes) != len(maps):
        raise ValueError(f"boxes: got {len(boxes)} tensors, accepts one for each of the {len(maps)} maps")
    if contours not in CONTOURS:
        raise ValueError(f"contours: got {contours!r}, accepts one of {', '.join(CONTOURS)}")
    size, truth = sides_of(image_size), _checked(boxes)
    search = _all_contours if contours == "all" else _largest_contour
    best = np.empty((len(maps), THRESHOLDS))
    for i, single in enumerate(tqdm(maps, "localization", disable=not progress, mininterval=2)):
        best[i] = search(_fine_levels(single, size), truth[i])
    return torch.from_numpy(best)


def contour_boxes(single: Tensor, boxes: Tensor, threshold: int, *, image_size: int | tuple[int, int] = 224) -> tuple[Tensor, Tensor]:
    """The boxes Long[K, 4] of all contours of one map Float[h, w] that is binarised at ``> threshold``, 0 to 254, and the best IoU of each
    with one of the true ``boxes`` [n, 4], Float64[K]. They are ordered by falling IoU; ``image_size`` as of ``max_box_accuracy``.
    """
    if not 0 <= threshold < THRESHOLDS:
        raise ValueError(f"threshold: got {threshold}, accepts 0 to {THRESHOLDS - 1}")
    [truth] = _checked([boxes])
    contours, at = _contours(_fine_levels(single, sides_of(image_size)))
    contours = contours[at == threshold] if (at == threshold).any() else NOWHERE
    ious = _best_iou(contours, truth)
    order = np.argsort(-ious, kind="stable")
    return torch.from_numpy(contours[order]), torch.from_numpy(ious[order])


def trivial_accuracy(
    boxes: list[Tensor], *, image_size: int | tuple[int, int] = 224, iou_thresholds: tuple[float, ...] = (0.3, 0.5, 0.7)
) -> dict[str, dict[float | str, float]]:
    """The accuracy of boxes that do not depend on the image, a lower bound for useful maps. Arguments and errors as of ``max_box_accuracy``.

    Returns:
        ``{"whole image": figures, "centred box": figures}``, figures as in ``max_box_accuracy``. The centred box has the aspect of the
        image and for each level the best of ``CENTRED_SIDES``.
    """
    if not len(boxes):
        raise ValueError("boxes: got 0 tensors, accepts one for each image, 1 or more")
    corner = np.array(sides_of(image_size)[::-1]) - 1.0
    start = np.outer((1 - CENTRED_SIDES) / 2, corner + 1)
    centred = np.hstack([start, corner - start])
    _check_levels(iou_thresholds)
    best = np.stack([_best_iou(centred, truth) for truth in _checked(boxes)])
    return {"whole image": _accuracies(best[:, -1:], iou_thresholds), "centred box": _accuracies(best, iou_thresholds)}


def _check_levels(iou_thresholds: tuple[float, ...]) -> None:
    if not len(iou_thresholds) or not all(0 < level <= 1 for level in iou_thresholds):
        raise ValueError(f"iou_thresholds: got {iou_thresholds!r}, accepts levels in (0, 1], one or more")


def _checked(boxes: list[Tensor]) -> list[np.ndarray]:
    """The true boxes Float64[n_i, 4] of every image, after checks."""
    for i, true in enumerate(boxes):
        if true.ndim != 2 or true.shape[1] != 4 or not len(true):
            raise ValueError(f"boxes: got shape {tuple(true.shape)} at index {i}, accepts [n, 4] with n >= 1")
        if not true.isfinite().all() or (true[:, :2] > true[:, 2:]).any():
            raise ValueError(f"boxes: got {true.tolist()} at index {i}, accepts finite x0 <= x1 and y0 <= y1")
    return [true.double().cpu().numpy() for true in boxes]


def _accuracies(best: np.ndarray, iou_thresholds: tuple[float, ...]) -> dict[float | str, float]:
    """Percent of the rows of best IoUs [M, T] that reach each level, in the best column, and the mean over the levels."""
    figures: dict[float | str, float] = {level: float((best >= level).sum(0).max() * 100.0 / len(best)) for level in iou_thresholds}
    return figures | {"mean": sum(figures.values()) / len(figures)}


def _fine_levels(single: Tensor, size: tuple[int, int]) -> np.ndarray:
    """A map Float[h, w] resized and scaled to UInt16[H, W]. The high byte is the map in 8 bits; a constant map becomes 0."""
    single = single.detach().cpu().double()
    single = single - single.min()  # so that a constant map stays constant, in spite of rounding of the weights
    resized = F.interpolate(single[None, None], size=size, mode="bicubic", align_corners=False)[0, 0].numpy()
    low, high = resized.min(), resized.max()
    if low == high:
        return np.zeros(size, np.uint16)
    return ((resized - low) / (high - low) * 255 * 256).astype(np.uint16)


def _best_iou(boxes: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The best IoU [K] of each box [K, 4] with any of the true ones [n, 4]; ends are included, so widths are x1 - x0 + 1."""
    best, areas = np.zeros(len(boxes)), (boxes[:, 2:] - boxes[:, :2] + 1).prod(1)
    for true in truth:
        sides = np.minimum(boxes[:, 2:], true[2:]) - np.maximum(boxes[:, :2], true[:2]) + 1
        shared = np.maximum(sides, 0).prod(1)
        best = np.maximum(best, shared / (areas + (true[2:] - true[:2] + 1).prod() - shared))
    return best


def _all_contours(fine: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The best IoU [THRESHOLDS] of any contour at each threshold 0 … 254 of a map UInt16[H, W]."""
    boxes, at = _contours(fine)
    best = np.full(THRESHOLDS, -1.0)
    np.maximum.at(best, at, _best_iou(boxes, truth))
    return np.where(best < 0, _best_iou(NOWHERE, truth), best)


def _contours(fine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The boxes Int[K, 4] of all contours of a map UInt16[H, W], and the threshold Int[K] of each."""
    corner = np.array(fine.shape[::-1]) - 1
    objects, at = component_boxes(fine, FORWARD_8)
    # Holes are 4-connected components of ``byte <= t``, that is of ``255 - byte > 254 - t``, that do not touch the border of the image. The
    # contour of a hole consists of the foreground pixels around it.
    holes, below = component_boxes(255 * 256 + 255 - fine, FORWARD_4)
    inside = (holes[:, :2] > 0).all(1) & (holes[:, 2:] < corner).all(1)
    boxes = np.concatenate([objects, holes[inside] + (-1, -1, 1, 1)])
    boxes[:, 2:] = np.minimum(boxes[:, 2:] + 1, corner)
    return boxes, np.concatenate([at, THRESHOLDS - 1 - below[inside]])


def _largest_contour(fine: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """As ``_all_contours``, for the contour of the largest area only; of equal ones the first in OpenCV's list."""
    import cv2

    byte, boxes = (fine >> 8).astype(np.uint8), np.zeros((THRESHOLDS, 4))
    for t in range(byte.max()):
        contours = cv2.findContours((byte > t).astype(np.uint8), cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
        x, y, width, height = cv2.boundingRect(max(contours, key=cv2.contourArea))
        boxes[t] = x, y, min(x + width, byte.shape[1] - 1), min(y + height, byte.shape[0] - 1)
    return _best_iou(boxes, truth)


@torch.inference_mode()
def localization_maps(network: Model, source: Dataset, *, size: int, crop: float | None = 1.0, batch_size: int = 128) -> dict[str, Tensor]:
    """Maps of where a network looks, for every image.

    ``crop`` is the part of the shorter side that the centre view cuts out; None squeezes the whole image onto a square, as Choe et al. do.

    Returns:
        Float32[M, H, W] on the network's grid, on the CPU. ``"attention"``: of the pooled token, mean over heads, if the pooling has an
        attention that depends on the image. ``"cam"``: if the network is a classifier, the class activation map (Zhou et al., 2016) of the
        predicted class.
    """
    maps: dict[str, list[Tensor]] = {"attention": [], "cam": []}
    for views, _ in centre_views(network, source, size, crop, batch_size):
        features = network.pool(views)
        if features.attention is not None:
            maps["attention"].append(features.attention.float().mean(1).unflatten(1, features.grid).cpu())
        if isinstance(network.classifier, nn.Linear):
            predicted = network.logits(features.cls).argmax(1)
            cam = torch.einsum("bnd,bd->bn", features.patches, network.classifier.weight[predicted])
            maps["cam"].append(cam.float().unflatten(1, features.grid).cpu())
    whole = {name: torch.cat(parts) for name, parts in maps.items() if parts}
    if "attention" in whole and torch.equal(whole["attention"].amin((1, 2)), whole["attention"].amax((1, 2))):
        del whole["attention"]  # the same everywhere, so it does not depend on the image
    return whole


def attention_mass(maps: Tensor, objects: Tensor) -> Tensor:
    """The share of each map that lies on the objects, Float[M]; for a constant map it is the part of the image that the objects cover.

    Args:
        maps: Float[M, h, w], not negative, with a positive sum.
        objects: Float[M, H, W] in [0, 1], 1 on an object; a cell of a map is weighted by the part of it that objects cover.
    """
    cover = F.adaptive_avg_pool2d(objects, (maps.shape[1], maps.shape[2]))
    return (maps * cover).sum((1, 2)) / maps.sum((1, 2))


@dataclass(frozen=True, kw_only=True)
class LocalizationSettings(ViewSettings):
    """Settings of the measurement ``localization``."""

    box_size: Count  # pixels a side at which maps and boxes are compared


class ObjectSet(NamedTuple):
    """M images with one or more objects in each."""

    images: Stream
    boxes: list[Tensor]  # M tensors [n_i, 4]
    objects: Tensor  # Float[M, S, S], 1 on an object, from the masks if there are masks, else from the boxes
    areas: dict[str, float]  # ``box_area`` and, if there are masks, ``mask_area``, the part of the images that they cover, in percent


class Localization(ViewEvaluation, name="localization"):
    """MaxBoxAccV2 of a network's maps and the share of its attention that lies on the objects, in percent.

    Figures: ``attention_maxbox``, ``cam_maxbox`` (the mean over IoU levels; ``…_30`` and so on are single levels), ``attention_mass``;
    ``whole_image_maxbox``, ``centred_box_maxbox``, of boxes that do not depend on the image; ``box_area`` and ``mask_area``, the attention
    mass of a constant map inside the boxes and masks; ``images``, their number. If there are masks, ``attention_mass`` is the share inside
    them.
    """

    Settings = LocalizationSettings
    once = ("images", "box_area", "mask_area", "whole_image_maxbox", "centred_box_maxbox")

    def load(self, **options: Any) -> Inputs:
        """``test`` is an ``ObjectSet``."""
        images, left_out = self.test_stream(boxed=True, **options)
        return Inputs(self.objects_in(images), fingerprints={"test": images.fingerprint}, left_out=left_out)

    def objects_in(self, images: Stream) -> ObjectSet:
        """The objects of images whose table has ``boxes``, ``mask`` or both."""
        boxes, covers = true_objects(images, crop=self.view()["crop"], size=self.settings.box_size)
        areas = {name: 100 * cover.mean().item() for name, cover in covers.items()}
        return ObjectSet(images, boxes, covers.get("mask_area", covers["box_area"]), areas)

    def measure(self, network: Model, inputs: Inputs, context: Context = DEFAULT) -> dict[str, float]:
        images, boxes, objects, areas = inputs.test
        size = self.settings.box_size
        figures = {"images": float(len(boxes)), **areas}
        for name, trivial in trivial_accuracy(boxes, image_size=size).items():
            figures[f"{name.replace(' ', '_')}_maxbox"] = trivial["mean"]
        for name, maps in localization_maps(network, images, **self.view()).items():
            for level, value in max_box_accuracy(maps, boxes, image_size=size, progress=context.progress).items():
                figures[f"{name}_maxbox" + (f"_{100 * level:.0f}" if isinstance(level, float) else "")] = value
            if name == "attention":
                figures["attention_mass"] = 100 * attention_mass(maps, objects).mean().item()
        return figures
