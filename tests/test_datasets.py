"""Whole images with targets: polygons, numbered masks, classes of pixels, resizing, damage, batches; pyramids on any network."""

import io
import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from lib.data import bank, scenes
from lib.data.fingerprint import fingerprint
from lib.data.layouts.objects import read_coco, read_masked
from lib.data.loading import card, read_table
from lib.data.reading import read_mask
from lib.data.segmentation import VOID, AnnotatedDataset, InstanceDataset, Instances, SemanticDataset
from lib.models import create_model
from lib.models.pyramid import SimplePyramid

FILE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TYPES = {"image": FILE, "mask": FILE, "boxes": pa.list_(pa.list_(pa.float32())), "classes": pa.list_(pa.int64())}
TYPES["polygons"] = pa.list_(pa.list_(pa.list_(pa.float32())))


def png(array, path="a.png", mode="png") -> dict:
    stream = io.BytesIO()
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(stream, mode)
    return {"bytes": stream.getvalue(), "path": path}


def table(**columns) -> pa.Table:
    return pa.table({name: pa.array(values, TYPES[name]) for name, values in columns.items()})


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3))


def with_polygons(polygons, size, boxes=None, **sides) -> Instances:
    """Of one image with one object a list of polygons."""
    boxes = boxes or [[0.0, 0.0, 1.0, 1.0]] * len(polygons)
    rows = table(image=[png(noise(*size))], boxes=[boxes], classes=[list(range(len(polygons)))], polygons=[polygons])
    return InstanceDataset(rows, **sides).read(0)[2]


def pixelled(mask, size=None, *, void=-1, num_classes=3, **sides) -> SemanticDataset:
    mask = np.asarray(mask)
    return SemanticDataset(
        table(image=[png(noise(*(size or mask.shape)))], mask=[png(mask, "m.png")]), void=void, num_classes=num_classes, **sides
    )


# ---- polygons ---------------------------------------------------------------------------------------------------------


def literal_polygon(polygon, size):
    """Pixels whose centre, half a pixel off the integers, a ray to the left leaves an odd number of times; and how far each is from an edge."""
    points = np.array(polygon).reshape(-1, 2)
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    inside, nearest = np.zeros(size, bool), np.full(size, np.inf)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, 0)):
        dx, dy = x1 - x0, y1 - y0
        inside ^= ((y0 > y) != (y1 > y)) & (x > x0 + (y - y0) * dx / (dy or 1))
        along = np.clip(((x - x0) * dx + (y - y0) * dy) / max(dx**2 + dy**2, 1e-9), 0, 1)
        nearest = np.minimum(nearest, np.hypot(x - x0 - along * dx, y - y0 - along * dy))
    return inside, nearest


def random_polygon(seed):
    """A star around a point, sharp corners and all, of integers in every other one."""
    draw = np.random.default_rng(seed)
    angles = np.sort(draw.uniform(0, 2 * np.pi, draw.integers(3, 10)))
    points = draw.uniform(8, 16, 2) + draw.uniform(2, 12, len(angles))[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
    return (points.round() if seed % 2 else points).flatten().tolist()


@pytest.mark.parametrize("seed", range(12))
def test_polygons_hold_the_pixels_whose_centres_they_hold(seed):
    """Away from the edges; at them, an outline may differ by half a pixel."""
    polygon = random_polygon(seed)
    found = with_polygons([[polygon]], (24, 26)).masks[0].numpy()
    inside, nearest = literal_polygon(polygon, (24, 26))
    assert inside.sum() > 5 and not (found ^ inside)[nearest > 1.01].any()


def test_polygons_are_as_large_as_they_are():
    """Neither grown by their outline nor moved."""
    shapes = [random_polygon(seed) for seed in range(20)]
    found = with_polygons([[shape] for shape in shapes], (24, 26)).masks.numpy()
    truth = np.stack([literal_polygon(shape, (24, 26))[0] for shape in shapes])
    assert found.sum() == pytest.approx(truth.sum(), rel=0.03)
    assert (found ^ truth).sum() < 0.05 * truth.sum()
    for axis in (1, 2):
        moved = [(mask.nonzero()[axis].mean()) for mask in (found, truth)]
        assert moved[0] == pytest.approx(moved[1], abs=0.1)


@pytest.mark.parametrize("box", [
    (2, 2, 6, 6), (0, 0, 9, 7), (3, 1, 4, 6), (0, 5, 9, 6), (8, 6, 9, 7)
])  # fmt: skip
def test_integers_lie_between_pixels(box):
    """COCO's convention: a rectangle from 2 to 6 holds the pixels 2 to 5."""
    x0, y0, x1, y1 = map(float, box)
    expected = torch.zeros(7, 9, dtype=torch.bool)
    expected[box[1] : box[3], box[0] : box[2]] = True
    for polygon in ([x0, y0, x1, y0, x1, y1, x0, y1], [x0, y1, x1, y1, x1, y0, x0, y0]):  # either way round
        assert torch.equal(with_polygons([[polygon]], (7, 9)).masks[0], expected)


def test_polygons_are_those_of_coco_s_own_decoder():
    coco = pytest.importorskip("faster_coco_eval").mask
    polygons = [random_polygon(seed) for seed in range(30)]
    found = with_polygons([[polygon] for polygon in polygons], (24, 26)).masks.numpy()
    theirs = np.stack([coco.decode(coco.frPyObjects([polygon], 24, 26))[..., 0] > 0 for polygon in polygons])
    assert (found & theirs).sum() / (found | theirs).sum() > 0.93


def test_an_object_of_several_polygons_is_their_union():
    left, right, overlapping = ([x, 2.0, x + 4, 2.0, x + 4, 6.0, x, 6.0] for x in (1.0, 10.0, 3.0))
    together, first, second, third = with_polygons([[left, right, overlapping], [left], [right], [overlapping]], (9, 16)).masks
    assert torch.equal(together, first | second | third) and first.any() and second.any() and not (first & second).any()


@pytest.mark.parametrize("polygon", [[], [1.0, 1.0], [1.0, 1.0, 5.0, 5.0]])
def test_fewer_than_three_points_hold_nothing(polygon):
    things = with_polygons([[polygon], []], (8, 8))
    assert things.masks.shape == (2, 8, 8) and not things.masks.any() and len(things.boxes) == 2


def test_polygons_beyond_the_image_are_cut_off():
    things = with_polygons([[[-5.0, -5.0, 50.0, -5.0, 50.0, 50.0, -5.0, 50.0]], [[20.0, 20.0, 30.0, 20.0, 30.0, 30.0]]], (8, 12))
    assert things.masks[0].all() and not things.masks[1].any()


# ---- objects ----------------------------------------------------------------------------------------------------------


def test_numbered_masks_are_taken_apart():
    mask = np.array([[0, 1, 1, 0], [3, 3, 1, 2], [3, 0, 2, 2]])
    boxes = [[1.0, 0, 3, 2], [2.0, 1, 4, 3], [0.0, 1, 2, 3]]
    rows = table(image=[png(noise(3, 4))], boxes=[boxes], classes=[[7, 0, 7]], mask=[png(mask)])
    image, size, things = InstanceDataset(rows).read(0)
    assert image.shape == (3, 3, 4) and image.dtype == torch.uint8 and size == (3, 4)
    assert torch.equal(image, torch.from_numpy(noise(3, 4)).permute(2, 0, 1).byte())
    assert things.classes.tolist() == [7, 0, 7] and things.classes.dtype == torch.int64 and things.boxes.tolist() == boxes
    assert things.masks.dtype == torch.bool and [m.tolist() for m in things.masks] == [(mask == n).tolist() for n in (1, 2, 3)]


@pytest.mark.parametrize("size, sides, seen", [
    ((40, 20), dict(longest=80), (80, 40)), ((40, 20), dict(longest=20), (20, 10)), ((30, 45), dict(shortest=60), (60, 90)),
    ((20, 33), dict(longest=16), (9, 16)), ((24, 24), {}, (24, 24)),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["polygons", "mask"])
def test_boxes_and_masks_are_resized_with_the_image(size, sides, seen, kind):
    """A white rectangle on black stays within its box, and is the mask."""
    x0, y0, x1, y1 = 4, 6, 14, 18
    image, mask = np.zeros((*size, 3)), np.zeros(size)
    image[y0:y1, x0:x1], mask[y0:y1, x0:x1] = 255, 1
    shape = dict(mask=[png(mask)]) if kind == "mask" else dict(polygons=[[[[x0, y0, x1, y0, x1, y1, x0, y1]]]])
    rows = table(image=[png(image)], boxes=[[[x0, y0, x1, y1]]], classes=[[0]], **shape)
    pixels, original, things = InstanceDataset(rows, **sides).read(0)
    assert original == size and pixels.shape == (3, *seen) and things.masks.shape == (1, *seen)
    fx, fy = seen[1] / size[1], seen[0] / size[0]
    torch.testing.assert_close(things.boxes, torch.tensor([[x0 * fx, y0 * fy, x1 * fx, y1 * fy]]))
    if kind == "mask":
        assert ((pixels[0] > 127) ^ things.masks[0]).float().mean() < 0.06
        rows, columns = things.masks[0].any(1).nonzero(), things.masks[0].any(0).nonzero()
        around = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert [float(v) for v in around] == pytest.approx(things.boxes[0].tolist(), abs=0.51)


@pytest.mark.parametrize("kind", ["polygons", "mask"])
@pytest.mark.parametrize("sides", [{}, dict(longest=20), dict(shortest=5)])
def test_an_image_without_objects(kind, sides):
    shape = dict(mask=[png(np.zeros((10, 8)))]) if kind == "mask" else dict(polygons=[[]])
    rows = table(image=[png(noise(10, 8))], boxes=[[]], classes=[[]], **shape)
    pixels, _, things = InstanceDataset(rows, **sides).read(0)
    assert things.boxes.shape == (0, 4) and things.classes.shape == (0,) and things.masks.shape == (0, *pixels.shape[1:])
    assert things.classes.dtype == torch.int64 and things.boxes.dtype == torch.float32 and things.masks.dtype == torch.bool


# ---- classes of pixels ------------------------------------------------------------------------------------------------


def test_camvid_s_void_is_the_last_class():
    mask = np.arange(12).reshape(3, 4)
    expected = torch.arange(12).view(3, 4).where(torch.arange(12).view(3, 4) != 11, VOID)
    found = pixelled(mask, void=11, num_classes=11).read(0)[2]
    assert torch.equal(found, expected) and found.dtype == torch.int64


def test_ade20k_s_void_is_0_and_moves_classes_by_one():
    mask = np.array([[0, 1, 2], [150, 0, 75]])
    assert pixelled(mask, void=0, num_classes=150).read(0)[2].tolist() == [[VOID, 0, 1], [149, VOID, 74]]


def test_a_void_in_the_middle_and_none():
    mask = np.array([[0, 1, 2, 3]])
    assert pixelled(mask, void=1).read(0)[2].tolist() == [[0, VOID, 1, 2]]
    assert pixelled(mask, num_classes=4).read(0)[2].tolist() == [[0, 1, 2, 3]]
    assert pixelled(mask, void=VOID, num_classes=4).read(0)[2].tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("void, classes", [(11, 11), (0, 12), (-1, 12), (255, 12)])
def test_a_class_out_of_range_is_named(void, classes):
    inside = np.array([[classes - 1 + (void == 0), 0]])
    pixelled(inside, void=void, num_classes=classes).read(0)
    with pytest.raises(ValueError, match=rf"m\.png \(row 0\): holds the class {classes + 1}, accepts {classes} classes"):
        pixelled(np.array([[classes + 1, 0]]), void=void, num_classes=classes).read(0)


def test_classes_keep_the_original_s_size():
    image, size, found = pixelled(np.eye(20, 30), shortest=10).read(0)
    assert image.shape == (3, 10, 15) and size == (20, 30) and found.tolist() == np.eye(20, 30).tolist()


def test_numbers_of_objects_become_their_classes():
    mask = np.array([[0, 1, 2], [3, 3, 0]])
    rows = table(image=[png(noise(2, 3))] * 2, boxes=[[[0.0, 0, 1, 1]] * 3, []], classes=[[4, 0, 4], []], mask=[png(mask), png(0 * mask)])
    source = SemanticDataset(rows, void=-1, num_classes=6)
    assert source.read(0)[2].tolist() == [[0, 5, 1], [5, 5, 0]] and not source.read(1)[2].any()


@pytest.mark.parametrize("mask, classes", [([[0, 2]], [0]), ([[0, 1]], [2])], ids=["number", "class"])
def test_objects_that_are_not_there_or_of_no_class_are_named(mask, classes):
    rows = table(image=[png(noise(1, 2))], boxes=[[[0.0, 0, 1, 1]]], classes=[classes], mask=[png(mask, "m.png")])
    with pytest.raises(ValueError, match=r"m\.png"):
        SemanticDataset(rows, void=-1, num_classes=3).read(0)


@pytest.mark.parametrize("kind", [InstanceDataset, SemanticDataset])
def test_a_mask_of_another_size_than_the_image_is_named(kind):
    rows = table(image=[png(noise(4, 6))], mask=[png(np.ones((6, 4)), "m.png")])
    if kind is InstanceDataset:
        rows = rows.append_column("boxes", pa.array([[[0, 0, 1, 1]]], TYPES["boxes"])).append_column("classes", pa.array([[0]]))
    with pytest.raises(ValueError, match=r"m\.png"):
        kind(rows, **({} if kind is InstanceDataset else dict(void=-1, num_classes=3))).read(0)


# ---- damage and arguments ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["image", "mask"])
@pytest.mark.parametrize("how", ["cut", "text", "missing"])
def test_a_damaged_file_is_named(tmp_path, column, how):
    files = {name: tmp_path / f"{name}.png" for name in ("image", "mask")}
    for name, file in files.items():
        file.write_bytes(png(noise(16, 16) if name == "image" else np.zeros((16, 16)))["bytes"])
    broken = files[column]
    broken.write_bytes(broken.read_bytes()[:40] if how == "cut" else b"text")
    if how == "missing":
        broken.unlink()
    rows = table(**{name: [{"bytes": None, "path": str(file)}] for name, file in files.items()})
    reason = "listed but not readable" if how == "missing" else "damaged or not an image"
    with pytest.raises(ValueError, match=rf"{broken} \(row 0\): {reason}"):
        SemanticDataset(rows, void=-1, num_classes=2).read(0)
    with pytest.raises(ValueError, match=rf"{broken} \(row 0\): {reason}"):
        list(SemanticDataset(rows, void=-1, num_classes=2).batches([torch.tensor([0, 0])]))


def test_a_mask_with_colours_is_named():
    rows = table(image=[png(noise(4, 4))], mask=[png(noise(4, 4), "colours.png")])
    with pytest.raises(ValueError, match=r"colours\.png \(row 0\): has colours \(RGB\)"):
        SemanticDataset(rows, void=-1, num_classes=2).read(0)


@pytest.mark.parametrize("sides", [dict(longest=0), dict(shortest=-1), dict(longest=8, shortest=8)])
@pytest.mark.parametrize("kind", [InstanceDataset, SemanticDataset])
def test_wrong_sides_are_found_at_once(kind, sides):
    with pytest.raises(ValueError, match="longest|shortest"):
        kind(scenes.table("several_train", 2), **sides, **(dict(void=-1, num_classes=11) if kind is SemanticDataset else {}))


# ---- batches ----------------------------------------------------------------------------------------------------------


class Numbered(AnnotatedDataset):
    def target(self, row, size, seen):
        return size, seen


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_batches_come_in_order_and_in_any_size(count):
    shapes = [(5 + i, 9) for i in range(7)]
    source = Numbered(table(image=[png(np.full((*shape, 3), i)) for i, shape in enumerate(shapes)]), longest=18)
    order = torch.tensor([3, 0, 6, 6, 1, 5, 2, 4, 0, 3])
    asked = list(order.split(count))
    found = list(source.batches(asked))
    assert len(source) == 7 and len(found) == len(asked)
    for chosen, (images, sizes, targets) in zip(asked, found):
        assert isinstance(images, list) and [int(image.float().mean()) for image in images] == chosen.tolist()
        assert sizes.tolist() == [list(shapes[i]) for i in chosen] and [size for size, _ in targets] == [shapes[i] for i in chosen]
        assert [tuple(image.shape[1:]) for image in images] == [seen for _, seen in targets]


def test_no_batches_of_nothing():
    assert list(Numbered(table(image=[png(noise(3, 3))])).batches([])) == []


# ---- scenes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("visible", [scenes.VISIBLE, 400])
@pytest.mark.parametrize("split", ["several_train", "several_validation"])
def test_scenes_of_several_objects(split, visible, monkeypatch):
    """Boxes are tight around what the mask numbers, whoever is hardly seen is background, and classes are those of the scene."""
    monkeypatch.setattr(scenes, "VISIBLE", visible)
    count = 30
    drawn = scenes.render(torch.arange(count), seed=scenes.SPLIT_SEEDS[split], objects=scenes.SEVERAL)
    rows, hidden = scenes.table.__wrapped__(split, count), 0  # none that was kept
    source = InstanceDataset(rows)
    for i in range(count):
        image, _, things = source.read(i)
        assert torch.equal(image, drawn.images[i])
        kept = [k for k in range(scenes.SEVERAL) if drawn.masks[i, k].sum() >= visible]
        hidden += scenes.SEVERAL - len(kept)
        assert things.classes.tolist() == [drawn.classes[i, k] for k in kept]
        assert torch.equal(things.masks, drawn.masks[i, kept])
        for mask, box in zip(things.masks, things.boxes):
            rows_, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
            assert box.tolist() == [columns.min(), rows_.min(), columns.max() + 1, rows_.max() + 1]
        numbered = read_mask(rows["mask"][i].as_py())
        assert numbered.unique().tolist() == list(range(len(kept) + 1))
    assert visible < 400 or hidden > count / 3


def test_scenes_of_several_objects_are_no_others_and_as_classes_of_pixels_they_have_a_background():
    tables = {split: scenes.table(split, 4) for split in ("train", "several_train", "several_validation")}
    assert len({fingerprint(rows.select(["image"])) for rows in tables.values()}) == 3
    source = SemanticDataset(tables["several_train"], void=-1, num_classes=11)
    things = InstanceDataset(tables["several_train"])
    for i in range(4):
        found, (_, classes, masks) = source.read(i)[2], things.read(i)[2]
        expected = torch.zeros_like(found)
        for label, mask in zip(classes, masks):
            expected[mask] = label + 1
        assert torch.equal(found, expected) and (found == 0).any()


# ---- readers ----------------------------------------------------------------------------------------------------------


def coco_folder(place, **changes):
    """Two images, of which the second has no objects; category ids with gaps; a crowd."""
    square = [[2.0, 2.0, 6.0, 2.0, 6.0, 6.0, 2.0, 6.0]]
    things = [
        dict(image_id=7, category_id=90, bbox=[2, 2, 4, 4], segmentation=square, iscrowd=0),
        dict(image_id=7, category_id=1, bbox=[0, 0, 8, 8], segmentation=dict(counts=[0, 64], size=[8, 8]), iscrowd=1),
        dict(image_id=7, category_id=13, bbox=[2, 2, 4, 4], segmentation=square * 2, iscrowd=0),
    ]
    described = dict(
        images=[dict(id=9, file_name="b.jpg"), dict(id=7, file_name="a.jpg")],
        categories=[dict(id=90), dict(id=1), dict(id=13)],
        annotations=things,
    )
    (place / "annotations").mkdir()
    (place / "val").mkdir()
    for name in ("a", "b"):
        Image.fromarray(noise(8, 8).astype(np.uint8)).save(place / "val" / f"{name}.jpg")
    (place / "annotations" / "instances_val.json").write_text(json.dumps(described | changes))


def test_coco_s_classes_are_numbered_in_the_order_of_ids_and_crowds_are_none(tmp_path):
    coco_folder(tmp_path)
    rows = read_coco(tmp_path, "val", {}, [])
    assert rows["filename"].to_pylist() == ["a.jpg", "b.jpg"] and rows["classes"].to_pylist() == [[2, 1], []]
    assert rows["boxes"].to_pylist() == [[[2, 2, 6, 6]] * 2, []] and [len(p) for p in rows["polygons"].to_pylist()[0]] == [1, 2]
    things = InstanceDataset(rows, longest=16)
    (first, second), _, (objects, none) = next(things.batches([torch.tensor([0, 1])]))
    assert objects.boxes.tolist() == [[4, 4, 12, 12]] * 2 and objects.masks.shape == (2, 16, 16) and len(none.boxes) == 0


@pytest.mark.parametrize("changes", [
    dict(annotations=[dict(image_id=7, category_id=5, bbox=[2, 2, 4, 4], segmentation=[])]),
    dict(annotations=[dict(image_id=8, category_id=1, bbox=[2, 2, 4, 4], segmentation=[])]),
    dict(annotations=[dict(image_id=7, category_id=1, bbox=[2, 2, 4, 4], segmentation=[[1, 2, 3]])]),
    dict(annotations=[dict(image_id=7, category_id=1, bbox=[2, 2, 4, 4], segmentation=dict(counts="x", size=[8, 8]))]),
    dict(categories=[{}]),
])  # fmt: skip
def test_damaged_coco_annotations_are_named(tmp_path, changes):
    coco_folder(tmp_path, **changes)
    with pytest.raises(ValueError, match=r"instances_val\.json: damaged annotations"):
        read_coco(tmp_path, "val", {}, [])


def test_images_beside_masks(tmp_path):
    for name in ("train", "trainannot"):
        (tmp_path / name).mkdir()
    for i in range(3):
        Image.fromarray(noise(4, 6, i).astype(np.uint8)).save(tmp_path / "train" / f"{i}.png")
        Image.fromarray(np.full((4, 6), i, np.uint8)).save(tmp_path / "trainannot" / f"{i}.png")
    source = SemanticDataset(read_masked(tmp_path, "train:trainannot", {}, []), void=-1, num_classes=3)
    assert [int(source.read(i)[2].unique()) for i in range(3)] == [0, 1, 2]
    (tmp_path / "trainannot" / "1.png").unlink()
    with pytest.raises(ValueError, match=str(tmp_path / "trainannot" / "1.png")):
        source.read(1)


# ---- real data --------------------------------------------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.parametrize("split", ["train", "validation"])
def test_coco_s_masks_lie_in_their_boxes(real_data, split):
    if not (real_data / "coco2017-subset").is_dir():
        pytest.skip(f"no coco2017-subset in {real_data}")
    source = InstanceDataset(read_table("coco2017", split, root=real_data))
    assert len(source) == 100
    tight = []
    for i in range(0, 100, 2):
        image, size, (boxes, classes, masks) = source.read(i)
        assert image.shape[1:] == size == masks.shape[1:] and len(boxes) == len(classes) == len(masks)
        assert ((classes >= 0) & (classes < 80)).all()
        for (x0, y0, x1, y1), mask in zip(boxes.tolist(), masks):
            assert 0 <= x0 <= x1 <= size[1] + 1 and 0 <= y0 <= y1 <= size[0] + 1
            rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
            if len(rows):
                around = [columns.min() - x0, rows.min() - y0, x1 - columns.max() - 1, y1 - rows.max() - 1]
                assert min(around) >= -2
                tight.append(max(around) <= 2)  # all but those with a tip finer than a pixel
    assert len(tight) > 100 and np.mean(tight) > 0.9


@pytest.mark.data
@pytest.mark.parametrize("split", ["train", "validation"])
def test_camvid_s_classes_are_in_range(real_data, split):
    if not (real_data / "camvid-subset").is_dir():
        pytest.skip(f"no camvid-subset in {real_data}")
    source = SemanticDataset(read_table("camvid", split, root=real_data), void=11, num_classes=11, shortest=90)
    counts = torch.zeros(256, dtype=torch.int64)
    for i in range(0, len(source), 4):
        image, size, classes = source.read(i)
        assert image.shape == (3, 90, 120) and tuple(classes.shape) == size
        counts += classes.flatten().bincount(minlength=256)
    assert not counts[11:VOID].any() and (counts[:11] > 0).sum() >= 9 and 0 < counts[VOID] < 0.2 * counts.sum()


# ---- pyramid ----------------------------------------------------------------------------------------------------------


def network(arch, **options):
    torch.manual_seed(0)
    return create_model(arch, img_size=32, **options)


@pytest.mark.parametrize("arch, last", [("vit_nano", 8), ("resnet_mini", 8), ("convnext_mini", 8)])
@pytest.mark.parametrize("pooling", [None, "simpool"])
@pytest.mark.parametrize("size", [(64, 64), (32, 80)])
def test_a_pyramid_s_maps(arch, last, pooling, size):
    pyramid = SimplePyramid(network(arch, pooling=pooling), 12)
    assert pyramid.strides == [last // 4, last // 2, last, 2 * last] and pyramid.multiple == 2 * last and pyramid.out_channels == 12
    maps = pyramid(torch.randn(2, 3, *size))
    assert list(maps) == ["0", "1", "2", "3"]
    assert [tuple(m.shape) for m in maps.values()] == [(2, 12, size[0] // s, size[1] // s) for s in pyramid.strides]


@pytest.mark.parametrize(
    "arch, options, stride", [("vit_nano", dict(patch_size=16), 16), ("resnet50", {}, 32), ("vit_small_patch16_224", {}, 16)]
)
def test_a_large_pyramid_s_maps(arch, options, stride):
    with torch.device("meta"):
        pyramid = SimplePyramid(create_model(arch, img_size=224, **options), 12)
        maps = pyramid(torch.empty(1, 3, 4 * stride, 6 * stride))
    assert pyramid.strides == [stride // 4, stride // 2, stride, 2 * stride]
    assert [tuple(m.shape[1:]) for m in maps.values()] == [(12, 4 * stride // s, 6 * stride // s) for s in pyramid.strides]


@pytest.mark.parametrize("patch_size", [4, 12, 14])
def test_patches_of_any_size(patch_size):
    pyramid = SimplePyramid(create_model("vit_nano", img_size=56, patch_size=patch_size), 12)
    assert pyramid.strides[2:] == [patch_size, 2 * patch_size]


@pytest.mark.parametrize("training", [True, False])
def test_a_pyramid_leaves_the_network_as_it_was(training):
    model = network("resnet_mini").train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    SimplePyramid(model, 12)
    assert all(module.training == training for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("arch", ["vit_nano", "resnet_mini", "convnext_mini"])
@pytest.mark.parametrize("level", ["0", "1", "2", "3"])
def test_gradients_of_every_map_reach_the_whole_network(arch, level):
    model = network(arch)
    pyramid = SimplePyramid(model, 12)
    pyramid(torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)))[level].square().mean().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.isfinite().all()}
    unused = {name for name, _ in model.named_parameters()} - reached
    assert all(name.startswith(("head.", "pooling.")) for name in unused)  # what comes after the patches
    first = {"vit_nano": "patch_embed.proj.weight", "resnet_mini": "conv1.weight", "convnext_mini": "stem.0.weight"}[arch]
    assert dict(model.named_parameters())[first].grad.abs().sum() > 0
    assert all(p.grad is not None for p in pyramid.levels[int(level)].parameters())
    assert all(p.grad is None for i in {0, 1, 2, 3} - {int(level)} for p in pyramid.levels[i].parameters())


def test_photographs_come_with_the_packages_and_are_all_there():
    table = read_table("photographs", "validation")
    assert table.column_names == ["image", "filename"] and len(table) == card("photographs").splits["validation"] == 5
    sizes = bank("photographs", "validation", 32, progress=False).sizes.tolist()
    assert sizes == [[512, 512], [300, 451], [400, 600], [427, 640], [600, 512]]
    with pytest.raises(ValueError, match="split: got 'train', photographs accepts validation"):
        read_table("photographs", "train")
