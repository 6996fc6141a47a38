import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from twins import twin_figures

from lib.data import Bank
from lib.data.bank import Stream
from lib.data.scenes import render, table
from lib.data.views import View, center_view, normalise
from lib.evaluation.features import pooled_features
from lib.evaluation.linear import banked, linear_probe, viewed
from lib.models import create_model

STILL = View(16, (1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, jitter_probability=0.0, grey=0.0)
MOVING = View(16, (0.3, 1.0), jitter_probability=0.0, grey=0.0)


def clouds(train=120, test=400, dim=6, classes=4, spread=1.0, seed=0):
    """Overlapping clouds of points: (x, y) to train and to test."""
    g = torch.Generator().manual_seed(seed)
    centers = torch.randn(classes, dim, generator=g)
    y = torch.randint(classes, (train + test,), generator=g)
    x = centers[y] + spread * torch.randn(train + test, dim, generator=g)
    return (x[:train], y[:train]), (x[train:], y[train:])


def separable(count=90, seed=0):
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 3
    return F.one_hot(y, 5).float() + 0.1 * torch.rand(count, 5, generator=g), y


def literal_probe(train, test, num_classes, lrs, epochs, seed=0):
    """(result, losses of each rate): one rate, batch and gradient at a time, in double precision."""
    start = 0.01 * torch.randn(num_classes, test[0].shape[1], generator=torch.Generator().manual_seed(seed))
    history, losses = [], []
    for lr in lrs:
        weight, bias = start.double(), torch.zeros(num_classes, dtype=torch.float64)
        moving = [torch.zeros_like(weight), torch.zeros_like(bias)]
        history.append([])
        losses.append([])
        for epoch in range(epochs):
            rate = lr * (1 + math.cos(math.pi * epoch / epochs)) / 2
            for x, y in train(epoch):
                x = x.double()
                log = (x @ weight.T + bias).log_softmax(1)
                losses[-1].append(-log[range(len(y)), y].mean().item())
                error = (log.exp() - F.one_hot(y, num_classes)) / len(y)
                moving = [0.9 * moving[0] + error.T @ x, 0.9 * moving[1] + error.sum(0)]
                weight, bias = weight - rate * moving[0], bias - rate * moving[1]
            predicted = (test[0].double() @ weight.T + bias).argmax(1)
            history[-1].append(100 * (predicted == test[1]).double().mean().item())
    last = [accuracies[-1] for accuracies in history]
    best = max(max(accuracies) for accuracies in history)
    return {"linear": max(last), "linear_best": best, "linear_lr": lrs[last.index(max(last))]}, losses


@pytest.fixture
def seen_losses(monkeypatch):
    """Every loss that is computed, in order."""
    losses, cross_entropy = [], F.cross_entropy

    def watched(*arguments, **options):
        loss = cross_entropy(*arguments, **options)
        losses.append(loss.item())
        return loss

    monkeypatch.setattr(F, "cross_entropy", watched)
    return losses


# ---- the probe --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lr", [0.1, 1.0, 10.0])
def test_separable_classes_are_all_told_apart(lr):
    x, y = separable()
    found = linear_probe(banked(x, y, batch_size=16), separable(60, seed=1), num_classes=3, lrs=[lr], epochs=20)
    assert found == {"linear": 100, "linear_best": 100, "linear_lr": lr}


@pytest.mark.parametrize("epochs", [1, 2, 7])
@pytest.mark.parametrize("lrs", [[0.05], [0.003, 0.3, 2.0]])
def test_the_probe_equals_the_literal_one(seen_losses, lrs, epochs):
    train, test = clouds()
    batches = banked(*train, batch_size=32, seed=1)
    found = linear_probe(batches, test, num_classes=4, lrs=lrs, epochs=epochs, seed=5)
    expected, losses = literal_probe(batches, test, 4, lrs, epochs, seed=5)
    assert found == pytest.approx(expected, abs=1e-9)
    for number, own in enumerate(losses):
        assert seen_losses[number :: len(lrs)] == pytest.approx(own, rel=1e-3, abs=1e-5)


def test_rates_in_one_pass_equal_single_runs(seen_losses):
    train, test = clouds(spread=2.0)
    lrs, options = [30.0, 0.01, 0.5, 1e-4], dict(num_classes=4, epochs=5, seed=2)
    batches = banked(*train, batch_size=25)
    together = linear_probe(batches, test, lrs=lrs, **options)
    losses = seen_losses.copy()
    single = []
    for number, lr in enumerate(lrs):
        seen_losses.clear()
        single.append(linear_probe(batches, test, lrs=[lr], **options))
        assert seen_losses == losses[number :: len(lrs)]
        assert single[-1]["linear_lr"] == lr
    assert together["linear"] == max(run["linear"] for run in single)
    assert together["linear_best"] == max(run["linear_best"] for run in single)
    assert next(run for run in single if run["linear"] == together["linear"])["linear_lr"] == together["linear_lr"]
    assert len({run["linear"] for run in single}) > 1


def test_a_rate_that_overflows_does_not_touch_the_others():
    train, test = clouds()
    batches, options = banked(*train, batch_size=30), dict(num_classes=4, epochs=4)
    alone = linear_probe(batches, test, lrs=[0.1], **options)
    assert alone["linear"] > 50
    assert linear_probe(batches, test, lrs=[3e38, 0.1], **options)["linear"] == alone["linear"]
    assert linear_probe(batches, test, lrs=[3e38, 0.1], **options)["linear_lr"] == 0.1


def test_the_best_epoch_may_come_before_the_last():
    """What was learned in the first epoch is unlearned in the second."""
    x, y = separable()
    epochs = []

    def turning(epoch):
        epochs.append(epoch)
        for _ in range(40 * (1 + epoch)):
            yield x, (y + epoch) % 3

    found = linear_probe(turning, (x, y), num_classes=3, lrs=[1.0], epochs=2)
    assert epochs == [0, 1]
    assert found == {"linear": 0, "linear_best": 100, "linear_lr": 1.0}


def test_a_rate_that_is_too_high_ends_below_its_best():
    train, test = clouds(spread=3.0)
    batches, options = banked(*train, batch_size=8), dict(num_classes=4, lrs=[200.0], epochs=12)
    found = linear_probe(batches, test, **options)
    assert found["linear_best"] > found["linear"]
    assert found["linear_best"] == max(literal_accuracy_by_epoch(batches, test, 4, 200.0, 12))


def literal_accuracy_by_epoch(batches, test, num_classes, lr, epochs):
    """By the same steps with torch's own parts, one rate alone."""
    layer = nn.Linear(test[0].shape[1], num_classes)
    layer.weight.data = 0.01 * torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(0))
    layer.bias.data.zero_()
    optimizer = torch.optim.SGD(layer.parameters(), lr=lr, momentum=0.9)
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 + math.cos(math.pi * epoch / epochs)) / 2
        for x, y in batches(epoch):
            optimizer.zero_grad()
            F.cross_entropy(layer(x), y).backward()
            optimizer.step()
        yield 100 * (layer(test[0]).argmax(1) == test[1]).double().mean().item()


def test_best_and_last_may_belong_to_different_rates():
    """A high rate is right at first and wrong at last; a low one is never right but ends better."""
    x, y = separable()

    def turning(epoch):
        for _ in range(40 * (1 + epoch)):
            yield x, (y + epoch) % 3

    start = linear_probe(turning, (x, y), num_classes=3, lrs=[1e-9], epochs=2)
    assert 0 < start["linear"] == start["linear_best"] < 100
    assert linear_probe(turning, (x, y), num_classes=3, lrs=[1.0, 1e-9], epochs=2) == start | {"linear_best": 100}


def test_the_seed_is_that_of_the_first_weights(seen_losses):
    train, test = clouds(classes=4)
    probe = dict(train=lambda _: [train], test=test, num_classes=4, lrs=[1e-9], epochs=1)
    for seed in (0, 1, 2, 0):
        torch.manual_seed(len(seen_losses))
        found = linear_probe(**probe, seed=seed)
        assert found["linear"] == pytest.approx(literal_probe(probe["train"], test, 4, [1e-9], 1, seed)[0]["linear"])
    assert seen_losses[0] == seen_losses[3] and len(set(seen_losses)) == 3
    linear_probe(**probe)
    assert seen_losses[4] == seen_losses[0]


def test_first_weights_are_small():
    g = torch.Generator().manual_seed(1)
    x, y = F.normalize(torch.randn(50, 400, generator=g), dim=1), torch.randint(10, (50,), generator=g)
    logits = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, _, output: logits.append(output.detach()))
    linear_probe(lambda _: [(x, y)], (x, y), num_classes=10, lrs=[1.0], epochs=1)
    handle.remove()
    assert logits[0].shape == (50, 10)
    assert logits[0].std().item() == pytest.approx(0.01, rel=0.15)


TRAIN, TEST = clouds(train=8, test=10, dim=3, classes=2)


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("lrs", dict(lrs=[])),
        ("lrs", dict(lrs=[0.1, 0.0])),
        ("lrs", dict(lrs=[-0.1])),
        ("lrs", dict(lrs=[float("nan")])),
        ("lrs", dict(lrs=[0.1, float("nan")])),
        ("epochs", dict(epochs=0)),
        ("epochs", dict(epochs=-1)),
        ("train", dict(train=lambda _: [])),
        ("train", dict(train=lambda epoch: [TRAIN] if epoch == 0 else [])),
        ("train", dict(train=lambda _: [(TRAIN[0][:, :2], TRAIN[1])])),
        ("train", dict(train=lambda _: [(TRAIN[0], TRAIN[1][:7])])),
        ("train", dict(train=lambda _: [(TRAIN[0], TRAIN[1] + 1)])),
        ("test", dict(test=(TEST[0], TEST[1][:9]))),
        ("test", dict(test=(TEST[0], TEST[1][:, None]))),
        ("test", dict(test=(TEST[0][0], TEST[1]))),
        ("test", dict(test=(TEST[0][:0], TEST[1][:0]))),
    ],
)
def test_bad_arguments_are_named(name, arguments):
    with pytest.raises(ValueError, match=f"^{name}: got .* accepts"):
        linear_probe(**dict(train=lambda _: [TRAIN], test=TEST, num_classes=2, lrs=[0.1], epochs=2) | arguments)


# ---- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size, sizes", [(1, [1] * 23), (5, [5, 5, 5, 5, 3]), (23, [23]), (100, [23])])
def test_banked_batches_hold_every_sample_once(batch_size, sizes):
    features, labels = torch.randn(23, 4), torch.arange(23)
    batches = banked(features, labels, batch_size=batch_size)
    for epoch in (0, 1, 50):
        found = list(batches(epoch))
        assert [len(x) for x, _ in found] == sizes
        order = torch.cat([y for _, y in found])
        assert sorted(order.tolist()) == list(range(23))
        assert torch.equal(torch.cat([x for x, _ in found]), features[order])


def test_the_order_of_banked_batches_follows_seed_and_epoch():
    def order(seed, epoch):
        return tuple(torch.cat([y for _, y in banked(torch.zeros(40, 1), torch.arange(40), batch_size=7, seed=seed)(epoch)]).tolist())

    orders = [order(seed, epoch) for seed in (0, 1, 2) for epoch in (0, 1, 2, 3)]
    assert len(set(orders)) == 12
    torch.manual_seed(9)
    state = torch.get_rng_state()
    assert [order(seed, epoch) for seed in (0, 1, 2) for epoch in (0, 1, 2, 3)] == orders
    assert torch.equal(torch.get_rng_state(), state)
    batches = banked(torch.zeros(40, 1), torch.arange(40), batch_size=7)
    assert all(torch.equal(a[1], b[1]) for a, b in zip(batches(2), batches(2), strict=True))


def small_vit(**options):
    torch.manual_seed(0)
    network = create_model("vit_nano", **dict(img_size=16, patch_size=8) | options)
    with torch.no_grad():
        network.norm.weight.uniform_(0.5, 2)
        network.norm.bias.normal_()
    return network


def small_bank(count=10, size=16):
    """Labels are the images' numbers."""
    return Bank(render(torch.arange(count), size=size).images, torch.full((count, 2), size), torch.arange(count), "")


@pytest.mark.parametrize("blocks", [1, 3])
def test_views_that_show_the_whole_image_give_its_features(blocks):
    network, source = small_vit().train(), small_bank()
    found = list(viewed(network, source, STILL, blocks=blocks, batch_size=4)(0))
    assert [x.shape for x, _ in found] == [(4, blocks * 128), (4, blocks * 128), (2, blocks * 128)]
    assert not network.training
    x, y = (torch.cat(parts) for parts in zip(*found))
    assert sorted(y.tolist()) == list(range(10)) and y.tolist() != list(range(10))
    with torch.no_grad():
        expected = network.last_cls(normalise(source.images.float() / 255), blocks)
    torch.testing.assert_close(x, expected[y], atol=1e-4, rtol=1e-4)


def test_views_are_fresh_each_epoch_and_reproducible():
    network, source = small_vit(), small_bank()

    def run(epoch, seed=0):
        torch.manual_seed(epoch + 7 * seed)
        found = list(viewed(network, source, MOVING, blocks=2, batch_size=3, seed=seed)(epoch))
        x, y = (torch.cat(parts) for parts in zip(*found))
        return x, y, x[y.argsort()]

    first, again = run(0), run(0)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    for other in (run(1), run(2), run(0, seed=1)):
        assert not torch.equal(first[1], other[1])
        assert ((first[2] - other[2]).abs().amax(1) > 1e-3).all()


def test_views_of_original_shapes():
    """A square crop of the middle half of a wide image, which was squeezed onto a square."""
    network, source = small_vit(), small_bank()
    source.sizes = torch.tensor([16, 32]).repeat(10, 1)
    x, y = next(viewed(network, source, STILL, blocks=1, batch_size=10)(0))
    with torch.no_grad():
        squeezed = network.last_cls(normalise(source.images.float() / 255))[y]
    assert ((x - squeezed).abs().amax(1) > 1e-3).all()


def test_views_carry_no_gradients_and_leave_them_on():
    network = small_vit(drop_path_rate=0.5).train()
    for x, y in viewed(network, small_bank(), MOVING, blocks=2, batch_size=4)(0):
        assert torch.is_grad_enabled() and not x.requires_grad and not x.is_inference()
        assert x.dtype == torch.float32 and y.dtype == torch.int64
        assert not network.training
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


def test_views_of_a_stream_are_those_of_a_bank():
    scenes = table("validation", 7)
    stream = Stream(scenes, 16, "cpu")
    images, sizes, labels = next(stream.batches([torch.arange(7)]))
    bank, network = Bank(images, sizes, labels, ""), small_vit()
    found, expected = (list(viewed(network, s, MOVING, blocks=1, batch_size=3, seed=4)(2)) for s in (stream, bank))
    assert len(found) == 3
    for (x, y), (other_x, other_y) in zip(found, expected, strict=True):
        assert torch.equal(x, other_x) and torch.equal(y, other_y)


@pytest.mark.parametrize("fresh", [False, True])
def test_a_probe_of_a_networks_features(fresh):
    """Colours, which a network need not have learned to see."""
    y = torch.arange(60) % 3
    images = 60 * F.one_hot(y, 3)[:, :, None, None] + torch.randint(90, (60, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    source, network = Bank(images.byte(), torch.full((60, 2), 16), y, ""), small_vit()
    test = pooled_features(network, source, size=16, crop=1.0, blocks=2)
    if fresh:
        train = viewed(network, source, MOVING, blocks=2, batch_size=20)
    else:
        train = banked(*test, batch_size=20)
    found = linear_probe(train, test, num_classes=3, lrs=[0.001, 0.01], epochs=8)
    assert found["linear"] > 95


def test_features_need_not_be_copied_to_be_learned_from():
    source, network = small_bank(), small_vit()
    features = pooled_features(network, source, size=16)
    found = linear_probe(lambda _: [features], features, num_classes=10, lrs=[0.1], epochs=30)
    assert found["linear_best"] > 10


# ---- tokens of several blocks -----------------------------------------------------------------------------------------


def hooked_tokens(network, images, blocks):
    """What comes out of each of the last blocks, normed as a whole; its first token."""
    outputs = []
    handles = [block.register_forward_hook(lambda *parts: outputs.append(parts[2])) for block in network.blocks]
    network.forward_features(images)
    for handle in handles:
        handle.remove()
    assert len(outputs) == len(network.blocks)
    return torch.cat([network.norm(tokens)[:, 0] for tokens in outputs[-blocks:]], 1)


def some_images(count=3, side=16):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("options", [{}, dict(reg_tokens=3), dict(released_positions=True), dict(pooling="cls")])
@torch.no_grad()
def test_tokens_of_the_last_blocks(options):
    network, images = small_vit(**options).eval(), some_images()
    for blocks in (1, 2, 3, 4):
        found = network.last_cls(images, blocks)
        assert found.shape == (3, blocks * 128)
        expected = hooked_tokens(network, images, blocks)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found[:, -128:], network.features(images).cls, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "arch, options",
    [
        ("vit_nano", {}),
        ("vit_nano", dict(pooling="simpool")),
        ("vit_nano", dict(pooling="slot")),
        ("vit_nano", dict(pooling="gap", norm_after=True)),
        ("resnet_mini", {}),
        ("convnext_mini", dict(pooling="simpool")),
    ],
)
@torch.no_grad()
def test_one_block_is_the_pooled_vector(arch, options):
    torch.manual_seed(0)
    network = create_model(arch, **options | (dict(img_size=32) if arch == "vit_nano" else {})).eval()
    images = some_images(side=32)
    expected = network.features(images).cls
    assert expected.ndim == 2
    assert torch.equal(network.last_cls(images), expected)
    assert torch.equal(network.last_cls(images, 1), expected)


@pytest.mark.parametrize("blocks", [0, -1, 5, 12])
def test_blocks_that_a_vit_does_not_have_are_refused(blocks):
    with pytest.raises(ValueError, match=f"^blocks: got {blocks}, accepts 1 to 4"):
        small_vit().last_cls(some_images(), blocks)
    with pytest.raises(ValueError, match=f"^blocks: got {blocks}, accepts 1 to 4"):
        pooled_features(small_vit(), small_bank(), size=16, blocks=blocks)


@pytest.mark.parametrize("blocks", [0, 2, 4])
@pytest.mark.parametrize(
    "arch, pooling", [("vit_nano", "simpool"), ("vit_nano", "gap"), ("resnet_mini", None), ("convnext_mini", "simpool")]
)
def test_networks_without_a_class_token_have_one_vector(arch, pooling, blocks):
    network = create_model(arch, pooling=pooling, **(dict(img_size=32) if arch == "vit_nano" else {}))
    with pytest.raises(ValueError, match=f"^blocks: got {blocks}, .*class token accepts 1"):
        network.last_cls(some_images(side=32), blocks)


@pytest.mark.parametrize("blocks", [1, 4])
@pytest.mark.parametrize("batch_size", [3, 256])
def test_features_of_several_blocks_of_a_split(batch_size, blocks):
    network, source = small_vit(drop_path_rate=0.5).train(), small_bank()
    x, y = pooled_features(network, source, size=16, blocks=blocks, batch_size=batch_size)
    assert x.shape == (10, blocks * 128) and x.dtype == torch.float32 and y.tolist() == list(range(10))
    assert not network.training
    with torch.no_grad():
        expected = [network.last_cls(center_view(image[None], 16), blocks)[0] for image in source.images]
    torch.testing.assert_close(x.clone(), torch.stack(expected), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("crop_scale", [None, [0.3, 1.0]])
def test_a_measurement_is_the_probe_of_both_networks(crop_scale):
    torch.manual_seed(0)
    networks = [create_model("vit_nano", img_size=16, depth=2) for _ in range(2)]
    train, test = (
        Bank((s := render(torch.arange(40), seed=seed, size=16)).images, torch.full((40, 2), 16), s.labels, "") for seed in (1, 2)
    )
    options = dict(lrs=[0.1, 0.5], epochs=3)
    seen = dict(size=16, crop=1.0)
    found = twin_figures("linear", *networks, test, train=train, blocks=2, batch_size=16, crop_scale=crop_scale, **options, **seen)
    for prefix, network in zip(("", "untrained_"), networks):
        if crop_scale is None:
            batches = banked(*pooled_features(network, train, blocks=2, **seen), batch_size=16)
        else:
            batches = viewed(network, train, MOVING, blocks=2, batch_size=16)
        expected = linear_probe(batches, pooled_features(network, test, blocks=2, **seen), num_classes=10, **options)
        assert {name: found[prefix + name] for name in expected} == pytest.approx(expected, abs=1e-3)
