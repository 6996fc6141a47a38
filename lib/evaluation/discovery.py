"""Unsupervised object discovery: one box for each image, from a network that was trained without boxes.

Source: LOST (Simeoni et al., "Localizing Objects with Self-Supervised Transformers and no Labels", BMVC 2021, section 3);
DINO-seg, the baseline of its table 1 (after Caron et al., "Emerging Properties", 2021, figure 4).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from torch import Tensor
from torchvision.ops import box_iou

from lib.data.reading import full_images
from lib.evaluation.base import DEFAULT, Context, Inputs
from lib.evaluation.components import label
from lib.evaluation.frozen import FullResolutionEvaluation
from lib.evaluation.objects import sides_of
from lib.keys import Count, Keys, Number, Part
from lib.models import Model

COMPONENTS = ("largest", "official")
MARGIN = 1e-6  # tolerance of a sum of attention, against rounding


class Discovery(NamedTuple):
    """A discovered object."""

    box: Tensor  # Float[4], x0, y0, x1, y1 in pixels
    seed: int  # row-major number of the patch of lowest degree (LOST) or of highest attention (DINO-seg)
    mask: Tensor  # Bool[H, W], the component on the patch grid that the box encloses


def lost(
    features: Tensor, grid: tuple[int, int], *, patch_size: int = 16, k_patches: int = 100, image_size: int | tuple[int, int] | None = None
) -> Discovery:
    """LOST: start from the patch that is similar to the fewest others, and expand it by patches similar to it.

    The degree of a patch is the number of other patches with which its inner product is positive. The seed is the patch of lowest degree,
    the first of equal ones. It is expanded by those of the ``k_patches`` patches of lowest degree whose inner product with the seed is
    positive. The mask is where the sum of the similarities with all of them is positive. The box encloses the mask's 4-connected component
    that contains the seed.

    Args:
        features: Float[N, D], the keys of the last attention layer.
        grid: (H, W) with N = H W.
        k_patches: candidates for the expansion; more than N uses N.
        image_size: (height, width) to which the box is clipped; None does not clip.
    """
    if features.ndim != 2 or not features.is_floating_point():
        raise ValueError(f"features: got {features.dtype} of shape {tuple(features.shape)}, accepts Float[N, D]")
    _check_grid(grid, len(features), "features")
    _check_positive(patch_size=patch_size, k_patches=k_patches)
    similar = features @ features.T  # [N, N]
    degree = (similar > 0).sum(1) - (similar.diagonal() > 0).long()
    order = degree.argsort(stable=True)
    seed = order[0]
    candidates = order[:k_patches]
    members = candidates[similar[seed, candidates] > 0]
    mask = similar[members].sum(0) > 0
    mask[seed] = True  # also if every key is zero
    mask = mask.view(grid)
    components = label(mask)
    component = components == components.flatten()[seed]
    return Discovery(_box(component, patch_size, image_size, features), int(seed), component)


def dino_seg(
    attention: Tensor,
    grid: tuple[int, int],
    *,
    patch_size: int = 16,
    head: int = 4,
    mass: float = 0.6,
    component: str = "largest",
    image_size: int | tuple[int, int] | None = None,
) -> Discovery:
    """DINO-seg: the most attended patches that hold ``mass`` of the attention of one head, and a 4-connected component of them.

    Args:
        attention: Float[heads, N] of the pooled token over the patches, not negative.
        grid, patch_size, image_size: as of ``lost``.
        head: which head; a single head, such as SimPool's, is always used.
        mass: share of the attention to keep, in (0, 1].
        component: ``largest``, or ``official``, which follows LOST's released code: the largest of all components but the last one in
            row-major order, or the background if there is only one component. Without any background the two agree.

    Raises:
        ValueError: shapes that do not fit, an argument out of range, or attention that is nowhere positive.
    """
    if attention.ndim != 2 or not attention.is_floating_point() or not len(attention):
        raise ValueError(f"attention: got {attention.dtype} of shape {tuple(attention.shape)}, accepts Float[heads, N]")
    _check_grid(grid, attention.shape[1], "attention")
    _check_positive(patch_size=patch_size)
    if len(attention) > 1 and not 0 <= head < len(attention):
        raise ValueError(f"head: got {head}, accepts 0 to {len(attention) - 1}")
    if not 0 < mass <= 1:
        raise ValueError(f"mass: got {mass}, accepts a number in (0, 1]")
    if component not in COMPONENTS:
        raise ValueError(f"component: got {component!r}, accepts {', '.join(COMPONENTS)}")
    weights = attention[head if len(attention) > 1 else 0].double()
    if not (weights >= 0).all() or not 0 < weights.sum() < torch.inf:
        raise ValueError("attention: got negative, infinite, missing or only zero values, accepts a finite distribution over the patches")
    weights, order = (weights / weights.sum()).sort(descending=True, stable=True)
    within = weights.cumsum(0) - weights < mass - MARGIN  # the patches with more attention hold less than the mass
    within[0] = True
    mask = torch.zeros_like(within).scatter(0, order, within).view(grid)
    components = label(mask)
    sizes = components.flatten().bincount()[1:]
    if component == "official" and len(sizes) > 1:
        sizes = sizes[:-1]
    selected = components == int(sizes.argmax()) + 1
    if component == "official" and components.max() == 1 and not mask.all():
        selected = ~mask
    return Discovery(_box(selected, patch_size, image_size, attention), int(order[0]), selected)


def corloc(predicted: Tensor, ground_truth: list[Tensor]) -> float:
    """Share of images, in percent, whose box has an IoU of at least 0.5 with the box of any object (widths x1 - x0).

    Args:
        predicted: Float[M, 4].
        ground_truth: for each image its boxes [n_i, 4]; images without any are left out.

    Raises:
        ValueError: shapes that do not fit, or no image with a box.
    """
    if predicted.ndim != 2 or predicted.shape[1] != 4:
        raise ValueError(f"predicted: got shape {tuple(predicted.shape)}, accepts [M, 4]")
    if len(ground_truth) != len(predicted):
        raise ValueError(f"ground_truth: got {len(ground_truth)} images, accepts {len(predicted)}, one a predicted box")
    hits = []
    for box, boxes in zip(predicted, ground_truth):
        boxes = torch.as_tensor(boxes, dtype=torch.float64, device=predicted.device)
        if boxes.numel() and (boxes.ndim != 2 or boxes.shape[1] != 4):
            raise ValueError(f"ground_truth: got boxes of shape {tuple(boxes.shape)}, accepts [n, 4]")
        if boxes.numel():
            hits.append(bool((box_iou(box[None].double(), boxes) >= 0.5).any()))
    if not hits:
        raise ValueError("ground_truth: got no boxes, accepts at least one image with a box")
    return 100 * sum(hits) / len(hits)


class DiscoveredImage(NamedTuple):
    """The discoveries in an image."""

    row: int  # of the image in the table
    size: tuple[int, int]  # (height, width) of the original
    discoveries: dict[str, Discovery]  # by method, with boxes in pixels of the original


@torch.inference_mode()
def discover(
    network: Model,
    table: pa.Table,
    *,
    longest: int | None,
    patch_size: int,
    k_patches: int,
    head: int = 4,
    mass: float = 0.6,
    progress: bool = False,
) -> Iterator[DiscoveredImage]:
    """Discover an object in every image of a table. ``longest`` is the longer side that the network sees, in pixels; None keeps the size of
    the images. ``k_patches`` is of LOST, ``head`` and ``mass`` are of DINO-seg; if there are fewer heads, the last one is used.

    Yields:
        Discoveries by the method ``"lost"`` and, if the network has attention, also by ``"dino_seg"`` and ``"dino_seg_official"``. Images
        that cannot be read are left out with a warning.
    """
    network.eval()
    device = next(network.parameters()).device
    for image in full_images(table, longest=longest, multiple=patch_size, device=device, title="discovery" if progress else None):
        h, w = image.view.shape[2:]
        keys, grid = network.keys(image.view)
        if (grid[0] * patch_size, grid[1] * patch_size) != (h, w):
            raise ValueError(f"patch_size: got {patch_size}, accepts {h // grid[0]}, the network's")
        options: dict[str, Any] = dict(patch_size=patch_size, image_size=(h, w))
        discoveries = {"lost": lost(keys[0], grid, k_patches=k_patches, **options)}
        attention = network.features(image.view).attention
        if attention is not None:
            options |= dict(head=min(head, attention.shape[1] - 1), mass=mass)
            discoveries["dino_seg"] = dino_seg(attention[0], grid, **options)
            discoveries["dino_seg_official"] = dino_seg(attention[0], grid, component="official", **options)
        scale = torch.tensor([image.size[1] / w, image.size[0] / h] * 2)
        yield DiscoveredImage(image.row, image.size, {name: d._replace(box=d.box.cpu() * scale) for name, d in discoveries.items()})


def discovery_accuracy(network: Model, table: pa.Table, **options) -> dict[str, float]:
    """CorLoc of LOST and DINO-seg, and of two boxes that do not depend on the image, in percent. Arguments as of ``discover``.

    Returns:
        ``lost``; ``dino_seg`` and ``dino_seg_official`` if the network has attention; ``whole_image`` and ``centred_box`` (of half the
        image's area); ``images``, the number of images that could be read, and ``left_out``, the number of the others. Images without boxes
        count there, but not in CorLoc.
    """
    if "boxes" not in table.column_names:
        raise ValueError(f"table: got the columns {', '.join(table.column_names)}, accepts one with boxes")
    images = list(discover(network, table, **options))
    if not images:
        raise ValueError(f"table: got {len(table)} images, none of which could be read, accepts at least one")
    predicted: dict[str, list[Tensor]] = {}
    for image in images:
        corner = torch.tensor(image.size[::-1]).float().repeat(2)
        trivial = {
            "whole_image": corner * torch.tensor([0, 0, 1, 1]),
            "centred_box": corner * torch.tensor([1 - 0.5**0.5] * 2 + [1 + 0.5**0.5] * 2) / 2,
        }
        for name, box in (trivial | {name: discovery.box for name, discovery in image.discoveries.items()}).items():
            predicted.setdefault(name, []).append(box)
    boxes = table["boxes"].to_pylist()
    truth = [torch.tensor(boxes[image.row]) for image in images]
    figures = {name: corloc(torch.stack(of_method), truth) for name, of_method in predicted.items()}
    return figures | {"images": float(len(images)), "left_out": float(len(table) - len(images))}


def _box(patches: Tensor, patch_size: int, image_size: int | tuple[int, int] | None, like: Tensor) -> Tensor:
    """The box around the patches of Bool[H, W], Float[4] in pixels."""
    columns, rows = (patches.any(axis).nonzero().flatten() for axis in (0, 1))
    box = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).to(torch.promote_types(like.dtype, torch.float32)) * patch_size
    if image_size is not None:
        height, width = sides_of(image_size)
        box = torch.minimum(box, box.new_tensor([width, height, width, height]))
    return box


def _check_grid(grid: tuple[int, int], tokens: int, name: str) -> None:
    if len(grid) != 2 or min(grid) < 1 or grid[0] * grid[1] != tokens:
        raise ValueError(f"grid: got {grid}, accepts (H, W) with H W = {tokens}, the number of patches in {name}")


def _check_positive(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name}: got {value}, accepts 1 or more")


@dataclass(frozen=True, kw_only=True)
class DiscoverySettings(Keys):
    """Settings of the measurement ``discovery``."""

    data: str  # a card in data_cards/
    split: str  # of the test images
    images: Number = 0  # how many of them to take, from the first on; 0 takes all
    longest: Count | None  # pixels of the longer side that the network sees; null keeps the size of the images
    patch_size: Count  # pixels a side of the network's patches
    k_patches: Count  # of LOST
    head: Number = 4  # of DINO-seg
    mass: Part = 0.6  # of DINO-seg


class ObjectDiscovery(FullResolutionEvaluation, name="discovery"):
    """``discovery_accuracy`` of images with boxes."""

    Settings = DiscoverySettings
    once = ("whole_image", "centred_box", "images", "left_out")

    def measure(self, network: Model, inputs: Inputs, context: Context = DEFAULT) -> dict[str, float]:
        return discovery_accuracy(network, inputs.test, progress=context.progress, **self.options)
