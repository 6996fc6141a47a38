"""Semantic segmentation: sliding windows, mean IoU, crops, losses, damage, seeds, resuming, and eight scenes by heart."""

import io
import re
import warnings

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision import tv_tensors
from twins import trained_figures

from lib.data import scenes
from lib.data.reading import Damage
from lib.data.segmentation import VOID, SemanticDataset
from lib.data.views import normalise
from lib.engine.checkpoint import load_checkpoint
from lib.engine.log import read_log
from lib.engine.seeds import seed_step
from lib.evaluation.segmentation import Segmentation, SegmentationSettings, Segmenter, mean_iou, segment, sliding_window
from lib.models import create_model

SETTINGS = dict(
    data="scenes", fraction=1.0, canvas=64, train_size=64, eval_size=64, epochs=1, batch_size=2, lr=6.4e-2,
    lr_final=1e-6, warmup_epochs=0.0, weight_decay=0.05, weight_decay_final=0.05, clip=1.0, precision="float32", compile=False,
    drop_path=0.0, checkpoint_steps=100, log_steps=1, num_classes=11, void=-1,
    layer_decay=0.9, width=8, resize=[0.75, 1.5],
)  # fmt: skip
TABLE = scenes.table("several_train", 8)


def png(array) -> dict:
    stream = io.BytesIO()
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(stream, "png")
    return {"bytes": stream.getvalue(), "path": "a.png"}


def table(**columns) -> pa.Table:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.table({name: pa.array(values, kind) for name, values in columns.items()})


def settings(**overrides) -> SegmentationSettings:
    return SegmentationSettings(**SETTINGS | overrides)


def pictures(count=4, **sides) -> SemanticDataset:
    return SemanticDataset(TABLE.slice(0, count), void=-1, num_classes=11, **sides)


def network(arch="resnet_mini"):
    torch.manual_seed(0)
    return create_model(arch, img_size=64)


def learner(arch="resnet_mini", **overrides) -> Segmentation:
    return Segmentation(settings(**overrides), network(arch)).train()


class PointWise(nn.Module):
    """Logits that depend on the pixel, and on its place in the window."""

    def __init__(self, classes=3):
        super().__init__()
        self.seen, self.classes = [], classes

    def forward(self, window):
        self.seen.append(tuple(window.shape))
        place = torch.arange(window.shape[-1]).float() + 10 * torch.arange(window.shape[-2]).float()[:, None]
        return torch.cat([window.mean(1, keepdim=True) * (k + 1) + place * k for k in range(self.classes)], 1)


class Knowing(nn.Module):
    """Tells the class that an image's red is, as ``coloured`` paints it."""

    def __init__(self, classes):
        super().__init__()
        self.classes = classes

    def forward(self, view):
        assert not self.training
        levels = normalise((torch.arange(self.classes) * 20 / 255).view(-1, 1, 1, 1).expand(-1, 3, 1, 1))[:, 0, 0, 0]
        return -(view[:, :1] - levels.view(1, -1, 1, 1)).abs()


def coloured(told, masks, *, void=-1, num_classes=3, **sides) -> SemanticDataset:
    """Images of which ``Knowing`` tells the classes ``told``, with other masks."""
    images = [png(np.repeat(20 * np.asarray(t)[..., None], 3, -1)) for t in told]
    return SemanticDataset(table(image=images, mask=[png(m) for m in masks]), void=void, num_classes=num_classes, **sides)


# ---- sliding windows --------------------------------------------------------------------------------------------------


def literal_windows(segmenter, image, window, stride):
    height, width = image.shape[-2:]
    padded = torch.zeros(1, 3, max(height, window), max(width, window))
    padded[..., :height, :width] = image
    starts = []
    for length in padded.shape[-2:]:
        places, at = [], 0
        while at + window < length:
            places.append(at)
            at += stride
        starts.append([*places, length - window])
    total, count = torch.zeros(1, 3, *padded.shape[-2:]), torch.zeros(padded.shape[-2:])
    for top in starts[0]:
        for left in starts[1]:
            total[..., top : top + window, left : left + window] += segmenter(padded[..., top : top + window, left : left + window])
            count[top : top + window, left : left + window] += 1
    assert count.min() >= 1
    return (total / count)[..., :height, :width]


@pytest.mark.parametrize("size", [(16, 16), (17, 16), (5, 9), (9, 40), (31, 33), (48, 32), (1, 1)])
@pytest.mark.parametrize("stride", [1, 5, 11, 15, 16])
def test_sliding_windows_are_a_double_loop(size, stride):
    image, segmenter = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)), PointWise()
    found = sliding_window(segmenter, image, window=16, stride=stride)
    assert set(segmenter.seen) == {(1, 3, 16, 16)}
    torch.testing.assert_close(found, literal_windows(PointWise(), image, 16, stride))


@pytest.mark.parametrize("stride", [0, -1, 17])
def test_strides_out_of_range_are_refused(stride):
    with pytest.raises(ValueError, match=rf"stride: got {stride}, accepts 1 to 16"):
        sliding_window(PointWise(), torch.zeros(1, 3, 16, 16), window=16, stride=stride)


@pytest.mark.parametrize("size, shown", [((16, 16), (16, 16)), ((40, 24), (20, 12)), ((9, 30), (18, 60))])
def test_classes_are_told_at_the_original_s_size(size, shown):
    image = torch.randint(256, (3, *shown), dtype=torch.uint8)
    found = segment(PointWise(), image, size, window=16)
    logits = literal_windows(PointWise(), normalise(image[None].float() / 255), 16, 11)
    assert torch.equal(found, F.interpolate(logits, size, mode="bilinear")[0].argmax(0)) and found.dtype == torch.int64


# ---- mean IoU ---------------------------------------------------------------------------------------------------------


def literal_iou(told, masks, void, classes):
    shares, right, all_ = [], 0, 0
    for c in range(classes):
        both = either = 0
        for predicted, true in zip(told, masks):
            for p, t in zip(predicted.flatten().tolist(), true.flatten().tolist()):
                if t != void:
                    both += p == c and t == c
                    either += p == c or t == c
        shares += [both / either] if either else []
    for predicted, true in zip(told, masks):
        counts = true != void
        right, all_ = right + (predicted == true)[counts].sum(), all_ + counts.sum()
    return 100 * sum(shares) / len(shares), 100 * right / all_


@pytest.mark.parametrize("void, top, classes", [(-1, 4, 4), (4, 5, 4), (-1, 3, 6), (4, 5, 9)])
def test_iou_is_a_count(void, top, classes):
    """With and without void, and with classes that never occur."""
    draw = np.random.default_rng(0)
    told = [draw.integers(0, min(top, 4), (12, 10)) for _ in range(3)]
    masks = [np.where(draw.random((12, 10)) < 0.5, t, draw.integers(0, top, (12, 10))) for t in told]
    found = mean_iou(Knowing(classes).train(), coloured(told, masks, void=void, num_classes=max(classes, 5)), window=16)
    assert (found["miou"], found["pixel_accuracy"]) == pytest.approx(literal_iou(told, masks, void, classes))
    assert found["images"] == 3 and found["left_out"] == 0 and all(type(value) is float for value in found.values())


@pytest.mark.parametrize("window", [8, 16, 32])
def test_who_knows_the_classes_has_100(window):
    told = [np.random.default_rng(i).integers(0, 3, (16 + i, 20)) for i in range(3)]
    found = mean_iou(Knowing(3), coloured(told, told), window=window)
    assert found["miou"] == pytest.approx(100) and found["pixel_accuracy"] == pytest.approx(100)


def test_who_tells_one_class_has_its_share():
    """Two classes of which three quarters and a quarter of the pixels are."""
    mask = np.zeros((8, 8), int)
    mask[:4, :4] = 1
    found = mean_iou(Knowing(3), coloured([0 * mask], [mask]), window=8)
    assert found["miou"] == pytest.approx(75 / 2) and found["pixel_accuracy"] == pytest.approx(75)


def test_counts_are_over_the_set_and_not_the_mean_of_images():
    masks = [np.zeros((8, 8), int), np.ones((8, 8), int)]
    found = mean_iou(Knowing(3), coloured([masks[0], masks[0]], masks), window=8)
    assert found["miou"] == pytest.approx(25) and found["pixel_accuracy"] == pytest.approx(50)


def broken(columns: pa.Table, column, row=1) -> pa.Table:
    cells = columns[column].to_pylist()
    cells[row] = {"bytes": cells[row]["bytes"][:40], "path": "broken.png"}
    return columns.set_column(columns.column_names.index(column), column, pa.array(cells, columns.schema.field(column).type))


@pytest.mark.parametrize("column", ["image", "mask"])
def test_damaged_images_are_named_and_counted(column):
    told = [np.full((8, 8), i) for i in range(3)]
    source = coloured(told, told)
    source.table = broken(source.table, column)
    with pytest.warns(Damage, match=r"broken\.png"):
        found = mean_iou(Knowing(3), source, window=8)
    assert found["images"] == 2 and found["left_out"] == 1 and found["miou"] == pytest.approx(100)


def test_a_set_without_a_pixel_that_counts_is_refused():
    with pytest.raises(ValueError, match="got 1 without a pixel that counts"):
        mean_iou(Knowing(3), coloured([np.zeros((8, 8))], [np.full((8, 8), 7)], void=7), window=8)


# ---- a step -----------------------------------------------------------------------------------------------------------


def test_the_padding_of_crops_is_void():
    made = learner(resize=[0.25, 0.26])
    image = tv_tensors.Image(torch.full((3, 64, 64), 200, dtype=torch.uint8))
    crop, mask = made.augment(image, tv_tensors.Mask(torch.full((1, 64, 64), 3, dtype=torch.uint8)))
    assert crop.shape == (3, 64, 64) and mask.shape == (1, 64, 64) and mask.unique().tolist() == [3, VOID]
    inside = mask[0] == 3
    assert inside.sum() == 16 * 16 and len(crop[:, inside].unique(dim=1).T) == len(crop[:, ~inside].unique(dim=1).T) == 1


def seen_by(made, batch, step=0):
    seen = []
    with made.encoder.register_forward_hook(lambda _, given, logits: seen.append((given[0], logits))):
        losses = made(*batch, step, seed_step(0, step))
    return *seen[0], losses


@pytest.mark.parametrize("resize", [[1.0, 1.0], [0.5, 0.75]])
def test_the_loss_is_that_of_the_pixels_that_count(resize):
    made, seen = learner(resize=resize), []
    made.augment.register_forward_hook(lambda _, given, both: seen.append(both))
    _, logits, losses = seen_by(made, next(pictures(3).batches([torch.arange(3)])))
    total = count = 0
    for scores, (_, mask) in zip(logits, seen):
        counts = mask[0] != VOID
        assert bool(counts.all()) == (resize == [1.0, 1.0])
        logs = scores.log_softmax(0).gather(0, mask.long().where(counts, 0))[0]
        total, count = total - logs[counts].sum(), count + counts.sum()
    torch.testing.assert_close(losses["loss"], total / count)
    assert set(losses) == {"loss"}


def test_images_and_masks_are_cropped_and_mirrored_alike():
    """Images that show their classes, even where classes are as large as the original and images are not."""
    draw = np.random.default_rng(0).integers(0, 3, (8, 8)).repeat(16, 0).repeat(16, 1)
    made, seen = learner(num_classes=3), []
    made.augment.register_forward_hook(lambda _, given, both: seen.append(both))
    source = coloured([4 * draw] * 6, [draw] * 6, shortest=64)
    made(*next(source.batches([torch.arange(6)])), 0, seed_step(0, 0))
    for image, mask in seen:
        counts = mask[0] != VOID
        levels = [image.float().mean(0)[counts & (mask[0] == c)].mean() for c in range(3)]
        assert levels[0] + 15 < levels[1] < levels[2] - 15
    assert len({tuple(mask.flatten().tolist()) for _, mask in seen}) > 3


def test_nothing_but_void_gives_a_loss_of_0():
    made = learner()
    images, sizes, _ = next(pictures(2).batches([torch.arange(2)]))
    losses = made(images, sizes, [torch.full((64, 64), VOID)] * 2, 0, seed_step(0, 0))
    losses["loss"].backward()
    assert losses["loss"] == 0 and all(p.grad.isfinite().all() for p in made.parameters() if p.grad is not None)


@pytest.mark.parametrize("arch", ["vit_nano", "resnet_mini", "convnext_mini"])
@pytest.mark.parametrize("size", [(64, 64), (32, 48)])
def test_a_segmenter_has_a_logit_for_every_pixel(arch, size):
    segmenter = Segmenter(network(arch), 8, 5).eval()
    assert segmenter.multiple == 16 and segmenter(torch.randn(2, 3, *size)).shape == (2, 5, *size)


def test_the_optimiser_has_every_parameter_once():
    made = learner()
    groups = made.make_optimizer().param_groups
    held = [p for group in groups for p in group["params"]]
    assert len(held) == len(set(held)) and set(held) == set(made.parameters())
    assert all(group["decays"] == (p.ndim > 1) for group in groups for p in group["params"])
    own = set(made.encoder.pyramid.network.parameters())
    assert all(group["lr_scale"] == 1 for group in groups for p in group["params"] if p not in own)


@pytest.mark.parametrize("key, value", [("train_size", 60), ("batch_size", 1)])
def test_wrong_settings_are_named(key, value):
    with pytest.raises(ValueError, match=f"{key}: got {value}"):
        learner(**{key: value})


def test_a_window_that_is_not_of_whole_patches_is_named_before_the_training():
    with pytest.raises(ValueError, match="eval_size: got 60"):
        learner(arch="vit_nano", eval_size=60)


# ---- trainings --------------------------------------------------------------------------------------------------------


def trained(folder, *, seed=0, budget=None, source=None, **overrides):
    model = network(overrides.pop("arch", "resnet_mini"))
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Damage)
        figures = trained_figures(
            "segmentation", model, source or pictures(4), pictures(2), settings(**overrides), folder, budget=budget, progress=False
        )
    return figures, load_checkpoint(folder)["learner"]


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_the_same_seed_gives_the_same_steps(tmp_path):
    (first, one), (second, other) = (trained(tmp_path / str(i)) for i in range(2))
    assert first == second
    assert_same(one, other)


def test_the_head_follows_from_the_recipe_s_seed(tmp_path):
    assert_same(*(trained(tmp_path / str(i), seed=i)[1] for i in range(2)))


def test_a_stopped_training_goes_on_to_the_last_bit(tmp_path):
    whole, weights = trained(tmp_path / "whole")
    assert trained(tmp_path / "parts", budget=0)[0] is None
    parts, same = trained(tmp_path / "parts", seed=3, budget=0)
    assert parts == whole
    assert_same(weights, same)
    assert [line["loss"] for line in read_log(tmp_path / "parts")] == [line["loss"] for line in read_log(tmp_path / "whole")]


def test_a_damaged_training_image_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"broken\.png \(row 1\): damaged"):
        trained(tmp_path, source=SemanticDataset(broken(TABLE.slice(0, 2), "image"), void=-1, num_classes=11))


def test_images_of_several_sizes_train(tmp_path):
    told = [np.random.default_rng(i).integers(0, 3, (20 + 5 * i, 40)) for i in range(4)]
    source = coloured(told, told, shortest=48)
    found = trained_figures("segmentation", network(), source, source, settings(num_classes=3), tmp_path, progress=False)
    assert 0 <= found["miou"] <= 100 and found["images"] == 4


def test_eight_scenes_are_learned_by_heart(tmp_path):
    torch.manual_seed(0)
    config = settings(epochs=250, batch_size=4, lr=0.3, layer_decay=1.0, warmup_epochs=5.0, width=32, resize=[1.0, 1.0], log_steps=50)
    source = pictures(8)
    found = trained_figures("segmentation", network(), source, source, config, tmp_path, progress=False)
    assert found["miou"] > 90 and found["pixel_accuracy"] > 98, found


@pytest.mark.parametrize(
    "name, value", [("resize", [0.5]), ("resize", [2.0, 1.0]), ("resize", [0.0, 1.0]), ("width", 0), ("num_classes", 0)]
)
def test_wrong_values_are_named(name, value):
    with pytest.raises(ValueError, match=rf"^{name}: got {re.escape(str(value))}, accepts"):
        settings(**{name: value})
