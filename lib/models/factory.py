"""Networks by name."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import convert_splitbn_model
from timm.models.convnext import ConvNeXt as TimmConvNeXt
from timm.models.resnet import ResNet as TimmResNet
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import nn

from lib.models import backbones, vit
from lib.models.base import Model
from lib.pooling import create_pooling, pooling_names


def create_model(
    arch: str,
    *,
    pooling: str | None = None,
    img_size: int | tuple[int, int] = 224,
    patch_size: int | None = None,
    num_classes: int = 0,
    mask_token: bool = False,
    norm_after: bool = False,
    released_positions: bool = False,
    pooling_options: Mapping[str, Any] | None = None,
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    std: Sequence[float] = IMAGENET_DEFAULT_STD,
    token_dropout: float = 0.0,
    split_norm: int = 0,
    pretrained: bool = False,
    **options: Any,
) -> Model:
    """Build a network by name, with timm's layers and parameter names.

    Args:
        arch: any ViT, ResNet or ConvNeXt of timm, or a small network: ``vit_nano``, ``vit_micro``, ``resnet_mini``, ``convnext_mini``.
        pooling: a name of ``lib.pooling.pooling_names()``. None keeps the network's own pooling: the class token of a ViT (``"cls"``
            means the same there), or the global average of a convolutional network. A ViT with another pooling has no class token.
        img_size: size in pixels, (height, width) or one number, for which a ViT has position embeddings; they are interpolated for
            images of other sizes. Convolutional networks ignore it.
        patch_size: side of a patch in pixels; None keeps timm's (8 for the small ViTs). Convolutional networks ignore it.
        num_classes: number of outputs of the classifier; 0 leaves it out.
        mask_token: add the learned mask embedding, initialised at 0, that students need; ViTs only.
        norm_after: ViTs pool before the final norm, as self-supervised SimPool does, instead of after it. It changes nothing in
            convolutional networks: a ResNet has no final norm, and a ConvNeXt always pools before its norm.
        released_positions: ViTs interpolate positions like the papers' released code, see ``ViT``.
        pooling_options: options of the pooling, such as ``dict(gamma=1.25)``.
        mean, std: of the network's own inputs, three numbers each, see ``Model.own_inputs``. Inputs are normalised by ImageNet's in any case.
        token_dropout: probability after the position embedding and, in each block, after the projection of the attention and in the MLP;
            ViTs only. timm's ``drop_rate`` is that before the classifier alone.
        split_norm: train with a batch norm of its own for each of so many equal parts of a batch, the first of which is evaluated (Xie et al.,
            "Adversarial Examples Improve Image Recognition", CVPR 2020, section 4.2); 0 is one for all.
        pretrained: start from timm's weights, which timm downloads; without a class token in the network, its weights are left out.
        options: further arguments of timm, such as ``drop_path_rate``.

    Raises:
        ValueError: an unknown network or pooling, or options that do not fit together.
    """
    if pooling is not None and pooling not in pooling_names():
        raise ValueError(f"pooling: got {pooling!r}, accepts None, {', '.join(pooling_names())}")
    if pretrained and arch in (*vit.SMALL, *backbones.SMALL):
        raise ValueError(f"pretrained: got True, {arch} accepts False: timm has no weights for it")
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(f"std: got {std} beside mean {mean}, accepts three numbers each, of std above 0")
    model: Any  # ViTs and convolutional networks take other attributes
    if _is_vit(arch):
        method = None if pooling == "cls" else pooling
        sizes: dict[str, Any] = dict(img_size=img_size) | ({} if patch_size is None else dict(patch_size=patch_size))
        dropout = dict(pos_drop_rate=token_dropout, proj_drop_rate=token_dropout) if token_dropout else {}
        model = _vit(arch, method is None, pretrained, dict(num_classes=num_classes, dynamic_img_size=True) | sizes | dropout | options)
        model.norm_after, model.released_positions = norm_after, released_positions
    else:
        method = pooling or "gap"
        if mask_token:
            raise ValueError(f"mask_token: got True for {arch}, convolutional networks accept False")
        if token_dropout:
            raise ValueError(f"token_dropout: got {token_dropout} for {arch}, convolutional networks accept 0")
        model = _convolutional(arch, pretrained, dict(num_classes=num_classes) | options)
        model.embed_dim = model.num_features
        model.to(memory_format=torch.channels_last)  # makes convolutions up to 1.7 times faster, on a CPU too
    model.pooling = None
    if method is not None:
        model.pooling = create_pooling(method, model.num_features, **(pooling_options or {}))
    elif pooling_options:
        raise ValueError(f"pooling_options: got {pooling_options}, a class token accepts none")
    if mask_token:
        model.masked_embed = nn.Parameter(torch.zeros(1, model.embed_dim))
    if split_norm:
        model = convert_splitbn_model(model, split_norm)
    if (*mean, *std) != (*IMAGENET_DEFAULT_MEAN, *IMAGENET_DEFAULT_STD):
        model.statistics = mean, std
    network = dict(arch=arch, pooling=pooling, img_size=img_size, patch_size=patch_size, num_classes=num_classes, mask_token=mask_token)
    details: dict[str, Any] = dict(norm_after=norm_after, released_positions=released_positions, pooling_options=pooling_options)
    details |= dict(mean=list(mean), std=list(std), token_dropout=token_dropout, split_norm=split_norm)
    model._hub_mixin_config = network | details | options
    return model


Model.factory = create_model  # Model.from_pretrained builds networks with it


def network_like(network: Model, **options: Any) -> Model:
    """A new network with new weights and the arguments that built ``network``, except for ``options``."""
    arguments: Any = network._hub_mixin_config
    return create_model(**{**arguments, **options})


def network_of(config: Mapping[str, Any], **options: Any) -> Model:
    """The network of a recipe entry. It reads the keys ``arch``, ``train_size``, ``patch_size``, ``pooling``, ``gamma``,
    ``pooling_options``, ``method`` and ``released_positions``, and for classifiers ``num_classes``, ``depth``, ``mean``, ``std``,
    ``split_norm`` and ``splits``.

    Self-supervised Vision Transformers pool before the final norm, SimPool with the learned beta; all other networks pool after it
    (SimPool, appendix).
    """
    pooling = None if config["pooling"] == "none" else config["pooling"]
    norm_after = config["method"] != "supervised" and _is_vit(config["arch"]) and pooling not in (None, "cls")
    details = dict(gamma=config["gamma"], beta=norm_after) if pooling == "simpool" else {}
    details |= config.get("pooling_options", {})
    sizes = dict(img_size=config["train_size"], patch_size=config["patch_size"], num_classes=config.get("num_classes", 0))
    options = {key: config[key] for key in ("released_positions", "mean", "std") if key in config} | options
    if config.get("split_norm"):
        options = dict(split_norm=config["splits"]) | options
    if config.get("depth"):
        if not _is_vit(config["arch"]):
            raise ValueError(f"depth: got {config['depth']}, {config['arch']} accepts 0, its own")
        options = dict(depth=config["depth"]) | options
    return create_model(config["arch"], pooling=pooling, pooling_options=details or None, norm_after=norm_after, **sizes, **options)


def _is_vit(arch: str) -> bool:
    return arch in vit.SMALL or (timm.is_model(arch) and timm.models.is_model_in_modules(arch, {"vision_transformer", "deit"}))


def _vit(arch: str, class_token: bool, pretrained: bool, options: dict[str, Any]) -> vit.ViT:
    without: dict[str, Any] = {} if class_token else dict(class_token=False, global_pool="")
    if arch in vit.SMALL:
        return vit.ViT(**vit.SMALL[arch] | {"patch_size": 8} | options | without)
    # timm's network with its class token: it shows whether the architecture is a plain ViT, and it may hold the weights.
    with nullcontext() if class_token or pretrained else torch.device("meta"):
        model = timm.create_model(arch, pretrained=pretrained, **options)
    plain = type(model) is VisionTransformer and type(model.blocks[-1]) is Block and type(model.blocks[-1].attn) is Attention
    if not plain or model.cls_token is None or model.attn_pool is not None or model.global_pool != "token":
        raise ValueError(f"arch: got {arch!r}, a {type(model).__name__}; accepts a timm VisionTransformer with a class token")
    if not class_token:
        weights = model.state_dict()
        model = timm.create_model(arch, **options | without)
        if pretrained:
            del weights["cls_token"]
            weights["pos_embed"] = weights["pos_embed"][:, -model.pos_embed.shape[1] :]
            model.load_state_dict(weights)
    model.__class__ = vit.ViT  # keeps timm's layers and parameters, and adds our features and forward
    return model


def _convolutional(arch: str, pretrained: bool, options: dict[str, Any]) -> backbones.Convolutional:
    if arch in backbones.SMALL:
        return backbones.SMALL[arch](**options)
    if not timm.is_model(arch):
        raise ValueError(f"arch: got {arch!r}, accepts {', '.join((*vit.SMALL, *backbones.SMALL))} or a timm ViT, ResNet or ConvNeXt")
    model: Any = timm.create_model(arch, pretrained=pretrained, **options)
    head = getattr(model, "head", None)  # the original ConvNeXt's is pooling, norm and classifier and nothing else
    original = isinstance(getattr(head, "norm", None), nn.LayerNorm) and not isinstance(getattr(head, "pre_logits", None), nn.Sequential)
    if type(model) is TimmResNet:
        model.__class__ = backbones.ResNet
    elif type(model) is TimmConvNeXt and original:
        model.__class__ = backbones.ConvNeXt
    else:
        raise ValueError(f"arch: got {arch!r}, a {type(model).__name__}; accepts a timm ViT, ResNet or ConvNeXt")
    return model
