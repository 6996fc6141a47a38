"""Supervised training: a step by hand, mixing, erasing, consistency, averaged weights, whole runs, accuracy."""

import copy
import importlib
import math
import random
import shutil
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.distributed_sampler import RepeatAugSampler
from torchvision.transforms import v2

from lib import recipes
from lib.data import Bank, bank
from lib.data.views import View, center_view, denormalise, make_views, normalise
from lib.engine.checkpoint import load_checkpoint
from lib.engine.log import read_log
from lib.engine.loop import train
from lib.engine.seeds import seed_step
from lib.evaluation.features import accuracy, features_and_logits, pooled_features
from lib.evaluation.finetuned import starting_from
from lib.learning.supervised import Supervised, SupervisedConfig, erase
from lib.models import create_model, network_of
from lib.pooling import pooling_names
from lib.train import build, configure, find_run, load_encoder, main, run, untrained_encoder

ENTRY = "smoke/supervised"
TINY = dict(
    fraction=0.016, epochs=1, batch_size=8, canvas=32, train_size=16, eval_size=16, knn_epochs=0, knn_k=[1], checkpoint_steps=2, log_steps=1,
)  # fmt: skip


def settings(**overrides) -> SupervisedConfig:
    return configure(recipes.entry(ENTRY), TINY | overrides)


def learner(steps=4, **overrides) -> Supervised:
    return build(settings(**overrides), steps, "cpu").train()


def photos(count=8, size=32) -> Bank:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    sizes = torch.randint(20, 60, (count, 2), generator=generator)
    return Bank(images, sizes, torch.arange(count) * 7 % 10, "photos")


def seeded(seed=5):
    return torch.Generator().manual_seed(seed)


def literal_view(config):
    """The recipe's only view."""
    jitter = (config.jitter, config.jitter, config.jitter, 0.0)
    return View(config.train_size, tuple(config.crop_scale), jitter=jitter, jitter_probability=float(config.jitter > 0), grey=0.0)


def literal_cross_entropy(logits, labels, smoothing=0.0):
    """-sum_c t_c ln p_c with t = (1 - smoothing) onehot + smoothing / C, the mean over images."""
    total = 0.0
    for scores, label in zip(logits, labels.tolist()):
        logs = scores - scores.exp().sum().log()
        total = total - (1 - smoothing) * logs[label] - smoothing * logs.mean()
    return total / len(labels)


def seen_by(student, step):
    """What the student is called with in ``step()``, its logits, and what ``step`` returns."""
    seen = []
    with student.register_forward_hook(lambda _, given, logits: seen.append((given[0], logits))):
        result = step()
    assert len(seen) == 1
    return *seen[0], result


# ---- a step -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("jitter", [0.0, 0.3])
def test_the_loss_equals_a_literal_one(smoothing, jitter):
    made, data = learner(smoothing=smoothing, jitter=jitter), photos()
    views = make_views(data.images, [literal_view(made.config)], sizes=data.sizes, generator=seeded())[0]
    expected = literal_cross_entropy(made.student(views), data.labels, smoothing)
    pixels, _, found = seen_by(made.student, lambda: made(data.images, data.sizes, data.labels, 0, seeded()))
    torch.testing.assert_close(pixels, views, rtol=0, atol=0)
    torch.testing.assert_close(found["loss"], expected)
    assert set(found) == {"loss"}


@pytest.mark.parametrize("arch", ["vit_nano", "resnet_mini"])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_steps_of_the_loop_equal_literal_ones(name, arch, tmp_path):
    """Two steps of one epoch, without warm-up: rates are lr B / 256 and half of it, and only matrices decay."""
    options = dict(optimizer=name, arch=arch, batch_size=4, lr=0.64, lr_final=0.0, warmup_epochs=0.0, weight_decay=0.5)
    made, data = learner(2, **options, weight_decay_final=0.5), photos()
    twin, config = copy.deepcopy(made.student), made.config
    kinds = {"adamw": torch.optim.AdamW, "sgd": lambda p, **o: torch.optim.SGD(p, momentum=0.9, nesterov=True, **o)}
    groups = [[p for p in twin.parameters() if (p.ndim > 1) == matrices] for matrices in (True, False)]
    optimizer = kinds[name]([{"params": groups[0], "weight_decay": 0.5}, {"params": groups[1], "weight_decay": 0.0}], lr=1.0)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    for step, rate in enumerate((0.01, 0.005)):
        chosen = order[4 * step : 4 * step + 4]
        generator = seed_step(0, step)
        view = make_views(data.images[chosen], [literal_view(config)], sizes=data.sizes[chosen], generator=generator)[0]
        optimizer.zero_grad()
        literal_cross_entropy(twin.train()(view), data.labels[chosen], 0.1).backward()
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    assert train(made, data, config, tmp_path, seed=config.seed, progress=False)
    for (key, found), expected in zip(made.student.named_parameters(), twin.parameters()):
        if not key.endswith("qkv.bias"):  # the gradient of the keys' is rounding, which AdamW scales up
            assert ((found - expected).abs() < 2e-5).float().mean() > 0.98, key
    torch.testing.assert_close(dict(made.student.named_buffers()), dict(twin.named_buffers()), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name, kind", [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_the_recipe_chooses_the_optimiser(name, kind):
    optimizer = learner(optimizer=name).make_optimizer()
    assert type(optimizer) is kind and [group["decays"] for group in optimizer.param_groups] == [True, False]
    assert name == "adamw" or (optimizer.defaults["momentum"], optimizer.defaults["nesterov"]) == (0.9, True)


def test_dropout_and_drop_path_come_from_the_recipe():
    made = learner(arch="vit_nano", dropout=0.3, drop_path=0.2, ema=0.9)
    assert made.student.head_drop.p == 0.3 and made.student.blocks[-1].drop_path1.drop_prob == pytest.approx(0.2)
    assert learner(arch="resnet_mini", dropout=0.3).student.drop_rate == 0.3
    assert learner(arch="convnext_mini", dropout=0.3).student.head.drop.p == 0.3


@pytest.mark.parametrize("arch", ["vit_nano", "resnet_mini", "convnext_mini"])
def test_dropout_acts_in_training_alone(arch):
    made, data = learner(arch=arch, dropout=0.5), photos()
    views = make_views(data.images, [literal_view(made.config)], generator=seeded())[0]
    made.student.eval()
    assert torch.equal(made.student(views), made.student(views))
    made.student.classifier.weight.data.normal_()
    vectors = torch.ones(4, made.student.num_features)
    made.student.train()
    assert not torch.equal(made.student.classify(vectors), made.student.classify(vectors))


# ---- mixing -----------------------------------------------------------------------------------------------------------


@cache
def mixer(**options):
    return learner(smoothing=0.0, **options)


def mixed(seed, batch=6, size=16, **options):
    """(pixels, shares of the own label, targets) of images that are their number everywhere, each of a class of its own."""
    made = mixer(**options)
    images = torch.arange(batch).float().view(-1, 1, 1, 1).expand(-1, 3, size, size + 4).clone()
    before = images.clone()
    pixels, targets = made._mix(images, torch.arange(batch), seeded(seed))
    assert torch.equal(images, before)
    return pixels, targets.diagonal(), targets


@pytest.mark.parametrize("options", [dict(mixup=0.8), dict(cutmix=1.0), dict(mixup=0.2, cutmix=1.0)], ids=str)
@pytest.mark.parametrize("seed", range(6))
def test_targets_are_shares_of_an_image_and_its_mirror(options, seed):
    _, share, targets = mixed(seed, **options)
    torch.testing.assert_close(targets.sum(1), torch.ones(6))
    assert (targets >= 0).all() and torch.equal(share, share[:1].expand(6)) and 0 <= share[0] <= 1
    torch.testing.assert_close(targets[:, :6].flip(1).diagonal(), 1 - share)


@pytest.mark.parametrize("seed", range(6))
def test_mixup_is_a_convex_mixture_by_the_labels_share(seed):
    pixels, share, _ = mixed(seed, mixup=0.8)
    own = torch.arange(6.0)
    torch.testing.assert_close(pixels, (share * own + (1 - share) * own.flip(0)).view(-1, 1, 1, 1).expand_as(pixels))


@pytest.mark.parametrize("seed", range(20))
def test_cutmix_pastes_one_box_whose_area_is_the_labels_share(seed):
    pixels, share, _ = mixed(seed, cutmix=1.0)
    own = torch.arange(6.0).view(-1, 1, 1, 1)
    pasted = pixels != own
    assert torch.equal(torch.where(pasted, own.flip(0), own).expand_as(pixels), pixels)
    assert (pasted == pasted[:1, :1]).all()  # the same box in all images and channels
    box = pasted[0, 0]
    assert torch.equal(box, box.any(1)[:, None] & box.any(0)[None])
    assert box.float().mean().item() == pytest.approx(1 - share[0].item(), abs=1e-6)
    for line in (box.any(0), box.any(1)):  # without gaps
        assert (line.int().diff() == 1).sum() <= 1 and (line.int().diff() == -1).sum() <= 1


def test_shares_follow_the_beta_distribution():
    """Beta(a, a) has mean 1/2 and variance 1 / (8 a + 4); boxes that are cut at the edges are smaller."""
    for a in (0.2, 1.0, 4.0):
        shares = torch.tensor([mixed(seed, batch=2, size=2, mixup=a)[1][0] for seed in range(400)])
        assert shares.mean().item() == pytest.approx(0.5, abs=0.08)
        assert shares.var().item() == pytest.approx(1 / (8 * a + 4), rel=0.25)
    assert torch.tensor([mixed(seed, batch=2, cutmix=1.0)[1][0] for seed in range(200)]).mean() > 0.5


def test_where_both_are_wanted_each_has_about_half_the_batches():
    kinds = [mixed(seed, mixup=1.0, cutmix=1.0)[0] for seed in range(100)]
    cut = sum(bool((pixels == pixels.round()).all()) for pixels in kinds)
    assert 30 < cut < 70


@pytest.mark.parametrize("options", [dict(mixup=0.5), dict(cutmix=1.0), dict(mixup=0.5, cutmix=1.0, erasing=1.0)], ids=str)
def test_the_loss_is_that_of_the_mixed_images_and_labels(options):
    made, data = learner(**options), photos()
    pixels, logits, found = seen_by(made.student, lambda: made(data.images, data.sizes, data.labels, 0, seeded(9)))
    generator = seeded(9)
    views = make_views(data.images, [literal_view(made.config)], sizes=data.sizes, generator=generator)[0]
    views = erase(views, 1.0, generator) if "erasing" in options else views
    views, targets = made._mix(views, data.labels, generator)
    assert torch.equal(pixels, views)
    torch.testing.assert_close(found["loss"], -(targets * logits.log_softmax(1)).sum(1).mean())
    mirrored, own = F.one_hot(data.labels.flip(0), 10), F.one_hot(data.labels, 10)
    share = (targets - 0.01 - 0.9 * mirrored)[0] @ own[0].float() / 0.9
    torch.testing.assert_close(targets, 0.9 * (share * own + (1 - share) * mirrored) + 0.01)


# ---- erasing ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def erased():
    """Which pixels of many images (40 x 60, all 100) lose their value, and the images."""
    pixels = erase(torch.full((1200, 3, 40, 60), 100.0), 1.0, seeded())
    return (pixels != 100).all(1), pixels


def test_boxes_are_erased_of_two_percent_to_a_third(erased):
    where, _ = erased
    rows, columns = where.any(2), where.any(1)
    assert torch.equal(where, rows[:, :, None] & columns[:, None])  # a box
    h, w = rows.sum(1), columns.sum(1)
    for lines, count in ((rows, h), (columns, w)):
        first, last = lines.int().argmax(1), lines.shape[1] - 1 - lines.flip(1).int().argmax(1)
        assert (last - first + 1 == count).all()  # without gaps
    assert ((h - 1) * (w - 1) <= 2400 / 3).all() and ((h + 1) * (w + 1) >= 0.02 * 2400).all()
    assert (((h - 1) / 40) / ((w + 1) / 60) <= 3.3).all() and (((w - 1) / 60) / ((h + 1) / 40) <= 3.3).all()
    area = where.float().mean((1, 2))
    assert area.mean().item() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.012)
    assert (
        area.min() < 0.035 and area.max() > 0.3 and (h.float() / 40 > w.float() / 60).float().mean().item() == pytest.approx(0.5, abs=0.06)
    )
    assert rows.any(0).all() and columns.any(0).all()  # any place may be lost


def test_the_noise_is_normal_and_every_pixels_own(erased):
    where, pixels = erased
    noise = pixels.transpose(0, 1)[:, where]
    assert noise.mean().abs() < 0.01 and noise.std().item() == pytest.approx(1, abs=0.01)
    assert abs(torch.corrcoef(noise).fill_diagonal_(0)).max() < 0.02


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_the_share_of_erased_images_is_the_probability(probability):
    images = torch.randn(1000, 3, 16, 16, generator=seeded())
    changed = (erase(images, probability, seeded(1)) != images).any((1, 2, 3)).float().mean().item()
    assert changed == pytest.approx(probability, abs=0.05 if 0 < probability < 1 else 0.005)


def test_values_outside_the_box_and_the_first_images_stay():
    images = torch.randn(50, 3, 16, 16, generator=seeded())
    before = images.clone()
    found = erase(images, 1.0, seeded(1), first=20)
    assert torch.equal(images, before) and torch.equal(found[:20], images[:20])
    changed = found != images
    assert (
        changed[20:].any((1, 2, 3)).all() and torch.equal(changed.any(1), changed.all(1)) and changed.float().mean((1, 2, 3)).max() < 0.45
    )
    assert torch.equal(found, erase(images, 1.0, seeded(1), first=20))


# ---- consistency ------------------------------------------------------------------------------------------------------


def literal_consistency(logits, labels, smoothing):
    """Cross-entropy of the first view and 12 times the mean divergence of every view from the mean of all."""
    probabilities = logits.softmax(-1)  # [views, B, C]
    mean = probabilities.mean(0)
    divergences = [(p * (p / mean).log()).sum(1).mean() for p in probabilities]
    return literal_cross_entropy(logits[0], labels, smoothing) + 12 * sum(divergences) / len(divergences)


@pytest.mark.parametrize("splits, smoothing, erasing", [(2, 0.0, 0.0), (3, 0.1, 0.0), (3, 0.1, 1.0)])
def test_consistency_is_over_views_of_which_the_first_is_plain(splits, smoothing, erasing):
    made, data = learner(splits=splits, smoothing=smoothing, erasing=erasing, randaugment=9), photos()
    made.operations = v2.Lambda(lambda image: 255 - image)
    pixels, logits, found = seen_by(made.student, lambda: made(data.images, data.sizes, data.labels, 0, seeded()))
    generator, views = seeded(), []
    for i in range(splits):
        given = data.images if i == 0 else 255 - data.images
        views.append(make_views(given, [literal_view(made.config)], sizes=data.sizes, generator=generator)[0])
    same = (pixels.unflatten(0, (splits, 8)) == torch.stack(views)).all(2).float().mean((2, 3))
    assert (same[0] == 1).all() and ((same[1:] < 1).all() if erasing else (same == 1).all())
    torch.testing.assert_close(found["loss"], literal_consistency(logits.unflatten(0, (splits, 8)), data.labels, smoothing))


def test_consistency_of_equal_views_is_nothing():
    made, data = learner(splits=3, crop_scale=[1.0, 1.0], jitter=0.0, smoothing=0.0), photos()
    made.view = View(16, (1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, jitter_probability=0.0, grey=0.0)
    _, logits, found = seen_by(made.student, lambda: made(data.images, torch.full((8, 2), 32), data.labels, 0, seeded()))
    torch.testing.assert_close(found["loss"], literal_cross_entropy(logits[:8], data.labels))


# ---- averaged weights -------------------------------------------------------------------------------------------------


def test_averaged_weights_after_two_updates():
    made = learner(arch="resnet_mini", pooling="simpool", ema=0.75)
    states = [{name: p.detach().clone() for name, p in made.student.named_parameters()}]
    for number in range(2):
        with torch.no_grad():
            for p in made.student.parameters():
                p.add_(torch.randn_like(p))
        made.student(torch.randn(4, 3, 16, 16))  # moves the batch norms' statistics
        made.after_update(number)
        states.append({name: p.detach().clone() for name, p in made.student.named_parameters()})
    for name, p in made.average.named_parameters():
        expected = 0.75**2 * states[0][name] + 0.25 * 0.75 * states[1][name] + 0.25 * states[2][name]
        torch.testing.assert_close(p, expected)
        assert not p.requires_grad
    for (name, mine), theirs in zip(made.average.named_buffers(), made.student.buffers()):
        assert torch.equal(mine, theirs) and mine is not theirs, name
    assert made.encoder is made.average and made.average.bn1.num_batches_tracked == 2


def test_the_encoder_is_the_average_only_where_one_is_kept():
    plain = learner()
    assert plain.average is None and plain.encoder is plain.student
    averaged = learner(ema=0.9)
    assert not any(name.startswith("average") for name, p in averaged.named_parameters() if p.requires_grad)
    assert all(torch.equal(a, b) for a, b in zip(averaged.average.parameters(), averaged.student.parameters()))
    assert sum(len(group["params"]) for group in averaged.make_optimizer().param_groups) == len(list(averaged.student.parameters()))


# ---- random operations ------------------------------------------------------------------------------------------------


def test_random_operations_follow_from_the_step():
    made, data = learner(randaugment=9), photos()
    assert isinstance(made.operations, v2.RandAugment) and (made.operations.num_ops, made.operations.magnitude) == (2, 9)

    def seen(step):
        return seen_by(made.student, lambda: made(data.images, data.sizes, data.labels, step, seed_step(0, step)))[0]

    first = seen(3)
    assert torch.equal(first, seen(3)) and not torch.equal(first, seen(4))
    plain = make_views(data.images, [literal_view(made.config)], sizes=data.sizes, generator=seed_step(0, 3))[0]
    changed = (first != plain).any((1, 2, 3))
    assert 0 < changed.sum() and first.shape == plain.shape


def test_images_of_a_batch_have_operations_of_their_own():
    made = learner(randaugment=9, jitter=0.0)
    made.view = View(32, (1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, jitter_probability=0.0, grey=0.0)
    images = photos(1).images.expand(16, -1, -1, -1)
    pixels = seen_by(made.student, lambda: made(images, torch.full((16, 2), 32), torch.zeros(16).long(), 0, seed_step(0, 0)))[0]
    assert len({tuple(image.flatten().tolist()) for image in pixels}) > 5


# ---- the papers' recipes ----------------------------------------------------------------------------------------------


def test_timms_policy_changes_crops_as_timm_does():
    made, data = learner(auto_augment="rand-m9-mstd0.5-inc1", jitter=0.0, mean=[0.5] * 3, std=[0.5] * 3), photos()
    pixels = seen_by(made.student, lambda: made(data.images, data.sizes, data.labels, 0, seeded()))[0]
    generator = seeded()
    crops = make_views(data.images, [literal_view(made.config)], sizes=data.sizes, generator=generator)[0]
    options = dict(translate_const=int(0.45 * 16), img_mean=(128, 128, 128), interpolation=Image.Resampling.BICUBIC)
    policy = rand_augment_transform("rand-m9-mstd0.5-inc1", options)
    seed = int(torch.randint(2**32, (), generator=generator))
    random.seed(seed)
    np.random.seed(seed)
    pictures = [v2.functional.to_pil_image((255 * denormalise(crop)).round().byte()) for crop in crops]
    expected = torch.stack([normalise(v2.functional.pil_to_tensor(policy(picture)).float() / 255) for picture in pictures])
    assert torch.equal(pixels, expected)
    changed = (pixels - crops).abs().amax((1, 2, 3)) > 0.01
    assert 2 <= changed.sum() <= 8
    assert not torch.equal(pixels, seen_by(made.student, lambda: made(data.images, data.sizes, data.labels, 0, seeded(6)))[0])


def test_splits_with_timms_policy_are_of_one_crop():
    made, data = learner(auto_augment="rand-m9", splits=3, jitter=0.0), photos()
    made.policy = lambda image: Image.eval(image, lambda value: 255 - value)
    pixels = seen_by(made.student, lambda: made(data.images, data.sizes, data.labels, 0, seeded()))[0].unflatten(0, (3, 8))
    crops = make_views(data.images, [literal_view(made.config)], sizes=data.sizes, generator=seeded())[0]
    assert torch.equal(pixels[0], crops) and torch.equal(pixels[1], pixels[2])
    torch.testing.assert_close(denormalise(pixels[1]), 1 - denormalise(crops), rtol=0, atol=0.5 / 255 + 1e-6)


def test_repeated_augmentation_shows_images_several_times():
    made, data = learner(repeats=3), photos()
    pixels, logits, found = seen_by(made.student, lambda: made(data.images, data.sizes, data.labels, 0, seeded()))
    rows = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
    expected = make_views(data.images[rows], [literal_view(made.config)], sizes=data.sizes[rows], generator=seeded())[0]
    assert torch.equal(pixels, expected) and not torch.equal(pixels[0], pixels[1])
    torch.testing.assert_close(found["loss"], literal_cross_entropy(logits, data.labels[rows], made.config.smoothing))
    # An epoch then sees as many images as with timm's sampler: 24 images in batches of 8, on 4 processes.
    seen = [i for rank in range(4) for i in RepeatAugSampler(range(24), num_replicas=4, rank=rank, selected_round=0)]
    assert len(set(seen)) == 24 // 3 and len(seen) == 24


def test_dropout_of_tokens_is_where_timms_earlier_versions_had_it():
    student = learner(token_dropout=0.3).student
    places = {name for name, module in student.named_modules() if isinstance(module, torch.nn.Dropout) and module.p == 0.3}
    assert places == {"pos_drop"} | {f"blocks.{i}.{name}" for i in range(4) for name in ("attn.proj_drop", "mlp.drop1", "mlp.drop2")}
    with pytest.raises(ValueError, match="token_dropout: got 0.3 for resnet_mini, convolutional networks accept 0"):
        learner(token_dropout=0.3, arch="resnet_mini")


def test_split_norms_evaluate_with_the_first_split():
    made, data = learner(arch="resnet_mini", splits=2, split_norm=True, randaugment=9), photos()
    pixels = seen_by(made.student, lambda: made(data.images, data.sizes, data.labels, 0, seeded()))[0]
    norm, maps = made.student.bn1, made.student.conv1(pixels)
    torch.testing.assert_close(norm.running_mean, 0.1 * maps[:8].mean((0, 2, 3)))
    torch.testing.assert_close(norm.aux_bn[0].running_mean, 0.1 * maps[8:].mean((0, 2, 3)))
    again = network_of(vars(made.config))  # as the encoder of the finished run is made
    again.load_state_dict(made.encoder.state_dict())
    assert torch.equal(again.eval()(pixels), made.student.eval()(pixels))
    tuned = starting_from(again, seed=0, num_classes=3, split_norm=0)  # and the start of a fine-tuning
    assert not any("aux_bn" in name for name in tuned.state_dict())
    assert torch.equal(tuned.eval().features(pixels).cls, again.features(pixels).cls)


@pytest.mark.parametrize("arch", ["vit_nano", "resnet_mini"])
def test_networks_have_statistics_of_their_own(arch):
    torch.manual_seed(0)
    plain, own = (create_model(arch, img_size=16, **options).eval() for options in ({}, dict(mean=[0.5] * 3, std=[0.25] * 3)))
    own.load_state_dict(plain.state_dict())
    pixels = torch.rand(2, 3, 16, 16)
    for name in ("features", "keys"):
        found, expected = (
            getattr(network, name)(views)[0] for network, views in ((own, normalise(pixels)), (plain, (pixels - 0.5) / 0.25))
        )
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="std: got"):
        create_model(arch, mean=[0.5], std=[0.5] * 3)


def test_noise_is_normal_in_the_networks_own_statistics():
    views, statistics = torch.zeros(50, 3, 16, 16), dict(mean=[0.5] * 3, std=[0.5] * 3)
    noise = erase(views, 1.0, seeded())
    own = erase(views, 1.0, seeded(), **statistics)
    box = noise != 0
    pixels = own * torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1) + torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    torch.testing.assert_close((2 * pixels - 1)[box], noise[box], rtol=1e-4, atol=1e-4)
    made = learner(erasing=1.0, **statistics)
    assert (made.mean, made.std) == ([0.5] * 3, [0.5] * 3)


# ---- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides, message",
    [
        (dict(optimizer="lamb"), "optimizer: got 'lamb', accepts adamw or sgd or lars"),
        (dict(splits=1), "splits: got 1, accepts 0 or at least 2"),
        (dict(splits=-2), "splits: got -2"),
        (dict(splits=3, mixup=0.2), "splits: .* no mixup"),
        (dict(splits=3, cutmix=0.2), "splits: .* no cutmix|splits: .* no mixup and no cutmix"),
        (dict(splits=2.0), "splits: got 2.0, accepts an integer"),
        (dict(pooling="mean"), "pooling: got 'mean', accepts none, gap"),
        (dict(crop_scale=0.5), "crop_scale: got 0.5, accepts a list"),
        (dict(ema="much"), "ema: got 'much', accepts a number"),
        (dict(masking="block"), "masking: unknown key in overrides"),
        (dict(randaugment=31), "randaugment: got 31"),
        (dict(randaugment=-1), "randaugment: got -1"),
        (dict(mixup=-0.2), "mixup: got -0.2"),
        (dict(ema=1.0), "ema: got 1.0"),
        (dict(depth=-1), "depth: got -1"),
    ],
)
def test_a_wrong_recipe_is_refused(overrides, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        settings(**overrides)


def test_a_classifier_needs_all_the_classes_of_its_data():
    with pytest.raises(ValueError, match="^num_classes: got 5, scenes accepts 10"):
        run(ENTRY, device="cpu", progress=False, **TINY | dict(num_classes=5))


def test_the_command_names_a_wrong_recipe(capsys):
    assert main([ENTRY, "splits=1"]) == 1
    assert capsys.readouterr().err.startswith("error: splits: got 1")


# ---- every pooling ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry, arch", [("smoke/supervised", "vit_nano"), ("smoke/benchmark", "resnet_mini")])
@pytest.mark.parametrize("name", ["none", *pooling_names()])
def test_every_pooling_takes_a_step(entry, arch, name):
    config = configure(recipes.entry(entry), TINY | dict(pooling=name))
    assert config.arch == arch
    made, data = build(config, 1, "cpu").train(), photos()
    before = copy.deepcopy(made.student.state_dict())
    optimizer = made.make_optimizer()
    loss = made(data.images, data.sizes, data.labels, 0, seed_step(0, 0))["loss"]
    loss.backward()
    assert loss.item() == pytest.approx(math.log(10), abs=1.5)
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    optimizer.step()
    for key, p in made.student.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.isfinite().all(), key
    moved = {key for key, value in made.student.state_dict().items() if not torch.equal(value, before[key])}
    assert moved & {key for key, _ in made.student.named_parameters() if "pooling" not in key}
    mine = {key for key, _ in made.student.named_parameters() if key.startswith("pooling")}
    assert not mine or mine & moved


# ---- runs -------------------------------------------------------------------------------------------------------------

RUNS = {
    "everything": dict(arch="resnet_mini", pooling="simpool", ema=0.5, randaugment=9, mixup=0.2, cutmix=1.0, erasing=0.5, dropout=0.2,
                       optimizer="sgd"),
    "consistency": dict(pooling="kmeans", splits=2, randaugment=9, erasing=0.5, drop_path=0.2),
}  # fmt: skip


def tiny(**more):
    return run(ENTRY, device="cpu", progress=False, **TINY | more)


@pytest.fixture(scope="module", params=RUNS.values(), ids=RUNS.keys())
def whole(request, tmp_path_factory):
    """An uninterrupted tiny run: (its overrides, the run store that holds it)."""
    importlib.import_module("torch.utils.tensorboard")
    torch.set_num_threads(1)
    store = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPANION_RUNS", str(store))
        assert tiny(**request.param).finished
    return request.param, store


@pytest.fixture
def finished(whole, monkeypatch):
    """The uninterrupted run."""
    overrides, store = whole
    monkeypatch.setenv("COMPANION_RUNS", str(store))
    return find_run(ENTRY, **TINY | overrides)


def test_a_run_that_stops_at_every_step_ends_as_if_it_had_not(whole, tmp_path, monkeypatch):
    overrides, store = whole
    rounds = 0
    while not (found := tiny(**overrides, budget=0.0)).finished:
        rounds += 1
        assert rounds < 6
    assert rounds == 3
    ours, folder = found.encoder_weights(), found.folder
    ours_metrics = found.metrics
    monkeypatch.setenv("COMPANION_RUNS", str(store))
    theirs = found.encoder_weights()
    assert found.folder != folder and ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert ours_metrics == found.metrics
    states = [load_checkpoint(place)["learner"] for place in (folder, found.folder)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])
    losses = [[line["loss"] for line in read_log(place) if "loss" in line] for place in (folder, found.folder)]
    assert losses[0] == losses[1] and len(losses[0]) == 4


def test_the_loaded_encoder_has_the_recorded_accuracy(finished):
    test = bank("scenes", "validation", 32, progress=False)
    for encoder, prefix in ((load_encoder(finished), ""), (untrained_encoder(finished), "untrained_")):
        _, labels, logits = features_and_logits(encoder, test, size=16, crop=finished.config["eval_crop"])
        figures = accuracy(logits, labels)
        for name, value in figures.items():
            assert round(value, 3) == finished.metrics[prefix + name]
    assert {"knn", "accuracy", "accuracy_top5", "untrained_accuracy"} <= set(finished.metrics)
    curve = finished.metrics["accuracy_curve"]
    assert curve == [[0, finished.metrics["untrained_accuracy"]], [1, finished.metrics["accuracy"]]]


def test_the_evaluated_weights_are_the_averaged_ones(finished):
    state = load_checkpoint(finished.folder)["learner"]
    part = "average" if finished.config["ema"] else "student"
    weights = finished.encoder_weights()
    assert all(torch.equal(value, state[f"{part}.{name}"]) for name, value in weights.items())
    assert len(weights) == sum(name.startswith(f"{part}.") for name in state)


def test_a_damaged_encoder_is_named(whole, monkeypatch, tmp_path):
    overrides, store = whole
    shutil.copytree(store, tmp_path / "runs")
    found = find_run(ENTRY, **TINY | overrides)
    (found.folder / "encoder.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=rf"{found.folder}/encoder\.safetensors: missing or damaged"):
        load_encoder(found)


# ---- accuracy ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 5, 6, 30])
def test_accuracy_is_a_literal_count(classes):
    generator = seeded()
    logits = torch.randn(40, classes, generator=generator)
    labels = torch.randint(classes, (40,), generator=generator)
    first = top5 = 0
    for scores, label in zip(logits.tolist(), labels.tolist()):
        rank = sum(score > scores[label] for score in scores)
        first, top5 = first + (rank == 0), top5 + (rank < 5)
    assert accuracy(logits, labels) == pytest.approx({"accuracy": 2.5 * first} | ({"accuracy_top5": 2.5 * top5} if classes > 5 else {}))


@pytest.mark.parametrize("pooling", ["simpool", "slot"])
@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_one_pass_gives_what_the_network_makes_of_the_centre_view(pooling, batch_size):
    network, source = create_model("vit_nano", pooling=pooling, img_size=16, depth=1, num_classes=3).train(), photos()
    options = dict(size=16, crop=0.75, batch_size=batch_size)
    features, labels, logits = features_and_logits(network, source, **options)
    assert not network.training and torch.equal(labels, source.labels)
    view = center_view(source.images, 16, crop=0.75, sizes=source.sizes)
    with torch.no_grad():
        torch.testing.assert_close(logits, network(view))
        torch.testing.assert_close(features, network.features(view).cls)
    torch.testing.assert_close(pooled_features(network, source, **options), (features, labels))


def test_no_images_have_no_logits():
    with pytest.raises(ValueError, match="^source: got no images"):
        features_and_logits(create_model("vit_nano", img_size=16), photos(0), size=16)
