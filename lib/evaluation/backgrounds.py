"""How much a classifier relies on backgrounds: ImageNet-9 and its variants.

Source: Xiao et al., "Noise or Signal: The Role of Image Backgrounds in Object Recognition", ICLR 2021, section 2 and appendix A.
"""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.data.bank import Bank, Stream
from lib.data.dataset import Dataset
from lib.data.reading import encoded, read_objects
from lib.data.views import center_view, check_images
from lib.evaluation.base import DEFAULT, Context, Inputs
from lib.evaluation.frozen import ProbeEvaluation
from lib.evaluation.linear import LinearSettings, probed
from lib.models import Model

IN9_CLASSES = ("dog", "bird", "vehicle", "reptile", "carnivore", "insect", "instrument", "primate", "fish")
# First and last class of ImageNet-1k in each run of consecutive classes that belong to one of the nine. A class belongs to its ancestor in
# WordNet's tree, in which ImageNet keeps a single parent: greyhounds are racers there, game birds are game, domestic cats are domestic
# animals, a golf cart is golf equipment and a mobile home is housing.
_IN9_RUNS = (
    "151-170 173-268",
    "7-24 87-100 127-146",
    "407-408 428 436 444 468 511 547 555 561 565 569 573 586 603 609 612 627 656 661 665 670-671 675 690 705 717 734 751 757 791 "
    "802-803 817 820 829 847 864 866-867 870 880",
    "33-68",
    "269-280 286-299 356-362 387-388",
    "300-326",
    "401-402 420 432 486 494 513 541 546 558 566 577 579 593-594 641-642 683-684 687 699 776 822 875 881 889",
    "365-384",
    "0-6 389-397",
)
_IN9 = {
    c: nine
    for nine, runs in enumerate(_IN9_RUNS)
    for first, last in re.findall(r"(\d+)-?(\d*)", runs)
    for c in range(int(first), int(last or first) + 1)
}

# column in the papers -> (name in the release, content of the images)
VARIANTS = {
    "OF": ("only_fg", "the object on black"),
    "MS": ("mixed_same", "the object on a background of its class"),
    "MR": ("mixed_rand", "the object on a background of a random class"),
    "MN": ("mixed_next", "the object on a background of the next class"),
    "NF": ("no_fg", "the object blackened"),
    "OBB": ("only_bg_b", "the object's box blackened"),
    "OBT": ("only_bg_t", "the object's box covered with background"),
    "IN-9": ("original", "the image"),
}


def in9_class(imagenet_class: int) -> int:
    """The one of the nine classes to which an ImageNet-1k class belongs, 0 to 8; -1 for the 630 other classes, which always count as wrong.

    Raises:
        ValueError: no class of ImageNet-1k.
    """
    if not isinstance(imagenet_class, int) or isinstance(imagenet_class, bool) or not 0 <= imagenet_class < 1000:
        raise ValueError(f"imagenet_class: got {imagenet_class!r}, accepts an int from 0 to 999")
    return _IN9.get(imagenet_class, -1)


def background_variants(
    images: Tensor, masks: Tensor, boxes: Tensor, labels: Tensor, *, num_classes: int, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """Every variant of images with annotated objects: uint8[n, 3, S, S] for each name in ``VARIANTS``.

    In the mixed variants, the object is laid over a background image, in which the box of its own object is covered with background (as in
    OBT). The background image is drawn from the same class (a different image if the class has several), from a class drawn uniformly from
    those of the images, or from the next of these classes.

    Args:
        images: uint8[n, 3, S, S].
        masks: Bool[n, S, S], True on the object.
        boxes: Float[n, 4], around the object, x1 and y1 exclusive.
        labels: Long[n] in [0, num_classes).
        generator: of the draws of backgrounds, on the CPU.
    """
    check_images(images)
    n, size = len(images), images.shape[-1]
    if masks.dtype != torch.bool or masks.shape != (n, size, size):
        raise ValueError(f"masks: got {masks.dtype} of shape {tuple(masks.shape)}, accepts Bool{[n, size, size]}")
    if boxes.shape != (n, 4):
        raise ValueError(f"boxes: got shape {tuple(boxes.shape)}, accepts {[n, 4]}")
    if labels.shape != (n,) or labels.is_floating_point() or labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"labels: got {labels.dtype} of shape {tuple(labels.shape)}, accepts Long{[n]}, each in [0, {num_classes})")
    mask = masks[:, None]
    boxed = _inside(boxes, size)[:, None]
    covered = torch.stack([tile_over(image, box) for image, box in zip(images, boxes)])
    present = labels.unique()
    position = torch.searchsorted(present, labels)
    random = torch.randint(len(present), (n,), generator=generator).to(labels.device)
    mixed = {}
    for name, classes in (("MS", position), ("MR", random), ("MN", (position + 1) % len(present))):
        mixed[name] = torch.where(mask, images, covered[_draw(labels, present[classes], generator)])
    black = torch.zeros((), dtype=torch.uint8, device=images.device)
    return {
        "OF": torch.where(mask, images, black),
        **mixed,
        "NF": torch.where(mask, black, images),
        "OBB": torch.where(boxed, black, images),
        "OBT": covered,
        "IN-9": images,
    }


def tile_over(image: Tensor, box: Tensor) -> Tensor:
    """An image uint8[3, S, S] with a box [4] covered by tiles of the largest rectangle of background beside it; black if there is none."""
    size, covered = image.shape[-1], image.clone()
    x0, y0 = (max(0, int(v)) for v in box[:2])
    x1, y1 = (min(size, math.ceil(v)) for v in box[2:].tolist())
    height, width = y1 - y0, x1 - x0
    if height > 0 and width > 0:
        sides = [image[:, :, :x0], image[:, :, x1:], image[:, :y0], image[:, y1:]]
        tile = max(sides, key=lambda side: side.shape[1] * side.shape[2])
        if tile.numel():
            tile = tile.repeat(1, math.ceil(height / tile.shape[1]), math.ceil(width / tile.shape[2]))[:, :height, :width]
        covered[:, y0:y1, x0:x1] = tile if tile.numel() else 0
    return covered


def grabcut_masks(images: Tensor, boxes: Tensor, *, iterations: int = 5) -> Tensor:
    """The objects in boxes by GrabCut, the method with which ImageNet-9 was made: images uint8[n, 3, S, S] and boxes Float[n, 4], x1 and y1
    exclusive -> Bool[n, S, S]. The mask is the box if GrabCut finds nothing, or if the box covers the whole image, because GrabCut needs
    background.
    """
    import cv2

    box_masks = _inside(boxes, images.shape[-1])
    masks = []
    for image, box in zip(images, box_masks):
        if box.all() or not box.any():
            masks.append(box)
            continue
        cv2.setRNGSeed(0)
        trimap = torch.where(box, cv2.GC_PR_FGD, cv2.GC_BGD).byte().cpu().numpy()  # changed in place
        pixels = image.permute(1, 2, 0).flip(-1).contiguous().cpu().numpy()
        cv2.grabCut(pixels, trimap, None, None, None, iterations, cv2.GC_INIT_WITH_MASK)  # type: ignore[call-overload]
        mask = torch.from_numpy(trimap).to(image.device) == cv2.GC_PR_FGD
        masks.append(mask if mask.any() else box)
    return torch.stack(masks)


def known_objects(source: Stream, *, most: float = 0.9) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images with a single annotated object, selected as in ImageNet-9: with one box that covers at most ``most`` of the image.

    Args:
        source: its table has ``boxes``, and ``mask`` unless GrabCut has to find the objects in the boxes.
        most: part of the image.

    Returns:
        images uint8[n, 3, S, S], masks Bool[n, S, S], boxes Float[n, 4] in pixels of the canvas, labels Long[n].

    Raises:
        ValueError: no such image.
    """
    objects = []
    annotated = source.table["boxes"].to_pylist()
    masked = "mask" in source.table.column_names
    for start, (images, sizes, labels) in zip(range(0, len(source), 256), source.batches(torch.arange(len(source)).split(256))):
        for i, (image, (height, width), label) in enumerate(zip(images, sizes.tolist(), labels), start):
            if len(annotated[i]) != 1:
                continue
            box = torch.tensor(annotated[i], device=image.device) * source.size / torch.tensor([[width, height] * 2], device=image.device)
            if 0 < (box[0, 2:] - box[0, :2]).prod() <= most * source.size**2:
                if masked:  # of the original's size, resized to the canvas
                    mask = (read_objects(encoded(source.table, i, "mask"), (height, width), count=1) > 0).float()
                    mask = F.interpolate(mask[None, None], (source.size, source.size), mode="nearest-exact")[0].to(image.device) > 0
                else:
                    mask = grabcut_masks(image[None], box)
                objects.append((image[None], mask, box, label[None]))
    if not objects:
        raise ValueError(f"source: got {len(source)} images, none with a single box of at most {most:.0%} of it, accepts at least one")
    images, masks, boxes, labels = (torch.cat(parts) for parts in zip(*objects))
    return images, masks, boxes, labels


@torch.no_grad()
def background_accuracy(
    classify: Callable[[Tensor], Tensor], variants: dict[str, tuple[Tensor, Tensor]], *, size: int, crop: float
) -> dict[str, float]:
    """Accuracy on every variant in percent, and ``background_gap``, the accuracy on MS minus that on MR.

    Args:
        classify: views Float[b, 3, size, size] -> logits Float[b, C]; 1,000 classes are mapped by ``in9_class``.
        variants: name -> (images uint8[n, 3, S, S], labels Long[n]).
        size, crop: of the centre views.
    """
    figures = {}
    for name, (images, labels) in variants.items():
        logits = torch.cat([classify(center_view(part, size, crop=crop)) for part in images.split(128)])
        predicted = logits.argmax(1)
        if logits.shape[1] == 1000:
            predicted = torch.tensor([in9_class(c) for c in predicted.tolist()], device=predicted.device)
        figures[name] = 100 * (predicted == labels).double().mean().item()
    return figures | {"background_gap": figures["MS"] - figures["MR"]}


def official_variants(source: Stream) -> dict[str, tuple[Tensor, Tensor]]:
    """The images and labels of the ImageNet-9 release by variant."""
    names = source.table["variant"].to_pylist()
    variants = {}
    for column, (name, _) in VARIANTS.items():
        rows = torch.tensor([row for row, variant in enumerate(names) if variant == name])
        if not len(rows):
            raise ValueError(f"source: has no images of the variant {name}, accepts all of {', '.join(v for v, _ in VARIANTS.values())}")
        images, _, labels = zip(*source.batches(rows.split(256)))
        variants[column] = torch.cat(images), torch.cat(labels)
    return variants


def _inside(boxes: Tensor, size: int) -> Tensor:
    """Bool[n, size, size], True in the pixels that a box touches."""
    places = torch.arange(size, device=boxes.device)
    x = (places >= boxes[:, 0:1].floor()) & (places < boxes[:, 2:3])  # [n, size]
    y = (places >= boxes[:, 1:2].floor()) & (places < boxes[:, 3:4])
    return y[:, :, None] & x[:, None, :]


def _draw(labels: Tensor, classes: Tensor, generator: torch.Generator | None) -> Tensor:
    """For each i a random image of class ``classes[i]``, not i itself if the class has others, Long[n]."""
    draws = torch.rand(len(labels), generator=generator)
    indices = []
    for i, (label, draw) in enumerate(zip(classes.tolist(), draws.tolist())):
        candidates = (labels == label).nonzero().flatten()
        if len(candidates) > 1:
            candidates = candidates[candidates != i]
        indices.append(candidates[int(draw * len(candidates))])
    return torch.stack(indices)


class BackgroundSet(NamedTuple):
    """variants: name -> (images uint8[n, 3, S, S], labels Long[n]); selection: the images on which the best probe is selected."""

    variants: dict[str, tuple[Tensor, Tensor]]
    selection: Dataset


def variants_of(source: Stream, train: Bank | Stream) -> BackgroundSet:
    """The variants of the images of ``known_objects``, or those of ImageNet-9 itself, whose table has ``variant``.

    The classes of ImageNet-9 differ from those of the training images; the best probe is then selected on the training images.
    """
    if "variant" in source.table.column_names:
        return BackgroundSet(official_variants(source), selection=train)
    images, masks, boxes, labels = known_objects(source)
    generator = torch.Generator().manual_seed(0)
    variants = background_variants(images, masks, boxes, labels, num_classes=int(labels.max()) + 1, generator=generator)
    return BackgroundSet({name: (variant, labels) for name, variant in variants.items()}, selection=source)


class Backgrounds(ProbeEvaluation, name="backgrounds"):
    """``background_accuracy`` of a trained classifier, or of a linear probe on the frozen features of any other network.

    Figures: ``OF``, ``MS``, ``MR``, ``MN``, ``NF``, ``OBB``, ``OBT``, ``IN-9``, named as the columns in the papers, ``background_gap``, and
    ``images``, the number of images of each variant.
    """

    Settings = LinearSettings
    once = ("images",)

    def load(self, **options: Any) -> Inputs:
        """``test`` is a ``BackgroundSet``."""
        inputs = super().load(**options)
        return replace(inputs, test=variants_of(inputs.test, inputs.train))

    def measure(self, network: Model, inputs: Inputs, context: Context = DEFAULT) -> dict[str, float]:
        settings, (variants, selection) = self.settings, inputs.test
        classify: Callable[[Tensor], Tensor] = network
        if not (context.trained and isinstance(network.classifier, nn.Linear)):
            probes = dict(lrs=settings.lrs, epochs=settings.epochs, batch_size=settings.batch_size, progress=context.progress)
            classify = probed(network, inputs.train, selection, blocks=settings.blocks_of(network), **probes, **self.view())
        images = float(len(next(iter(variants.values()))[1]))
        return {"images": images} | background_accuracy(classify, variants, **self.view())
