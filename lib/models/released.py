"""Loads the checkpoints that the authors released into our networks, without executing any code that a file contains."""

import argparse
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lib.models.base import Model
from lib.models.factory import create_model

SOURCES = ("attmask", "ibot", "dino", "simpool")
WEIGHTS = ("teacher", "student")

# Prefixes of SimPool's parameters: in the self-supervised networks, and in the supervised ViT, ConvNeXt and ResNet.
POOLING = ("simpool.", "gp.pool.", "head.global_pool.pool.", "global_pool.pool.")
CLASSIFIERS = ("head", "fc", "head.fc")
PROJECTION = ("head.mlp", "head.last_")  # in files without "backbone." before the names of the network

# Types in these checkpoints other than tensors: parsed arguments, and single NumPy numbers such as learning rates.
SCALAR = np.float64(0).__reduce__()[0]
HARMLESS: list[Any] = [argparse.Namespace, np.dtype, *(type(np.dtype(code)) for code in "?bBhHiIlLqQefd")]
HARMLESS += [(SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]

# Names of the ConvNeXt repository, and timm's.
CONVNEXT = (
    (r"^head\.", "head.fc."),
    (r"^norm\.", "head.norm."),
    (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"^downsample_layers\.0\.", "stem."),
    (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
    (r"\.dwconv\.", ".conv_dw."),
    (r"\.pwconv(\d)\.", r".mlp.fc\1."),
)


def load_released(path: str | Path, arch: str, *, source: str, weights: str = "teacher", **options: Any) -> Model:
    """A network with the weights of a file that the authors of AttMask, iBOT, DINO or SimPool released.

    Features, patches and attention equal those of the authors' code. Vision Transformers interpolate positions as that code does
    (``ViT.released_positions``), self-supervised SimPool networks even at their training size. The one difference is the minimum
    inside SimPool: the released code takes it over the batch; here it is taken per image, so that an output does not depend on the
    other images. Both agree for a batch of one, and ``pooling_options=dict(min_scope="batch")`` restores the released code's minimum.

    Accepted layouts are full checkpoints (``teacher`` and ``student``, with names after ``backbone.`` and ``head.``), timm's training
    checkpoints (``state_dict`` and ``state_dict_ema``), and a single network, as ``state_dict`` or as the whole file. A leading
    ``module.`` is ignored, and so is ``_orig_mod.`` of compiled networks. Left out on purpose are projection heads, the auxiliary statistics of split
    batch norms (``aux_bn``, for augmented splits in training only), and everything that is not part of the network. All other names
    must fit.

    The file determines image size, patch size, classes, mask embedding and SimPool's beta; ``arch`` determines depth and heads. A
    SimPool ViT is taken as self-supervised, with the norm after the pooling, if the file has a teacher or a student, or a beta and no
    classifier. Otherwise it is taken as supervised, with the norm before the pooling and timm's positions. If this is wrong for a
    file with a single network, pass ``norm_after``. Gamma is the one in the file's ``args``, or the paper's: 1.25 for ViTs and 2 for
    convolutional networks. A self-supervised ViT without beta has no gamma (the authors' models "no gamma").

    Args:
        path: the file.
        arch: see ``create_model``.
        source: ``attmask``, ``ibot`` or ``dino``, which are treated alike (a class token, or average pooling of a convolutional
            network), or ``simpool``.
        weights: the network to take from a file with two: ``teacher`` (in timm's checkpoints the moving average, if there is one) or
            ``student``. It has no effect on a file with one network.
        options: arguments of ``create_model`` that override the file's; ``pooling_options`` are added to them. ``num_classes=0``
            leaves out a classifier.

    Returns:
        The network of ``create_model`` in evaluation mode, on the CPU.

    Raises:
        ValueError: a missing or damaged file, a file with code in it, the wrong source, a network that is not in the file or that does
            not fit ``arch``.
    """
    for argument, value, accepted in (("source", source, SOURCES), ("weights", weights, WEIGHTS)):
        if value not in accepted:
            raise ValueError(f"{argument}: got {value!r}, accepts {', '.join(accepted)}")
    checkpoint = _read(path)
    tensors = _timm_names(_tensors(checkpoint, path, weights))
    simpool = any(name.startswith("pooling.") for name in tensors)
    if simpool != (source == "simpool"):
        with_or_without, sources = ("with", "simpool") if simpool else ("without", "attmask, ibot, dino")
        raise ValueError(f"source: got {source!r} for {path}, {with_or_without} SimPool's parameters, accepts {sources}")
    settings = _settings(tensors, checkpoint, path, simpool, options)
    if settings["num_classes"] == 0:
        tensors = {name: value for name, value in tensors.items() if name.removesuffix(".bias").removesuffix(".weight") not in CLASSIFIERS}
    settings.setdefault("released_positions", not simpool or settings.get("norm_after", False))
    model = create_model(arch, **settings)
    shapes, model_shapes = ({name: tuple(value.shape) for name, value in state.items()} for state in (tensors, model.state_dict()))
    misfits = [name for name in model_shapes | shapes if shapes.get(name) != model_shapes.get(name)]
    if misfits:
        examples = "; ".join(f"{name} is {shapes.get(name, 'missing')}, not {model_shapes.get(name, 'known')}" for name in misfits[:4])
        count = f"{len(misfits)} of {len(model_shapes)} names"
        raise ValueError(f"arch: got {arch!r} for {path}: {count} do not fit: {examples}; accepts the network that was saved")
    model.load_state_dict(tensors)
    return model.eval()


def _read(path: str | Path) -> Mapping[str, Any]:
    """The dictionary in a file of torch.save. It may hold tensors, plain values, argparse.Namespace and NumPy's numbers only."""
    if not Path(path).is_file():
        raise ValueError(f"path: got {path}, no such file; accepts a released checkpoint")
    try:
        with torch.serialization.safe_globals(HARMLESS):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        refusal = re.search(r"GLOBAL (\S+) (?:was|whose)", str(error))  # torch's message names the object that it did not build
        why = f"it holds {refusal[1]}, which was not executed" if refusal else f"damaged, or not torch.save's ({type(error).__name__})"
        raise ValueError(f"path: {path} cannot be read: {why}; accepts files with weights and plain values only") from error
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"path: {path} holds a {type(checkpoint).__name__}, accepts a dictionary")
    return checkpoint


def _tensors(checkpoint: Mapping[str, Any], path: str | Path, weights: str) -> dict[str, Tensor]:
    """The parameters of one network in a file, without what DistributedDataParallel and torch.compile add to their names."""
    if any(name in checkpoint for name in WEIGHTS):
        if weights not in checkpoint:
            raise ValueError(f"weights: got {weights!r}, {path} accepts {', '.join(name for name in WEIGHTS if name in checkpoint)}")
        tensors = checkpoint[weights]
    elif weights == "teacher" and checkpoint.get("state_dict_ema") is not None:
        tensors = checkpoint["state_dict_ema"]
    else:
        tensors = checkpoint.get("state_dict", checkpoint)
    only_tensors = isinstance(tensors, Mapping) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in tensors.items())
    if not only_tensors or not tensors:
        content = ", ".join(map(str, list(checkpoint)[:5])) or "nothing"
        raise ValueError(f"path: {path} holds {content}; accepts a network's names and tensors, alone or as teacher, student or state_dict")
    return {name.replace("_orig_mod.", "").removeprefix("module."): value for name, value in tensors.items()}


def _timm_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The backbone's tensors under timm's names, with ``pooling.`` before SimPool's parameters; without the projection head and auxiliary
    statistics.
    """
    head = "head." if any(name.startswith("backbone.") for name in tensors) else PROJECTION
    tensors = {name: value for name, value in tensors.items() if not name.startswith(head) and ".aux_bn." not in name}
    tensors = {name.removeprefix("backbone."): value for name, value in tensors.items()}
    result, convnext = {}, any(name.startswith("downsample_layers.") for name in tensors)
    for name, value in tensors.items():
        prefix = next((prefix for prefix in POOLING if name.startswith(prefix)), None)
        if prefix:
            name = "pooling." + name.removeprefix(prefix)
        elif convnext:
            for pattern, replacement in CONVNEXT:
                name = re.sub(pattern, replacement, name)
        result[name] = value
    return result


def _settings(
    tensors: dict[str, Tensor], checkpoint: Mapping[str, Any], path: str | Path, simpool: bool, options: dict[str, Any]
) -> dict[str, Any]:
    """The arguments of create_model: those of the file, overridden by the caller's."""
    classes = next((len(tensors[f"{name}.weight"]) for name in CLASSIFIERS if f"{name}.weight" in tensors), 0)
    settings: dict[str, Any] = dict(num_classes=classes, mask_token="masked_embed" in tensors) | _sizes(tensors, path)
    if simpool:
        transformer, beta = "pos_embed" in tensors, "pooling.beta" in tensors
        is_full = any(name in checkpoint for name in WEIGHTS)
        self_supervised = transformer and (is_full or (beta and not classes and "state_dict_ema" not in checkpoint))
        settings |= dict(pooling="simpool", norm_after=self_supervised)
        self_supervised = transformer and options.get("norm_after", self_supervised)
        default = 1.25 if transformer else 2.0
        gamma = getattr(checkpoint.get("args"), "gamma", default)
        if self_supervised:  # the authors' models have a gamma if and only if they have a beta
            gamma = default if beta else None
        elif gamma is None and beta:
            gamma = default
        options = options | dict(pooling_options=dict(gamma=gamma, beta=beta) | (options.get("pooling_options") or {}))
    return settings | options


def _sizes(tensors: dict[str, Tensor], path: str | Path) -> dict[str, int]:
    """Image and patch size of a Vision Transformer in pixels."""
    if "pos_embed" not in tensors or "patch_embed.proj.weight" not in tensors:
        return {}
    positions = tensors["pos_embed"].shape[1] - ("cls_token" in tensors)
    side, patch = math.isqrt(positions), tensors["patch_embed.proj.weight"].shape[-1]
    if side * side != positions:
        raise ValueError(f"path: {path} has {positions} positions, accepts a square number of them")
    return dict(img_size=side * patch, patch_size=patch)
