import argparse
import os
import pickle
import re
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from timm.layers import convert_splitbn_model
from timm.models.convnext import checkpoint_filter_fn
from torch import nn

from lib.models import ProjectionHead, create_model
from lib.models.released import SOURCES, _timm_names, load_released
from lib.pooling import SimPool

EPS = 1e-6
SIZES = [(48, 48), (32, 32), (32, 64), (96, 56)]
CLASS_TOKEN = ("attmask", "ibot", "dino")
close = dict(rtol=1e-4, atol=1e-5)


# ---- the authors' forward passes, from names and tensors alone ----------------------------------------------------------


def linear(w, name, x):
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def norm(w, name, x):
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], EPS)


def attend(w, name, x, heads):
    """A self-attention layer with its full softmax [B, heads, T, T]."""
    b, t, d = x.shape
    q, k, v = linear(w, f"{name}.qkv", x).reshape(b, t, 3, heads, d // heads).permute(2, 0, 3, 1, 4)
    attention = (q @ k.transpose(-2, -1) * (d // heads) ** -0.5).softmax(-1)
    return linear(w, f"{name}.proj", (attention @ v).transpose(1, 2).reshape(b, t, d)), attention


def positions(w, height, width, always):
    """Positions of a grid [1, prefix + H W, D], as the released Vision Transformers make them."""
    prefix = int("cls_token" in w)
    first, rest = w["pos_embed"][:, :prefix], w["pos_embed"][:, prefix:]
    side = int(rest.shape[1] ** 0.5)
    if always or (height, width) != (side, side):
        square = rest.reshape(1, side, side, -1).permute(0, 3, 1, 2)
        rest = F.interpolate(square, scale_factor=((height + 0.1) / side, (width + 0.1) / side), mode="bicubic")
        assert rest.shape[-2:] == (height, width)
        rest = rest.permute(0, 2, 3, 1).reshape(1, height * width, -1)
    return torch.cat([first, rest], 1)


def simpool(w, x, gamma, name="simpool"):
    """The released layer on tokens [B, N, D], with its minimum over the whole batch: (vector [B, D], attention [B, 1, N])."""
    q, v = linear(w, f"{name}.wq", x.mean(1, keepdim=True)), norm(w, f"{name}.norm_patches", x)
    attention = (q @ linear(w, f"{name}.wk", v).transpose(-2, -1) * x.shape[-1] ** -0.5).softmax(-1)
    if gamma is None:
        return (attention @ v)[:, 0], attention
    vector = (attention @ (v - v.min() + EPS) ** gamma) ** (1 / gamma)
    return vector[:, 0] + w.get(f"{name}.beta", 0), attention


def vit(w, images, heads, *, gamma=None, self_supervised=True):
    """(vector, patches, attention) of a released Vision Transformer with its own names."""
    x = F.conv2d(images, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=w["patch_embed.proj.weight"].shape[-1])
    grid, token = x.shape[-2:], "cls_token" in w
    x = x.flatten(2).transpose(1, 2)
    if token:
        x = torch.cat([w["cls_token"].expand(len(x), -1, -1), x], 1)
    x = x + (positions(w, *grid, always=not token) if self_supervised else w["pos_embed"])
    for i in range(sum(name.endswith("attn.qkv.weight") for name in w)):
        y, attention = attend(w, f"blocks.{i}.attn", norm(w, f"blocks.{i}.norm1", x), heads)
        x = x + y
        y = linear(w, f"blocks.{i}.mlp.fc1", norm(w, f"blocks.{i}.norm2", x))
        x = x + linear(w, f"blocks.{i}.mlp.fc2", F.gelu(y))
    normed = norm(w, "norm", x)
    if token:
        return normed[:, 0], normed[:, 1:], attention[:, :, 0, 1:]
    vector, attention = simpool(w, x if self_supervised else normed, gamma)
    return norm(w, "norm", vector) if self_supervised else vector, normed, attention


# ---- files --------------------------------------------------------------------------------------------------------------


def scrambled(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.abs_().add_(0.1)
    return model.eval()


def network(arch, seed, **options):
    """A network far from its initialisation, and the same with its pooling's parameters under the authors' name."""
    model = scrambled(create_model(arch, **options), seed)
    return model, {name.replace("pooling.", "simpool."): value for name, value in model.state_dict().items()}


@cache
def twins(kind):
    """(teacher's, student's) tensors of a tiny ViT of 36 positions: ``token``, ``simpool`` or ``no gamma``."""
    options = dict(img_size=48)
    if kind != "token":
        options |= dict(pooling="simpool", pooling_options=dict(gamma=1.25, beta=True) if kind == "simpool" else None)
    student = dict(mask_token=True) if kind == "token" else {}
    return network("vit_nano", 1, **options)[1], network("vit_nano", 2, **options, **student)[1]


def head_of(seed, dim=128):
    torch.manual_seed(seed)
    tensors = ProjectionHead(dim, 24, hidden_dim=20, bottleneck_dim=12).state_dict()
    return tensors | {f"last_layer2.{name}": tensors[f"last_layer.{name}"] for name in ("weight_g", "weight_v")}


def prefixed(prefix, tensors):
    return {prefix + name: value for name, value in tensors.items()}


def besides(**args):
    """What full checkpoints hold beside the networks."""
    parameter = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    parameter.grad = torch.ones(3)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = np.float64(5e-4)
    optimizer.param_groups[0]["weight_decay"] = np.float32(0.04)
    loss = nn.BatchNorm1d(4).state_dict()  # an OrderedDict with metadata
    args = argparse.Namespace(arch="vit_small", global_crops_scale=(0.25, 1.0), lr=5e-4, **args)
    return {"optimizer": optimizer.state_dict(), "epoch": 100, "args": args, "dino_loss": loss, "best": np.int64(3), "fp16_scaler": None}


def full(teacher, student, head_dim=128, **args):
    whole = prefixed("backbone.", teacher) | prefixed("head.", head_of(1, head_dim))
    other = prefixed("module.backbone.", student) | prefixed("module.head.", head_of(2, head_dim))
    return {"teacher": whole, "student": other} | besides(**args)


LAYOUTS = {
    "full": lambda both, which: full(*both),
    "full, teacher wrapped": lambda both, which: full(*both) | {"teacher": prefixed("module.backbone.", both[0])},
    "state_dict": lambda both, which: {"state_dict": both[which]},
    "state_dict with head": lambda both, which: {"state_dict": both[which] | prefixed("head.", head_of(3))},
    "state_dict, compiled": lambda both, which: {"state_dict": prefixed("_orig_mod.module.", both[which])},
    "state_dict, wrapped": lambda both, which: {"state_dict": prefixed("module.", both[which])},
    "bare": lambda both, which: both[which],
}


@pytest.fixture
def save(tmp_path):
    def write(content, **options):
        torch.save(content, tmp_path / "checkpoint.pth", **options)
        return tmp_path / "checkpoint.pth"

    return write


def pixels(height, width, batch=2):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(5))


def one_by_one(function, images):
    """As the authors' code gives it to a batch of one, which has no neighbours."""
    return [torch.cat(parts) for parts in zip(*(function(image[None]) for image in images))]


def agree(found, expected):
    for a, b in zip((found.cls, found.patches, found.attention), expected):
        torch.testing.assert_close(a, b, **close)


# ---- self-supervised Vision Transformers --------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("weights", ["teacher", "student"])
@pytest.mark.parametrize("source", CLASS_TOKEN)
@torch.no_grad()
def test_class_token_networks(source, weights, layout, save):
    both, which = twins("token"), weights == "student"
    model = load_released(save(LAYOUTS[layout](both, which)), "vit_nano", source=source, weights=weights)
    assert not model.training and model.released_positions and hasattr(model, "masked_embed") == which
    for size in SIZES if source == "attmask" else SIZES[:2]:
        images = pixels(*size)
        agree(model.features(images), vit(both[which], images, heads=4))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("weights", ["teacher", "student"])
@torch.no_grad()
def test_self_supervised_simpool(weights, layout, save):
    both, which = twins("simpool"), weights == "student"
    model = load_released(save(LAYOUTS[layout](both, which)), "vit_nano", source="simpool", weights=weights)
    assert not model.training and model.norm_after and model.pooling.gamma == 1.25
    for size in SIZES:
        images = pixels(*size)
        agree(model.features(images), one_by_one(lambda x: vit(both[which], x, heads=4, gamma=1.25), images))


@torch.no_grad()
def test_self_supervised_simpool_without_gamma_has_no_beta(save):
    both, images = twins("no gamma"), pixels(48, 48)
    model = load_released(save(full(*both)), "vit_nano", source="simpool")
    assert model.pooling.gamma is None and model.pooling.beta is None
    agree(model.features(images), vit(both[0], images, heads=4))
    bare = load_released(save(both[0]), "vit_nano", source="simpool", norm_after=True)
    agree(bare.features(images), vit(both[0], images, heads=4))


@torch.no_grad()
def test_the_minimum_is_per_image_unless_asked(save):
    weights, images = twins("simpool")[0], pixels(48, 48)
    path = save({"state_dict": weights})
    ours = load_released(path, "vit_nano", source="simpool").features(images)
    theirs = load_released(path, "vit_nano", source="simpool", pooling_options=dict(min_scope="batch"))
    assert theirs.pooling.gamma == 1.25 and theirs.pooling.beta is not None
    agree(theirs.features(images), vit(weights, images, heads=4, gamma=1.25))
    assert not torch.allclose(ours.cls, theirs.features(images).cls, atol=1e-6)


@pytest.mark.parametrize("height, width", [(6, 6), (4, 4), (12, 7)])
@torch.no_grad()
def test_positions_are_the_authors(height, width, save):
    """Zero patch embeddings leave the positions alone. Without a class token they change even at the trained 6 x 6."""
    for kind, source in (("token", "dino"), ("simpool", "simpool")):
        weights = twins(kind)[0]
        model = load_released(save(full(*twins(kind))), "vit_nano", source=source)
        found = model._pos_embed(torch.zeros(1, height, width, 128))
        trained, prefix = weights["pos_embed"], int(kind == "token")
        square = trained[:, prefix:].unflatten(1, (6, 6)).permute(0, 3, 1, 2)
        scaled = F.interpolate(square, scale_factor=((height + 0.1) / 6, (width + 0.1) / 6), mode="bicubic").flatten(2).mT
        same = (height, width) == (6, 6)
        expected = trained[:, prefix:] if same and prefix else scaled
        torch.testing.assert_close(found[:, prefix:], expected, rtol=1e-6, atol=1e-6)
        if prefix:
            torch.testing.assert_close(found[:, :1], trained[:, :1] + weights["cls_token"], rtol=0, atol=0)
        if same:
            assert (scaled - trained[:, prefix:]).abs().max() > 1e-3  # the quirk is no rounding error
        else:
            plain = F.interpolate(square, (height, width), mode="bicubic").flatten(2).mT
            assert (scaled - plain).abs().max() > 1e-3


@pytest.mark.parametrize("patch, side", [(4, 5), (16, 3)])
@torch.no_grad()
def test_sizes_follow_the_file(patch, side, save):
    _, weights = network("vit_tiny_patch16_224", 0, img_size=patch * side, patch_size=patch, depth=2)
    model = load_released(save(weights), "vit_tiny_patch16_224", source="dino", depth=2)
    for size in ((patch * side,) * 2, (patch * 2, patch * 7)):
        agree(model.features(pixels(*size)), vit(weights, pixels(*size), heads=3))


@torch.no_grad()
def test_a_students_mask_embedding_is_the_files(save):
    both = twins("token")
    model = load_released(save(full(*both)), "vit_nano", source="attmask", weights="student")
    assert torch.equal(model.masked_embed, both[1]["masked_embed"]) and model.masked_embed.any()
    assert model.features(pixels(48, 48), torch.ones(2, 36, dtype=torch.bool)).cls.isfinite().all()


# ---- self-supervised convolutional networks -----------------------------------------------------------------------------


def original_names(weights):
    """timm's names of a ConvNeXt as the ConvNeXt repository has them."""
    rules = [
        ("stem.", "downsample_layers.0."),
        (r"stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
        (r"(stages\.\d)\.blocks\.", r"\1."),
        ("conv_dw", "dwconv"),
        (r"mlp\.fc", "pwconv"),
        (r"head\.norm\.", "norm."),
        (r"head\.fc\.", "head."),
    ]
    renamed = {}
    for name, value in weights.items():
        for pattern, replacement in rules if not name.startswith("simpool.") else ():
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


@pytest.mark.parametrize("recorded, gamma", [({}, 2.0), (dict(gamma=None), None), (dict(gamma=1.5), 1.5)])
@pytest.mark.parametrize("weights", ["teacher", "student"])
@pytest.mark.parametrize("arch", ["resnet_mini", "convnext_mini"])
@torch.no_grad()
def test_convolutional_simpool(arch, weights, recorded, gamma, save):
    both = [network(arch, seed, pooling="simpool") for seed in (1, 2)]
    dim = both[0][0].num_features
    names = original_names if arch == "convnext_mini" else dict
    path = save(full(*(names(tensors) for _, tensors in both), head_dim=dim, **recorded))
    model = load_released(path, arch, source="simpool", weights=weights)
    assert model.pooling.gamma == gamma and not model.training
    teacher, tensors = both[weights == "student"]
    for size in ((48, 48), (32, 64)):
        maps = teacher.forward_features(pixels(*size)).flatten(2).mT
        vector, attention = one_by_one(lambda x: simpool(tensors, x, gamma), maps)
        vector = norm(tensors, "head.norm", vector) if arch == "convnext_mini" else vector
        agree(model.features(pixels(*size)), (vector, maps, attention))


def test_convnext_names_are_timms():
    original = original_names(network("convnext_mini", 0, num_classes=3)[1])
    expected = checkpoint_filter_fn(dict(original), create_model("convnext_mini", num_classes=3))
    found = _timm_names(original)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    assert "stages.1.blocks.0.conv_dw.weight" in found and not found.keys() & original.keys()


@pytest.mark.parametrize("layout", ["bare", "state_dict"])
@torch.no_grad()
def test_torchvisions_resnet(layout, save):
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18()
    theirs.fc, theirs.simpool = nn.Identity(), SimPool(512)
    scrambled(theirs, 0)
    tensors, images = theirs.state_dict(), pixels(64, 64)
    model = load_released(save(LAYOUTS[layout]((tensors,), 0)), "resnet18", source="simpool")
    images, tensors = images.double(), {name: tensor.double() for name, tensor in tensors.items()}  # the scrambled maps reach thousands
    maps = nn.Sequential(*list(theirs.double().children())[:8])(images).flatten(2).mT
    expected = one_by_one(lambda x: simpool(tensors, x, 2.0), maps)
    features = model.double().features(images)
    torch.testing.assert_close(features.patches, maps, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(features.cls, expected[0], rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_dinos_resnet_pools_by_average(save):
    model, tensors = network("resnet_mini", 0)
    found = load_released(save(tensors), "resnet_mini", source="dino").features(pixels(32, 32))
    torch.testing.assert_close(found.cls, model.forward_features(pixels(32, 32)).mean((2, 3)), **close)


# ---- supervised networks, timm's training checkpoints -------------------------------------------------------------------


def supervised(plain, average=None, **args):
    averaged = {} if average is None else {"state_dict_ema": average}
    return {"arch": "a", "state_dict": plain, "version": 2, "metric": np.float64(74.2)} | besides(**args) | averaged


def under(name, tensors):
    return {key.replace("simpool.", name): value for key, value in tensors.items()}


@pytest.mark.parametrize("weights", ["teacher", "student"])
@pytest.mark.parametrize("name", ["simpool.", "gp.pool."])
@pytest.mark.parametrize("recorded, gamma", [({}, 1.25), (dict(gamma=1.25), 1.25), (dict(gamma=None), None)])
@torch.no_grad()
def test_supervised_vit(recorded, gamma, name, weights, save):
    both = [network("vit_nano", seed, img_size=48, pooling="simpool", num_classes=7)[1] for seed in (1, 2)]
    path = save(supervised(under(name, both[1]), under(name, both[0]), **recorded))
    model = load_released(path, "vit_nano", source="simpool", weights=weights)
    tensors, images = both[weights == "student"], pixels(48, 48)
    assert model.pooling.gamma == gamma and not model.norm_after and not model.released_positions
    vector, patches, attention = one_by_one(lambda x: vit(tensors, x, heads=4, gamma=gamma, self_supervised=False), images)
    agree(model.features(images), (vector, patches, attention))
    torch.testing.assert_close(model(images), linear(tensors, "head", vector), rtol=1e-4, atol=1e-4)
    assert model.features(pixels(32, 64)).grid == (4, 8)


@torch.no_grad()
def test_a_classifier_outweighs_beta(save):
    """The released supervised ViT-S may carry a beta."""
    options = dict(img_size=48, pooling="simpool", pooling_options=dict(gamma=1.25, beta=True), num_classes=7)
    tensors, images = network("vit_nano", 1, **options)[1], pixels(48, 48, batch=1)
    for recorded in ({}, dict(gamma=None)):
        model = load_released(save(supervised(tensors, **recorded)), "vit_nano", source="simpool")
        agree(model.features(images), vit(tensors, images, heads=4, gamma=1.25, self_supervised=False))


@pytest.mark.parametrize("weights", ["teacher", "student"])
@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("arch, name", [("resnet_mini", "global_pool.pool."), ("convnext_mini", "head.global_pool.pool.")])
@torch.no_grad()
def test_supervised_convolutional(arch, name, average, weights, save):
    pairs = [network(arch, seed, pooling="simpool", num_classes=7) for seed in (1, 2)]
    names = [under(name, tensors) for _, tensors in pairs]
    path = save(supervised(names[1], names[0] if average else None, gamma=2.0))
    model = load_released(path, arch, source="simpool", weights=weights)
    theirs, tensors = pairs[0 if average and weights == "teacher" else 1]
    theirs.pooling.gamma = 2.0
    images = pixels(32, 48)
    maps = theirs.forward_features(images).flatten(2).mT
    vector, attention = one_by_one(lambda x: simpool(tensors, x, 2.0), maps)
    vector = norm(tensors, "head.norm", vector) if arch == "convnext_mini" else vector
    agree(model.features(images), (vector, maps, attention))
    classifier = "head.fc" if arch == "convnext_mini" else "fc"
    torch.testing.assert_close(model(images), linear(tensors, classifier, vector), rtol=1e-4, atol=1e-4)
    bare = load_released(path, arch, source="simpool", weights=weights, num_classes=0)
    torch.testing.assert_close(bare(images), vector, **close)


@torch.no_grad()
def test_split_batch_norms_keep_their_main_statistics(save):
    """ResNet-50 was trained with three splits; only the first one's norms are used afterwards."""
    theirs, _ = network("resnet_mini", 1, pooling="simpool", pooling_options=dict(gamma=2.0), num_classes=3)
    images = pixels(32, 32)
    expected = theirs(images)
    split = convert_splitbn_model(theirs, 3).state_dict()
    tensors = {name.replace("pooling.", "global_pool.pool."): value for name, value in split.items()}
    assert any(".aux_bn." in name for name in tensors)
    model = load_released(save(supervised(tensors)), "resnet_mini", source="simpool")
    torch.testing.assert_close(model(images), expected, **close)


# ---- refusals -----------------------------------------------------------------------------------------------------------


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("place", ["args", "weights", "whole"])
@pytest.mark.parametrize("raw", [False, True])
def test_pickled_code_is_not_executed(place, raw, tmp_path):
    marker, path = tmp_path / "executed", tmp_path / "evil.pth"
    evil = Malicious(marker)
    content = {
        "args": full(*twins("token")) | {"args": argparse.Namespace(x=evil)},
        "weights": {"state_dict": twins("token")[0] | {"norm.weight": evil}},
        "whole": evil,
    }[place]
    if raw:
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match="evil.pth .*which was not executed" if not raw else "evil.pth cannot be read"):
        load_released(path, "vit_nano", source="dino")
    assert not marker.exists()
    with open(path, "rb") as file:  # and would have been
        pickle.load(file) if raw else torch.load(file, weights_only=False)
    assert marker.exists()


def test_reading_leaves_no_permissions_behind(save):
    before = {str(allowed) for allowed in torch.serialization.get_safe_globals()}
    load_released(save(full(*twins("token"))), "vit_nano", source="dino")
    assert {str(allowed) for allowed in torch.serialization.get_safe_globals()} == before


def test_missing_and_damaged_files(tmp_path, save):
    path = save(full(*twins("token")))
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"not a checkpoint"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="^path: .*checkpoint.pth cannot be read: damaged.* accepts"):
            load_released(path, "vit_nano", source="dino")
    for missing in (tmp_path / "nowhere.pth", tmp_path):
        with pytest.raises(ValueError, match="^path: got .* no such file; accepts"):
            load_released(missing, "vit_nano", source="dino")
    for content in ([1, 2], {"epoch": 3}, {}, {"state_dict": {}}, {"state_dict": {"a": 1}}, {"teacher": None}):
        with pytest.raises(ValueError, match="^path: .*checkpoint.pth holds .*"):
            load_released(save(content), "vit_nano", source="dino")


@pytest.mark.parametrize("kind, source", [("token", "simpool"), *[("simpool", source) for source in CLASS_TOKEN]])
def test_the_wrong_source(kind, source, save):
    with pytest.raises(ValueError, match=f"^source: got '{source}' for .*checkpoint.pth.* accepts"):
        load_released(save(full(*twins(kind))), "vit_nano", source=source)


def test_unknown_choices(save):
    path = save(full(*twins("token")))
    with pytest.raises(ValueError, match=f"^source: got 'mae', accepts {', '.join(SOURCES)}"):
        load_released(path, "vit_nano", source="mae")
    with pytest.raises(ValueError, match="^weights: got 'ema', accepts teacher, student"):
        load_released(path, "vit_nano", source="dino", weights="ema")
    with pytest.raises(ValueError, match="^arch: got 'vit_huge_patch3'.* accepts"):
        load_released(path, "vit_huge_patch3", source="dino")
    half = full(*twins("token"))
    del half["student"]
    with pytest.raises(ValueError, match="^weights: got 'student', .*checkpoint.pth accepts teacher"):
        load_released(save(half), "vit_nano", source="dino", weights="student")


@pytest.mark.parametrize("arch", ["vit_micro", "vit_tiny_patch16_224", "resnet_mini"])
@pytest.mark.parametrize("kind, source", [("token", "dino"), ("simpool", "simpool")])
def test_another_architecture(kind, source, arch, save):
    with pytest.raises(ValueError, match=rf"^arch: got '{arch}' for .*checkpoint.pth: \d+ of \d+ names do not fit: \w+.*; accepts"):
        load_released(save(full(*twins(kind))), arch, source=source)


def test_the_same_width_at_another_depth(save):
    """More blocks in the file than in the network, and fewer: heads are not in a file, so the architecture has to be right."""
    for depth in (1, 3):
        _, tensors = network("vit_tiny_patch16_224", 0, img_size=32, depth=depth)
        with pytest.raises(ValueError, match=r"names do not fit: .*blocks\.\d"):
            load_released(save(tensors), "vit_tiny_patch16_224", source="dino", depth=2)


def test_no_name_is_dropped_or_invented(save):
    tensors = twins("token")[0]
    content = full(*twins("token"))
    lacking = {name: value for name, value in tensors.items() if name != "blocks.2.norm1.bias"}
    for given, message in (
        (tensors | {"extra": torch.zeros(2)}, r"1 of \d+ names do not fit: extra is \(2,\), not known"),
        (lacking, r"1 of \d+ names do not fit: blocks.2.norm1.bias is missing, not \(128,\)"),
        (content | {"teacher": content["teacher"] | {"extra": torch.zeros(2)}}, "extra is"),
        (tensors | {"pos_embed": torch.zeros(1, 36, 128)}, "35 positions, accepts a square"),
    ):
        with pytest.raises(ValueError, match=message):
            load_released(save(given), "vit_nano", source="dino")
