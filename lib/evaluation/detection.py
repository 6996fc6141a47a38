"""Object detection and instance segmentation by fine-tuning: Mask R-CNN on a simple feature pyramid.

Source: AttMask, appendix (COCO, 12 epochs, AdamW, layer decay 0.8, after iBOT). The papers use the maps of four blocks; here it is ViTDet's
pyramid of the last one, with torchvision's Mask R-CNN (He et al., ICCV 2017) and, as in the papers, a cascade of box heads.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from lib.data.reading import read_intact
from lib.data.segmentation import InstanceDataset, Instances
from lib.data.views import MEAN, STD
from lib.evaluation.base import DEFAULT, Context, Inputs
from lib.evaluation.cascade import WEIGHTS, CascadeHeads
from lib.evaluation.finetuned import FineTunedEvaluation
from lib.keys import Count, In, Part
from lib.learning.base import Learner, TrainingConfig
from lib.learning.optimizers import layerwise_optimizer
from lib.models import Model
from lib.models.pyramid import SimplePyramid


@dataclass(frozen=True, kw_only=True)
class DetectionSettings(TrainingConfig):
    """Settings of the measurement ``detection``. In training the shorter side of an image is drawn from ``train_size`` to ``eval_size`` in
    steps of 32 pixels; the longer side is at most ``canvas``.
    """

    FORMER = {"knn_epochs": 0, "knn_k": [1], "eval_crop": 1.0}

    num_classes: Count  # of objects
    layer_decay: Part  # factor of the learning rate from each layer to the one below it; 1 is none
    width: Count  # channels of the pyramid and of the mask head
    hidden_dim: Count  # of the box head
    # Proposals of an image that train the heads. Twice as many pass the non-maximum suppression, four times as many of each level enter it.
    proposals: Count
    # IoU at which each head of a cascade is trained, rising; [] is one head, at 0.5
    cascade: list[Annotated[float, In("(0, 1)")]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cascade != sorted(self.cascade) or len(self.cascade) > len(WEIGHTS):
            raise ValueError(f"cascade: got {self.cascade}, accepts at most {len(WEIGHTS)} rising numbers")
        if self.train_size > self.eval_size:
            raise ValueError(f"train_size: got {self.train_size}, accepts 1 to eval_size, {self.eval_size}")


class Detection(Learner):
    """Mask R-CNN that starts from a network, which is trained with it."""

    def __init__(self, config: DetectionSettings, network: Model):
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
        if config.cascade:
            earlier = [
                (TwoMLPHead(width * 7**2, config.hidden_dim), FastRCNNPredictor(config.hidden_dim, classes)) for _ in config.cascade[1:]
            ]
            self.detector.roi_heads = CascadeHeads.of(self.detector.roi_heads, earlier, config.cascade)
        # Boxes take the type of the head's output; in bfloat16 they would be rounded to two or three digits.
        self.detector.rpn.head.register_forward_hook(lambda head, maps, output: tuple([part.float() for part in parts] for parts in output))

    @property
    def encoder(self) -> nn.Module:
        return self.detector

    def make_optimizer(self) -> torch.optim.Optimizer:
        pyramid = self.detector.backbone
        return layerwise_optimizer(pyramid.network, self.config.layer_decay, pyramid.levels, self.detector.rpn, self.detector.roi_heads)

    def forward(
        self, images: list[Tensor], sizes: Tensor, targets: list[Instances], step: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """The sum of the five losses of Mask R-CNN; half of the images are mirrored."""
        inputs, truth = [], []
        for image, instances, mirrored in zip(images, targets, torch.rand(len(images), generator=generator) < 0.5):
            boxes, masks, pixels = instances.boxes, instances.masks, image.float() / 255
            if mirrored:
                edge = image.shape[-1]
                boxes = torch.stack([edge - boxes[:, 2], boxes[:, 1], edge - boxes[:, 0], boxes[:, 3]], 1)
                masks, pixels = masks.flip(-1), pixels.flip(-1)
            solid = (boxes[:, 2:] - boxes[:, :2] >= 1).all(1)  # a box without area has no anchor
            inputs.append(pixels)
            truth.append({"boxes": boxes[solid], "labels": instances.classes[solid] + 1, "masks": masks[solid].byte()})
        losses = self.detector(inputs, truth)
        parts = {"class": "loss_classifier", "box": "loss_box_reg", "mask": "loss_mask"}
        return {"loss": sum(losses.values())} | {name: losses[key].detach() for name, key in parts.items()}


@torch.no_grad()
def average_precision(detector: nn.Module, dataset: InstanceDataset, *, progress: bool = False) -> dict[str, float]:
    """COCO's average precision of boxes and masks, which are compared in the pixels of the dataset's images. Crowds are ignored regions, as in
    COCO's own evaluation; an object without an outline counts for boxes only.

    The detector, that of ``Detection``, is left in evaluation mode.

    Returns:
        ``ap_box``, ``ap_box_50``, ``ap_mask``, ``ap_mask_50`` in percent, ``images``, and ``left_out``, the number of images that could not
        be read; a ``Damage`` warning names each.

    Raises:
        ValueError: no readable image, or no object in any of them.
    """
    from torchmetrics.detection import MeanAveragePrecision

    metrics = {kind: MeanAveragePrecision(iou_type=kind, backend="faster_coco_eval") for kind in ("bbox", "segm")}
    detector.eval()
    images = objects = 0
    for row, (image, size, instances) in read_intact(dataset.read, range(len(dataset)), "detection" if progress else None):
        prediction = {name: part.cpu() for name, part in detector([image.float() / 255])[0].items()}
        prediction["masks"] = prediction["masks"][:, 0] > 0.5
        crowds = dataset.crowds(row, size, (image.shape[1], image.shape[2]))
        boxes, classes, masks = (torch.cat(parts).cpu() for parts in zip(instances, crowds))
        truth = {
            "boxes": boxes,
            "labels": classes + 1,
            "masks": masks,
            "iscrowd": (torch.arange(len(boxes)) >= len(instances.boxes)).long(),
        }
        outlined = torch.cat([dataset.outlined(row), torch.ones(len(crowds.boxes), dtype=torch.bool)])
        metrics["bbox"].update([prediction], [truth])
        metrics["segm"].update([prediction], [{name: part[outlined] for name, part in truth.items()}])
        images, objects = images + 1, objects + int(dataset.outlined(row).sum())
    if not images:
        raise ValueError(f"dataset: got {len(dataset)}, none of which could be read, accepts at least one")
    if not objects:
        raise ValueError(f"dataset: got {len(dataset)} without an object that has an outline, accepts at least one")
    results = {kind: metric.compute() for kind, metric in metrics.items()}
    names = {"ap_box": ("bbox", "map"), "ap_box_50": ("bbox", "map_50"), "ap_mask": ("segm", "map"), "ap_mask_50": ("segm", "map_50")}
    figures = {name: 100 * max(results[kind][key].item(), 0.0) for name, (kind, key) in names.items()}  # -1 for not a single detection
    return figures | {"images": float(images), "left_out": float(len(dataset) - images)}


class ObjectDetection(FineTunedEvaluation, name="detection"):
    """``average_precision`` of a detector that is trained starting from the network."""

    settings: DetectionSettings
    Settings = DetectionSettings
    learner_class = Detection
    once = ("images", "left_out")

    def load(self, *, progress: bool = False, **options: Any) -> Inputs:
        settings = self.settings
        train, test = InstanceDataset.splits(settings.data, settings.fraction, longest=settings.canvas, **options)
        objects = (labels for dataset in (train, test) for labels in dataset.table["classes"].to_pylist())
        largest = max((label for labels in objects for label in labels), default=-1)
        if largest >= settings.num_classes:
            raise ValueError(f"num_classes: got {settings.num_classes}, {settings.data} accepts {largest + 1} or more")
        return Inputs(test, train, {"train": train.fingerprint, "test": test.fingerprint})

    def measure(self, network: Model, inputs: Inputs, context: Context = DEFAULT) -> dict[str, float] | None:
        learner = self.trained(network, inputs, context)
        return None if learner is None else average_precision(learner.encoder, inputs.test, progress=context.progress)
