import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.data import ImageNetInfo
from twins import twin_figures

from lib.data import Bank
from lib.data.bank import Stream
from lib.data.scenes import render, table
from lib.evaluation.backgrounds import IN9_CLASSES, VARIANTS, background_variants, grabcut_masks, in9_class, tile_over
from lib.models import create_model

MIXED = ("MS", "MR", "MN")

# ---- the nine classes -------------------------------------------------------------------------------------------------

NAMES = {
    "dog": "Chihuahua, golden retriever, Siberian husky, pug, toy poodle, standard poodle, Mexican hairless, beagle, basenji",
    "bird": "cock, hen, ostrich, robin, bald eagle, great grey owl, macaw, hummingbird, drake, black swan, king penguin, albatross",
    "vehicle": "ambulance, fire engine, garbage truck, jeep, limousine, minivan, moped, oxcart, pickup, racer, recreational vehicle, "
    "shopping cart, snowmobile, sports car, steam locomotive, tank, tow truck, tractor, trailer truck, tricycle, unicycle",
    "reptile": "loggerhead, box turtle, banded gecko, common iguana, Komodo dragon, American alligator, triceratops, king snake, sidewinder",
    "carnivore": "timber wolf, dingo, hyena, red fox, cougar, lion, tiger, cheetah, brown bear, ice bear, meerkat, mink, otter, skunk, "
    "lesser panda, giant panda",
    "insect": "tiger beetle, ladybug, weevil, fly, bee, ant, cricket, mantis, cicada, dragonfly, monarch, lycaenid",
    "instrument": "accordion, acoustic guitar, banjo, cello, drum, flute, French horn, gong, grand piano, harp, oboe, organ, sax, "
    "steel drum, trombone, upright, violin",
    "primate": "orangutan, gorilla, chimpanzee, gibbon, baboon, proboscis monkey, squirrel monkey, Madagascar cat, indri",
    "fish": "tench, goldfish, great white shark, tiger shark, hammerhead, stingray, eel, coho, anemone fish, sturgeon, lionfish, puffer",
    None: "tabby, tiger cat, Persian cat, Siamese cat, Egyptian cat, axolotl, bullfrog, tree frog, trilobite, scorpion, tarantula, "
    "centipede, tusker, koala, jellyfish, snail, Dungeness crab, American lobster, isopod, grey whale, killer whale, sea lion, "
    "starfish, hare, zebra, hog, bison, armadillo, African elephant, abacus, airliner, canoe, church, container ship, dogsled, "
    "drumstick, minibus, school bus, trolleybus, bullet train, whistle, pizza, banana, volcano, scuba diver, daisy, toilet tissue",
}


def class_names():
    """The first name of every class of ImageNet-1k, in order."""
    info = ImageNetInfo()
    return [info.index_to_description(c).split(", ")[0] for c in range(1000)]


def test_sizes_of_the_nine_classes_are_the_published_ones():
    assert IN9_CLASSES == ("dog", "bird", "vehicle", "reptile", "carnivore", "insect", "instrument", "primate", "fish")
    found = [in9_class(c) for c in range(1000)]
    assert [found.count(nine) for nine in range(9)] == [116, 52, 42, 36, 35, 27, 26, 20, 16]
    assert found.count(-1) == 630


@pytest.mark.parametrize("nine", list(NAMES))
def test_classes_by_name(nine):
    names = class_names()
    expected = -1 if nine is None else IN9_CLASSES.index(nine)
    for name in NAMES[nine].split(", "):
        assert names.count(name) == 1, name
        assert in9_class(names.index(name)) == expected, name


def test_words_in_names_tell_the_class():
    words = {"terrier": 0, "spaniel": 0, "schnauzer": 0, "setter": 0, "retriever": 0, "beetle": 5, "monkey": 7, "shark": 8, "snake": 3}
    words |= {"fox": 4, "bear": 4, "lizard": 3, "turtle": 3, "butterfly": 5, "guitar": 6, "sandpiper": 1, "truck": 2}
    found = [(c, name) for c, name in enumerate(class_names()) if name.split()[-1] in words]
    assert len(found) == 80
    for c, name in found:
        assert in9_class(c) == words[name.split()[-1]], name


@pytest.mark.parametrize("bad", [-1, 1000, 10**9, True, False, 3.0, float("nan"), "3", None, np.float64(3)])
def test_what_is_no_class_of_imagenet_is_named(bad):
    with pytest.raises(ValueError, match="^imagenet_class: got .* accepts an int from 0 to 999"):
        in9_class(bad)


# ---- boxes covered with background ------------------------------------------------------------------------------------


def literal_box(box, size):
    """The rows and columns of the pixels that a box touches."""
    x0, y0, x1, y1 = (float(v) for v in box)
    columns = [x for x in range(size) if math.floor(x0) <= x < x1]
    rows = [y for y in range(size) if math.floor(y0) <= y < y1]
    return rows, columns


def literal_tiled(image, box):
    """Every image that covering the box may give: one for each of the largest rectangles beside it."""
    size = image.shape[-1]
    rows, columns = literal_box(box, size)
    if not rows or not columns:
        return [image]
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    sides = [(0, size, 0, left), (0, size, right, size), (0, top, 0, size), (bottom, size, 0, size)]
    areas = [(y1 - y0) * (x1 - x0) for y0, y1, x0, x1 in sides]
    results = []
    for (y0, y1, x0, x1), area in zip(sides, areas):
        if area < max(areas):
            continue
        covered = image.clone()
        for y in rows:
            for x in columns:
                covered[:, y, x] = image[:, y0 + (y - top) % (y1 - y0), x0 + (x - left) % (x1 - x0)] if area else 0
        results.append(covered)
    return results


def is_one_of(found, candidates):
    return any(torch.equal(found, candidate) for candidate in candidates)


def noise(*shape, seed=0):
    return torch.randint(1, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_tiles_equal_the_literal_ones(data):
    size = data.draw(st.integers(1, 9))
    edge = st.floats(-3, size + 3).map(lambda v: round(4 * v) / 4)
    (x0, x1), (y0, y1) = (sorted(data.draw(st.tuples(edge, edge))) for _ in range(2))
    image, box = noise(3, size, size, seed=size), torch.tensor([x0, y0, x1, y1])
    before = image.clone()
    found = tile_over(image, box)
    assert found.dtype == torch.uint8 and torch.equal(image, before)
    assert is_one_of(found, literal_tiled(image, box))


@pytest.mark.parametrize(
    "box, source",
    [
        ((1, 2, 3, 4), (slice(0, 8), slice(3, 8))),
        ((5, 2, 7, 4), (slice(0, 8), slice(0, 5))),
        ((3, 1, 5, 3), (slice(3, 8), slice(0, 8))),
        ((3, 5, 5, 7), (slice(0, 5), slice(0, 8))),
        ((0, 0, 8, 6), (slice(6, 8), slice(0, 8))),
        ((0, 2, 8, 8), (slice(0, 2), slice(0, 8))),
        ((2, 0, 8, 8), (slice(0, 8), slice(0, 2))),
    ],
)
def test_tiles_come_from_the_largest_rectangle_beside_the_box(box, source):
    image = noise(3, 8, 8)
    x0, y0, x1, y1 = box
    tile = image[:, *source]
    expected = image.clone()
    expected[:, y0:y1, x0:x1] = tile.repeat(1, 8, 8)[:, : y1 - y0, : x1 - x0]
    assert torch.equal(tile_over(image, torch.tensor(box)), expected)
    assert not torch.equal(expected, image)


def test_a_box_without_background_is_blackened():
    image = noise(3, 6, 6)
    for box in ((0, 0, 6, 6), (-4, -1, 9, 6.5), (0.5, 0.9, 5.1, 5.5)):
        assert not tile_over(image, torch.tensor(box)).any()


# ---- variants ---------------------------------------------------------------------------------------------------------


def of_scenes(count=40, size=32, seed=0):
    scenes = render(torch.arange(count), size=size, seed=seed)
    return dict(images=scenes.images, masks=scenes.masks[:, 0], boxes=scenes.boxes[:, 0], labels=scenes.labels, num_classes=10)


def flat(labels, size=12, num_classes=None):
    """Images of one dark colour each, which tells their number, with a bright object of another."""
    labels = torch.as_tensor(labels)
    n = len(labels)
    number = torch.arange(n)
    images = torch.stack([number % 50, number // 50, torch.full_like(number, 7)], 1).byte()[:, :, None, None].repeat(1, 1, size, size)
    masks = torch.zeros(n, size, size, dtype=torch.bool)
    boxes = torch.empty(n, 4)
    for i in range(n):
        x, y = 1 + i % 3, 2 + i % 4
        masks[i, y : y + 4, x : x + 4] = True
        masks[i, y, x] = False
        boxes[i] = torch.tensor([x, y, x + 4, y + 4])
    images = torch.where(masks[:, None], images + 100, images)
    return dict(images=images, masks=masks, boxes=boxes, labels=labels, num_classes=num_classes or int(labels.max()) + 1)


def backgrounds_of(laid, problem):
    """Which image each background comes from, of variants of flat images; asserts that all the rest is right."""
    chosen = laid[:, 0, -1, -1].long() + 50 * laid[:, 1, -1, -1].long()
    for i, j in enumerate(chosen.tolist()):
        expected = problem["images"][j, :, -1, -1, None, None].expand_as(laid[i])
        assert torch.equal(laid[i], torch.where(problem["masks"][i], problem["images"][i], expected))
    return chosen


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_all_variants_are_there():
    problem = of_scenes(6)
    found = background_variants(**problem, generator=seeded())
    assert list(VARIANTS) == ["OF", "MS", "MR", "MN", "NF", "OBB", "OBT", "IN-9"]
    assert set(found) == set(VARIANTS)
    assert all(images.dtype == torch.uint8 and images.shape == (6, 3, 32, 32) for images in found.values())


def test_images_and_masks_are_left_as_they_were():
    problem = of_scenes(6)
    before = {name: value.clone() for name, value in problem.items() if isinstance(value, torch.Tensor)}
    found = background_variants(**problem, generator=seeded())
    assert torch.equal(found["IN-9"], before["images"])
    assert all(torch.equal(problem[name], value) for name, value in before.items())


def test_variants_of_scenes_equal_a_loop_over_images_and_pixels():
    problem = of_scenes(12, size=16)
    images, masks, boxes, labels = (problem[name] for name in ("images", "masks", "boxes", "labels"))
    found = background_variants(**problem, generator=seeded(3))
    present = sorted(set(labels.tolist()))
    for i in range(12):
        only, none, boxed = (torch.zeros_like(images[i]), images[i].clone(), images[i].clone())
        rows, columns = literal_box(boxes[i], 16)
        for y in range(16):
            for x in range(16):
                if masks[i, y, x]:
                    only[:, y, x] = images[i, :, y, x]
                    none[:, y, x] = 0
                if y in rows and x in columns:
                    boxed[:, y, x] = 0
        assert torch.equal(found["OF"][i], only)
        assert torch.equal(found["NF"][i], none)
        assert torch.equal(found["OBB"][i], boxed)
        assert is_one_of(found["OBT"][i], literal_tiled(images[i], boxes[i]))
        following = present[(present.index(labels[i]) + 1) % len(present)]
        for name, classes in (("MS", [labels[i]]), ("MR", present), ("MN", [following])):
            possible = [j for j in range(12) if labels[j] in classes]
            laid = [torch.where(masks[i], images[i], ground) for j in possible for ground in literal_tiled(images[j], boxes[j])]
            assert is_one_of(found[name][i], laid), (name, i)


def test_objects_and_what_is_left_add_up_to_the_image():
    problem = of_scenes()
    found = background_variants(**problem, generator=seeded())
    mask = problem["masks"][:, None].expand_as(problem["images"])
    assert torch.equal(found["OF"] + found["NF"], problem["images"])
    assert not found["OF"][~mask].any() and not found["NF"][mask].any()
    for name in ("OF", *MIXED):
        assert torch.equal(found[name][mask], problem["images"][mask])


def test_boxes_are_blackened_exactly():
    problem = of_scenes()
    problem["images"] = problem["images"].clamp(min=1)
    found = background_variants(**problem, generator=seeded())["OBB"]
    for image, black, (x0, y0, x1, y1) in zip(problem["images"], found, problem["boxes"].int().tolist()):
        inside = torch.zeros(32, 32, dtype=torch.bool)
        inside[y0:y1, x0:x1] = True
        assert torch.equal((black == 0).all(0), inside) and torch.equal((black == 0).any(0), inside)
        assert torch.equal(black[:, ~inside], image[:, ~inside])


def test_covered_boxes_show_colours_from_outside_only():
    problem = of_scenes()
    found = background_variants(**problem, generator=seeded())["OBT"]
    for image, covered, (x0, y0, x1, y1) in zip(problem["images"], found, problem["boxes"].int().tolist()):
        inside = torch.zeros(32, 32, dtype=torch.bool)
        inside[y0:y1, x0:x1] = True
        assert torch.equal(covered[:, ~inside], image[:, ~inside])
        assert not torch.equal(covered, image)
        outside = set(map(tuple, image[:, ~inside].T.tolist()))
        assert set(map(tuple, covered[:, inside].T.tolist())) <= outside


def test_classes_of_the_mixed_backgrounds():
    labels = torch.randint(4, (120,), generator=seeded(1)) * 2 + 1
    problem = flat(labels, num_classes=9)
    found = background_variants(**problem, generator=seeded())
    chosen = {name: backgrounds_of(found[name], problem) for name in MIXED}
    assert torch.equal(labels[chosen["MS"]], labels)
    following = {1: 3, 3: 5, 5: 7, 7: 1}
    assert labels[chosen["MN"]].tolist() == [following[label] for label in labels.tolist()]
    assert set(zip(labels.tolist(), labels[chosen["MR"]].tolist())) == {(a, b) for a in (1, 3, 5, 7) for b in (1, 3, 5, 7)}


def test_no_image_keeps_its_own_background_where_its_class_has_another():
    problem = flat([0] * 2 + [1] * 40 + [2] * 3)
    for seed in range(5):
        found = background_variants(**problem, generator=seeded(seed))
        for name in MIXED:
            assert not (backgrounds_of(found[name], problem) == torch.arange(45)).any()


def test_a_class_of_one_image_keeps_its_own_background_covered():
    problem = flat([0, 1, 1])
    found = background_variants(**problem, generator=seeded())
    assert backgrounds_of(found["MS"], problem).tolist() == [0, 2, 1]
    assert backgrounds_of(found["MN"], problem)[1:].tolist() == [0, 0]


def test_random_backgrounds_are_uniform_over_classes_and_over_their_images():
    labels = torch.tensor([0] * 20 + [1] * 100 + [4] * 480)
    problem = flat(labels, num_classes=6)
    found = background_variants(**problem, generator=seeded(5))
    random = backgrounds_of(found["MR"], problem)
    counts = labels[random].bincount(minlength=6)
    assert counts[[2, 3, 5]].sum() == 0
    assert (counts[[0, 1, 4]] - 200).abs().max() < 60  # five deviations
    of_first = random[labels[random] == 0].bincount(minlength=20)[:20]
    assert of_first.min() >= 1 and of_first.max() <= 28
    same = backgrounds_of(found["MS"], problem)[120:]
    assert 250 < len(same.unique()) < 350  # of 480 drawn with replacement, 303 are expected


@pytest.mark.parametrize("count", [1, 2, 5])
def test_one_class_only(count):
    problem = flat([3] * count)
    found = background_variants(**problem, generator=seeded())
    for name in MIXED:
        chosen = backgrounds_of(found[name], problem)
        assert count == 1 or not (chosen == torch.arange(count)).any()


def test_a_single_image():
    problem = of_scenes(1)
    found = background_variants(**problem)
    for name in MIXED:
        assert torch.equal(found[name], torch.where(problem["masks"][:, None], problem["images"], found["OBT"]))


def test_a_generator_tells_the_backgrounds_and_leaves_the_global_one_alone():
    problem = flat(torch.arange(30) % 3)
    state = torch.get_rng_state()
    a, b, other = (background_variants(**problem, generator=seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a[name], b[name]) for name in VARIANTS)
    assert all(torch.equal(a[name], other[name]) for name in VARIANTS if name not in MIXED)
    assert not any(torch.equal(a[name], other[name]) for name in MIXED)


def test_without_a_generator_the_global_one_decides():
    problem = flat(torch.arange(30) % 3)
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(background_variants(**problem))
    assert all(torch.equal(found[0][name], found[1][name]) for name in MIXED)
    assert not any(torch.equal(found[0][name], found[2][name]) for name in MIXED)


def test_boxes_that_touch_leave_or_cover_the_frame():
    images, labels = noise(5, 3, 8, 8), torch.zeros(5, dtype=torch.int64)
    boxes = torch.tensor([[0, 0, 4, 8], [-3, 2, 5, 12], [0, 0, 8, 8], [-5, -5, 20, 20], [9, 1, 12, 3]]).float()
    masks = torch.zeros(5, 8, 8, dtype=torch.bool)
    found = background_variants(images, masks, boxes, labels, num_classes=1, generator=seeded())
    inside = torch.zeros(5, 8, 8, dtype=torch.bool)
    inside[0, :, :4] = inside[1, 2:, :5] = inside[2:4] = True
    assert torch.equal(found["OBB"], torch.where(inside[:, None], torch.zeros_like(images), images))
    assert torch.equal(found["OBT"][0, :, :, :4], images[0, :, :, 4:])
    assert torch.equal(found["OBT"][1, :, 2:, :5], images[1, :, :6, [5, 6, 7, 5, 6]])
    assert not found["OBT"][2:4].any()
    assert torch.equal(found["OBT"][4], images[4])


def test_fractional_boxes_hold_every_pixel_they_touch():
    images = noise(2, 3, 8, 8)
    arguments = dict(masks=torch.zeros(2, 8, 8, dtype=torch.bool), labels=torch.tensor([0, 1]), num_classes=2)
    fractional = torch.tensor([[1.5, 2.0, 4.01, 5.99], [0.99, 6.2, 3.0, 7.5]], dtype=torch.float64)
    whole = torch.tensor([[1, 2, 5, 6], [0, 6, 3, 8]])
    found, expected = (background_variants(images, boxes=b, generator=seeded(), **arguments) for b in (fractional, whole))
    assert all(torch.equal(found[name], expected[name]) for name in VARIANTS)
    assert (found["OBB"] == 0).all(1).sum((1, 2)).tolist() == [16, 6]


GOOD = flat([0, 1, 1], num_classes=2)


@pytest.mark.parametrize(
    "name, value",
    [
        ("images", GOOD["images"].float()),
        ("images", GOOD["images"][:, :1]),
        ("images", GOOD["images"][:, :, :8]),
        ("images", GOOD["images"][0]),
        ("images", GOOD["images"][:0]),
        ("masks", GOOD["masks"].byte()),
        ("masks", GOOD["masks"][:2]),
        ("masks", GOOD["masks"][:, None]),
        ("boxes", GOOD["boxes"][:2]),
        ("boxes", GOOD["boxes"][:, :3]),
        ("boxes", GOOD["boxes"][:, None]),
        ("labels", GOOD["labels"][:2]),
        ("labels", GOOD["labels"][:, None]),
        ("labels", torch.tensor([0, 1, 2])),
        ("labels", torch.tensor([0, -1, 1])),
        ("labels", torch.tensor([0.0, 0.5, 1.0])),
    ],
)
def test_bad_arguments_are_named(name, value):
    with pytest.raises(ValueError, match=f"^{name}: got .* accepts"):
        background_variants(**GOOD | {name: value})


# ---- masks by GrabCut -------------------------------------------------------------------------------------------------


def discs(count=4, size=64, seed=0):
    """Bright discs on dark noisy ground: images, boxes and true masks."""
    g = seeded(seed)
    y, x = torch.meshgrid(*[torch.arange(size) + 0.5] * 2, indexing="ij")
    images = torch.randint(0, 40, (count, 3, size, size), generator=g)
    masks, boxes = [], []
    for i in range(count):
        radius = size * (0.12 + 0.05 * i)
        cx, cy = (size * (0.35 + 0.3 * torch.rand(2, generator=g))).tolist()
        masks.append((x - cx) ** 2 + (y - cy) ** 2 < radius**2)
        images[i] += masks[-1] * torch.tensor([200, 170, 120 + 20 * i]).view(3, 1, 1)
        boxes.append([cx - radius - 3, cy - radius - 2, cx + radius + 3.5, cy + radius + 2])
    return images.byte(), torch.tensor(boxes), torch.stack(masks)


def test_grabcut_finds_bright_discs():
    pytest.importorskip("cv2")
    images, boxes, truth = discs()
    found = grabcut_masks(images, boxes)
    assert found.dtype == torch.bool and found.shape == truth.shape
    iou = (found & truth).sum((1, 2)) / (found | truth).sum((1, 2))
    assert iou.min() > 0.9


def test_grabcut_stays_in_the_box():
    pytest.importorskip("cv2")
    problem = of_scenes(6)
    boxes = problem["boxes"] + torch.tensor([3.3, 2.6, -4.2, -3.4])  # cut through the objects
    found = grabcut_masks(problem["images"], boxes)
    for mask, box in zip(found, boxes):
        rows, columns = literal_box(box, 32)
        outside = torch.ones(32, 32, dtype=torch.bool)
        outside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = False
        assert mask.any() and not mask[outside].any()


def test_grabcut_is_better_than_the_box_on_scenes():
    pytest.importorskip("cv2")
    problem = of_scenes(12, size=64)
    truth = problem["masks"]
    full = torch.zeros_like(truth)
    for mask, (x0, y0, x1, y1) in zip(full, problem["boxes"].int().tolist()):
        mask[y0:y1, x0:x1] = True
    found = grabcut_masks(problem["images"], problem["boxes"])
    by_grabcut, by_box = (((m & truth).sum((1, 2)) / (m | truth).sum((1, 2))).mean() for m in (found, full))
    assert by_grabcut > by_box


def test_grabcut_needs_background():
    pytest.importorskip("cv2")
    images, boxes, _ = discs(2, 24)
    whole = torch.tensor([[0, 0, 24, 24], [-2, -0.5, 30, 24]])
    assert grabcut_masks(images, whole).all()
    mixed = grabcut_masks(images, torch.stack([whole[0], boxes[1]]))
    assert mixed[0].all() and torch.equal(mixed[1], grabcut_masks(images, boxes)[1])


def test_grabcut_of_one_pixel_and_of_all_but_one():
    pytest.importorskip("cv2")
    image = discs(1, 16)[0]
    one = grabcut_masks(image, torch.tensor([[5, 6, 6, 7]]))
    assert one.nonzero().tolist() == [[0, 6, 5]]
    most = grabcut_masks(image, torch.tensor([[0, 0, 16, 15.0]]))
    assert most.any() and not most[0, 15].any()


def test_where_grabcut_finds_nothing_the_mask_is_the_box(monkeypatch):
    cv2 = pytest.importorskip("cv2")
    monkeypatch.setattr(cv2, "grabCut", lambda image, mask, *_: mask.fill(cv2.GC_BGD))
    found = grabcut_masks(discs(1, 16)[0], torch.tensor([[2, 3, 5.5, 8]]))
    expected = torch.zeros(1, 16, 16, dtype=torch.bool)
    expected[:, 3:8, 2:6] = True
    assert torch.equal(found, expected)


def test_grabcut_is_the_same_each_time_and_in_each_batch():
    cv2 = pytest.importorskip("cv2")
    problem = of_scenes(5)
    images, boxes = problem["images"], problem["boxes"]
    found = grabcut_masks(images, boxes)
    cv2.setRNGSeed(123)
    assert torch.equal(grabcut_masks(images, boxes), found)
    assert torch.equal(grabcut_masks(images.flip(0), boxes.flip(0)).flip(0), found)
    assert torch.equal(torch.cat([grabcut_masks(images[i : i + 1], boxes[i : i + 1]) for i in range(5)]), found)


def test_grabcut_gets_the_iterations_and_the_colours(monkeypatch):
    cv2 = pytest.importorskip("cv2")
    calls, cut = [], cv2.grabCut

    def watched(image, mask, rect, *others):
        calls.append((image.copy(), mask.copy(), others[2]))
        return cut(image, mask, rect, *others)

    monkeypatch.setattr(cv2, "grabCut", watched)
    images, boxes, _ = discs(1, 16)
    grabcut_masks(images, boxes)
    grabcut_masks(images, boxes, iterations=2)
    (pixels, start, iterations), (_, _, fewer) = calls
    assert (iterations, fewer) == (5, 2)
    assert np.array_equal(pixels[..., ::-1], images[0].permute(1, 2, 0).numpy())
    rows, columns = literal_box(boxes[0], 16)
    expected = np.full((16, 16), cv2.GC_BGD)
    expected[np.ix_(rows, columns)] = cv2.GC_PR_FGD
    assert np.array_equal(start, expected)


# ---- ImageNet-9 itself ------------------------------------------------------------------------------------------------


def test_imagenet_9_is_answered_by_probes_of_imagenet_1k():
    """The probe has a thousand classes and is chosen on its own images, since the labels of ImageNet-9 are others."""
    known = {in9_class(c): c for c in range(1000)}
    rows = table("train", 48).select(["image", "label"])
    nine = [label % 9 for label in rows["label"].to_pylist()]
    thousand = torch.tensor([*(known[label] for label in nine[:-1]), 999])
    pixels = render(torch.arange(48), seed=1).images
    train = Bank(pixels, torch.full((48, 2), 64), thousand, "made")
    variants = {name: rows.set_column(1, "label", [nine]).append_column("variant", [[name] * 48]) for name, _ in VARIANTS.values()}
    source = Stream(pa.concat_tables(variants.values()), 64, "cpu")
    torch.manual_seed(0)
    network = create_model("resnet_mini", num_classes=0).eval()
    options = dict(train=train, size=48, crop=1.0, blocks=1, batch_size=16, epochs=100, lrs=[1e-9, 3.0])
    found = twin_figures("backgrounds", network, network, source, **options)
    assert found["images"] == 48 and found["IN-9"] == found["OF"] == found["untrained_OBT"] > 60
