"""timm's ResNets and ConvNeXts with any pooling after their last feature map."""

from collections.abc import Callable
from typing import Any

from timm.models.convnext import ConvNeXt as TimmConvNeXt
from timm.models.resnet import BasicBlock
from timm.models.resnet import ResNet as TimmResNet
from torch import Tensor, nn

from lib.models.base import Features, Model, simpool_keys
from lib.pooling import SimPool


class Convolutional(Model):
    """A network whose patches are the positions of its last feature map."""

    pooling: nn.Module
    forward_features: Callable[[Tensor], Tensor]  # timm's

    def keys(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        maps = self.forward_features(self.own_inputs(images))  # [B, D, H, W]
        patches = maps.flatten(2).mT
        return simpool_keys(self.pooling, patches) if isinstance(self.pooling, SimPool) else patches, (maps.shape[2], maps.shape[3])

    def pool(self, images: Tensor, mask: Tensor | None = None) -> Features:
        if mask is not None:
            raise ValueError("mask: got one, but convolutional networks accept None")
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images: got shape {tuple(images.shape)}, accepts [B, 3, h, w]")
        maps = self.forward_features(self.own_inputs(images))  # [B, D, H, W]
        vector, attention = self.pooling(maps)
        return Features(self.after_pooling(vector), maps.flatten(2).mT, (maps.shape[2], maps.shape[3]), attention)

    def after_pooling(self, vector: Tensor) -> Tensor:
        return vector


class ResNet(Convolutional, TimmResNet):
    """A ResNet has no norm before or after the pooling."""

    def classify(self, vector: Tensor) -> Tensor:
        return self.fc(nn.functional.dropout(vector, self.drop_rate, self.training) if self.drop_rate else vector)


class ConvNeXt(Convolutional, TimmConvNeXt):
    """A ConvNeXt normalises the pooled vector."""

    head: Any  # one of timm's classifier heads

    def after_pooling(self, vector: Tensor) -> Tensor:
        norm = self.head.norm
        return nn.functional.layer_norm(vector, (vector.shape[-1],), norm.weight, norm.bias, norm.eps)

    def classify(self, vector: Tensor) -> Tensor:
        return self.head.fc(self.head.drop(vector))


def resnet_mini(**options: Any) -> ResNet:
    """A ResNet for small images: four basic blocks, stride 8, 0.3 million parameters."""
    network: Any = ResNet(BasicBlock, (1, 1, 1, 1), channels=(16, 32, 64, 128), output_stride=16, stem_width=16, **options)
    network.conv1 = nn.Conv2d(3, network.conv1.out_channels, 3, stride=2, padding=1, bias=False)
    network.maxpool = nn.Identity()
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    return network


def convnext_mini(**options: Any) -> ConvNeXt:
    """A ConvNeXt for small images: five blocks, stride 8, 0.8 million parameters."""
    return ConvNeXt(depths=(1, 1, 2, 1), dims=(32, 64, 128, 192), output_stride=8, **options)


SMALL: dict[str, Callable[..., Convolutional]] = {"resnet_mini": resnet_mini, "convnext_mini": convnext_mini}
