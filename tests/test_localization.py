import re
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lib.data.bank import Stream
from lib.data.loading import read_table
from lib.evaluation import localization
from lib.evaluation.localization import contour_boxes, max_box_accuracy, threshold_ious, trivial_accuracy
from lib.evaluation.objects import true_objects

LEVELS = (0.3, 0.5, 0.7)


def literal_iou(a, b):
    """IoU of two boxes whose ends are included."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]) + 1, min(a[3], b[3]) - max(a[1], b[1]) + 1
    shared = max(width, 0) * max(height, 0)
    area_a, area_b = ((box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b))
    return shared / (area_a + area_b - shared)


def literal_boxes(binary, contours="all"):
    """x0, y0, x1, y1 of OpenCV's contours."""
    cv2 = pytest.importorskip("cv2")
    found = cv2.findContours(binary.astype(np.uint8), cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
    if not found:
        return [(0, 0, 0, 0)]
    found = map(cv2.boundingRect, [max(found, key=cv2.contourArea)] if contours == "largest" else found)
    return [(x, y, min(x + w, binary.shape[1] - 1), min(y + h, binary.shape[0] - 1)) for x, y, w, h in found]


def literal_bytes(single, size):
    x = F.interpolate(single.double()[None, None], size=size, mode="bicubic", align_corners=False)[0, 0].numpy()
    return np.zeros(size, np.uint8) if single.min() == single.max() else ((x - x.min()) / (x.max() - x.min()) * 255).astype(np.uint8)


def literal_accuracy(maps, boxes, *, image_size=224, iou_thresholds=LEVELS, step=0.001, contours="all"):
    """A contour search at every threshold of every map."""
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    thresholds = np.arange(0, 1, step)
    best = np.zeros((len(maps), len(thresholds)))
    for i, (single, truth) in enumerate(zip(maps, boxes)):
        image = literal_bytes(single, size)
        for j, t in enumerate(thresholds):
            found = literal_boxes(image > int(t * image.max()), contours)
            best[i, j] = max(literal_iou(a, b) for a in found for b in truth.tolist())
    figures = {level: float(100 * (best >= level).sum(0).max() / len(maps)) for level in iou_thresholds}
    return figures | {"mean": sum(figures.values()) / len(figures)}


def problem(seed, count=6, grid=(7, 7), size=(64, 64), most=3):
    """Random maps, each brighter in a random box, and up to ``most`` boxes for each, that one among them."""
    g = torch.Generator().manual_seed(seed)
    boxes = []
    for _ in range(count):
        ends = torch.rand(int(torch.randint(1, most + 1, (), generator=g)), 2, 2, generator=g) * torch.tensor(size[::-1])
        boxes.append(torch.cat([ends.amin(1), ends.amax(1)], 1).long())
    maps = torch.rand(count, *grid, generator=g)
    for single, (x0, y0, x1, y1) in zip(maps, (b[0].tolist() for b in boxes)):
        (h, w), (height, width) = grid, size
        single[y0 * h // height : y1 * h // height + 1, x0 * w // width : x1 * w // width + 1] += 0.5
    return maps, boxes


def at_size(*rows):
    """A map [1, H, W] from rows of digits, and the options that leave its size as it is."""
    single = torch.tensor([[int(c) for c in row] for row in rows], dtype=torch.float32)
    return single[None], dict(image_size=tuple(single.shape))


def right(single, options, *box, level=1.0, **others):
    """Whether one box is met, ends included."""
    return max_box_accuracy(single, [torch.tensor([box])], iou_thresholds=(level,), **options, **others)[level] == 100


# ---- against the literal search ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("contours", ["all", "largest"])
@pytest.mark.parametrize(
    "grid, size",
    [((7, 7), (64, 64)), ((14, 14), (56, 56)), ((5, 9), (40, 72)), ((16, 12), (16, 12)), ((40, 40), (24, 30)), ((1, 1), (8, 8))],
)
def test_figures_equal_the_literal_search(grid, size, contours):
    maps, boxes = problem(sum(grid), grid=grid, size=size)
    options = dict(image_size=size, step=0.004, contours=contours)
    assert max_box_accuracy(maps, boxes, **options) == literal_accuracy(maps, boxes, **options)


@pytest.mark.parametrize("contours", ["all", "largest"])
def test_defaults_are_224_pixels_and_a_thousand_thresholds(contours):
    maps, boxes = problem(0, count=2, size=(224, 224))
    found = max_box_accuracy(maps, boxes, contours=contours)
    assert found == literal_accuracy(maps, boxes, contours=contours)
    assert list(found) == [0.3, 0.5, 0.7, "mean"] and found["mean"] == pytest.approx((found[0.3] + found[0.5] + found[0.7]) / 3)


@pytest.mark.parametrize("contours", ["all", "largest"])
@pytest.mark.parametrize("step", [1.0, 0.5, 1 / 3, 0.1, 0.03, 0.001])
def test_steps_and_levels(step, contours):
    maps, boxes = problem(3, grid=(6, 6), size=(32, 32))
    options = dict(image_size=32, step=step, iou_thresholds=(0.1, 0.25, 0.6, 0.9), contours=contours)
    assert max_box_accuracy(maps, boxes, **options) == literal_accuracy(maps, boxes, **options)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_all_contours_of_all_binarisations(data):
    """Maps of few values: plateaus, lines, single pixels, holes and objects in them, up to the border."""
    pytest.importorskip("cv2")
    height, width = data.draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    values = data.draw(st.lists(st.integers(0, 255), min_size=1, max_size=5))
    byte = data.draw(st.lists(st.sampled_from(values), min_size=height * width, max_size=height * width))
    byte = np.array(byte, np.uint16).reshape(height, width)
    (x0, x1), (y0, y1) = (sorted(data.draw(st.tuples(*[st.integers(0, side - 1)] * 2))) for side in (width, height))
    truth = np.array([[x0, y0, x1, y1]])
    best = localization._all_contours(byte << 8, truth.astype(float))
    for t in range(255):
        assert best[t] == max(literal_iou(a, truth[0]) for a in literal_boxes(byte > t)), t


def test_the_finer_levels_change_nothing():
    """Pixels of equal bytes may be told apart in the search, the boxes stay."""
    g = np.random.default_rng(0)
    for _ in range(20):
        byte = g.choice([0, 1, 60, 61, 254, 255], (15, 17)).astype(np.uint16) << 8
        fine = byte + np.where(byte < 255 << 8, g.integers(0, 256, byte.shape), 0).astype(np.uint16)
        truth = np.array([[2.0, 3.0, 9.0, 11.0]])
        assert np.array_equal(localization._all_contours(byte, truth), localization._all_contours(fine, truth))


@pytest.mark.parametrize("size", [(56, 56), (224, 224), (30, 50)])
def test_maps_are_resized_as_opencv_does(size):
    cv2 = pytest.importorskip("cv2")
    single = torch.rand(14, 14, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = cv2.resize(single.numpy(), size[::-1], interpolation=cv2.INTER_CUBIC)
    found = (localization._fine_levels(single, size) >> 8).astype(int)
    expected = ((x - x.min()) / (x.max() - x.min()) * 255).astype(int)
    assert (found != expected).mean() < 1e-3 and abs(found - expected).max() <= 1  # OpenCV's weights are float32


def test_eight_bit_maps_keep_their_bytes():
    byte = torch.arange(256).view(16, 16)
    for scaled in (byte.float(), byte / 255, byte.double() / 255, 3 * byte.float() - 7):
        assert np.array_equal(localization._fine_levels(scaled, (16, 16)), 256 * byte.numpy())


# ---- closed cases -----------------------------------------------------------------------------------------------------


def test_a_perfect_map_is_right_everywhere():
    """A contour's box ends one pixel after the object, so the true box does here as well."""
    maps, boxes = torch.zeros(3, 20, 30), [torch.tensor([[4, 5, 12, 9]]), torch.tensor([[0, 0, 29, 19]]), torch.tensor([[10, 12, 29, 19]])]
    for single, box in zip(maps, boxes):
        x0, y0, x1, y1 = box[0].tolist()
        single[y0:y1, x0:x1] = 1
    for contours in ("all", "largest"):
        found = max_box_accuracy(maps, boxes, image_size=(20, 30), iou_thresholds=(0.5, 1.0), contours=contours)
        assert found == {0.5: 100.0, 1.0: 100.0, "mean": 100.0}


@pytest.mark.parametrize("value", [0.0, 1.0, -0.3, 1e-30, 0.1])
@pytest.mark.parametrize("contours", ["all", "largest"])
def test_a_constant_map_has_the_first_pixel_as_its_box(value, contours):
    single = torch.full((1, 7, 7), value)
    whole, first = [torch.tensor([[0, 0, 223, 223]])], [torch.tensor([[0, 0, 0, 1]])]
    assert max_box_accuracy(single, whole, contours=contours) == {0.3: 0.0, 0.5: 0.0, 0.7: 0.0, "mean": 0.0}
    assert max_box_accuracy(single, first, contours=contours) == {0.3: 100.0, 0.5: 100.0, 0.7: 0.0, "mean": pytest.approx(200 / 3)}


def test_one_pixel_objects():
    single, options = at_size("000000", "009000", "000000", "000009")
    assert right(single, options, 2, 1, 3, 2) and right(single, options, 5, 3, 5, 3)
    assert not right(single, options, 2, 1, 2, 1)


def test_objects_hang_together_at_corners_and_holes_do_not():
    single, options = at_size("000000", "090000", "009000", "000900", "000000")
    assert right(single, options, 1, 1, 4, 4) and not right(single, options, 1, 1, 2, 2)
    single, options = at_size("000000", "009900", "090990", "099090", "009900", "000000")
    assert right(single, options, 1, 1, 4, 4) and right(single, options, 2, 2, 5, 5)  # each of the two holes, and what is around it
    assert not right(single, options, 1, 1, 4, 4, contours="largest") and right(single, options, 1, 1, 5, 5, contours="largest")


def test_holes_objects_in_them_and_gaps_at_the_border():
    single, options = at_size("999999900", "900000900", "900000900", "900900900", "900000900", "900000900", "999999900")
    assert right(single, options, 0, 0, 7, 6)  # the hole's box is the ring's own
    assert right(single, options, 3, 3, 4, 4)
    assert not right(single, options, 3, 3, 4, 4, contours="largest")
    single, options = at_size("99999", "90099", "90099", "99999")
    assert right(single, options, 0, 0, 4, 3) and not right(single, options, 0, 0, 3, 3)  # the hole's box is 0 … 3 + 1, 0 … 3
    single, options = at_size("9999999", "9009999", "9009999", "9999999")
    assert right(single, options, 0, 0, 4, 3)
    single, options = at_size("9009999", "9009999", "9009999", "9999999")
    assert not right(single, options, 0, 0, 4, 3)


def test_every_binarisation_counts():
    single, options = at_size("00000000", "02222220", "02555520", "02599520", "02555520", "00000000")
    for box in [(1, 1, 7, 5), (2, 2, 6, 5), (3, 3, 5, 4)]:
        assert right(single, options, *box) and right(single, options, *box, contours="largest")
    assert right(single, options, 1, 1, 7, 5, step=1.0) and not right(single, options, 2, 2, 6, 5, step=1.0)


def test_each_level_has_its_best_threshold_and_all_maps_share_it():
    maps = torch.stack([at_size("00000", "02290", "02290", "00000")[0][0], at_size("00000", "05990", "05990", "00000")[0][0]])
    boxes = [torch.tensor([[3, 1, 4, 3]]), torch.tensor([[1, 1, 4, 3]])]  # the bright part of one, all of the other
    options = dict(image_size=(4, 5), iou_thresholds=(0.5, 1.0))
    assert max_box_accuracy(maps, boxes, **options) == {0.5: 100.0, 1.0: 100.0, "mean": 100.0}  # at 2/9 to 5/9
    assert max_box_accuracy(maps, boxes, step=1.0, **options) == {0.5: 100.0, 1.0: 50.0, "mean": 75.0}
    boxes = [torch.tensor([[1, 1, 4, 3]]), torch.tensor([[2, 1, 4, 3]])]  # below 2/9 for the one, above 5/9 for the other
    assert max_box_accuracy(maps, boxes, **options) == {0.5: 100.0, 1.0: 50.0, "mean": 75.0}


def test_any_true_box_will_do():
    maps, options = at_size("0000000", "0990000", "0990000", "0000000")
    boxes = torch.tensor([[4, 2, 6, 3], [1, 1, 3, 3], [0, 0, 6, 3]])
    for order in ([0, 1, 2], [1], [2, 0, 1]):
        assert max_box_accuracy(maps, [boxes[order]], **options) == {0.3: 100.0, 0.5: 100.0, 0.7: 100.0, "mean": 100.0}
    assert max_box_accuracy(maps, [boxes[[0, 2]]], **options)[0.5] == 0


def test_an_iou_equal_to_its_level_is_right():
    single, options = at_size("0000000000", "0999000000", "0000000000")
    assert right(single, options, 1, 1, 8, 2, level=0.5) and not right(single, options, 1, 1, 8, 2, level=0.501)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_types_and_scales_do_not_count(dtype):
    maps, boxes = problem(7, grid=(6, 6), size=(48, 48))
    maps = (maps * 64).round()
    expected = max_box_accuracy(maps, boxes, image_size=48)
    found = max_box_accuracy((2 * maps - 8).to(dtype).requires_grad_(), [b.double() for b in boxes], image_size=48)
    assert found == expected == max_box_accuracy(maps, boxes, image_size=[48, 48], progress=True)


def test_inputs_are_left_alone():
    maps, boxes = problem(1)
    before = maps.clone(), [b.clone() for b in boxes]
    max_box_accuracy(maps, boxes, image_size=64)
    assert torch.equal(maps, before[0]) and all(torch.equal(a, b) for a, b in zip(boxes, before[1]))


def test_opencv_is_needed_for_the_largest_contour_alone(monkeypatch):
    maps, boxes = problem(2)
    monkeypatch.setitem(sys.modules, "cv2", None)
    max_box_accuracy(maps, boxes, image_size=64)
    with pytest.raises(ImportError, match="cv2"):
        max_box_accuracy(maps, boxes, image_size=64, contours="largest")


# ---- one threshold after the other -------------------------------------------------------------------------------------


def test_the_curve_has_the_accuracy_as_its_maximum():
    maps, boxes = problem(4, count=8)
    curve = threshold_ious(maps, boxes, image_size=64)
    assert curve.shape == (8, 255) and curve.dtype == torch.float64
    found = max_box_accuracy(maps, boxes, image_size=64)
    assert all(100 * (curve >= level).double().mean(0).max() == pytest.approx(found[level]) for level in LEVELS)


def test_the_boxes_of_a_threshold_are_the_contours():
    maps, boxes = problem(5, count=3)
    curve = threshold_ious(maps, boxes, image_size=64)
    for i in range(3):
        for t in (0, 40, 127, 200, 254):
            found, ious = contour_boxes(maps[i], boxes[i], t, image_size=64)
            expected = literal_boxes(literal_bytes(maps[i], (64, 64)) > t)
            assert sorted(map(tuple, found.tolist())) == sorted(expected)
            assert ious[0] == curve[i, t] == ious.max() and (ious.diff() <= 0).all()
            assert ious.tolist() == [max(literal_iou(a, b) for b in boxes[i].tolist()) for a in found.tolist()]


def test_a_map_without_contours_has_one_box_at_every_threshold():
    found, ious = contour_boxes(torch.ones(4, 4), torch.tensor([[0, 0, 1, 1]]), 9, image_size=8)
    assert found.tolist() == [[0, 0, 0, 0]] and ious.tolist() == [0.25]
    for threshold in (-1, 255):
        with pytest.raises(ValueError, match=f"^threshold: got {threshold}, accepts 0 to 254"):
            contour_boxes(torch.ones(4, 4), torch.tensor([[0, 0, 1, 1]]), threshold)


# ---- boxes that know nothing ------------------------------------------------------------------------------------------


def test_the_whole_image():
    boxes = [
        torch.tensor([[0, 0, 29, 19]]),
        torch.tensor([[0, 0, 14, 19]]),
        torch.tensor([[3, 3, 4, 4], [0, 0, 29, 9]]),
        torch.tensor([[1, 1, 2, 2]]),
    ]
    found = trivial_accuracy(boxes, image_size=(20, 30))["whole image"]
    assert found == {0.3: 75.0, 0.5: 75.0, 0.7: 25.0, "mean": pytest.approx(175 / 3)}


def test_the_centred_box_has_the_best_side():
    boxes = [torch.tensor([[25, 50, 74, 149]]), torch.tensor([[26, 52, 73, 147]]), torch.tensor([[0, 0, 99, 199]])]
    found = trivial_accuracy(boxes, image_size=(200, 100), iou_thresholds=(0.2, 0.9, 1.0))
    assert found["centred box"] == {0.2: 100.0, 0.9: pytest.approx(200 / 3), 1.0: pytest.approx(100 / 3), "mean": pytest.approx(200 / 3)}
    assert found["whole image"] == {0.2: 100.0, 0.9: pytest.approx(100 / 3), 1.0: pytest.approx(100 / 3), "mean": pytest.approx(500 / 9)}


def test_trivial_figures_equal_the_literal_ones():
    _, boxes = problem(11, count=20)
    found = trivial_accuracy(boxes, image_size=64)
    for level in LEVELS:
        hits = [0.0]
        for side in localization.CENTRED_SIDES:
            start = (1 - side) / 2 * 64
            box = (start, start, 63 - start, 63 - start)
            hits.append(100 * sum(max(literal_iou(box, b) for b in truth.tolist()) >= level for truth in boxes) / 20)
        assert found["centred box"][level] == pytest.approx(max(hits)) and found["whole image"][level] == pytest.approx(hits[-1])


# ---- refusals ---------------------------------------------------------------------------------------------------------

MAPS, BOXES = torch.rand(2, 4, 4), [torch.tensor([[0, 0, 5, 5]]), torch.tensor([[1, 1, 2, 2], [0, 3, 5, 6]])]
EMPTY, TURNED, ENDLESS = torch.empty(0, 4), torch.tensor([[5, 0, 2, 2]]), torch.tensor([[0.0, 0.0, float("nan"), 1.0]])


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("maps", dict(maps=MAPS[0])),
        ("maps", dict(maps=MAPS[:0], boxes=[])),
        ("maps", dict(maps=MAPS[:, :0])),
        ("maps", dict(maps=MAPS.long())),
        ("maps", dict(maps=MAPS / 0)),
        ("maps", dict(maps=MAPS * float("nan"))),
        ("boxes", dict(boxes=BOXES[:1])),
        ("boxes", dict(boxes=[BOXES[0], EMPTY])),
        ("boxes", dict(boxes=[BOXES[0], BOXES[1][0]])),
        ("boxes", dict(boxes=[BOXES[0], BOXES[1][:, :3]])),
        ("boxes", dict(boxes=[BOXES[0], TURNED])),
        ("boxes", dict(boxes=[BOXES[0], ENDLESS])),
        ("image_size", dict(image_size=0)),
        ("image_size", dict(image_size=8.0)),
        ("image_size", dict(image_size=(8, 8, 8))),
        ("image_size", dict(image_size=(8, -8))),
        ("iou_thresholds", dict(iou_thresholds=())),
        ("iou_thresholds", dict(iou_thresholds=(30, 50))),
        ("iou_thresholds", dict(iou_thresholds=(0.0,))),
        ("step", dict(step=0)),
        ("step", dict(step=1.5)),
        ("step", dict(step=float("nan"))),
        ("contours", dict(contours="outer")),
    ],
)
def test_bad_arguments_are_named(name, arguments):
    with pytest.raises(ValueError, match=f"^{name}: got .* accepts"):
        max_box_accuracy(**dict(maps=MAPS, boxes=BOXES, image_size=8) | arguments)


def test_an_image_without_boxes_is_named():
    for call in (lambda b: max_box_accuracy(MAPS, b, image_size=8), trivial_accuracy):
        with pytest.raises(ValueError, match="^boxes: got .* at index 1, accepts"):
            call([BOXES[0], EMPTY])
    with pytest.raises(ValueError, match="^boxes: got 0 "):
        trivial_accuracy([])


# ---- sets for localization --------------------------------------------------------------------------------------------

CUB = {
    "images": "1 001.Albatross/b_2.jpg\n2 001.Albatross/b_10.jpg\n3 002.Ani/a_1.jpg\n4 002.Ani/a_2.jpg\n",
    "image_class_labels": "1 1\n2 1\n3 2\n4 2\n",
    "train_test_split": "1 0\n2 0\n3 0\n4 1\n",
    "bounding_boxes": "1 60.0 27.0 325.0 304.0\n2 2.5 1.0 3.0 4.0\n3 0.0 0.0 6.0 5.0\n4 1.0 1.0 1.0 1.0\n",
}
WSOL = {
    "image_ids": "val/b.JPEG\nval/a.JPEG\nval/c.JPEG\n",
    "class_labels": "val/a.JPEG,3\nval/b.JPEG,3\nval/c.JPEG,0\n",
    "localization": "val/a.JPEG,45,49,499,162\nval/b.JPEG,1,2,3,4\nval/a.JPEG,2,69,437,207\n",
}


def write_files(folder, files):
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


def test_cub_as_its_authors_pack_it(tmp_path):
    """The first box is that of the set's first image, which wsolevaluation gives as 60, 27, 385, 331."""
    folder = write_files(tmp_path / "CUB_200_2011", CUB)
    table = read_table("cub", "test", root=tmp_path)
    assert table.column_names == ["image", "label", "filename", "boxes"]
    assert table["filename"].to_pylist() == ["b_2.jpg", "b_10.jpg", "a_1.jpg"] and table["label"].to_pylist() == [0, 0, 1]
    assert table["boxes"].to_pylist() == [[[60, 27, 385, 331]], [[2.5, 1, 5.5, 5]], [[0, 0, 6, 5]]]
    assert table["image"][0]["path"].as_py() == str(folder / "images" / "001.Albatross" / "b_2.jpg")
    train = read_table("cub", "train", root=tmp_path)
    assert train["filename"].to_pylist() == ["a_2.jpg"] and train["boxes"].to_pylist() == [[[1, 1, 2, 2]]]


@pytest.mark.parametrize(
    "name, place, split", [("imagenet-wsol", "ILSVRC", "test"), ("imagenet-wsol", "ILSVRC", "val"), ("cub", "CUB", "train")]
)
def test_wsolevaluation(tmp_path, name, place, split):
    write_files(tmp_path / "wsolevaluation" / "metadata" / place / split, WSOL)
    table = read_table(name, split, root=tmp_path)
    assert table["filename"].to_pylist() == ["c.JPEG", "a.JPEG", "b.JPEG"] and table["label"].to_pylist() == [0, 3, 3]
    assert table["boxes"].to_pylist() == [[], [[45, 49, 499, 162], [2, 69, 437, 207]], [[1, 2, 3, 4]]]
    assert table["image"][1]["path"].as_py() == str(tmp_path / "wsolevaluation" / "dataset" / place / "val" / "a.JPEG")


def test_sets_for_localization_are_measured(tmp_path):
    """Read, decoded, moved into the view."""
    folder = write_files(tmp_path / "CUB_200_2011", CUB | {"bounding_boxes": "1 10 5 10 10\n2 10 5 10 10\n3 15 0 5 5\n4 0 0 1 1\n"})
    for name in ("001.Albatross/b_2", "001.Albatross/b_10", "002.Ani/a_1"):
        file = folder / "images" / f"{name}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 20)).save(file)
    boxes, inside = true_objects(Stream(read_table("cub", "test", root=tmp_path), 32, "cpu"), size=40)
    assert [b.tolist() for b in boxes] == [[[0, 10, 20, 30]]] * 2 + [[[10, 0, 20, 10]]] and set(inside) == {"box_area"}


@pytest.mark.parametrize(
    "name, file, line",
    [
        ("cub", "images", "2"),
        ("cub", "images", "2 b.jpg c.jpg"),
        ("cub", "image_class_labels", "2 x"),
        ("cub", "train_test_split", "2 2"),
        ("cub", "bounding_boxes", "2 1 1 1"),
        ("cub", "bounding_boxes", "2 1 1 1 nan"),
        ("cub", "bounding_boxes", "2 1 1 -1 1"),
        ("imagenet-wsol", "class_labels", "val/b.JPEG"),
        ("imagenet-wsol", "class_labels", "val/b.JPEG,x"),
        ("imagenet-wsol", "class_labels", "val/b.JPEG,3,4"),
        ("imagenet-wsol", "localization", "val/b.JPEG,1,2,3"),
        ("imagenet-wsol", "localization", "val/b.JPEG,1,2,3,x"),
        ("imagenet-wsol", "localization", "val/b.JPEG,3,2,1,4"),
    ],
)
def test_damaged_lines_are_named(tmp_path, name, file, line):
    folder, files = (
        (tmp_path / "CUB_200_2011", CUB) if name == "cub" else (tmp_path / "wsolevaluation" / "metadata" / "ILSVRC" / "test", WSOL)
    )
    lines = files[file].splitlines()
    write_files(folder, files | {file: "\n".join([lines[0], line, *lines[2:]])})
    with pytest.raises(ValueError, match=f"^{re.escape(str(folder / file))}.txt: line {line!r} is damaged"):
        read_table(name, "test", root=tmp_path)


@pytest.mark.parametrize("name, file", [("cub", file) for file in CUB] + [("imagenet-wsol", file) for file in WSOL])
def test_missing_files_and_lines_are_named(tmp_path, name, file):
    folder, files = (
        (tmp_path / "CUB_200_2011", CUB) if name == "cub" else (tmp_path / "wsolevaluation" / "metadata" / "ILSVRC" / "test", WSOL)
    )
    write_files(folder, files)
    text = (folder / f"{file}.txt").read_text()
    if file not in ("images", "image_ids", "localization"):
        (folder / f"{file}.txt").write_text("".join(text.splitlines(keepends=True)[1:]))
        with pytest.raises(ValueError, match=f"^{re.escape(str(folder / file))}.txt: has 0 lines for (1|val/a.JPEG), accepts one"):
            read_table(name, "test", root=tmp_path)
    (folder / f"{file}.txt").unlink()
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "CUB_200_2011" if file == "images" else folder / f"{file}.txt"))):
        read_table(name, "test", root=tmp_path)


def test_splits_that_are_not_there(tmp_path):
    write_files(tmp_path / "wsolevaluation" / "metadata" / "ILSVRC" / "val", WSOL)
    with pytest.raises(ValueError, match="wsolevaluation: holds no split 'test'"):
        read_table("imagenet-wsol", "test", root=tmp_path)
    with pytest.raises(ValueError, match="wsolevaluation: holds no split 'train' in the layouts cub, wsol"):
        read_table("cub", "train", root=tmp_path)
