"""Object detection and instance segmentation by fine-tuning: Mask R-CNN on a simple feature pyramid.

Source: AttMask, appendix (COCO, 12 epochs, AdamW, layer decay 0.8, after iBOT), with torchvision's Mask R-CNN (He et al., ICCV 2017) where the
papers have a cascade of three heads, and ViTDet's pyramid where they have maps of four blocks.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from lib.data.pictures import ObjectPictures, Things
from lib.data.views import MEAN, STD
from lib.evaluation.finetune import check_counts, check_layer_decay, layerwise_optimizer, trained_from
from lib.models.pyramid import SimplePyramid
from lib.training import Learner, TrainingConfig


@dataclass(frozen=True, kw_only=True)
class DetectionConfig(TrainingConfig):
    """Keys of the measurement ``detection``. In training the shorter side is drawn from ``train_size`` to ``eval_size`` in steps of 32
    pixels; the longer one is at most ``canvas``.
    """

    num_classes: int  # of objects
    layer_decay: float  # of the learning rate from each layer to the one below it; 1 is none
    width: int  # channels of the pyramid and of the mask head
    hidden_dim: int  # of the box head
    proposals: int  # an image from which the heads learn; twice as many pass the non-maximum suppression, four times as many of each level enter it

    def __post_init__(self):
        super().__post_init__()
        check_layer_decay(self.layer_decay)
        if not 1 <= self.train_size <= self.eval_size:
            raise ValueError(f"train_size: got {self.train_size}, accepts 1 to eval_size, {self.eval_size}")
        check_counts(self, "num_classes", "width", "hidden_dim", "proposals")


class Detection(Learner):
    """Mask R-CNN that starts from a network.

    Args:
        config: the recipe.
        network: any of ``create_model``'s; it is trained.
    """

    def __init__(self, config: DetectionConfig, network: nn.Module):
        super().__init__()
        self.config = config
        pyramid, width, classes = SimplePyramid(network, config.width), config.width, config.num_classes + 1
        levels = [str(i) for i in range(len(pyramid.strides))]
        self.detector = MaskRCNN(
            pyramid,
            min_size=(*range(config.train_size, config.eval_size, 32), config.eval_size),
            max_size=config.canvas,
            image_mean=MEAN,
            image_std=STD,
            size_divisible=pyramid.multiple,
            rpn_anchor_generator=AnchorGenerator([(8 * stride,) for stride in pyramid.strides], [(0.5, 1.0, 2.0)] * len(levels)),
            rpn_pre_nms_top_n_train=4 * config.proposals,
            rpn_pre_nms_top_n_test=4 * config.proposals,
            rpn_post_nms_top_n_train=2 * config.proposals,
            rpn_post_nms_top_n_test=2 * config.proposals,
            box_roi_pool=MultiScaleRoIAlign(levels, 7, 2),
            box_head=TwoMLPHead(width * 7**2, config.hidden_dim),
            box_predictor=FastRCNNPredictor(config.hidden_dim, classes),
            box_batch_size_per_image=config.proposals,
            mask_roi_pool=MultiScaleRoIAlign(levels, 14, 2),
            mask_head=MaskRCNNHeads(width, (width,) * 4, 1),
            mask_predictor=MaskRCNNPredictor(width, width, classes),
        )
        # Boxes take the type of what the head gives; in bfloat16 they would be rounded to two or three digits.
        self.detector.rpn.head.register_forward_hook(lambda head, maps, found: tuple([part.float() for part in parts] for parts in found))

    @property
    def encoder(self) -> nn.Module:
        return self.detector

    def make_optimizer(self) -> torch.optim.Optimizer:
        pyramid = self.detector.backbone
        return layerwise_optimizer(pyramid.network, self.config.layer_decay, pyramid.levels, self.detector.rpn, self.detector.roi_heads)

    def forward(
        self, images: list[Tensor], sizes: Tensor, targets: list[Things], step: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """The sum of Mask R-CNN's five losses; half of the images are mirrored."""
        seen, wanted = [], []
        for image, things, mirrored in zip(images, targets, torch.rand(len(images), generator=generator) < 0.5):
            boxes, masks, pixels = things.boxes, things.masks, image.float() / 255
            if mirrored:
                edge = image.shape[-1]
                boxes = torch.stack([edge - boxes[:, 2], boxes[:, 1], edge - boxes[:, 0], boxes[:, 3]], 1)
                masks, pixels = masks.flip(-1), pixels.flip(-1)
            real = (boxes[:, 2:] - boxes[:, :2] >= 1).all(1)  # a box without area has no anchor
            seen.append(pixels)
            wanted.append({"boxes": boxes[real], "labels": things.classes[real] + 1, "masks": masks[real].byte()})
        losses = self.detector(seen, wanted)
        parts = {"class": "loss_classifier", "box": "loss_box_reg", "mask": "loss_mask"}
        return {"loss": sum(losses.values())} | {name: losses[key].detach() for name, key in parts.items()}


@torch.no_grad()
def average_precision(detector: nn.Module, pictures: ObjectPictures, *, progress: bool = False) -> dict[str, float]:
    """COCO's average precision of boxes and masks.

    Args:
        detector: of ``Detection``; it is left in evaluation mode.
        pictures: the test set, in pixels of which boxes and masks are compared.
        progress: show a bar.

    Returns:
        ``ap_box``, ``ap_box_50``, ``ap_mask``, ``ap_mask_50`` in percent, ``images``, and ``left_out``, images that could not be read, each
        named by a ``Damage`` warning.

    Raises:
        ValueError: no image that can be read, or none with an object.
    """
    from torchmetrics.detection import MeanAveragePrecision

    metric = MeanAveragePrecision(iou_type=("bbox", "segm"), backend="faster_coco_eval")
    detector.eval()
    images = objects = 0
    for image, _, things in pictures.whole("detection" if progress else None):
        found = {name: part.cpu() for name, part in detector([image.float() / 255])[0].items()}
        found["masks"] = found["masks"][:, 0] > 0.5
        truth = {"boxes": things.boxes.cpu(), "labels": things.classes.cpu() + 1, "masks": things.masks.cpu()}
        metric.update([found], [truth])
        images, objects = images + 1, objects + len(things.boxes)
    if not images:
        raise ValueError(f"pictures: got {len(pictures)}, none of which could be read, accepts at least one")
    if not objects:
        raise ValueError(f"pictures: got {len(pictures)} without an object, accepts at least one")
    result = metric.compute()
    names = {"ap_box": "bbox_map", "ap_box_50": "bbox_map_50", "ap_mask": "segm_map", "ap_mask_50": "segm_map_50"}
    figures = {name: 100 * result[key].item() for name, key in names.items()}
    return figures | {"images": float(images), "left_out": float(len(pictures) - images)}


def train_detector(
    network: nn.Module,
    source: ObjectPictures,
    test: ObjectPictures,
    config: DetectionConfig,
    folder: str | Path,
    *,
    budget: float | None = None,
    progress: bool = True,
) -> dict[str, float] | None:
    """Train a detector from a network's weights, and test it after the last epoch.

    Args:
        network: any of ``create_model``'s; it is trained.
        source, test: images to train and to test on.
        config: the recipe.
        folder: of the log and the checkpoint; a folder with a checkpoint is resumed.
        budget: seconds after which to stop with a checkpoint; None never stops.
        progress: show bars.

    Returns:
        As ``average_precision``; None when the budget ended first.
    """
    learner = trained_from(network, Detection, source, config, folder, budget=budget, progress=progress)
    return None if learner is None else average_precision(learner.detector, test, progress=progress)
