"""Feature maps at four scales from the last map of any network, for detection and segmentation."""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d

from lib.models.base import Model
from lib.models.vit import ViT


class SimplePyramid(nn.Module):
    """The simple feature pyramid of ViTDet (Li et al., ECCV 2022, section 3). From the last map of a network, of stride s, it computes maps
    of strides s/4, s/2, s and 2s, with ``width`` channels each, by transposed convolutions and max pooling.

    Attributes:
        out_channels: the width, under the name that torchvision's detectors need.
        strides: strides of the four maps in pixels.
        multiple: the sides of images must be multiples of this number of pixels.
    """

    def __init__(self, network: Model, width: int):
        super().__init__()
        self.network, self.out_channels, dim = network, width, network.embed_dim
        stride = network.patch_embed.patch_size[0] if isinstance(network, ViT) else self._stride(network)
        for name in ("pooling", "head"):  # the maps do not depend on these parts, so they get no gradient
            if getattr(network, name, None) is not None:
                getattr(network, name).requires_grad_(False)
        self.strides = [max(1, round(stride * factor)) for factor in (0.25, 0.5, 1, 2)]
        self.multiple = self.strides[-1]
        half, quarter = dim // 2, dim // 4
        steps: list[tuple[list[nn.Module], int]] = [  # the layers of each level, and the channels after them
            ([nn.ConvTranspose2d(dim, half, 2, 2), LayerNorm2d(half), nn.GELU(), nn.ConvTranspose2d(half, quarter, 2, 2)], quarter),
            ([nn.ConvTranspose2d(dim, half, 2, 2)], half),
            ([], dim),
            ([nn.MaxPool2d(2)], dim),
        ]
        for layers, channels in steps:
            layers += [nn.Conv2d(channels, width, 1, bias=False), LayerNorm2d(width)]
            layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), LayerNorm2d(width)]
        self.levels = nn.ModuleList(nn.Sequential(*layers) for layers, _ in steps)

    @staticmethod
    @torch.no_grad()
    def _stride(network: Model) -> int:
        training, like = network.training, next(network.parameters())
        grid = network.eval().features(like.new_zeros(1, 3, 256, 256)).grid
        network.train(training)
        return 256 // grid[0]

    def forward(self, images: Tensor) -> "OrderedDict[str, Tensor]":
        """Normalised images Float[B, 3, h, w] -> maps ``"0"`` to ``"3"``, Float[B, width, h / stride, w / stride], the finest first."""
        features = self.network.features(images)
        last = features.patches.mT.unflatten(2, features.grid)  # [B, D, H, W]
        return OrderedDict((str(i), level(last)) for i, level in enumerate(self.levels))
