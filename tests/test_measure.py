"""Localization of a network, measurements of finished runs, and tables of what was recorded."""

import dataclasses
import importlib
import io
import json
import math
import re
import shlex
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import nn
from twins import twin_figures

from lib import paths, recipes
from lib.data import Bank, card, scenes
from lib.data.bank import Stream
from lib.data.reading import Damage
from lib.data.retrieval import RetrievalSet
from lib.data.views import center_view
from lib.evaluation.base import evaluation_class, evaluation_names
from lib.evaluation.finetuned import FineTunedEvaluation
from lib.evaluation.localization import LocalizationSettings, localization_maps, max_box_accuracy, trivial_accuracy
from lib.evaluation.objects import boxes_in_view, true_objects
from lib.keys import Keys
from lib.measure import main, measure, measurement_of
from lib.models import create_model
from lib.models.base import Features
from lib.pooling import pooling_names
from lib.results.records import records
from lib.results.runs import Measurement, Run
from lib.results.tables import beside_linear, beside_paper, recorded, recorded_commands, spread
from lib.train import find_run, load_encoder, run, untrained_encoder

MEASUREMENTS = [name for name in evaluation_names() if not issubclass(evaluation_class(name), FineTunedEvaluation)]
ENTRY = "smoke/supervised"
TINY = dict(
    fraction=0.02, epochs=1, batch_size=8, canvas=32, train_size=16, eval_size=16, knn_epochs=0, knn_k=[1], checkpoint_steps=9, log_steps=1,
    pooling="simpool", eval_crop=0.75,
)  # fmt: skip
TINY_WORDS = [f"{key}={value}" for key, value in TINY.items()]
SCENES = 8


def some_scenes(count=SCENES, canvas=64) -> Stream:
    return Stream(scenes.table("validation", count), canvas, "cpu")


def without(source, *columns) -> Stream:
    return Stream(source.table.drop_columns(list(columns)), source.size, "cpu")


def with_boxes(source, boxes) -> Stream:
    """The same images with other boxes, and without masks."""
    column = pa.array(boxes, pa.list_(pa.list_(pa.float32())))
    return Stream(without(source, "boxes", "mask").table.append_column("boxes", column), source.size, "cpu")


def with_masks(masks: list[np.ndarray], canvas=32) -> Stream:
    """Grey images of the masks' sizes, and the masks."""
    rows = []
    for mask in masks:
        for picture in (Image.new("RGB", mask.shape[::-1], "grey"), Image.fromarray(mask)):
            stream = io.BytesIO()
            picture.save(stream, "png")
            rows.append({"bytes": stream.getvalue(), "path": f"{len(rows) // 2}.png"})
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return Stream(pa.table({"image": pa.array(rows[::2], kind), "mask": pa.array(rows[1::2], kind)}), canvas, "cpu")


def photos(count=5, size=32) -> Bank:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    return Bank(images, torch.randint(20, 60, (count, 2), generator=generator), torch.arange(count) % 3, "photos")


def network(arch="vit_nano", pooling=None, classes=3):
    torch.manual_seed(0)
    model = create_model(arch, pooling=pooling, img_size=32, num_classes=classes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


class Looking(nn.Module):
    """Attends where it is told to: ``maps`` [M, H, W], an image after the other."""

    def __init__(self, maps):
        super().__init__()
        self.maps, self.at = maps, 0
        self.unused, self.classifier = nn.Parameter(torch.zeros(1)), nn.Identity()

    def features(self, images):
        maps = self.maps[self.at : self.at + len(images)]
        self.at = (self.at + len(images)) % len(self.maps)
        return Features(torch.zeros(len(images), 2), torch.zeros(*maps.flatten(1).shape, 2), maps.shape[1:], maps.flatten(1)[:, None])

    pool = features


def literal_cover(boxes, size, finer=4):
    """The part of each pixel that lies in any of the boxes, by counting points in it."""
    ends = (torch.arange(size * finer) + 0.5) / finer
    inside = torch.zeros(size * finer, size * finer, dtype=torch.bool)
    for x0, y0, x1, y1 in boxes.tolist():
        inside |= ((ends > y0) & (ends < y1))[:, None] & ((ends > x0) & (ends < x1))[None]
    return inside.float().view(size, finer, size, finer).mean((1, 3))


# ---- boxes ------------------------------------------------------------------------------------------------------------


def in_view(box, size, crop, pixels):
    return boxes_in_view(torch.tensor([box], dtype=torch.float32), torch.tensor(size), crop, pixels)[0].tolist()


@pytest.mark.parametrize(
    "box, size, crop, pixels, expected",
    [
        ((3, 4, 10, 12), (32, 32), 1.0, 32, (3, 4, 10, 12)),  # as it was
        ((3, 4, 10, 12), (32, 32), 1.0, 64, (6, 8, 20, 24)),  # twice as large
        ((10, 12, 20, 22), (32, 32), 0.5, 16, (2, 4, 12, 14)),  # a crop from (8, 8), not resized
        ((10, 12, 20, 22), (32, 32), 0.5, 32, (4, 8, 24, 28)),  # and resized
        ((20, 4, 40, 12), (20, 60), 1.0, 20, (0, 4, 19, 12)),  # the centre of a wide image starts at 20 and is 20 wide
        ((25, 4, 35, 12), (20, 60), 1.0, 40, (10, 8, 30, 24)),
        ((4, 25, 12, 35), (60, 20), 1.0, 40, (8, 10, 24, 30)),  # of a tall one
        ((30, 5, 35, 10), (20, 60), 0.5, 10, (5, 0, 9, 5)),  # both; the crop is 25 … 35 by 5 … 15
        ((0, 0, 32, 32), (32, 32), 1.0, 32, (0, 0, 31, 31)),  # ends are included, so the last is pixel 31
        ((-5, -5, 99, 99), (32, 32), 0.5, 64, (0, 0, 63, 63)),
        ((30, 5, 45, 10), (20, 60), None, 40, (20, 10, 30, 20)),  # the whole image, squeezed
        ((5, 30, 10, 45), (60, 20), None, 40, (10, 20, 20, 30)),
    ],
)
def test_boxes_are_moved_with_the_view(box, size, crop, pixels, expected):
    assert in_view(box, size, crop, pixels) == pytest.approx(expected)


@pytest.mark.parametrize("size", [(64, 64), (40, 80), (90, 50)])
@pytest.mark.parametrize("crop", [1.0, 0.75, 0.5, None])
def test_boxes_are_where_the_view_shows_the_object(size, crop):
    """A white rectangle on black, squeezed onto a canvas and seen through the centre view."""
    height, width = size
    box = (width // 2 - 9, height // 2 - 6, width // 2 + 7, height // 2 + 11)
    original = torch.zeros(1, 3, height, width)
    original[..., box[1] : box[3], box[0] : box[2]] = 255
    canvas = nn.functional.interpolate(original, (256, 256), mode="area").round().byte()
    shown = dict(crop=1.0) if crop is None else dict(crop=crop, sizes=torch.tensor([size]))
    view = center_view(canvas, 96, **shown)[0, 0]
    bright = view > (view.min() + view.max()) / 2
    rows, columns = bright.any(1).nonzero(), bright.any(0).nonzero()
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert [float(v) for v in found] == pytest.approx(in_view(box, size, crop, 96), abs=1.6)


def test_several_boxes_keep_their_order():
    boxes = torch.tensor([[0.0, 0, 8, 8], [8, 8, 16, 16], [4, 0, 8, 16]])
    assert torch.equal(boxes_in_view(boxes, torch.tensor([16, 16]), 1.0, 33), (boxes * 33 / 16).clamp(max=32))


# ---- maps -------------------------------------------------------------------------------------------------------------


def views(source, size, crop):
    images, sizes, _ = next(source.batches([torch.arange(len(source))]))
    return center_view(images, size, crop=crop, sizes=sizes)


@pytest.mark.parametrize(
    "arch, pooling", [("vit_nano", None), ("vit_nano", "simpool"), ("resnet_mini", "simpool"), ("resnet_mini", "slot")]
)
@torch.no_grad()
def test_attention_is_the_mean_over_heads(arch, pooling):
    model, source = network(arch, pooling).train(), photos()
    found = localization_maps(model, source, size=32, crop=0.8, batch_size=2)["attention"]
    assert not model.training and found.shape == (5, 4, 4) and found.dtype == torch.float32
    attention = model.features(views(source, 32, 0.8)).attention
    expected = torch.stack([sum(head.view(4, 4) for head in image) / len(image) for image in attention])
    torch.testing.assert_close(found, expected)
    assert attention.shape[1] == {None: 4, "simpool": 1, "slot": 3}[pooling]


@pytest.mark.parametrize("pooling", [name for name in pooling_names() if name != "cls"])
@pytest.mark.parametrize("arch", ["vit_nano", "resnet_mini", "convnext_mini"])
@torch.no_grad()
def test_class_activation_is_of_the_class_that_the_network_names(arch, pooling):
    """The one whose logit is largest in ``forward``, also where several vectors are pooled."""
    model, source = network(arch, pooling, classes=40), photos(16)
    found = localization_maps(model, source, size=32, batch_size=5)["cam"]
    images = views(source, 32, 1.0)
    named, patches = model(images).argmax(1), model.features(images).patches
    expected = torch.stack([(patches[b] @ model.classifier.weight[named[b]]).view(4, 4) for b in range(16)])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("arch", ["vit_nano", "resnet_mini"])
@pytest.mark.parametrize("pooling", ["gap", "max", "gem", "lse"])
def test_attention_that_is_the_same_everywhere_is_left_out(arch, pooling):
    assert set(localization_maps(network(arch, pooling), photos(), size=32)) == {"cam"}


@pytest.mark.parametrize("arch, pooling", [("vit_nano", "se"), ("resnet_mini", "ge"), ("resnet_mini", None)])
def test_poolings_without_attention_have_no_map_of_it(arch, pooling):
    assert set(localization_maps(network(arch, pooling), photos(), size=32)) == {"cam"}


def test_without_a_classifier_there_is_attention_alone():
    assert set(localization_maps(network("vit_nano", "simpool", classes=0), photos(), size=32)) == {"attention"}
    assert localization_maps(network("vit_nano", "gap", classes=0), photos(), size=32) == {}


def test_attention_that_differs_in_one_image_stays():
    maps = torch.full((5, 4, 4), 0.0625)
    assert localization_maps(Looking(maps), photos(), size=32) == {}
    maps[3, 1, 2] = 0.07
    torch.testing.assert_close(localization_maps(Looking(maps), photos(), size=32)["attention"], maps)


def test_whole_images_are_squeezed_where_nothing_is_cropped():
    source, seen = photos(), []
    model = network("vit_nano", "simpool")
    model.pool = lambda images, pool=model.pool: seen.append(images) or pool(images)
    localization_maps(model, source, size=32, crop=None)
    images, sizes, _ = next(source.batches([torch.arange(len(source))]))
    assert (sizes[:, 0] != sizes[:, 1]).any()
    torch.testing.assert_close(seen[0], center_view(images, 32, crop=1.0))  # without the originals' sizes


def test_maps_are_oblong_where_the_grid_is():
    maps = torch.rand(5, 2, 7)
    assert torch.equal(localization_maps(Looking(maps), photos(), size=32, batch_size=3)["attention"], maps)


# ---- figures ----------------------------------------------------------------------------------------------------------


def looked(network, untrained, source, *, crop=1.0, box_size=224, **settings) -> dict[str, float]:
    """The figures of ``localization``."""
    return twin_figures("localization", network, untrained, source, crop=crop, box_size=box_size, **settings)


def test_figures_are_those_of_the_maps_and_boxes():
    source, model, untrained = some_scenes(), network("vit_nano", "simpool"), network("vit_nano", "gap")
    found = looked(model, untrained, source, size=32, crop=0.875, box_size=64)
    boxes = [boxes_in_view(torch.tensor(b), torch.tensor([64, 64]), 0.875, 64) for b in source.table["boxes"].to_pylist()]
    maps = localization_maps(model, source, size=32, crop=0.875)
    for name in ("attention", "cam"):
        levels = max_box_accuracy(maps[name], boxes, image_size=64)
        assert found[f"{name}_maxbox"] == pytest.approx(levels["mean"], abs=1e-3)
        for level, key in ((0.3, "30"), (0.5, "50"), (0.7, "70")):
            assert found[f"{name}_maxbox_{key}"] == pytest.approx(levels[level], abs=1e-3)
    cam = max_box_accuracy(localization_maps(untrained, source, size=32, crop=0.875)["cam"], boxes, image_size=64)
    assert found["untrained_cam_maxbox"] == pytest.approx(cam["mean"], abs=1e-3)
    assert not [name for name in found if name.startswith("untrained_attention")]  # of average pooling
    trivial = trivial_accuracy(boxes, image_size=64)
    assert found["whole_image_maxbox"] == pytest.approx(trivial["whole image"]["mean"], abs=1e-3)
    assert found["centred_box_maxbox"] == pytest.approx(trivial["centred box"]["mean"], abs=1e-3)
    assert found["images"] == SCENES and all(isinstance(value, float) and 0 <= value <= 100 for value in found.values())


def test_box_area_is_the_mean_covered_area():
    source = some_scenes()
    found = looked(Looking(torch.rand(SCENES, 2, 2)), Looking(torch.rand(SCENES, 2, 2)), source, size=16, box_size=64)
    areas = [(b[2] - b[0]) * (b[3] - b[1]) / 64**2 for ((b,),) in zip(source.table["boxes"].to_pylist())]
    assert found["box_area"] == pytest.approx(100 * sum(areas) / SCENES, abs=0.7)


def test_boxes_that_overlap_count_once():
    source = with_boxes(some_scenes(2), [[[8, 8, 24, 24], [16, 8, 32, 24]], [[0, 0, 16, 16], [0, 0, 16, 16]]])
    found = looked(Looking(torch.rand(2, 4, 4)), Looking(torch.rand(2, 4, 4)), source, size=16, box_size=64)
    assert found["box_area"] == pytest.approx(100 * (24 * 16 + 16 * 16) / 2 / 64**2, abs=1e-3)


@pytest.mark.parametrize("crop", [1.0, 0.75])
def test_attention_mass_is_the_share_inside_the_boxes(crop):
    source, maps = without(some_scenes(), "mask"), torch.rand(SCENES, 8, 8, generator=torch.Generator().manual_seed(0))
    found = looked(Looking(maps), Looking(5 * maps), source, size=16, crop=crop, box_size=64)
    shares = []
    for single, boxes in zip(maps, source.table["boxes"].to_pylist()):
        inside = literal_cover(boxes_in_view(torch.tensor(boxes), torch.tensor([64, 64]), crop, 64), 64)
        cover = inside.view(8, 8, 8, 8).mean((1, 3))
        shares.append(float((single * cover).sum() / single.sum()))
    assert found["attention_mass"] == pytest.approx(100 * sum(shares) / SCENES, abs=1.0)
    assert found["untrained_attention_mass"] == pytest.approx(found["attention_mass"], abs=2e-3)


def test_attention_inside_the_boxes_alone_has_a_mass_of_100():
    source = without(some_scenes(), "mask")
    boxes = source.table["boxes"].to_pylist()
    covers = torch.stack([literal_cover(torch.tensor(b), 64).view(32, 2, 32, 2).mean((1, 3)) for b in boxes])
    inside, outside = (covers == 1).float(), (covers == 0).float()
    assert inside.flatten(1).any(1).all()
    found = looked(Looking(inside), Looking(outside), source, size=16)
    assert found["attention_mass"] == pytest.approx(100, abs=1e-3) and found["untrained_attention_mass"] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("box_size", [64, 224])
@pytest.mark.parametrize("box, at", [((0, 0, 16, 16), (0, 0)), ((48, 48, 64, 64), (3, 3)), ((48, 0, 64, 16), (0, 3))])
def test_attention_inside_a_box_at_any_edge_has_a_mass_of_100(box, at, box_size):
    maps = torch.zeros(1, 4, 4)
    maps[0, at[0], at[1]] = 1
    source = with_boxes(some_scenes(1), [[list(box)]])
    found = looked(Looking(maps), Looking(maps), source, size=16, box_size=box_size)
    assert found["attention_mass"] == pytest.approx(100, abs=1e-3)
    assert found["box_area"] == pytest.approx(100 / 16, abs=1e-3)


@pytest.mark.parametrize("masks", [False, True])
def test_evenly_spread_attention_has_the_objects_area(masks):
    source, even = some_scenes() if masks else without(some_scenes(), "mask"), torch.full((SCENES, 8, 8), 1 / 64)
    even[0, 0, 0] += 1e-6  # a constant map is none
    found = looked(Looking(even), Looking(even), source, size=16, box_size=64)
    assert found["attention_mass"] == pytest.approx(found["mask_area" if masks else "box_area"], abs=0.01)
    assert ("mask_area" in found) == masks


# ---- masks ------------------------------------------------------------------------------------------------------------


def test_masks_change_the_attention_mass_alone():
    maps = torch.rand(SCENES, 8, 8, generator=torch.Generator().manual_seed(0))
    seen = [
        looked(Looking(maps), Looking(maps), source, size=16, box_size=64) for source in (some_scenes(), without(some_scenes(), "mask"))
    ]
    assert seen[0]["mask_area"] < seen[0]["box_area"] and seen[0]["attention_mass"] < seen[1]["attention_mass"]
    mass = {"attention_mass", "untrained_attention_mass"}
    assert {k: v for k, v in seen[0].items() if k not in mass | {"mask_area"}} == {k: v for k, v in seen[1].items() if k not in mass}


def test_attention_mass_is_the_share_inside_the_masks():
    source, maps = some_scenes(), torch.rand(SCENES, 8, 8, generator=torch.Generator().manual_seed(0))
    found = looked(Looking(maps), Looking(maps), source, size=16, box_size=64)
    masks = scenes.render(torch.arange(SCENES), seed=scenes.SPLIT_SEEDS["validation"]).masks[:, 0].double()
    shares = (maps * masks.view(SCENES, 8, 8, 8, 8).mean((2, 4))).sum((1, 2)) / maps.sum((1, 2))
    assert found["attention_mass"] == pytest.approx(100 * shares.mean().item(), abs=2e-3)
    assert found["mask_area"] == pytest.approx(100 * masks.mean().item(), abs=2e-3)


def test_the_masks_extent_is_the_box():
    """Of scenes the two are known to agree."""
    boxes, inside = true_objects(without(some_scenes(), "boxes"), crop=0.75, size=96)
    expected, others = true_objects(some_scenes(), crop=0.75, size=96)
    assert all(torch.equal(a, b) for a, b in zip(boxes, expected, strict=True))
    assert all(torch.equal(inside[name], others[name]) for name in ("box_area", "mask_area"))


def test_each_number_of_a_mask_is_an_object():
    mask = np.zeros((40, 60), np.uint8)
    mask[5:9, 20:30], mask[12:32, 35:36], mask[3, 3] = 2, 7, 2
    boxes, inside = true_objects(with_masks([mask]), size=40)  # columns 10 to 50 are seen
    assert boxes[0].tolist() == [[0, 3, 20, 9], [25, 12, 26, 32]]
    assert torch.equal(inside["mask_area"][0], torch.from_numpy(mask[:, 10:50] > 0).float())


@pytest.mark.parametrize("shape", [(64, 64), (40, 80), (90, 50)])
@pytest.mark.parametrize("crop", [1.0, 0.75, None])
def test_masks_are_seen_where_boxes_are(shape, crop):
    height, width = shape
    mask = np.zeros(shape, np.uint8)
    mask[height // 2 - 6 : height // 2 + 11, width // 2 - 9 : width // 2 + 7] = 255
    _, inside = true_objects(with_masks([mask]), crop=crop, size=113)
    assert torch.equal(inside["mask_area"], inside["box_area"]) and 0 < inside["mask_area"].mean() < 1


def test_sets_without_boxes_are_measured_by_their_masks():
    mask = np.zeros((32, 32), np.uint8)
    mask[8:16, 16:32] = 1
    looking = Looking(torch.tensor([[[0.0, 0, 0, 0], [0, 0, 3, 1], [0, 0, 0, 0], [0, 0, 0, 4]]]))
    found = looked(looking, looking, with_masks([mask]), size=16, box_size=32)
    assert found["attention_mass"] == 50 and found["mask_area"] == found["box_area"] == 12.5


def test_masks_that_do_not_fit_are_named():
    source, other = with_masks([np.ones((9, 12), np.uint8)]), with_masks([np.ones((12, 9), np.uint8)])
    swapped = source.table.set_column(1, "mask", other.table["mask"])
    with pytest.raises(ValueError, match=r"^0.png \(row 0\): got a mask of \(12, 9\), accepts \(9, 12\)"):
        true_objects(Stream(swapped, 32, "cpu"))
    with pytest.raises(ValueError, match="^source: got the columns image, accepts boxes, mask or both"):
        true_objects(without(source, "mask"))
    with pytest.raises(ValueError, match="^boxes: got shape .* at index 0, accepts"):
        looked(None, None, with_masks([np.zeros((9, 12), np.uint8)]), size=16)


# ---- measurements of runs ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A run store with one finished run and one that has only begun."""
    importlib.import_module("torch.utils.tensorboard")
    torch.set_num_threads(1)
    made = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPANION_RUNS", str(made))
        assert run(ENTRY, device="cpu", progress=False, **TINY).finished
        assert not run(ENTRY, device="cpu", progress=False, budget=0.0, **TINY | dict(seed=1)).finished
    return made


def read_instead(monkeypatch, function) -> None:
    """What measurements call in place of ``read_table``."""
    monkeypatch.setattr("lib.evaluation.frozen.read_table", function)


@pytest.fixture
def found(store, tmp_path, monkeypatch):
    """The finished run, in a store of the test's own; the data are a few scenes, and one without boxes."""
    shutil.copytree(store, tmp_path / "runs")
    table = scenes.table("validation", SCENES + 1)
    boxes = pa.array([*table["boxes"].to_pylist()[:SCENES], []], table["boxes"].type)
    table = table.set_column(table.column_names.index("boxes"), "boxes", boxes)
    videos = scenes.table("videos", 2 * scenes.FRAMES)
    read_instead(monkeypatch, lambda name, split, root=None: {"validation": table, "videos": videos}[split])
    pairs = RetrievalSet(scenes.table("database", SCENES), scenes.table("queries", 2), [dict(easy=[i], hard=[], junk=[]) for i in range(2)])
    monkeypatch.setattr("lib.evaluation.retrieval.load_retrieval", lambda name, root=None: pairs)
    monkeypatch.setattr(paths, "RECORDS", tmp_path / "records")
    return find_run(ENTRY, **TINY)


def small(name, found, **options):
    return measure(name, found, device="cpu", progress=False, **options)


def test_a_measurement_is_of_the_trained_and_the_untrained_network(found):
    made = small("localization", found)
    view = dict(size=16, crop=0.75, box_size=224)
    measured = looked(load_encoder(found), untrained_encoder(found), some_scenes(), **view)
    assert made.metrics == measured | {"left_out": 0.0}
    assert made.metrics["images"] == SCENES and {"attention_mass", "untrained_attention_mass", "cam_maxbox"} <= set(made.metrics)
    result = made.result()
    assert result["entry"] == ENTRY and result["key"] == made.key and result["seconds"] is None and set(result["data"]) == {"test"}
    assert result["config"] == found.config | {
        "localization.data": "scenes", "localization.split": "validation", "localization.canvas": 64, "localization.box_size": 224,
    }  # fmt: skip
    command, words = result["command"].split(ENTRY)
    assert command == "python -m lib.measure localization " and "commit" in result
    assert find_run(ENTRY, **recipes.parse(shlex.split(words))).key == found.key


def test_what_was_measured_is_loaded(found, monkeypatch):
    first = small("localization", found)
    read_instead(monkeypatch, None)
    monkeypatch.setattr("lib.measure.load_encoder", None)
    assert small("localization", found).metrics == first.metrics
    assert first.file.parent == found.folder and found.metrics["knn"] >= 0  # the run's own result is as it was


def test_a_measurement_leaves_the_run_alone(found):
    before = {file.name: file.read_bytes() for file in found.folder.iterdir() if file.is_file()}
    made = small("localization", found)
    after = {file.name: file.read_bytes() for file in found.folder.iterdir() if file.is_file()}
    assert after.keys() - before.keys() == {made.file.name, made.basis.name} and all(after[name] == data for name, data in before.items())


def test_a_smoke_measurement_is_no_evidence(found):
    with pytest.raises(ValueError, match="^record: smoke/supervised shows a mechanism"):
        small("localization", found, record=True)
    assert not paths.RECORDS.exists()


def test_unknown_measurements_are_refused(found):
    with pytest.raises(ValueError, match="^name: got 'depth', accepts ") as refused:
        small("depth", found)
    named = str(refused.value).partition(" accepts ")[2].split(", ")
    assert set(named) == {*MEASUREMENTS, "finetune", "detection", "segmentation"} and len(set(named)) == len(named)
    assert {"knn", "linear", "backgrounds", "localization", "discovery", "retrieval", "video"} <= set(named)


@pytest.mark.parametrize("scale", recipes.SCALES)
def test_every_scale_names_the_measurements_that_it_lacks(scale):
    with pytest.raises(ValueError, match=f"^name: got 'depth', {scale} accepts"):
        recipes.measurement(scale, "depth")


@pytest.mark.parametrize("scale", recipes.SCALES)
def test_every_scale_has_every_measurement_or_says_so(scale):
    for name in MEASUREMENTS:
        try:
            settings = recipes.measurement(scale, name)
        except ValueError as error:
            assert str(error).startswith(f"name: got {name!r}, {scale} accepts")
            continue
        splits = {settings["split"]} if "split" in settings else {"queries", "database"}
        assert splits <= set(card(settings["data"]).splits)
        settings["data"] = None
        assert recipes.measurement(scale, name)["data"]  # a copy


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_every_measurement_is_made_of_a_run(name, found):
    made = small(name, found)
    assert made.finished and made.metrics and all(isinstance(value, float) for value in made.metrics.values())
    assert any(key.startswith("untrained_") for key in made.metrics)


@pytest.mark.parametrize("seed", [1, 2], ids=["begun", "not begun"])
def test_runs_that_are_not_finished_are_refused(found, seed):
    other = find_run(ENTRY, **TINY | dict(seed=seed))
    with pytest.raises(ValueError, match=f"^{other.folder}/.*(not finished|missing)"):
        small("localization", other)
    assert not list(other.folder.glob("localization*"))


def test_a_run_killed_before_its_result_is_not_finished(found):
    """Its encoder is there, but nothing says that the training reached its end."""
    (found.folder / "result.json").unlink()
    with pytest.raises(ValueError, match=f"^{found.folder}/result.json: not finished"):
        small("localization", found)


@pytest.mark.parametrize("name", ["localization", "knn", "linear"])
def test_damaged_images_are_named_counted_and_left_out(found, monkeypatch, name):
    whole = scenes.table("validation", SCENES)
    rows = whole.to_pylist()
    rows[3]["image"]["bytes"] = rows[3]["image"]["bytes"][:200]
    rows[5]["image"] = {"bytes": None, "path": "gone.png"}
    damaged = pa.Table.from_pylist(rows, whole.schema)
    read_instead(monkeypatch, lambda *_, **__: damaged)
    with pytest.warns(Damage) as warned:
        made = small(name, found)
    assert made.metrics["left_out"] == 2 and made.metrics.get("images", SCENES - 2) == SCENES - 2
    assert {str(w.message).partition(":")[0] for w in warned if w.category is Damage} == {"000003.png (row 3)", "gone.png (row 5)"}
    read_instead(monkeypatch, lambda *_, **__: damaged.take([3, 5]))
    made.file.unlink()
    with pytest.raises(ValueError, match="^table: got 2 images, none of which could be read"), pytest.warns(Damage):
        small(name, found)


def test_a_damaged_measurement_is_named(found):
    made = small("localization", found)
    good = made.file.read_bytes()
    for content in (good[: len(good) // 2], b"", b"\xff\xfe"):
        made.file.write_bytes(content)
        with pytest.raises(ValueError, match=f"^{made.file}: damaged"):
            assert small("localization", found).metrics
    made.file.unlink()
    assert small("localization", found).metrics == json.loads(good)["metrics"]


@pytest.mark.parametrize("content", ["3", "{}", "[]"])
def test_a_measurement_without_figures_is_damaged(found, content):
    made = measurement_of(found, "localization")
    made.file.write_text(content)
    with pytest.raises(ValueError, match=f"^{made.file}: damaged"):
        assert made.metrics


def test_a_damaged_encoder_is_named(found):
    (found.folder / "encoder.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=rf"^{found.folder}/encoder\.safetensors: missing or damaged"):
        small("localization", found)


def test_the_key_depends_on_run_and_settings_alone(found):
    given = recipes.measurement("smoke", "localization")
    settings = LocalizationSettings(**given)
    key = Measurement(found, "localization", settings, {}).key
    same = Measurement(found, "localization", LocalizationSettings(**dict(reversed(given.items())), images=0, size="own"), {"canvas": 64})
    assert key == same.key == measurement_of(found, "localization").key != found.key
    changes = {name: 7 if isinstance(value, int) else "7" for name, value in given.items()} | dict(images=7, size=7, crop=0.7)
    others = {Measurement(found, "localization", dataclasses.replace(settings, **{name: x}), {}).key for name, x in changes.items()}
    others |= {Measurement(find_run(ENTRY, **TINY | dict(seed=1)), "localization", settings, {}).key}
    others |= {Measurement(found, "elsewhere", settings, {}).key}
    assert len(others | {key}) == len(changes) + 3


def test_other_settings_are_measured_anew(found, monkeypatch):
    first = small("localization", found)
    monkeypatch.setattr("lib.recipes.measurement", lambda *_: dict(data="scenes", split="validation", canvas=32, box_size=64))
    second = small("localization", found)
    assert second.file != first.file and second.finished and first.finished


# ---- the command ------------------------------------------------------------------------------------------------------


def test_the_command_measures(found, capsys):
    assert main(["localization", ENTRY, *TINY_WORDS, "--device=cpu"]) == 0
    printed = dict(line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    metrics = small("localization", found).metrics
    assert {name.strip(): float(value) for name, value in printed.items()} == {k: pytest.approx(v, abs=5.1e-3) for k, v in metrics.items()}


def test_the_command_measures_with_other_settings(found, capsys):
    assert main(["localization", ENTRY, *TINY_WORDS, "localization.box_size=112", "--device=cpu"]) == 0
    other, usual = small("localization", found, box_size=112), small("localization", found)
    assert other.file != usual.file and other.settings == dataclasses.replace(usual.settings, box_size=112)
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert float(printed["attention_maxbox"]) == pytest.approx(other.metrics["attention_maxbox"], abs=5.1e-3)


def test_several_processes_are_refused_before_they_wait_for_each_other(found, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["localization", ENTRY, *TINY_WORDS, "--device=cpu"]) == 1
    assert capsys.readouterr().err == "error: processes: got 2 of torchrun, measurements accept one\n"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["smoke/nothing"], "entry: got 'smoke/nothing', accepts"),
        ([ENTRY, "rate=1"], "rate: unknown key"),
        ([ENTRY, "seed"], "override: got 'seed'"),
        ([ENTRY, "seed=77"], ".*(not finished|missing)"),
        (["paper/supervised_vit_s"], ".*(not finished|missing)"),
        ([ENTRY, *TINY_WORDS, "localization.pixels=3"], "pixels: unknown key in overrides; smoke/localization accepts .*box_size"),
        ([ENTRY, *TINY_WORDS, "localization.box_size=large"], "box_size: got 'large', accepts an integer"),
        ([ENTRY, *TINY_WORDS, "localization.box_size=true"], "box_size: got True, accepts an integer"),
        ([ENTRY, *TINY_WORDS, "discovery.data=horses"], "discovery.data: unknown key"),
    ],
)
def test_mistakes_on_the_command_line_are_named(found, arguments, message, capsys):
    assert main(["localization", *arguments, "--device=cpu"]) == 1
    assert re.search(f"^error: {message}", capsys.readouterr().err)


# ---- records and tables -----------------------------------------------------------------------------------------------


def localized(trained: Run, data="imagenette") -> Measurement:
    return Measurement(trained, "localization", LocalizationSettings(data=data, split="validation", canvas=64, box_size=224), {})


@pytest.fixture
def evidence(tmp_path, monkeypatch):
    """Records of three runs of SimPool, two of average pooling, and a localization of each; and their places."""
    monkeypatch.setattr(paths, "RECORDS", tmp_path / "records")
    cpu, runs = torch.device("cpu"), []
    for pooling, seed in (("simpool", 0), ("simpool", 1), ("simpool", 2), ("gap", 0), ("gap", 1)):
        trained = Run("small/toy", "supervised", dict(pooling=pooling, seed=seed, data="imagenette"))
        with trained.lock():
            trained.finish({"accuracy": 50.0 + seed + 10 * (pooling == "simpool"), "knn": 1.0}, seconds=120, data={}, device=cpu)
        trained.record()
        measured = localized(trained)
        figures = {"cam_maxbox": 20.0 + 2 * seed} | ({"attention_mass": 40.0 + seed} if pooling == "simpool" else {})
        measured.finish(figures, data={"test": "x"}, device=cpu)
        assert measured.record() == tmp_path / "records" / "small" / "localization.jsonl"
        runs.append((trained, measured))
    return runs


def test_measurements_are_recorded_once_and_beside_the_runs(evidence):
    for trained, measured in evidence:
        trained.record()
        measured.record()
    table = records("localization")
    assert len(table) == 5 and len(records("supervised")) == 5 and len(records()) == 10
    assert set(table["config.localization.box_size"]) == {224} and list(table["config.pooling"]) == ["simpool"] * 3 + ["gap"] * 2
    assert table.seconds.isna().all() and set(table.key) == {measured.key for _, measured in evidence}
    assert not set(table.key) & set(records("supervised").key)


def test_recorded_measurements_keep_their_own_and_the_runs_keys(evidence):
    table = recorded("localization", pooling="simpool")
    assert list(table.index) == [f"small/toy, seed {seed}" for seed in range(3)] and set(table.setting) == {"small/toy"}
    assert list(table.seed) == [0, 1, 2] and set(table["localization.data"]) == {"imagenette"}
    assert list(table.attention_mass) == [40.0, 41.0, 42.0]
    assert recorded("localization", pooling="gap").attention_mass.isna().all()
    assert recorded("localization", pooling="max").empty and recorded("nothing", pooling="gap").empty


def test_measurements_on_several_sets_are_several_settings(evidence):
    trained, _ = evidence[0]
    on_horses = localized(trained, "horses")
    on_horses.finish({"cam_maxbox": 90.0}, data={"test": "y"}, device=torch.device("cpu"))
    on_horses.record()
    table = spread(recorded("localization"), "pooling", ("cam_maxbox",)).cam_maxbox
    assert table["small/toy on horses", "simpool"] == 90.0 and table["small/toy on imagenette", "simpool"] == 22.0
    assert set(recorded("supervised").setting) == {"small/toy"}


def test_recorded_runs_say_the_name_of_their_data_set(evidence):
    """A record also has ``data``, the fingerprints of what was read, beside the configuration's key of that name."""
    for experiment in ("supervised", "localization"):
        assert list(recorded(experiment)["data"]) == ["imagenette"] * 5
        assert len(recorded(experiment, data="imagenette")) == 5 and recorded(experiment, data="scenes").empty


def test_the_spread_of_runs_over_poolings(evidence):
    table = spread(recorded("supervised"), "pooling", ("accuracy", "knn"))
    assert list(table.index) == [("small/toy", "simpool"), ("small/toy", "gap")]
    assert list(table.accuracy) == [61.0, 50.5] and list(table.runs) == [3, 2] and list(table.minutes) == [2.0, 2.0]
    assert list(table["std"]) == pytest.approx([1.0, math.sqrt(0.5)])


def test_the_spread_of_measurements_over_poolings(evidence):
    """They say no seconds."""
    table = spread(recorded("localization"), "pooling", ("cam_maxbox", "attention_mass", "untrained_cam_maxbox"))
    assert (
        list(table.cam_maxbox) == [22.0, 21.0] and list(table.runs) == [3, 2] and list(table["std"]) == pytest.approx([2.0, math.sqrt(2)])
    )
    assert table.attention_mass.iloc[0] == 41.0 and math.isnan(table.attention_mass.iloc[1]) and "untrained_cam_maxbox" not in table
    assert table.minutes.isna().all()
    assert spread(recorded("nothing"), "pooling", ("cam_maxbox",)).empty


def test_figures_stand_beside_the_papers(evidence):
    published = pd.Series({"gap": 55.0, "simpool": 57.1, "cait": 56.7})
    table = beside_paper(spread(recorded("supervised"), "pooling", ("accuracy",)), published, "accuracy")
    assert list(table.index) == ["gap", "simpool", "cait"] and list(table.paper) == [55.0, 57.1, 56.7]
    assert list(table["small/toy"][:2]) == [50.5, 61.0] and math.isnan(table["small/toy"]["cait"])
    assert table["small/toy ±"]["simpool"] == pytest.approx(1.0)
    assert list(beside_paper(pd.DataFrame(), published)) == ["paper"]
    extra = beside_paper(spread(recorded("supervised"), "pooling", ("accuracy",)), published[["gap"]], "accuracy")
    assert set(extra.index) == {"gap", "simpool"} and math.isnan(extra.paper["simpool"])


def test_single_seeds_have_no_spread(evidence):
    table = beside_paper(spread(recorded("supervised", seed=0), "pooling", ("accuracy",)), pd.Series({"gap": 55.0}), "accuracy")
    assert list(table) == ["paper", "small/toy"]


def test_provenance_of_measurements(evidence):
    table = recorded_commands()
    assert table.loc["python -m lib.measure localization small/toy", "runs"] == 5
    assert (
        table.loc["python -m lib.measure localization small/toy", "minutes"] == ""
        and table.loc["python -m lib.train small/toy", "minutes"] == 2.0
    )


def test_provenance_says_what_a_command_needs(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RECORDS", tmp_path / "records")
    for masking, seed in (("attmask_high", 0), ("block", 1)):
        trained = find_run("small/ibot_cpu", masking=masking, seed=seed)
        trained.folder.mkdir(parents=True, exist_ok=True)
        trained.finish({"knn": 30.0}, data={}, device=torch.device("cpu"))
        assert trained.result()["command"] == "python -m lib.train small/ibot_cpu" + (" masking=attmask_high" if seed == 0 else " seed=1")
        trained.record()
    table = recorded_commands()
    assert list(table.index) == ["python -m lib.train small/ibot_cpu"]
    assert table["with"].item() == "seed=0|1 masking=attmask_high|block" and table.runs.item() == 2


def test_linear_probes_stand_beside_the_run_with_the_same_pooling(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RECORDS", tmp_path / "records")
    for pooling, knn, linear in (("none", 30.0, 40.0), ("simpool", 35.0, 50.0)):
        trained = find_run("small/dino_cpu", pooling=pooling)
        trained.folder.mkdir(parents=True, exist_ok=True)
        trained.finish({"knn": knn, "untrained_knn": 20.0}, data={}, device=torch.device("cpu"))
        trained.record()
        measured = measurement_of(trained, "linear")
        measured.finish({"linear": linear, "untrained_linear": 25.0}, data={}, device=torch.device("cpu"))
        measured.record()
    (row,) = beside_linear(recorded("self_supervised", pooling="none")).to_dict("records")
    assert (row["knn"], row["linear"], row["runs"]) == (30.0, 40.0, 1)


def test_a_measurement_keeps_its_run(evidence):
    trained, measured = evidence[0]
    assert measured.run is trained and isinstance(measured.run, Run) and measured.scale == "small"
    assert measured.file.parent == trained.folder and measured.experiment == "localization"


def test_runs_without_masks_stand_beside_their_probe(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RECORDS", tmp_path / "records")
    trained = find_run("small/classifier_cpu")
    trained.folder.mkdir(parents=True, exist_ok=True)
    trained.finish({"knn": 50.0, "untrained_knn": 20.0}, data={}, device=torch.device("cpu"))
    trained.record()
    measured = measurement_of(trained, "linear")
    measured.finish({"linear": 60.0, "untrained_linear": 25.0}, data={}, device=torch.device("cpu"))
    measured.record()
    (row,) = beside_linear(recorded("learners")).to_dict("records")
    assert (row["knn"], row["linear"]) == (50.0, 60.0)


@pytest.mark.parametrize("key, value", [("lrs", ["low"]), ("lrs", 0.1), ("blocks", "four"), ("epochs", True)])
def test_values_of_another_type_are_named(found, key, value):
    with pytest.raises(ValueError, match=f"^{key}: got"):
        measurement_of(found, "linear", **{key: value})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gone(Keys):
    canvas: int


def test_records_of_measurements_that_are_gone_still_have_a_provenance(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RECORDS", tmp_path / "records")
    trained = find_run("small/classifier_cpu")
    trained.folder.mkdir(parents=True, exist_ok=True)
    made = Measurement(trained, "depth", Gone(canvas=3), {})
    made.finish({"depth": 1.0}, data={}, device=torch.device("cpu"))
    made.record()
    assert len(recorded_commands()) == 1
