"""The checkpoints that the authors released, as our networks; nothing that is pickled in a file is executed."""

import argparse
import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lib.models.factory import create_model
from lib.models.heads import ProjectionHead

SOURCES = ("attmask", "ibot", "dino", "simpool")
WEIGHTS = ("teacher", "student")

# What SimPool's parameters are called: in the self-supervised networks, and in the supervised ViT, ConvNeXt and ResNet.
POOLING = ("simpool.", "gp.pool.", "head.global_pool.pool.", "global_pool.pool.")
CLASSIFIERS = ("head.weight", "fc.weight", "head.fc.weight")
PROJECTION = ("head.mlp", "head.last_")  # of a file whose network has no "backbone." before its names

# From the names of the ConvNeXt repository to timm's.
CONVNEXT = (
    (r"^head\.", "head.fc."),
    (r"^norm\.", "head.norm."),
    (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"^downsample_layers\.0\.", "stem."),
    (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
    (r"\.dwconv\.", ".conv_dw."),
    (r"\.pwconv(\d)\.", r".mlp.fc\1."),
)


def load_released(path: str | Path, arch: str, *, source: str, weights: str = "teacher", **options) -> nn.Module:
    """A network with the weights of a file that the authors of AttMask, iBOT, DINO or SimPool released.

    Features, patches and attention are those of the authors' code: Vision Transformers interpolate positions as it does
    (``ViT.released_positions``), and self-supervised SimPool ones do so even at the size they were trained at. Only the minimum
    inside SimPool differs: the released code takes it over the batch, which is the same for a batch of one; here it is per
    image, so that no output depends on its neighbours. ``pooling_options=dict(min_scope="batch")`` is the released code's.

    Layouts: full checkpoints (``teacher`` and ``student``, with names after ``backbone.`` and ``head.``), timm's training
    checkpoints (``state_dict`` and ``state_dict_ema``), and one network alone, as ``state_dict`` or as the whole file; a leading
    ``module.`` does not matter. Left out on purpose are projection heads (see ``load_released_head``), the auxiliary
    statistics of split batch norms (``aux_bn``, for augmented splits in training only), and everything beside the network. Every
    other name has to fit.

    What the file tells is taken from it: image size, patch size, classes, a mask embedding, SimPool's beta. Depth and heads
    are the architecture's. A SimPool ViT is self-supervised, with the norm after the pooling, where the file has a teacher or a
    student, or a beta and no classifier; else it is supervised, with the norm before it and positions as timm treats them. Of a
    bare file, ``norm_after`` says it where this is wrong. Gamma is 1.25 for ViTs and 2 for convolutional networks, as in the
    paper, or what the file's ``args`` recorded; a self-supervised ViT without beta has none (the authors' models "no gamma").

    Args:
        path: the file.
        arch: as ``create_model`` takes it.
        source: ``attmask``, ``ibot`` or ``dino``, the same to us (a class token, or average pooling of a convolutional network),
            or ``simpool``.
        weights: which network of a file with two: ``teacher`` (of timm's checkpoints the moving average, if there is one), or
            ``student``. A file with one network gives that.
        options: as ``create_model`` takes them, before what the file says; ``pooling_options`` are added to it.
            ``num_classes=0`` leaves a classifier out.

    Returns:
        The network of ``create_model`` in evaluation mode, on the CPU.

    Raises:
        ValueError: no such file, a damaged one or one with code in it, the wrong source, a network that the file does not hold
            or that ``arch`` does not fit.
    """
    for argument, got, accepted in (("source", source, SOURCES), ("weights", weights, WEIGHTS)):
        if got not in accepted:
            raise ValueError(f"{argument}: got {got!r}, accepts {', '.join(accepted)}")
    checkpoint = _read(path)
    stored = _timm_names(_backbone(_chosen(checkpoint, path, weights)))
    has = any(name.startswith("pooling.") for name in stored)
    if has != (source == "simpool"):
        accepted = "simpool" if has else "attmask, ibot, dino"
        raise ValueError(f"source: got {source!r} for {path}, {'with' if has else 'without'} SimPool's parameters, accepts {accepted}")
    settings = _settings(stored, checkpoint, path, source == "simpool", options)
    if settings["num_classes"] == 0:
        stored = {name: value for name, value in stored.items() if not _of_classifier(name)}
    settings.setdefault("released_positions", source != "simpool" or settings.get("norm_after", False))
    model = create_model(arch, **settings)
    _fill(model, stored, f"arch: got {arch!r} for {path}")
    return model.eval()


def load_released_head(path: str | Path, *, weights: str = "teacher", tokens: str = "cls") -> ProjectionHead:
    """The projection head of a full checkpoint, in evaluation mode.

    Args:
        path: a file with ``teacher`` and ``student``, or with one network and its head.
        weights: whose head, ``teacher`` or ``student``.
        tokens: ``cls`` or ``patch``: iBOT's head has a last layer of its own for the patches unless the two share it.

    Returns:
        ProjectionHead; its gain is frozen where it is 1 throughout.

    Raises:
        ValueError: as ``load_released``, or a file without a head or with one that has batch norms.
    """
    for argument, got, accepted in (("weights", weights, WEIGHTS), ("tokens", tokens, ("cls", "patch"))):
        if got not in accepted:
            raise ValueError(f"{argument}: got {got!r}, accepts {', '.join(accepted)}")
    stored = _chosen(_read(path), path, weights)
    stored = {name.removeprefix("head."): value for name, value in stored.items() if name.startswith(PROJECTION)}
    other = "last_layer2." if tokens == "cls" or "last_layer2.weight_v" not in stored else "last_layer."
    stored = {name.replace("last_layer2.", "last_layer."): value for name, value in stored.items() if not name.startswith(other)}
    linear = [value for name, value in stored.items() if re.fullmatch(r"mlp\.\d+\.weight", name) and value.ndim == 2]
    if not linear or not {"last_layer.weight_g", "last_layer.weight_v"} <= stored.keys():
        raise ValueError(f"path: {path} has no projection head for its {weights}; accepts full checkpoints of AttMask, iBOT, DINO")
    sizes = dict(hidden_dim=linear[0].shape[0], bottleneck_dim=linear[-1].shape[0], layers=len(linear))
    frozen = bool((stored["last_layer.weight_g"] == 1).all())
    head = ProjectionHead(linear[0].shape[1], len(stored["last_layer.weight_v"]), **sizes, norm_last_layer=frozen)
    _fill(head, stored, f"path: the head in {path}")
    return head.eval()


# ---- the file ---------------------------------------------------------------------------------------------------------


def _read(path: str | Path) -> Mapping:
    """What torch.save wrote: tensors, plain values, argparse.Namespace and NumPy's numbers; all else is refused."""
    if not Path(path).is_file():
        raise ValueError(f"path: got {path}, no such file; accepts a released checkpoint")
    try:
        with torch.serialization.safe_globals(_harmless()):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        found = re.search(r"GLOBAL (\S+) (?:was|whose)", str(error))  # torch names the object that it refused to make
        why = f"it holds {found[1]}, which was not executed" if found else f"damaged, or not torch.save's ({type(error).__name__})"
        raise ValueError(f"path: {path} cannot be read: {why}; accepts files with weights and plain values only") from error
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"path: {path} holds a {type(checkpoint).__name__}, accepts a dictionary")
    return checkpoint


def _harmless() -> list:
    """What these checkpoints hold beside tensors: parsed arguments, and single NumPy numbers such as learning rates."""
    numbers = [type(np.dtype(code)) for code in "?bBhHiIlLqQefd"]
    scalar = np.float64(0).__reduce__()[0]
    return [argparse.Namespace, np.dtype, *numbers, *[(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]]


def _chosen(checkpoint: Mapping, path: str | Path, weights: str) -> dict[str, Tensor]:
    """The parameters of one network of a file, without ``module.`` before their names."""
    if any(name in checkpoint for name in WEIGHTS):
        if weights not in checkpoint:
            raise ValueError(f"weights: got {weights!r}, {path} accepts {', '.join(name for name in WEIGHTS if name in checkpoint)}")
        stored = checkpoint[weights]
    elif weights == "teacher" and checkpoint.get("state_dict_ema") is not None:
        stored = checkpoint["state_dict_ema"]
    else:
        stored = checkpoint.get("state_dict", checkpoint)
    plain = isinstance(stored, Mapping) and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in stored.items())
    if not plain or not stored:
        has = ", ".join(map(str, list(checkpoint)[:5])) or "nothing"
        raise ValueError(f"path: {path} holds {has}; accepts a network's names and tensors, alone or as teacher, student or state_dict")
    return {name.removeprefix("module."): value for name, value in stored.items()}


def _backbone(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the projection head and auxiliary statistics."""
    wrapped = any(name.startswith("backbone.") for name in stored)
    head = "head." if wrapped else PROJECTION
    kept = {name: value for name, value in stored.items() if not name.startswith(head) and ".aux_bn." not in name}
    return {name.removeprefix("backbone."): value for name, value in kept.items()}


def _timm_names(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's names, and ``pooling.`` before SimPool's parameters."""
    renamed, original = {}, any(name.startswith("downsample_layers.") for name in stored)
    for name, value in stored.items():
        prefix = next((prefix for prefix in POOLING if name.startswith(prefix)), None)
        if prefix:
            name = "pooling." + name.removeprefix(prefix)
        elif original:
            for pattern, replacement in CONVNEXT:
                name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


# ---- the network ------------------------------------------------------------------------------------------------------


def _settings(stored: dict[str, Tensor], checkpoint: Mapping, path: str | Path, simpool: bool, options: dict) -> dict:
    """The arguments of create_model: what the file tells, then the caller's."""
    classes = next((len(stored[name]) for name in CLASSIFIERS if name in stored), 0)
    settings = dict(num_classes=classes, mask_token="masked_embed" in stored) | _sizes(stored, path)
    if simpool:
        transformer, beta = "pos_embed" in stored, "pooling.beta" in stored
        twins = any(name in checkpoint for name in WEIGHTS)
        alone = transformer and (twins or (beta and not classes and "state_dict_ema" not in checkpoint))
        settings |= dict(pooling="simpool", norm_after=alone)
        alone = transformer and options.get("norm_after", alone)
        gamma = _gamma(checkpoint.get("args"), 1.25 if transformer else 2.0, beta, alone)
        options = options | dict(pooling_options=dict(gamma=gamma, beta=beta) | (options.get("pooling_options") or {}))
    return settings | options


def _gamma(args, usual: float, beta: bool, self_supervised_vit: bool) -> float | None:
    """SimPool's exponent, which is no parameter. The authors' self-supervised ViT has a beta exactly when it has a gamma."""
    if self_supervised_vit:
        return usual if beta else None
    recorded = getattr(args, "gamma", usual)
    return usual if recorded is None and beta else recorded


def _sizes(stored: dict[str, Tensor], path: str | Path) -> dict:
    """Image and patch size in pixels, of a Vision Transformer."""
    if "pos_embed" not in stored or "patch_embed.proj.weight" not in stored:
        return {}
    positions = stored["pos_embed"].shape[1] - ("cls_token" in stored)
    side, patch = math.isqrt(positions), stored["patch_embed.proj.weight"].shape[-1]
    if side * side != positions:
        raise ValueError(f"path: {path} has {positions} positions, accepts a square number of them")
    return dict(img_size=side * patch, patch_size=patch)


def _of_classifier(name: str) -> bool:
    return name.removesuffix(".bias").removesuffix(".weight") in ("head", "fc", "head.fc")


def _fill(model: nn.Module, stored: dict[str, Tensor], culprit: str) -> None:
    """Load the weights, all of them."""
    shapes, wanted = ({name: tuple(value.shape) for name, value in state.items()} for state in (stored, model.state_dict()))
    wrong = [name for name in wanted | shapes if shapes.get(name) != wanted.get(name)]
    if wrong:
        few = "; ".join(f"{name} is {shapes.get(name, 'missing')}, not {wanted.get(name, 'known')}" for name in wrong[:4])
        raise ValueError(f"{culprit}: {len(wrong)} of {len(wanted)} names do not fit: {few}; accepts the network that was saved")
    model.load_state_dict(stored)
