"""A cascade of box heads: each starts from the boxes of the head before it and is trained on closer ones (Cascade R-CNN: Cai and Vasconcelos,
CVPR 2018).
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.ops.boxes import clip_boxes_to_image

# Of stage n: the share of its losses in the sum, and the factor by which its corrections are encoded, those of the paper's code.
WEIGHTS, SCALES = (1.0, 0.5, 0.25), (1.0, 2.0, 3.0)


class CascadeHeads(RoIHeads):
    """torchvision's heads with others before the box head. In training, a proposal belongs to an object that it overlaps by the IoU of its
    stage. The scores of a detection are the mean over the stages; the masks are of the last one.
    """

    earlier: nn.ModuleList  # (box head, box predictor) of each stage but the last
    matchers: list[Matcher]  # of the stages
    coders: list[BoxCoder]

    @classmethod
    def of(cls, heads: RoIHeads, earlier: Sequence[tuple[nn.Module, nn.Module]], ious: Sequence[float]) -> "CascadeHeads":
        """torchvision's heads with further stages before their own box head, trained at ``ious``, one a stage."""
        heads.__class__ = cls
        cascade = cast(CascadeHeads, heads)
        cascade.earlier = nn.ModuleList(nn.ModuleList(stage) for stage in earlier)
        cascade.matchers = [Matcher(iou, iou, allow_low_quality_matches=False) for iou in ious]
        cascade.coders = [BoxCoder((10.0 * scale, 10.0 * scale, 5.0 * scale, 5.0 * scale)) for scale in SCALES[: len(ious)]]
        return cascade

    def forward(self, features, proposals, image_shapes, targets=None):
        """As of ``RoIHeads``: detections, and in training the losses, each summed over the stages by ``WEIGHTS``."""
        losses, self.probabilities = {"loss_classifier": 0.0, "loss_box_reg": 0.0}, []
        for stage, matcher, coder, weight in zip(self.earlier, self.matchers, self.coders, WEIGHTS):
            head, predictor = cast(nn.ModuleList, stage)
            self.proposal_matcher, self.box_coder = matcher, coder
            if self.training:
                proposals, _, labels, corrections = self.select_training_samples(proposals, targets)
            logits, found = (x.float() for x in predictor(head(self.box_roi_pool(features, proposals, image_shapes))))
            self.probabilities.append(logits.softmax(-1))
            if self.training:
                for name, loss in zip(losses, fastrcnn_loss(logits, found, labels, corrections)):
                    losses[name] += weight * loss
            proposals = self.refined(proposals, logits.detach(), found.detach(), image_shapes)
        self.proposal_matcher, self.box_coder = self.matchers[-1], self.coders[-1]
        detections, last = super().forward(features, proposals, image_shapes, targets)
        for name in losses.keys() & last.keys():
            last[name] = losses[name] + WEIGHTS[len(self.earlier)] * last[name]
        return detections, last

    def refined(self, proposals: list[Tensor], logits: Tensor, corrections: Tensor, image_shapes: list[tuple[int, int]]) -> list[Tensor]:
        """The boxes of a stage, Float[n, 4] of each image: each proposal as corrected for the likeliest class of an object."""
        classes = logits[:, 1:].argmax(1) + 1
        boxes = self.box_coder.decode(corrections, proposals)[torch.arange(len(classes), device=classes.device), classes]
        parts = boxes.split([len(part) for part in proposals])
        return [clip_boxes_to_image(part, shape) for part, shape in zip(parts, image_shapes)]

    def postprocess_detections(self, class_logits, box_regression, proposals, image_shapes):
        mean = torch.stack([*self.probabilities, class_logits.float().softmax(-1)]).mean(0)
        return super().postprocess_detections(mean.log(), box_regression.float(), proposals, image_shapes)
