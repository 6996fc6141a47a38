"""Accuracy on masked images: a linear probe that sees the whole training images is tested on images without their most attended patches.

Source: AttMask's released code (``eval_linear_acc_drop``) and its appendix. For a fair comparison one reference network chooses the patches for
all networks: DINO's ViT-B/16.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.data.views import normalise
from lib.evaluation.base import DEFAULT, Context, Inputs
from lib.evaluation.features import centre_views
from lib.evaluation.linear import Linear, LinearSettings, probe_figures
from lib.masking import attention_mask
from lib.models import Model, create_model


@dataclass(frozen=True, kw_only=True)
class MaskedSettings(LinearSettings):
    """Settings of the measurement ``masked_accuracy``."""

    ratios: list[float]  # masked fractions of the patches, in [0, 1)
    reference: str  # the network whose attention is masked, a ViT of timm with pretrained weights; own: the measured network itself

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ratios or not all(0 <= ratio < 1 for ratio in self.ratios):
            raise ValueError(f"ratios: got {self.ratios}, accepts one number in [0, 1) or more")


class MaskedAccuracy(Linear, name="masked_accuracy"):
    """Figures: ``masked_`` and a ratio in percent of the patches, the accuracy in percent of the best probe after the last epoch on images
    of which so many patches are black, and those of ``linear``.
    """

    Settings = MaskedSettings

    @torch.no_grad()
    def measure(self, network: Model, inputs: Inputs, context: Context = DEFAULT) -> dict[str, float]:
        settings, view = self.settings, self.view()
        with torch.enable_grad():
            probes = self.probes(network, inputs, context)
        classifier, reference = probes.classifiers[probes.best], network
        if settings.reference != "own":
            reference = (
                create_model(settings.reference, img_size=view["size"], pretrained=True).to(next(network.parameters()).device).eval()
            )
        right = dict.fromkeys(settings.ratios, 0)
        for views, labels in centre_views(network, inputs.test, view["size"], view["crop"], 256, context.progress):
            features = reference.features(views)
            if features.attention is None:
                raise ValueError(
                    "network: got one without attention, masked_accuracy accepts those with a class token or attention pooling"
                )
            attention = features.attention.float().mean(1)
            for ratio in settings.ratios:
                mask = attention_mask(attention, ratio, strategy="high")
                vectors = network.last_cls(blackened(views, mask, features.grid), settings.blocks_of(network)).float()
                right[ratio] += int((classifier(vectors).argmax(1) == labels).sum())
        accuracies = {f"masked_{round(100 * ratio)}": 100 * count / len(inputs.test) for ratio, count in right.items()}
        return accuracies | probe_figures(probes)


def blackened(views: Tensor, mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """Views Float[B, 3, h, w], normalised, with black patches where the mask Bool[B, H W] of a grid (H, W) is True."""
    black = normalise(views.new_zeros(3, 1, 1))
    hidden = F.interpolate(mask.view(-1, 1, *grid).to(views.dtype), views.shape[-2:], mode="nearest") > 0  # [B, 1, h, w]
    return torch.where(hidden, black, views)
