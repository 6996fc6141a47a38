from functools import partial
from unittest import mock

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from timm.utils import AttentionExtract
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func

from lib import recipes
from lib.distillation.methods import IBOT
from lib.models import create_model
from lib.models.vit import last_block
from lib.train import configure

CASES = {  # arch, options, pixels of the images
    "nano": ("vit_nano", dict(img_size=32), (32, 32)),
    "nano, local crop": ("vit_nano", dict(img_size=48), (24, 24)),
    "micro, oblong": ("vit_micro", dict(img_size=32), (16, 40)),
    "nano, variants": ("vit_nano", dict(img_size=32, reg_tokens=3, qk_norm=True, init_values=0.5, no_embed_class=True), (32, 32)),
    "tiny": ("vit_tiny_patch16_224", dict(img_size=64), (64, 64)),
    "tiny, local crop": ("vit_tiny_patch16_224", dict(img_size=64), (32, 32)),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    """A network far from its initialisation, and images."""
    arch, options, size = request.param
    return scrambled(create_model(arch, **options)).eval(), pixels(*size)


def scrambled(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def pixels(height, width, batch=2):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def plain_twin(model):
    """timm's own class over the same parameters."""
    twin = VisionTransformer.__new__(VisionTransformer)
    twin.__dict__ = model.__dict__
    return twin


def literal_attention(attn, x):
    """The full softmax of a block's attention, [B, heads, T, T], one head at a time."""
    q, k, _ = attn.qkv(x).chunk(3, dim=-1)
    width, maps = q.shape[-1] // attn.num_heads, []
    for h in range(attn.num_heads):
        part = slice(h * width, (h + 1) * width)
        maps.append((attn.q_norm(q[..., part]) @ attn.k_norm(k[..., part]).mT / width**0.5).softmax(-1))
    return torch.stack(maps, 1)


# ---- features ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_features_equal_timms(case):
    model, images = case
    found, expected = model.features(images), plain_twin(model).forward_features(images)
    prefix, patch = model.num_prefix_tokens, model.patch_embed.patch_size[0]
    torch.testing.assert_close(found.cls, expected[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.patches, expected[:, prefix:], rtol=1e-4, atol=1e-5)
    assert found.grid == (images.shape[2] // patch, images.shape[3] // patch)
    torch.testing.assert_close(model(images), found.cls)


@torch.no_grad()
def test_attention_is_the_class_tokens_row_of_the_last_softmax(case):
    model, images = case
    found, prefix = model.features(images).attention, model.num_prefix_tokens
    twin, attn = plain_twin(model), model.blocks[-1].attn
    with mock.patch.object(attn, "fused_attn", False):
        extracted = AttentionExtract(twin, method="hook")(images)[f"blocks.{len(model.blocks) - 1}.attn.attn_drop"]
    torch.testing.assert_close(found, extracted[:, :, 0, prefix:], rtol=1e-4, atol=1e-6)
    inputs = []
    with attn.register_forward_pre_hook(lambda _, x: inputs.append(x[0])):
        twin.forward_features(images)
    torch.testing.assert_close(found, literal_attention(attn, inputs[0])[:, :, 0, prefix:], rtol=1e-4, atol=1e-6)
    assert found.std() > 1e-3  # otherwise any row would do


@torch.no_grad()
def test_attention_rows_and_prefix_sum_to_one(case):
    model, images = case
    rows = []
    with mock.patch("lib.models.vit.last_block", lambda *a: (rows.append(last_block(*a)[1]), last_block(*a))[1]):
        found = model.features(images).attention
    prefix = model.num_prefix_tokens
    assert (found >= 0).all()
    torch.testing.assert_close(found.sum(-1) + rows[0][..., :prefix].sum(-1), torch.ones(found.shape[:2]))
    torch.testing.assert_close(found, rows[0][..., prefix:], rtol=0, atol=0)


def test_drop_path_acts_in_every_block():
    model, images = scrambled(create_model("vit_nano", img_size=32, drop_path_rate=0.5)).train(), pixels(32, 32, batch=8)
    results = []
    for features in (model.features, plain_twin(model).forward_features):
        torch.manual_seed(3)
        results.append(features(images))
    torch.testing.assert_close(results[0].cls, results[1][:, 0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(results[0].cls, model.eval().features(images).cls)


def test_gradients_equal_timms():
    model, images = scrambled(create_model("vit_nano", img_size=16)).eval(), pixels(16, 16)
    features = model.features(images)
    ours = torch.autograd.grad((features.cls + features.patches.sum(1)).square().sum(), list(model.parameters()))
    expected = plain_twin(model).forward_features(images)
    theirs = torch.autograd.grad((expected[:, 0] + expected[:, 1:].sum(1)).square().sum(), list(model.parameters()))
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * b.abs().max().item())


@pytest.mark.parametrize("arch", ["vit_tiny_patch16_224", "deit_tiny_patch16_224"])
@torch.no_grad()
def test_timms_weights_load_unchanged(arch):
    theirs = scrambled(timm.create_model(arch, img_size=64, num_classes=10)).eval()
    ours = create_model(arch, img_size=64, num_classes=10).eval()
    assert {n: p.shape for n, p in ours.state_dict().items()} == {n: p.shape for n, p in theirs.state_dict().items()}
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(pixels(64, 64)), theirs(pixels(64, 64)), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_classifier_over_the_mean_patch_stays_one():
    """timm's own pooling decides what the classifier sees."""
    options = dict(img_size=32, patch_size=16, num_classes=10, global_pool="avg", depth=2)
    theirs = scrambled(timm.create_model("vit_tiny_patch16_224", **options)).eval()
    try:
        ours = create_model("vit_tiny_patch16_224", **options).eval()
    except ValueError:
        return  # refusing such a network is as good
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(pixels(32, 32)), theirs(pixels(32, 32)), rtol=1e-4, atol=1e-4)


def test_number_of_parameters():
    with torch.device("meta"):
        model = create_model("vit_small_patch16_224", num_classes=1000)
        student = create_model("vit_small_patch16_224", num_classes=1000, mask_token=True)
    assert sum(p.numel() for p in model.parameters()) == 22_050_664
    assert sum(p.numel() for p in student.parameters()) == 22_050_664 + 384
    assert sum(p.numel() for p in model.blocks[0].parameters()) == 1_774_464


@pytest.mark.parametrize("arch, dim, patch", [("vit_nano", 128, 8), ("vit_micro", 192, 8), ("vit_tiny_patch16_224", 192, 16)])
@torch.no_grad()
def test_sizes(arch, dim, patch):
    features = create_model(arch, img_size=48).features(pixels(48, 48))
    side = 48 // patch
    assert features.grid == (side, side) and features.cls.shape == (2, dim) and features.patches.shape == (2, side * side, dim)
    assert features.attention.shape[::2] == (2, side * side)
    coarser = create_model(arch, img_size=(32, 64), patch_size=16, num_classes=5)
    assert coarser.features(pixels(32, 64)).grid == (2, 4) and coarser(pixels(32, 64)).shape == (2, 5)


# ---- masks ------------------------------------------------------------------------------------------------------------


def student(**options):
    return scrambled(create_model("vit_nano", img_size=32, mask_token=True, **options)).eval()


def some_mask(batch=2, tokens=16):
    return torch.rand(batch, tokens, generator=torch.Generator().manual_seed(2)) < 0.4


@pytest.mark.parametrize("mask", [some_mask(), torch.ones(2, 16, dtype=torch.bool)], ids=["some", "all"])
@torch.no_grad()
def test_masked_embeddings_are_replaced_before_positions_are_added(mask):
    model, images = student(), pixels(32, 32)
    x = model.patch_embed(images).flatten(1, 2)
    for b, n in mask.nonzero().tolist():
        x[b, n] = model.masked_embed[0]
    x = torch.cat([model.cls_token.expand(2, 1, -1), x], 1) + model.pos_embed
    for block in model.blocks:
        x = block(x)
    x, found = model.norm(x), model.features(images, mask)
    torch.testing.assert_close(found.cls, x[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.patches, x[:, 1:], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found.cls, model.features(images).cls, atol=1e-2)


@torch.no_grad()
def test_hidden_pixels_are_not_seen_and_the_others_are():
    model, mask = student(), torch.zeros(1, 16, dtype=torch.bool)
    mask[0, 6] = True  # row 1, column 2 of the grid
    images, hidden, seen = (pixels(32, 32, batch=1) for _ in range(3))
    hidden[..., 8:16, 16:24] = 0
    seen[..., 16:24, 8:16] = 0
    same, other = model.features(hidden, mask), model.features(seen, mask)
    for a, b, c in zip(model.features(images, mask), same, other):
        if isinstance(a, torch.Tensor):
            assert torch.equal(a, b) and not torch.equal(a, c)


@torch.no_grad()
def test_an_empty_mask_changes_nothing():
    model, images = student(), pixels(32, 32)
    for a, b in zip(model.features(images), model.features(images, torch.zeros(2, 16, dtype=torch.bool))):
        assert a == b if isinstance(a, tuple) else torch.equal(a, b)


def test_the_mask_embedding_starts_at_zero_and_learns():
    model = create_model("vit_nano", img_size=32, mask_token=True)
    assert model.masked_embed.shape == (1, 128) and not model.masked_embed.any()
    assert not hasattr(create_model("vit_nano", img_size=32), "masked_embed")
    model.features(pixels(32, 32), some_mask()).patches.square().sum().backward()
    assert model.masked_embed.grad.any()


# ---- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arch", ["vit_huge_patch3", "efficientnet_b0", "mixer_s32_224", "swin_tiny_patch4_window7_224", "vit_base_patch16_siglip_224"]
)
def test_networks_other_than_class_token_vits_are_refused(arch):
    with torch.device("meta"), pytest.raises(ValueError, match=f"^arch: got '{arch}'.* accepts"):
        create_model(arch)


@pytest.mark.parametrize("arch", ["vit_base_patch16_18x2_224", "vit_base_patch16_xp_224"])
def test_networks_without_one_last_attention_are_refused(arch):
    with torch.device("meta"), pytest.raises(ValueError, match=f"^arch: got '{arch}'.* accepts"):
        create_model(arch)


def test_other_poolings_are_refused():
    with pytest.raises(ValueError, match="^pooling: got 'nothing'.* accepts"):
        create_model("vit_nano", img_size=16, pooling="nothing")


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 3, 32, 30), (1, 3, 30, 32), (1, 1, 32, 32), (1, 4, 32, 32)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="^images: got shape .* accepts"):
        student().features(torch.zeros(shape))


@pytest.mark.parametrize(
    "mask",
    [
        torch.zeros(2, 15, dtype=torch.bool),
        torch.zeros(1, 16, dtype=torch.bool),
        torch.zeros(2, 4, 4, dtype=torch.bool),
        torch.zeros(2, 16),
    ],
)
def test_masks_of_another_shape_are_refused(mask):
    with pytest.raises(ValueError, match="^mask: got torch.* accepts bool of shape"):
        student().features(pixels(32, 32), mask)


def test_a_network_without_mask_embedding_refuses_masks():
    with pytest.raises(ValueError, match="^mask: got one.* accepts None"):
        create_model("vit_nano", img_size=32).features(pixels(32, 32), some_mask())


# ---- compilation ------------------------------------------------------------------------------------------------------


def test_compiled_blocks_give_the_same_loss():
    """The block before the last is captured and differentiated as a graph; no code is generated, which would take a minute."""
    small = dict(local_crops=0, out_dim=16, hidden_dim=16, bottleneck_dim=8, train_size=16, mask_probability=1.0, mask_ratio=[0.5, 0.5])
    torch.manual_seed(0)
    learner = IBOT(configure(recipes.entry("smoke/ibot"), small | dict(drop_path=0.0)), 4)
    for network in (learner.student, learner.teacher):
        network.blocks = nn.Sequential(*network.blocks[-2:])
    images, sizes = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8), torch.full((2, 2), 64)
    weights = [learner.student.blocks[0].mlp.fc1.weight, learner.student.masked_embed]
    centers = {name: center.clone() for name, center in learner.loss.state_dict().items()}

    def loss_and_gradients():
        learner.loss.load_state_dict(centers)
        loss = learner(images, sizes, torch.zeros(2), 0, torch.Generator().manual_seed(0))["loss"]
        return loss.detach(), *torch.autograd.grad(loss, weights)

    def keep(graph, _):
        graphs.append(graph)
        return make_boxed_func(graph)

    plain, graphs = loss_and_gradients(), []
    with mock.patch.object(torch, "compile", partial(torch.compile, backend=aot_autograd(fw_compiler=keep))):
        learner.compile_blocks()
    torch.testing.assert_close(loss_and_gradients(), plain, rtol=1e-4, atol=1e-4)
    assert len(graphs) >= 3  # the teacher's, the student's and the student's backward
