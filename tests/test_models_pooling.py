"""Networks with any pooling: what they compute, what they weigh, timm's weights, saving, and the networks of recipes."""

import json
import re
import shutil

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import nn

from lib.data.scenes import render
from lib.data.views import center_view
from lib.models import create_model, network_of
from lib.models.base import Model
from lib.pooling import create_pooling, pooling_names
from lib.pooling.framework import POOLINGS

SMALL = ("vit_nano", "resnet_mini", "convnext_mini")
VIT_POOLINGS = [name for name in pooling_names() if name != "cls"]  # a ViT's class token is its own, tested apart
CASES = [(arch, name) for arch in SMALL for name in (VIT_POOLINGS if arch == "vit_nano" else pooling_names())]
VIT = "vit_tiny_patch16_224"
TINY_VIT = dict(img_size=32, depth=2, num_classes=5)


def scrambled(model):
    """Far from its initialisation, so that no part is an identity; variances of batch norms stay positive."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.1)
    return model.eval()


def pixels(height=32, width=32, batch=2):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def network(arch, pooling, **options):
    torch.manual_seed(3)
    return scrambled(create_model(arch, **dict(pooling=pooling, img_size=32, num_classes=7) | options))


def literal_tokens(model, images):
    """A ViT's last tokens without class token, before the final norm."""
    x = F.conv2d(images, model.patch_embed.proj.weight, model.patch_embed.proj.bias, stride=model.patch_embed.proj.stride)
    x = x.flatten(2).mT + model.pos_embed
    for block in model.blocks:
        x = x + block.attn(block.norm1(x))
        x = x + block.mlp(block.norm2(x))
    return x


def layer_norm(x, norm):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def literal(model, images):
    """(pooled vectors, patches, grid, attention) of a network of ``SMALL`` with a pooling."""
    pooling = model._modules["pooling"]  # the registered one, whatever attributes say
    if hasattr(model, "blocks"):
        tokens, grid = literal_tokens(model, images), tuple(side // 8 for side in images.shape[-2:])
        normed = layer_norm(tokens, model.norm)
        vectors, attention = pooling(tokens if model.norm_after else normed, grid)
        return layer_norm(vectors, model.norm) if model.norm_after else vectors, normed, grid, attention
    maps = model.forward_features(images)
    vectors, attention = pooling(maps)
    vectors = layer_norm(vectors, model.head.norm) if "convnext" in type(model).__name__.lower() else vectors
    return vectors, maps.flatten(2).mT, maps.shape[-2:], attention


def literal_logits(model, vectors):
    """The largest logit over the pooled vectors of each image."""
    weight, bias = model.classifier.weight, model.classifier.bias
    if vectors.ndim == 2:
        vectors = vectors[:, None]
    return torch.stack([torch.stack([weight @ vector + bias for vector in image]).amax(0) for image in vectors])


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-5)


def same_state(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def parameters(model):
    return sum(p.numel() for p in model.parameters())


# ---- features ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch, name", CASES)
@torch.no_grad()
def test_features_and_logits_equal_the_literal_computation(arch, name):
    model = network(arch, name, img_size=(32, 40))
    images = pixels(32, 40)
    vectors, patches, grid, attention = literal(model, images)
    found = model.features(images)
    assert type(model._modules["pooling"]) is POOLINGS[name] and found.grid == tuple(grid) == (4, 5)
    close(found.cls, vectors.amax(1) if vectors.ndim == 3 else vectors)
    close(found.patches, patches)
    close(model.pool(images).cls, vectors)
    close(model(images), literal_logits(model, vectors))
    assert (found.attention is None) == (attention is None)
    if attention is not None:
        close(found.attention, attention)
        assert found.attention.shape[::2] == (2, 20)


@pytest.mark.parametrize("name", VIT_POOLINGS)
@torch.no_grad()
def test_a_vit_may_pool_before_its_norm(name):
    model, before = (network("vit_nano", name, img_size=(40, 24), norm_after=after) for after in (True, False))
    images = pixels(40, 24)
    vectors, patches, grid, attention = literal(model, images)
    found = model.features(images)
    close(found.cls, vectors.amax(1) if vectors.ndim == 3 else vectors)
    close(found.patches, patches)
    close(model(images), literal_logits(model, vectors))
    assert found.grid == grid == (5, 3)
    if attention is not None:
        close(found.attention, attention)
    assert not torch.allclose(found.cls, before.features(images).cls, atol=1e-3)


@pytest.mark.parametrize("arch, name", [(arch, name) for arch, name in CASES if list(create_pooling(name, 128).parameters())])
def test_the_poolings_weights_count_and_learn(arch, name):
    """A class attribute once hid the registered module, which then was in the state but not in the computation."""
    model = network(arch, name)
    images = pixels()
    before = model(images)
    before.square().sum().backward()
    mine = {key: p for key, p in model.named_parameters() if key.startswith("pooling.")}
    assert mine and all(p.grad is not None and p.grad.isfinite().all() for p in mine.values())
    assert any(p.grad.abs().max() > 0 for p in mine.values())
    with torch.no_grad():
        for p in mine.values():
            p.mul_(0.5).add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(2)))
        assert not torch.allclose(model(images), before, atol=1e-3)


@pytest.fixture(scope="module")
def scenes():
    """Scenes before their classes' own grounds, and unseen ones."""
    shown, unseen = (render(torch.arange(count), seed=seed, size=32, correlation=1.0) for count, seed in ((384, 1), (200, 2)))
    return [(center_view(scene.images, 32, crop=1.0), scene.labels) for scene in (shown, unseen)]


@pytest.mark.parametrize("name", pooling_names())
def test_every_pooling_learns_in_a_small_vit(name, scenes):
    (images, labels), (unseen, truth) = scenes
    torch.manual_seed(0)
    model = create_model("vit_nano", pooling=name, img_size=32, depth=1, embed_dim=64, num_classes=10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(48):
        some = torch.arange(step * 64, step * 64 + 64) % len(images)
        optimizer.zero_grad()
        F.cross_entropy(model(images[some]), labels[some]).backward()
        optimizer.step()
    with torch.no_grad():
        assert (model.eval()(unseen).argmax(1) == truth).double().mean() > 0.35  # chance is 0.1


@pytest.mark.parametrize("arch", SMALL)
def test_replacing_the_pooling_replaces_what_is_computed(arch):
    model, images = network(arch, "gap"), pixels()
    with torch.no_grad():
        average = model.features(images).cls
        model.pooling = create_pooling("max", model.num_features)
        close(model.features(images).cls, literal(model, images)[0])
        assert not torch.allclose(model.features(images).cls, average, atol=1e-2)


@pytest.mark.parametrize("arch", SMALL)
def test_without_a_classifier_the_pooled_vector_comes_out(arch):
    model = network(arch, "simpool", num_classes=0)
    with torch.no_grad():
        close(model(pixels()), model.features(pixels()).cls)
    assert isinstance(model.classifier, nn.Identity)


@torch.no_grad()
def test_cls_on_a_vit_is_its_class_token():
    own, named = network("vit_nano", None), network("vit_nano", "cls")
    assert same_state(own, named) and named.pooling is None and named.cls_token is not None
    for a, b in zip(own.features(pixels()), named.features(pixels())):
        assert a == b if isinstance(a, tuple) else torch.equal(a, b)


@pytest.mark.parametrize("arch", SMALL)
def test_only_class_tokens_have_a_class_token(arch):
    names = dict(network(arch, "simpool").named_parameters())
    assert "cls_token" not in names and "pooling.wq.weight" in names


@pytest.mark.parametrize("norm_after", [False, True])
@torch.no_grad()
def test_registers_are_not_pooled(norm_after):
    model = network("vit_nano", "simpool", reg_tokens=3, norm_after=norm_after)
    seen = []
    with model._modules["pooling"].register_forward_pre_hook(lambda _, given: seen.append(given[0])):
        found = model.features(pixels())
    assert found.patches.shape == (2, 16, 128) and found.attention.shape[::2] == (2, 16) and seen[0].shape == (2, 16, 128)
    if not norm_after:
        close(seen[0], found.patches)


@torch.no_grad()
def test_a_mask_reaches_a_vit_with_a_pooling():
    model = network("vit_nano", "simpool", mask_token=True)
    images, hidden, mask = pixels(), pixels(), torch.zeros(2, 16, dtype=torch.bool)
    mask[:, 6] = True
    hidden[..., 8:16, 16:24] = 0
    assert torch.equal(model.features(images, mask).cls, model.features(hidden, mask).cls)
    assert not torch.allclose(model.features(images, mask).cls, model.features(images).cls, atol=1e-4)


# ---- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arch, pooling, count",
    [
        ("vit_small_patch16_224", None, 22_050_664),
        ("vit_small_patch16_224", "cls", 22_050_664),
        ("vit_small_patch16_224", "gap", 22_050_664 - 2 * 384),
        ("vit_small_patch16_224", "simpool", 22_345_576),
        ("resnet50", None, 25_557_032),
        ("resnet50", "simpool", 33_949_736),
    ],
)
def test_numbers_of_parameters_are_the_papers(arch, pooling, count):
    with torch.device("meta"):
        model = create_model(arch, pooling=pooling, num_classes=1000)
    assert parameters(model) == count
    if arch.startswith("vit"):
        assert parameters(model.blocks[0]) == 1_774_464


@pytest.mark.parametrize("name, scopes", [("simpool", ["image", "channel"])])
def test_options_reach_the_pooling(name, scopes):
    for scope in scopes:
        assert network("resnet_mini", name, pooling_options=dict(gamma=1.5, min_scope=scope)).pooling.min_scope == scope
    assert network("vit_nano", name, pooling_options=dict(gamma=1.5, beta=True)).pooling.beta.shape == (1,)


# ---- timm's networks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["resnet18", "convnext_atto"])
@torch.no_grad()
def test_convolutional_networks_are_timms(arch):
    theirs = scrambled(timm.create_model(arch, num_classes=10))
    ours = create_model(arch, num_classes=10).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    close(ours(pixels(64, 64)), theirs(pixels(64, 64)))
    close(ours.features(pixels(64, 64)).cls, theirs.forward_head(theirs.forward_features(pixels(64, 64)), pre_logits=True))


@pytest.fixture(scope="module")
def stored_vit(tmp_path_factory):
    """timm's network with a class token, and a file of its weights that timm takes for the pre-trained ones."""
    return stored(VIT, tmp_path_factory.mktemp("vit"), **TINY_VIT)


def stored(arch, folder, **options):
    theirs = scrambled(timm.create_model(arch, **options))
    torch.save(theirs.state_dict(), folder / "weights.pth")
    return theirs, dict(pretrained=True, pretrained_cfg_overlay=dict(file=str(folder / "weights.pth"), num_classes=5))


@torch.no_grad()
def test_pre_trained_weights_of_a_class_token_vit(stored_vit):
    theirs, file = stored_vit
    ours = create_model(VIT, **TINY_VIT, **file).eval()
    assert same_state(ours, theirs)
    close(ours(pixels()), theirs(pixels()))


@pytest.mark.parametrize("norm_after", [False, True])
def test_pre_trained_weights_without_the_class_token(stored_vit, norm_after):
    """All weights but the token's, and positions but its own, which have no place."""
    theirs, file = stored_vit
    ours = create_model(VIT, pooling="simpool", norm_after=norm_after, **TINY_VIT, **file).eval()
    mine, given = ours.state_dict(), theirs.state_dict()
    assert {name for name in mine if not name.startswith("pooling.")} == given.keys() - {"cls_token"}
    assert torch.equal(mine["pos_embed"], given["pos_embed"][:, 1:])
    assert all(torch.equal(mine[name], given[name]) for name in given.keys() - {"cls_token", "pos_embed"})
    with torch.no_grad():
        close(ours.features(pixels()).patches, layer_norm(timm_tokens(theirs, pixels()), theirs.norm))


def timm_tokens(theirs, images):
    x = theirs.patch_embed(images) if theirs.patch_embed.flatten else theirs.patch_embed(images).flatten(1, 2)
    return theirs.blocks(x + theirs.pos_embed[:, 1:])


def test_pre_trained_positions_are_resized(stored_vit):
    _, file = stored_vit
    ours = create_model(VIT, pooling="gap", **TINY_VIT | dict(img_size=64), **file)
    assert ours.pos_embed.shape == (1, 16, 192)
    close(ours.pos_embed.mean(), create_model(VIT, **TINY_VIT | dict(img_size=64), **file).pos_embed[:, 1:].mean())


@torch.no_grad()
def test_pre_trained_weights_of_a_resnet(tmp_path):
    theirs, file = stored("resnet18", tmp_path, num_classes=5)
    ours = create_model("resnet18", num_classes=5, **file).eval()
    assert same_state(ours, theirs)
    pooled = create_model("resnet18", num_classes=5, pooling="simpool", **file).state_dict()
    assert all(torch.equal(pooled[name], value) for name, value in theirs.state_dict().items())
    other = create_model("resnet18", num_classes=3, **file)
    assert torch.equal(other.conv1.weight, theirs.conv1.weight) and other.fc.weight.shape == (3, 512)


# ---- saving -----------------------------------------------------------------------------------------------------------

SAVED = {
    "class token": dict(arch="vit_nano", img_size=32, num_classes=3, mask_token=True),
    "simpool": dict(
        arch="vit_nano", img_size=(32, 48), pooling="simpool", norm_after=True, pooling_options=dict(gamma=1.25, beta=True),
        num_classes=3, drop_path_rate=0.2, patch_size=16,
    ),
    "slot": dict(arch="resnet_mini", pooling="slot", pooling_options=dict(k=2), num_classes=3, drop_path_rate=0.1),
    "infinite": dict(arch="convnext_mini", pooling="gem", pooling_options=dict(gamma=float("inf")), num_classes=3),
}  # fmt: skip


def drop_paths(model):
    return [module.drop_prob for module in model.modules() if isinstance(module, DropPath)]


@pytest.mark.parametrize("options", SAVED.values(), ids=SAVED.keys())
@torch.no_grad()
def test_a_saved_network_comes_back(options, tmp_path):
    model = scrambled(create_model(**options))
    model.save_pretrained(tmp_path)
    assert {"config.json", "model.safetensors", "README.md"} <= {file.name for file in tmp_path.iterdir()}
    back = Model.from_pretrained(str(tmp_path)).eval()
    assert type(back) is type(model) and same_state(back, model)
    assert torch.equal(back(pixels(32, 48)), model(pixels(32, 48)))
    assert drop_paths(back) == drop_paths(model) and bool(drop_paths(back)) == ("drop_path_rate" in options)
    assert getattr(back, "norm_after", False) == options.get("norm_after", False)
    again = tmp_path / "again"
    back.save_pretrained(again)
    assert json.loads((again / "config.json").read_text()) == json.loads((tmp_path / "config.json").read_text())


def test_a_pre_trained_network_comes_back_without_timms_file(tmp_path):
    model = create_model(VIT, pooling="simpool", **TINY_VIT, **stored(VIT, tmp_path, **TINY_VIT)[1])
    model.save_pretrained(tmp_path / "saved")
    (tmp_path / "weights.pth").unlink()
    assert same_state(Model.from_pretrained(str(tmp_path / "saved")), model)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff\xfe nothing", "half"])
def test_a_missing_or_damaged_file_is_named(file, content, tmp_path):
    create_model(**SAVED["slot"]).save_pretrained(tmp_path)
    whole = (tmp_path / file).read_bytes()
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    with pytest.raises(ValueError, match=f"(?s){re.escape(str(tmp_path))}.*{re.escape(file)}"):
        Model.from_pretrained(str(tmp_path))


def test_weights_of_another_network_are_refused(tmp_path):
    create_model(**SAVED["slot"]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"pooling": "gap", "pooling_options": None}))
    with pytest.raises(ValueError, match=r"(?s)model\.safetensors: missing or damaged weights .*pooling"):
        Model.from_pretrained(str(tmp_path))


def test_released_positions_of_a_grid_that_is_not_square_are_refused():
    model = create_model("vit_nano", img_size=(32, 48), released_positions=True)
    with pytest.raises(ValueError, match="^img_size: got one with 24 patches, released_positions accepts a square number"):
        model(pixels(48, 48))


@pytest.mark.parametrize("options", [dict(num_classes=10), dict(patch_sise=4), dict(pooling="gap")])
def test_a_saved_network_accepts_no_other_arguments(options, tmp_path):
    create_model(**SAVED["slot"]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=re.escape(f"options: got {options}, {tmp_path} accepts map_location, strict")):
        Model.from_pretrained(str(tmp_path), **options)


@pytest.fixture
def hub(tmp_path):
    """A cache as the Hub's client leaves it, with one network in it."""
    repository, commit = tmp_path / "cache" / "models--user--name", "0" * 40
    model = scrambled(create_model(**SAVED["slot"]))
    model.save_pretrained(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    return model, tmp_path / "cache", repository / "snapshots" / commit


def test_a_network_of_the_hub_is_loaded_from_its_cache(hub):
    model, cache, _ = hub
    assert same_state(Model.from_pretrained("user/name", cache_dir=cache, local_files_only=True), model)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", None])
def test_what_the_cache_lacks_is_named(hub, file):
    _, cache, snapshot = hub
    if file is None:
        shutil.rmtree(snapshot.parent.parent)
    else:
        (snapshot / file).unlink()
    with pytest.raises(ValueError, match=f"(?s)user/name.*{re.escape(file or '')}"):
        Model.from_pretrained("user/name", cache_dir=cache, local_files_only=True)


# ---- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(arch="vit_pico"), "arch: got 'vit_pico', accepts vit_nano, .*resnet_mini"),
        (dict(arch="regnetx_002"), "arch: got 'regnetx_002', a RegNet; accepts"),
        (dict(arch="resnet_mini", pooling="mean"), "pooling: got 'mean', accepts None, gap"),
        (dict(arch="resnet_mini", pooling="none"), "pooling: got 'none', accepts None, gap"),
        (dict(arch="resnet_mini", mask_token=True), "mask_token: got True for resnet_mini"),
        (dict(arch="resnet18", mask_token=True), "mask_token: got True for resnet18"),
        (dict(arch="vit_nano", pooling_options=dict(gamma=2.0)), "pooling_options: got .*gamma.*, a class token accepts none"),
        (dict(arch="vit_nano", pooling="cls", pooling_options=dict(heads=2)), "pooling_options: got .*heads"),
        (dict(arch="vit_nano", pooling="simpool", pooling_options=dict(power=2.0)), "power: unknown option of simpool"),
        (dict(arch="resnet_mini", pooling_options=dict(gamma=2.0)), "gamma: unknown option of gap"),
        (dict(arch="vit_nano", pretrained=True), "pretrained: got True, vit_nano accepts False"),
        (dict(arch="resnet_mini", pretrained=True), "pretrained: got True, resnet_mini accepts False"),
        (dict(arch="convnext_mini", pretrained=True), "pretrained: got True, convnext_mini accepts False"),
    ],
)
def test_what_does_not_go_together_is_refused(options, message):
    with torch.device("meta"), pytest.raises(ValueError, match=f"^{message}"):
        create_model(**options)


@pytest.mark.parametrize("arch", ["resnet_mini", "convnext_mini"])
def test_convolutional_networks_refuse_masks_and_other_images(arch):
    model = network(arch, None)
    with pytest.raises(ValueError, match="^mask: got one, but convolutional networks accept None"):
        model.features(pixels(), torch.zeros(2, 16, dtype=torch.bool))
    for shape in ((3, 32, 32), (1, 1, 32, 32)):
        with pytest.raises(ValueError, match="^images: got shape .* accepts"):
            model(torch.zeros(shape))


# ---- networks of recipes ----------------------------------------------------------------------------------------------


def recipe(**changed):
    return dict(arch="vit_nano", train_size=16, patch_size=8, pooling="simpool", gamma=1.25, method="supervised", num_classes=4) | changed


def test_a_classifiers_simpool_follows_the_norm_and_has_no_beta():
    made = network_of(recipe())
    assert not made.norm_after and made.pooling.beta is None and made.pooling.gamma == 1.25
    assert made.classifier.weight.shape == (4, 128) and len(made.blocks) == 4 and made.patch_embed.grid_size == (2, 2)


@pytest.mark.parametrize("arch", ["vit_nano", "vit_tiny_patch16_224", "deit_tiny_patch16_224"])
@pytest.mark.parametrize("method", ["dino", "ibot"])
def test_a_self_supervised_vits_simpool_comes_before_the_norm_with_a_beta(method, arch):
    made = network_of(recipe(method=method, arch=arch))
    assert made.norm_after and made.pooling.beta.shape == (1,) and made.pooling.gamma == 1.25


@pytest.mark.parametrize("arch", ["resnet_mini", "convnext_mini"])
@pytest.mark.parametrize("method", ["supervised", "dino"])
def test_convolutional_simpool_has_no_beta(method, arch):
    made = network_of(recipe(method=method, arch=arch, gamma=2.0))
    assert made.pooling.beta is None and made.pooling.gamma == 2.0


@pytest.mark.parametrize("method", ["supervised", "dino", "ibot"])
@pytest.mark.parametrize("pooling", ["none", "cls"])
def test_none_and_cls_are_the_class_token(method, pooling):
    made = network_of(recipe(method=method, pooling=pooling))
    assert made.pooling is None and made.cls_token is not None and not made.norm_after


def test_only_simpool_has_the_recipes_gamma():
    assert network_of(recipe(arch="resnet_mini", pooling="gem", gamma=7.0)).pooling.gamma == 2.0
    assert network_of(recipe(arch="resnet_mini", pooling="none")).pooling.__class__ is POOLINGS["gap"]


@pytest.mark.parametrize("arch, own", [("vit_nano", 4), ("vit_micro", 6), ("vit_tiny_patch16_224", 12)])
def test_depth_counts_a_vits_blocks(arch, own):
    assert len(network_of(recipe(arch=arch, depth=0)).blocks) == own
    assert len(network_of(recipe(arch=arch, depth=3)).blocks) == 3
    assert len(network_of(recipe(arch=arch, depth=3, pooling="none", method="dino")).blocks) == 3


def test_a_convolutional_network_refuses_a_depth():
    with pytest.raises(ValueError, match="^depth: got 3"):
        network_of(recipe(arch="resnet_mini", depth=3))
