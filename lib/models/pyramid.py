"""Maps at four scales from the last map of any network, for detection and segmentation."""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d

from lib.models.base import Model
from lib.models.vit import ViT


class SimplePyramid(nn.Module):
    """The simple feature pyramid of ViTDet (Li et al., ECCV 2022, section 3): from the last map of stride s, maps of strides s/4, s/2, s and
    2s, by transposed convolutions and a maximum.

    Args:
        network: any of ``create_model``'s, which becomes a part of this module.
        width: channels of all four maps.

    Attributes:
        out_channels: the width, under the name that torchvision's detectors look for.
        strides: pixels from one cell of a map to the next.
    """

    def __init__(self, network: Model, width: int):
        super().__init__()
        self.network, self.out_channels, dim = network, width, network.embed_dim
        stride = network.patch_embed.patch_size[0] if isinstance(network, ViT) else self._stride(network)
        for name in ("pooling", "head"):  # what comes after the last map learns nothing from it
            if getattr(network, name, None) is not None:
                getattr(network, name).requires_grad_(False)
        self.strides = [max(1, round(stride * factor)) for factor in (0.25, 0.5, 1, 2)]
        quarter = [nn.ConvTranspose2d(dim, dim // 2, 2, 2), LayerNorm2d(dim // 2), nn.GELU(), nn.ConvTranspose2d(dim // 2, dim // 4, 2, 2)]
        steps = [(quarter, dim // 4), ([nn.ConvTranspose2d(dim, dim // 2, 2, 2)], dim // 2), ([], dim), ([nn.MaxPool2d(2)], dim)]
        self.levels = nn.ModuleList(nn.Sequential(*step, *self._narrowed(channels, width)) for step, channels in steps)

    @staticmethod
    def _narrowed(channels: int, width: int) -> list[nn.Module]:
        first, second = nn.Conv2d(channels, width, 1, bias=False), nn.Conv2d(width, width, 3, padding=1, bias=False)
        return [first, LayerNorm2d(width), second, LayerNorm2d(width)]

    @staticmethod
    @torch.no_grad()
    def _stride(network: Model) -> int:
        training, like = network.training, next(network.parameters())
        grid = network.eval().features(like.new_zeros(1, 3, 256, 256)).grid
        network.train(training)
        return 256 // grid[0]

    @property
    def multiple(self) -> int:
        """Sides of images are multiples of it."""
        return self.strides[-1]

    def forward(self, images: Tensor) -> "OrderedDict[str, Tensor]":
        """Float[B, 3, h, w], normalised -> ``"0"`` to ``"3"``, Float[B, width, h / stride, w / stride], the finest first."""
        seen = self.network.features(images)
        last = seen.patches.mT.unflatten(2, seen.grid)  # [B, D, H, W]
        return OrderedDict((str(i), level(last)) for i, level in enumerate(self.levels))
