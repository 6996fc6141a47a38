"""Networks by name."""

from collections.abc import Mapping
from contextlib import nullcontext

import timm
import torch
from timm.models.convnext import ConvNeXt as TimmConvNeXt
from timm.models.resnet import ResNet as TimmResNet
from torch import nn

from lib.models import backbones, vit
from lib.models.base import Model
from lib.pooling import create_pooling, pooling_names


def create_model(
    arch: str,
    *,
    pooling: str | None = None,
    img_size=224,
    patch_size: int | None = None,
    num_classes: int = 0,
    mask_token: bool = False,
    norm_after: bool = False,
    released_positions: bool = False,
    pooling_options: dict | None = None,
    pretrained: bool = False,
    **options,
) -> Model:
    """A network by name, with timm's layers and parameter names.

    Args:
        arch: any of timm's ViTs, ResNets or ConvNeXts, or a small one: ``vit_nano``, ``vit_micro``, ``resnet_mini``,
            ``convnext_mini``.
        pooling: a name of ``lib.pooling.pooling_names()``. None is the network's own: a ViT's class token (``cls`` is the same
            there), global average pooling of a convolutional network. A ViT with another pooling has no class token.
        img_size: pixels a side of the position embedding's grid, (height, width) or one number; images of other sizes
            interpolate it. Convolutional networks have none.
        patch_size: pixels a side; None keeps timm's (8 for the small ViTs). Convolutional networks have none.
        num_classes: 0 leaves the classifier out.
        mask_token: add the learned mask embedding, initialised at 0, that students need; ViTs only.
        norm_after: of a ViT, pool before the final norm, as self-supervised SimPool does, instead of after it. A ResNet pools
            without a norm and a ConvNeXt before its norm, whatever this says.
        released_positions: of a ViT, interpolate positions as the papers' released code does, see ``ViT``.
        pooling_options: the pooling's own, such as ``dict(gamma=1.25)``.
        pretrained: start from timm's weights, which timm downloads; those of a class token are left out where there is none.
        options: passed on to timm, ``drop_path_rate`` for one.

    Returns:
        A module with ``features(images, mask=None)``.

    Raises:
        ValueError: a name of none of these networks, a pooling that is not known, or options that do not go together.
    """
    if pooling is not None and pooling not in pooling_names():
        raise ValueError(f"pooling: got {pooling!r}, accepts None, {', '.join(pooling_names())}")
    if _is_vit(arch):
        method = None if pooling == "cls" else pooling
        sizes = dict(img_size=img_size) | ({} if patch_size is None else dict(patch_size=patch_size))
        model = _vit(arch, method is None, pretrained, dict(num_classes=num_classes, dynamic_img_size=True) | sizes | options)
        model.norm_after, model.released_positions = norm_after, released_positions
    else:
        method = pooling or "gap"
        if mask_token:
            raise ValueError(f"mask_token: got True for {arch}, convolutional networks accept False")
        model = _convolutional(arch, pretrained, dict(num_classes=num_classes) | options)
        model.to(memory_format=torch.channels_last)  # convolutions are up to 1.7 times faster so, on a CPU too
    model.pooling = None
    if method is not None:
        model.pooling = create_pooling(method, model.num_features, **(pooling_options or {}))
    elif pooling_options:
        raise ValueError(f"pooling_options: got {pooling_options}, a class token accepts none")
    if mask_token:
        model.masked_embed = nn.Parameter(torch.zeros(1, model.embed_dim))
    network = dict(arch=arch, pooling=pooling, img_size=img_size, patch_size=patch_size, num_classes=num_classes, mask_token=mask_token)
    model._hub_mixin_config = (
        network | dict(norm_after=norm_after, released_positions=released_positions, pooling_options=pooling_options) | options
    )
    return model


Model.factory = create_model  # networks that are read from a file are made by it


def network_like(network: Model, **options) -> Model:
    """A new network of another's arguments of ``create_model``, with some of them otherwise; its weights are new."""
    return create_model(**{**network._hub_mixin_config, **options})


def network_of(config: Mapping, **options) -> Model:
    """The network of a recipe entry: its keys ``arch``, ``train_size``, ``patch_size``, ``pooling``, ``gamma``, ``pooling_options`` and
    ``method``, and of classifiers ``num_classes`` and ``depth``.

    Self-supervised Vision Transformers pool before the final norm, SimPool with the learned beta; all others after it (SimPool,
    appendix).
    """
    pooling = None if config["pooling"] == "none" else config["pooling"]
    pooled_first = config["method"] != "supervised" and _is_vit(config["arch"]) and pooling not in (None, "cls")
    details = dict(gamma=config["gamma"], beta=pooled_first) if pooling == "simpool" else {}
    details |= config.get("pooling_options", {})
    sizes = dict(img_size=config["train_size"], patch_size=config["patch_size"], num_classes=config.get("num_classes", 0))
    if config.get("depth"):
        if not _is_vit(config["arch"]):
            raise ValueError(f"depth: got {config['depth']}, {config['arch']} accepts 0, its own")
        options = dict(depth=config["depth"]) | options
    return create_model(config["arch"], pooling=pooling, pooling_options=details or None, norm_after=pooled_first, **sizes, **options)


def _is_vit(arch: str) -> bool:
    return arch in vit.SMALL or (timm.is_model(arch) and timm.models.is_model_in_modules(arch, {"vision_transformer", "deit"}))


def _vit(arch: str, class_token: bool, pretrained: bool, options: dict) -> vit.ViT:
    without = {} if class_token else dict(class_token=False, global_pool="")
    if arch in vit.SMALL:
        if pretrained:
            raise ValueError(f"pretrained: got True, {arch} accepts False: timm has no weights for it")
        return vit.ViT(**vit.SMALL[arch] | {"patch_size": 8} | options | without)
    # timm's own network, with a class token: to see that it is a plain one, and for its weights.
    with nullcontext() if class_token or pretrained else torch.device("meta"):
        model = timm.create_model(arch, pretrained=pretrained, **options)
    if not vit.is_plain(model) or model.cls_token is None or model.attn_pool is not None or model.global_pool != "token":
        raise ValueError(f"arch: got {arch!r}, a {type(model).__name__}; accepts a timm VisionTransformer with a class token")
    if not class_token:
        weights = model.state_dict()
        model = timm.create_model(arch, **options | without)
        if pretrained:
            del weights["cls_token"]
            weights["pos_embed"] = weights["pos_embed"][:, -model.pos_embed.shape[1] :]
            model.load_state_dict(weights)
    model.__class__ = vit.ViT  # the same parameters and layers; features and forward are ours
    return model


def _convolutional(arch: str, pretrained: bool, options: dict) -> backbones.Convolutional:
    if arch in backbones.SMALL:
        if pretrained:
            raise ValueError(f"pretrained: got True, {arch} accepts False: timm has no weights for it")
        return backbones.SMALL[arch](**options)
    if not timm.is_model(arch):
        raise ValueError(f"arch: got {arch!r}, accepts {', '.join((*vit.SMALL, *backbones.SMALL))} or a timm ViT, ResNet or ConvNeXt")
    model = timm.create_model(arch, pretrained=pretrained, **options)
    if type(model) is TimmResNet:
        model.__class__ = backbones.ResNet
    elif type(model) is TimmConvNeXt and backbones.normed_after_pooling(model):
        model.__class__ = backbones.ConvNeXt
    else:
        raise ValueError(f"arch: got {arch!r}, a {type(model).__name__}; accepts a timm ViT, ResNet or ConvNeXt")
    return model
