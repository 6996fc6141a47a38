"""LOST, DINO-seg and CorLoc, the sets they are measured on, and whole images."""

import io
import json
import math
import re
import shutil
import warnings
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from twins import twin_figures

from lib.data import load, scenes
from lib.data.layouts import BOXES, IMAGE
from lib.data.loading import read_table
from lib.data.reading import Damage, fitted, full_images, read_image, read_mask
from lib.evaluation.components import label
from lib.evaluation.discovery import corloc, dino_seg, discover, discovery_accuracy, lost
from lib.models import create_model
from lib.models.base import Features

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
GRIDS = [(1, 1), (1, 7), (6, 1), (3, 4), (8, 8), (5, 9), (10, 7)]


def literal_box(chosen, patch_size, image_size=None):
    """Around the true entries of a nested list or array, pixel by pixel."""
    places = [(i, j) for i, row in enumerate(chosen) for j, inside in enumerate(row) if inside]
    rows, columns = [i for i, _ in places], [j for _, j in places]
    box = [min(columns) * patch_size, min(rows) * patch_size, (max(columns) + 1) * patch_size, (max(rows) + 1) * patch_size]
    if image_size is not None:
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        box = [min(box[0], width), min(box[1], height), min(box[2], width), min(box[3], height)]
    return box


def literal_lost(features, grid, *, patch_size=16, k_patches=100, image_size=None):
    keys = features.double().tolist()
    similar = [[sum(a * b for a, b in zip(p, q)) for q in keys] for p in keys]
    patches = range(len(keys))
    degree = [sum(similar[p][q] > 0 for q in patches if q != p) for p in patches]
    order = sorted(patches, key=lambda p: (degree[p], p))
    seed = order[0]
    members = [p for p in order[:k_patches] if similar[seed][p] > 0]
    grown = [p == seed or sum(similar[m][p] for m in members) > 0 for p in patches]
    parts = ndimage.label(np.array(grown).reshape(grid))[0]
    mask = parts == parts.flat[seed]
    return literal_box(mask, patch_size, image_size), seed, mask.tolist(), int(parts.max())


def literal_dino_seg(weights, grid, *, patch_size=16, mass="0.6", component="largest", image_size=None):
    """Of whole numbers, so that shares are exact."""
    order = sorted(range(len(weights)), key=lambda p: (-weights[p], p))
    mask, held = np.zeros(len(weights), bool), 0
    for p in order:
        if Fraction(held, sum(weights)) >= Fraction(mass):
            break
        mask[p] = True
        held += weights[p]
    mask = mask.reshape(grid)
    parts, count = ndimage.label(mask)
    if component == "largest" or mask.all():  # the released code fails where there is no background
        chosen = max(range(1, count + 1), key=lambda c: ((parts == c).sum(), -c))
    else:
        sizes = [np.sum(parts == c) for c in range(np.max(parts))]
        chosen = np.argmax(sizes[1:]) + 1 if len(sizes) > 1 else 0
    return literal_box(parts == chosen, patch_size, image_size), order[0], (parts == chosen).tolist()


def literal_corloc(predicted, ground_truth):
    hits = count = 0
    for box, boxes in zip(predicted.tolist(), ground_truth):
        found = False
        for true in boxes.tolist():
            width, height = min(box[2], true[2]) - max(box[0], true[0]), min(box[3], true[3]) - max(box[1], true[1])
            shared = Fraction(max(width, 0)) * Fraction(max(height, 0))
            together = sum(Fraction(b[2] - b[0]) * Fraction(b[3] - b[1]) for b in (box, true)) - shared
            found |= together > 0 and shared / together >= Fraction(1, 2)
        count += len(boxes) > 0
        hits += found
    return 100 * hits / count


def plain(found):
    return found.box.tolist(), found.seed, found.mask.tolist()


def drawn(*rows):
    """A mask from rows of ``#`` and other characters."""
    return torch.tensor([[c == "#" for c in row] for row in rows])


def attention_on(mask, inside=1.0):
    """Attention [1, N] and the grid of a mask over which it is spread evenly."""
    return inside * mask.flatten()[None].float(), tuple(mask.shape)


# ---- connected parts --------------------------------------------------------------------------------------------------


def spiral(size):
    mask, (i, j), (down, right) = torch.zeros(size, size, dtype=torch.bool), (0, 0), (0, 1)
    for turn in range(2 * size):
        mask[i, j] = True
        for _ in range(size - 1 - 2 * max(0, (turn - 1) // 2) if turn else size - 1):
            if not (0 <= i + down < size and 0 <= j + right < size):
                break
            if 0 <= i + 2 * down < size and 0 <= j + 2 * right < size and mask[i + 2 * down, j + 2 * right]:
                break
            i, j = i + down, j + right
            mask[i, j] = True
        down, right = right, -down
    return mask


def snake(height, width):
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[::2] = True
    mask[1::4, -1] = mask[3::4, 0] = True
    return mask


SHAPES = {
    "spiral": spiral(21),
    "spiral from its other end": spiral(20).flip(0, 1),
    "snake": snake(19, 17),
    "upright snake": snake(18, 23).T,
    "comb that closes at the foot": drawn("#.#.#.#", "#.#.#.#", "#######"),
    "two combs": drawn("#.#.#.#", "#.#.#.#", "###.###"),
    "corners do not touch": drawn("#.#", ".#.", "#.#"),
    "ring in a ring": drawn("#####", "#...#", "#.#.#", "#...#", "#####"),
    "nothing": drawn("...", "..."),
    "everything": drawn("###", "###"),
    "the last one alone": drawn("..", ".#"),
}


@pytest.mark.parametrize("mask", SHAPES.values(), ids=SHAPES.keys())
def test_parts_of_odd_shapes(mask):
    expected, count = ndimage.label(mask.numpy())
    found = label(mask)
    assert found.dtype == torch.int64 and found.tolist() == expected.tolist() and found.max() == count


def test_a_spiral_and_a_snake_are_one_part():
    assert ndimage.label(spiral(21).numpy())[1] == ndimage.label(snake(19, 17).numpy())[1] == 1
    assert spiral(21).sum() > 200 and label(spiral(21)).max() == label(snake(19, 17)).max() == 1


@given(st.tuples(st.integers(1, 14), st.integers(1, 14)), st.floats(0.2, 0.9), st.integers(0, 2**31))
@settings(max_examples=150, deadline=None)
def test_parts_are_those_of_scipy(shape, share, seed):
    mask = np.random.default_rng(seed).random(shape) < share
    assert label(torch.from_numpy(mask)).tolist() == ndimage.label(mask)[0].tolist()


def test_parts_of_a_mask_that_is_not_contiguous():
    mask = torch.rand(30, 26, generator=torch.Generator().manual_seed(0)) < 0.6
    for part in (mask.T, mask[::2, 1::3], mask.flip(0)):
        assert label(part).tolist() == ndimage.label(part.numpy())[0].tolist()


# ---- LOST against the literal algorithm -------------------------------------------------------------------------------


@pytest.mark.parametrize("k_patches", [1, 3, 12, 100])
@pytest.mark.parametrize("grid", GRIDS)
def test_lost_equals_the_literal_algorithm(grid, k_patches):
    for seed in range(3):
        g = torch.Generator().manual_seed(seed)
        features = torch.randn(grid[0] * grid[1], 3, generator=g, dtype=torch.float64)
        options = dict(patch_size=8, k_patches=k_patches, image_size=(8 * grid[0] - 3, 8 * grid[1] - seed))
        assert plain(lost(features, grid, **options)) == literal_lost(features, grid, **options)[:3]


@given(
    st.tuples(st.integers(1, 7), st.integers(1, 7)), st.integers(1, 4), st.integers(1, 60), st.integers(0, 2**31), st.sampled_from(DTYPES)
)
@settings(max_examples=80, deadline=None)
def test_lost_with_many_ties_and_zeros(grid, dim, k_patches, seed, dtype):
    """Small whole numbers: sums are exact in every type."""
    features = torch.randint(-1, 2, (grid[0] * grid[1], dim), generator=torch.Generator().manual_seed(seed))
    options = dict(k_patches=k_patches)
    assert plain(lost(features.to(dtype), grid, **options)) == literal_lost(features, grid, **options)[:3]


def test_lost_on_smooth_features_of_a_larger_grid():
    """Neighbours resemble each other, as keys do, so that components are large and there are several."""
    several = 0
    for seed in range(2):
        noise = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        features = nn.functional.interpolate(noise, (12, 16), mode="bicubic")[0].flatten(1).T
        for k_patches in (1, 20, 1000):
            *expected, parts = literal_lost(features, (12, 16), k_patches=k_patches)
            assert plain(lost(features, (12, 16), k_patches=k_patches)) == tuple(expected)
            several += parts > 1
    assert several


def test_lost_has_the_defaults_of_the_paper():
    features = torch.randn(144, 2, generator=torch.Generator().manual_seed(11), dtype=torch.float64)
    found = plain(lost(features, (12, 12)))
    assert found == literal_lost(features, (12, 12), patch_size=16, k_patches=100)[:3]
    masks = [literal_lost(features, (12, 12), k_patches=k)[2] for k in (1, 100, 144)]
    assert masks[0] != masks[1]


def test_lost_leaves_its_input_alone_and_ignores_its_scale():
    features = torch.randn(30, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    before = features.clone()
    found = lost(features, (5, 6), k_patches=7)
    assert torch.equal(features, before)
    assert plain(lost(1024 * features, (5, 6), k_patches=7)) == plain(found)
    assert plain(lost(features.T.contiguous().T, (5, 6), k_patches=7)) == plain(found)


# ---- LOST, closed cases -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1.0, -2.0, 0.0])
def test_lost_on_one_patch(value):
    assert plain(lost(torch.full((1, 3), value), (1, 1))) == ([0, 0, 16, 16], 0, [[True]])


def test_lost_where_all_keys_are_equal():
    assert plain(lost(torch.ones(12, 4), (3, 4), patch_size=8)) == ([0, 0, 32, 24], 0, [[True] * 4] * 3)


def test_lost_where_all_keys_are_zero():
    found = lost(torch.zeros(6, 4), (2, 3))
    assert plain(found) == ([0, 0, 16, 16], 0, [[True, False, False], [False, False, False]])


def test_lost_where_keys_are_orthogonal():
    found = lost(torch.eye(6).flip(0), (2, 3))
    assert plain(found) == ([0, 0, 16, 16], 0, [[True, False, False], [False, False, False]])


def keys_of(*rows, **vectors):
    """Keys [N, D] and the grid from a drawing with one character a patch."""
    return torch.tensor([vectors[c] for row in rows for c in row], dtype=torch.float32), (len(rows), len(rows[0]))


SIDES = dict(o=[1.0], b=[-1.0])


def test_lost_on_an_object_of_one_patch():
    assert plain(lost(*keys_of("bbbb", "bbbb", "bbob", **SIDES)))[:2] == ([32, 32, 48, 48], 10)


def test_lost_takes_the_smaller_side():
    assert plain(lost(*keys_of("bbbbb", "boobb", "booob", "bbbbb", **SIDES), patch_size=10))[:2] == ([10, 10, 40, 30], 6)
    assert plain(lost(*keys_of("ooooo", "obboo", "obbbo", "ooooo", **SIDES), patch_size=10))[:2] == ([10, 10, 40, 30], 6)


def test_lost_on_a_tie_takes_the_first_patch():
    assert plain(lost(*keys_of("bo", "bo", **SIDES))) == ([0, 0, 16, 32], 0, [[True, False], [True, False]])
    assert plain(lost(*keys_of("ob", "ob", **SIDES))) == ([0, 0, 16, 32], 0, [[True, False], [True, False]])


def test_lost_on_two_objects_that_look_alike_boxes_the_one_with_the_seed():
    keys, grid = keys_of("bbbbbb", "bobboo", "bbbboo", "bbbbbb", **SIDES)
    found = lost(keys, grid, patch_size=1)
    assert (found.box.tolist(), found.seed) == ([1, 1, 2, 2], 7) and found.mask.nonzero().tolist() == [[1, 1]]


def test_lost_on_two_objects_that_differ_finds_the_smaller_one():
    vectors = dict(a=[1.0, 0.0], c=[0.0, 1.0], b=[-1.0, -1.0])
    found = lost(*keys_of("cccbb", "cccba", "bbbba", **vectors), patch_size=1)
    assert (found.box.tolist(), found.seed) == ([4, 1, 5, 3], 9) and found.mask.sum() == 2


def test_lost_does_not_join_parts_at_a_corner():
    found = lost(*keys_of("bbbb", "bobb", "bbob", "bbbb", **SIDES), patch_size=1)
    assert found.box.tolist() == [1, 1, 2, 2] and found.mask.nonzero().tolist() == [[1, 1]]


def test_lost_expands_from_the_candidates_alone():
    """Degrees 1, 2, 1: the middle patch is the third candidate, and only with it the last patch joins."""
    features = torch.tensor([[1.0, 0.0], [1.0, 3.0], [-1.0, 1.0]])
    assert [lost(features, (1, 3), k_patches=k).mask.tolist() for k in (1, 2, 3, 4)] == [[[True, True, False]]] * 2 + [[[True] * 3]] * 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "image_size, box",
    [
        (None, [0, 0, 400, 32]),
        (389, [0, 0, 389, 32]),
        ((30, 389), [0, 0, 389, 30]),
        ([999, 999], [0, 0, 400, 32]),
        ((31, 999), [0, 0, 400, 31]),
    ],
)
def test_boxes_are_clipped_to_the_image(dtype, image_size, box):
    for found in (
        lost(torch.ones(50, 2).to(dtype), (2, 25), image_size=image_size),
        dino_seg(torch.ones(1, 50).to(dtype), (2, 25), mass=1.0, image_size=image_size),
    ):
        assert found.box.is_floating_point() and found.box.tolist() == box


def test_boxes_lie_around_their_masks():
    """Of the object, or of the background that the released rule takes."""
    for seed in range(10):
        g = torch.Generator().manual_seed(seed)
        features, attention = torch.randn(42, 3, generator=g), torch.rand(1, 42, generator=g) ** 4
        found = [lost(features, (6, 7), k_patches=5, patch_size=8)]
        found += [dino_seg(attention, (6, 7), patch_size=8, component=component) for component in ("largest", "official")]
        assert found[0].mask.flatten()[found[0].seed]
        for box, _, mask in found:
            assert box.tolist() == literal_box(mask.numpy(), 8, None)


def test_fields_of_a_discovery():
    for found in (lost(torch.ones(6, 2), (2, 3)), dino_seg(torch.ones(1, 6), (2, 3))):
        assert found._fields == ("box", "seed", "mask") and found.box.shape == (4,)
        assert type(found.seed) is int and found.mask.shape == (2, 3) and found.mask.dtype == torch.bool


# ---- DINO-seg ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("component", ["largest", "official"])
@given(st.data())
@settings(max_examples=80, deadline=None)
def test_dino_seg_equals_the_literal_rules(component, data):
    grid = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    top = data.draw(st.sampled_from([1, 3, 200]))
    seed, mass = data.draw(st.integers(0, 2**31)), data.draw(st.sampled_from(["0.6", "0.1", "0.35", "0.9", "1"]))
    weights = torch.randint(0, top + 1, (grid[0] * grid[1],), generator=torch.Generator().manual_seed(seed))
    weights[seed % len(weights)] += 1
    options = dict(component=component, patch_size=8, image_size=(60, 53))
    for dtype in (torch.float32, torch.float64):
        found = plain(dino_seg(weights[None].to(dtype), grid, mass=float(mass), **options))
        assert found == literal_dino_seg(weights.tolist(), grid, mass=mass, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("component", ["largest", "official"])
def test_dino_seg_in_every_type(dtype, component):
    """Whole numbers up to 256 are exact in all of them."""
    for seed in range(6):
        weights = torch.randint(1, 257, (196,), generator=torch.Generator().manual_seed(seed))
        found = plain(dino_seg(weights[None].to(dtype), (14, 14), component=component))
        assert found == literal_dino_seg(weights.tolist(), (14, 14), component=component)


@pytest.mark.parametrize("dtype", DTYPES)
def test_uniform_attention_on_ten_patches_keeps_six(dtype):
    found = dino_seg(torch.full((1, 10), 0.1, dtype=dtype), (2, 5))
    assert found.mask.tolist() == [[True] * 5, [True] + [False] * 4] and found.seed == 0 and found.box.tolist() == [0, 0, 80, 32]


@pytest.mark.parametrize("patches", [5, 100, 785, 3600, 10_000])
def test_uniform_attention_keeps_exactly_its_share(patches):
    for mass in (0.2, 0.4, 0.6, 0.8):
        assert dino_seg(torch.full((1, patches), 1 / patches), (1, patches), mass=mass).mask.sum() == round(mass * patches)


def test_the_scale_of_attention_does_not_count():
    attention = torch.rand(1, 48, generator=torch.Generator().manual_seed(4))
    for factor in (2.0**-20, 2.0**10):
        assert plain(dino_seg(factor * attention, (6, 8))) == plain(dino_seg(attention, (6, 8)))


@pytest.mark.parametrize("mass", [1e-9, 1e-6, 0.6, 1.0])
def test_attention_all_in_one_patch(mass):
    attention = torch.zeros(1, 12)
    attention[0, 6] = 0.7
    found = dino_seg(attention, (3, 4), mass=mass)
    assert (found.box.tolist(), found.seed, int(found.mask.sum())) == ([32, 16, 48, 32], 6, 1)
    assert dino_seg(attention, (3, 4), component="official").box.tolist() == [0, 0, 64, 48]


@pytest.mark.parametrize("component", ["largest", "official"])
def test_dino_seg_on_one_patch(component):
    assert plain(dino_seg(torch.ones(3, 1), (1, 1), head=2, component=component)) == ([0, 0, 16, 16], 0, [[True]])


RULES = {  # drawing, box of the largest component, box that the released code gives
    "one blob inside": (drawn("....", ".##.", "...."), [1, 1, 3, 2], [0, 0, 4, 3]),
    "one blob on the left": (drawn("##..", "##..", "##.."), [0, 0, 2, 3], [2, 0, 4, 3]),
    "one blob around the centre": (drawn("####", "#..#", "####"), [0, 0, 4, 3], [1, 1, 3, 2]),
    "no background": (drawn("####", "####"), [0, 0, 4, 2], [0, 0, 4, 2]),
    "the last one is larger": (drawn("#...", "..##", "..##"), [2, 1, 4, 3], [0, 0, 1, 1]),
    "the first one is larger": (drawn("##..", "##..", "...#"), [0, 0, 2, 2], [0, 0, 2, 2]),
    "the middle one is larger": (drawn("#...", "..##", "#..."), [2, 1, 4, 2], [2, 1, 4, 2]),
    "the last of three is the largest": (drawn("#.#.", "#...", "..##", "..##"), [2, 2, 4, 4], [0, 0, 1, 2]),
    "equal ones": (drawn("..#", "...", "#.."), [2, 0, 3, 1], [2, 0, 3, 1]),
    "equal ones after a smaller one": (drawn("#..##", ".....", "##...", "...##"), [3, 0, 5, 1], [3, 0, 5, 1]),
    "corners do not join": (drawn("##.", "..#", "..#"), [0, 0, 2, 1], [0, 0, 2, 1]),
}


@pytest.mark.parametrize("mask, largest, official", RULES.values(), ids=RULES.keys())
def test_both_rules_on_drawings(mask, largest, official):
    attention, grid = attention_on(mask)
    for component, box in (("largest", largest), ("official", official)):
        found = dino_seg(attention, grid, patch_size=1, mass=1.0, component=component)
        inside = torch.zeros_like(mask)
        inside[box[1] : box[3], box[0] : box[2]] = True
        background = component == "official" and label(mask).max() == 1 and not mask.all()
        assert found.box.tolist() == box and torch.equal(found.mask, ~mask if background else mask & inside)


def test_which_head_is_used():
    attention = torch.eye(6)
    assert [dino_seg(attention, (2, 3), head=head).seed for head in range(6)] == list(range(6))
    assert dino_seg(attention, (2, 3)).seed == 4  # DINO's
    assert dino_seg(attention[2:3], (2, 3)).seed == 2  # SimPool's single one


def test_dino_seg_leaves_its_input_alone():
    attention = torch.rand(2, 12, generator=torch.Generator().manual_seed(0))
    before = attention.clone()
    dino_seg(attention, (3, 4), head=1, component="official")
    assert torch.equal(attention, before)


# ---- CorLoc -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_corloc_equals_a_loop(seed):
    g = torch.Generator().manual_seed(seed)

    def boxes(n):
        ends = torch.randint(0, 5, (n, 2, 2), generator=g)
        return torch.cat([ends.amin(1), ends.amax(1)], 1)

    predicted = boxes(200)
    truth = [boxes(int(torch.randint(0, 4, (), generator=g))) for _ in predicted]
    assert min(map(len, truth)) == 0 and 0 < literal_corloc(predicted, truth) < 100
    for dtype in (torch.int64, torch.float32, torch.float64):
        assert corloc(predicted.to(dtype), [t.float() for t in truth]) == literal_corloc(predicted, truth)


def met(predicted, *truth):
    return corloc(torch.tensor([predicted], dtype=torch.float32), [torch.tensor(truth, dtype=torch.float64)]) == 100


def test_an_iou_of_a_half_counts():
    assert met([0, 0, 10, 10], [0, 0, 10, 5]) and met([0, 0, 3, 3], [1, 0, 4, 3]) and met([0, 0, 10, 5], [0, 0, 10, 10])
    assert not met([0, 0, 10, 10], [0, 0, 10, 4.999]) and met([0, 0, 10, 10], [0, 0, 10, 5.001])


def test_ends_are_not_included():
    assert not met([0, 0, 1, 1], [0, 0, 1, 3])  # a half with one pixel more on each side
    assert met([0.5, 0.5, 1, 1], [0.5, 0.5, 1, 1])


def test_any_object_will_do():
    assert met([0, 0, 4, 4], [20, 20, 30, 30], [0, 0, 4, 5]) and not met([0, 0, 4, 4], [20, 20, 30, 30], [0, 0, 9, 9])


@pytest.mark.parametrize("box", [[3, 3, 3, 3], [3, 3, 3, 9], [3, 3, 9, 3]])
def test_boxes_without_area_are_never_right(box):
    assert not met(box, box) and not met(box, [0, 0, 10, 10]) and not met([0, 0, 10, 10], box)
    assert met([0, 0, 10, 10], box, [0, 0, 10, 10])


def test_images_without_objects_are_left_out():
    predicted = torch.tensor([[0.0, 0, 4, 4]]).repeat(4, 1)
    right, wrong = torch.tensor([[0, 0, 4, 4]]), torch.tensor([[5, 5, 9, 9]])
    assert corloc(predicted, [torch.zeros(0, 4), right, torch.tensor([]), wrong]) == 50
    assert corloc(predicted, [right, right, torch.zeros(0, 4), wrong]) == pytest.approx(200 / 3)
    assert corloc(predicted[:2], [torch.zeros(0, 4), right]) == 100


# ---- arguments that do not fit ----------------------------------------------------------------------------------------

KEYS, SEEN = torch.ones(6, 2), torch.ones(3, 6)
WRONG = [
    (lambda: lost(torch.ones(2, 6, 2), (2, 3)), "features", "(2, 6, 2)", "Float[N, D]"),
    (lambda: lost(torch.ones(6), (2, 3)), "features", "(6,)", "Float[N, D]"),
    (lambda: lost(torch.ones(6, 2).long(), (2, 3)), "features", "int64", "Float[N, D]"),
    (lambda: lost(KEYS, (2, 4)), "grid", "(2, 4)", "H W = 6"),
    (lambda: lost(KEYS, (-2, -3)), "grid", "(-2, -3)", "H W = 6"),
    (lambda: lost(KEYS, (1, 2, 3)), "grid", "(1, 2, 3)", "H W = 6"),
    (lambda: lost(torch.ones(0, 2), (0, 5)), "grid", "(0, 5)", "H W = 0"),
    (lambda: lost(KEYS, (2, 3), patch_size=0), "patch_size", "0", "1 or more"),
    (lambda: lost(KEYS, (2, 3), k_patches=0), "k_patches", "0", "1 or more"),
    (lambda: lost(KEYS, (2, 3), k_patches=-4), "k_patches", "-4", "1 or more"),
    (lambda: lost(KEYS, (2, 3), image_size=0), "image_size", "0", ""),
    (lambda: lost(KEYS, (2, 3), image_size=(9, -1)), "image_size", "(9, -1)", ""),
    (lambda: lost(KEYS, (2, 3), image_size=(9, 9, 9)), "image_size", "(9, 9, 9)", ""),
    (lambda: dino_seg(torch.ones(6), (2, 3)), "attention", "(6,)", "Float[heads, N]"),
    (lambda: dino_seg(torch.ones(1, 3, 6), (2, 3)), "attention", "(1, 3, 6)", "Float[heads, N]"),
    (lambda: dino_seg(torch.ones(0, 6), (2, 3)), "attention", "(0, 6)", "Float[heads, N]"),
    (lambda: dino_seg(SEEN > 0, (2, 3)), "attention", "bool", "Float[heads, N]"),
    (lambda: dino_seg(SEEN, (3, 3), head=0), "grid", "(3, 3)", "H W = 6"),
    (lambda: dino_seg(SEEN, (2, 3), head=0, patch_size=-1), "patch_size", "-1", "1 or more"),
    (lambda: dino_seg(SEEN, (2, 3)), "head", "4", "0 to 2"),
    (lambda: dino_seg(SEEN, (2, 3), head=3), "head", "3", "0 to 2"),
    (lambda: dino_seg(SEEN, (2, 3), head=-1), "head", "-1", "0 to 2"),
    (lambda: dino_seg(SEEN, (2, 3), head=0, mass=0), "mass", "0", "(0, 1]"),
    (lambda: dino_seg(SEEN, (2, 3), head=0, mass=1.01), "mass", "1.01", "(0, 1]"),
    (lambda: dino_seg(SEEN, (2, 3), head=0, mass=math.nan), "mass", "nan", "(0, 1]"),
    (lambda: dino_seg(SEEN, (2, 3), head=0, component="all"), "component", "'all'", "largest, official"),
    (lambda: dino_seg(SEEN, (2, 3), head=0, image_size=-5), "image_size", "-5", ""),
    (lambda: dino_seg(0 * SEEN, (2, 3), head=0), "attention", "zero", ""),
    (lambda: dino_seg(-SEEN, (2, 3), head=0), "attention", "negative", ""),
    (lambda: dino_seg(SEEN / torch.tensor([0, 1, 1, 1, 1, 1]), (2, 3), head=0), "attention", "", ""),
    (lambda: dino_seg(SEEN * math.nan, (2, 3), head=0), "attention", "missing", ""),
    (lambda: corloc(torch.ones(4), [torch.ones(1, 4)] * 4), "predicted", "(4,)", "[M, 4]"),
    (lambda: corloc(torch.ones(2, 5), [torch.ones(1, 4)] * 2), "predicted", "(2, 5)", "[M, 4]"),
    (lambda: corloc(torch.ones(2, 4), [torch.ones(1, 4)] * 3), "ground_truth", "3", "2"),
    (lambda: corloc(torch.ones(2, 4), [torch.ones(1, 4), torch.ones(3, 5)]), "ground_truth", "(3, 5)", "4]"),
    (lambda: corloc(torch.ones(2, 4), [torch.ones(1, 4), torch.ones(4, 2)]), "ground_truth", "(4, 2)", "4]"),
    (lambda: corloc(torch.ones(2, 4), [torch.zeros(0, 4)] * 2), "ground_truth", "no boxes", "at least one"),
    (lambda: corloc(torch.ones(0, 4), []), "ground_truth", "no boxes", "at least one"),
]


@pytest.mark.parametrize("call, name, got, accepts", WRONG, ids=[f"{name}-{i}" for i, (_, name, _, _) in enumerate(WRONG)])
def test_errors_name_the_argument(call, name, got, accepts):
    with pytest.raises(ValueError) as caught:
        call()
    assert re.match(rf"{name}: got .*{re.escape(got)}.*, accepts .*{re.escape(accepts)}", str(caught.value)), caught.value


# ---- keys -------------------------------------------------------------------------------------------------------------


def network(arch, **options):
    torch.manual_seed(0)
    model = create_model(arch, img_size=64, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def photos(height=40, width=72):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def observed(module, run, *, given=False):
    """What a module returned while ``run`` ran, or what it was given."""
    seen = []
    handle = module.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0] if given else output))
    run()
    handle.remove()
    assert len(seen) == 1
    return seen[0]


@pytest.mark.parametrize(
    "arch, dim, options, prefix",
    [
        ("vit_nano", 128, {}, 1),
        ("vit_nano", 128, dict(reg_tokens=2), 3),
        ("vit_nano", 128, dict(released_positions=True), 1),
        ("vit_micro", 192, {}, 1),
    ],
)
@torch.no_grad()
def test_keys_of_a_class_token_network_are_those_of_its_last_block(arch, dim, options, prefix):
    model, images = network(arch, **options), photos()
    keys, grid = model.keys(images)
    assert keys.shape == (2, 45, dim) and tuple(grid) == (5, 9) == tuple(model.features(images).grid)
    for run in (lambda: model.features(images), lambda: VisionTransformer.forward_features(model, images)):
        joined = observed(model.blocks[-1].attn.qkv, run)
        assert joined.shape == (2, 45 + prefix, 3 * dim)
        torch.testing.assert_close(keys, joined[:, prefix:, dim : 2 * dim], rtol=1e-4, atol=1e-5)


def literal_simpool_keys(pooling, patches):
    norm = pooling.norm_patches
    centred = patches - patches.mean(-1, keepdim=True)
    normalised = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    return torch.einsum("bnd,ed->bne", normalised * norm.weight + norm.bias, pooling.wk.weight)


@pytest.mark.parametrize(
    "options", [{}, dict(norm_after=True), dict(pooling_options=dict(num_heads=4)), dict(pooling_options=dict(gamma=1.25))]
)
@torch.no_grad()
def test_keys_of_a_transformer_with_simpool(options):
    model, images = network("vit_nano", pooling="simpool", **options), photos()
    keys, grid = model.keys(images)
    assert keys.shape == (2, 45, 128) and tuple(grid) == (5, 9)
    patches = observed(model.pooling, lambda: model.features(images), given=True)
    torch.testing.assert_close(keys, literal_simpool_keys(model.pooling, patches), rtol=1e-4, atol=1e-4)
    whole = observed(model.blocks[-1], lambda: model.features(images))
    expected = whole if options.get("norm_after") else model.norm(whole)
    torch.testing.assert_close(patches, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arch", ["resnet_mini", "convnext_mini"])
@pytest.mark.parametrize("pooling", ["simpool", None, "gem"])
@torch.no_grad()
def test_keys_of_a_convolutional_network(arch, pooling):
    model, images = network(arch, pooling=pooling), photos()
    keys, grid = model.keys(images)
    patches = model.forward_features(images).permute(0, 2, 3, 1).reshape(2, 45, -1)
    assert tuple(grid) == (5, 9) == tuple(model.features(images).grid)
    expected = literal_simpool_keys(model.pooling, patches) if pooling == "simpool" else patches
    assert keys.shape == expected.shape == (2, 45, model.embed_dim)
    torch.testing.assert_close(keys, expected, rtol=1e-4, atol=1e-4)


# ---- readers ----------------------------------------------------------------------------------------------------------


def picture(file, size=(12, 9), seed=0, mode="RGB"):
    """A small image file; ``size`` is (width, height)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(file)
    return file


def thing(x0, y0, x1, y1, extra=""):
    sides = f"<xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
    return f"<object><name>dog</name>{extra}<bndbox>{sides}</bndbox></object>"


def write_voc(root, xml: dict, *, folder="VOCdevkit", year="VOC2007", listing="trainval", lines=None):
    base = root / folder / year
    for place in ("Annotations", "ImageSets/Main"):
        (base / place).mkdir(parents=True, exist_ok=True)
    for stem, objects in xml.items():
        (base / "Annotations" / f"{stem}.xml").write_text(f"<annotation><size><width>12</width></size>{objects}</annotation>")
        picture(base / "JPEGImages" / f"{stem}.jpg", seed=int(stem))
    (base / "ImageSets" / "Main" / f"{listing}.txt").write_text("\n".join(lines or xml) + "\n")
    return base


PART = "<part><name>head</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>6</xmax><ymax>6</ymax></bndbox></part>"
VOC = {
    "000007": thing(1, 1, 12, 9) + thing(3, 4, 3, 4, "<difficult>1</difficult><truncated>1</truncated>"),
    "000003": "",
    "000012": thing("2.5", " 3 ", "7.25", "8", PART),
}
VOC_BOXES = [[[0, 0, 12, 9], [2, 3, 3, 4]], [], [[1.5, 2, 7.25, 8]]]


@pytest.mark.parametrize(
    "name, split, where",
    [
        ("voc2007", "trainval", {}),
        ("voc2007", "test", dict(listing="test")),
        ("voc2007", "test", dict(folder="voc2007-subset", listing="test")),
        ("voc2012", "trainval", dict(year="VOC2012")),
    ],
)
def test_voc(tmp_path, name, split, where):
    base = write_voc(tmp_path, VOC, **where)
    table = read_table(name, split, root=tmp_path)
    assert table.column_names == ["image", "filename", "boxes"]
    assert table["filename"].to_pylist() == ["000007.jpg", "000003.jpg", "000012.jpg"] and table["boxes"].to_pylist() == VOC_BOXES
    assert [row["path"] for row in table["image"].to_pylist()] == [str(base / "JPEGImages" / f"{stem}.jpg") for stem in VOC]


def test_voc_lists_of_a_class_and_parts_of_a_set(tmp_path):
    write_voc(tmp_path, VOC, lines=["000012  1", "", "000007 -1"])
    assert read_table("voc2007", "trainval", root=tmp_path)["boxes"].to_pylist() == VOC_BOXES[::-2]


def test_voc_through_load(tmp_path):
    pytest.importorskip("datasets")
    write_voc(tmp_path, VOC)
    dataset = load("voc2007", "trainval", root=tmp_path)
    assert dataset["boxes"][:] == VOC_BOXES and set(dataset.features) == {"image", "filename", "boxes"}
    assert dataset[2]["image"].size == (12, 9) and dataset[2]["image"].mode == "RGB"


DAMAGED_XML = {
    "cut": "<annotation><object><bndbox>",
    "empty": "",
    "no box": "<annotation><object><name>dog</name></object></annotation>",
    "a side missing": "<annotation><object><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>4</xmax></bndbox></object></annotation>",
    "no number": f"<annotation>{thing('a', 1, 2, 3)}</annotation>",
    "a side empty": f"<annotation>{thing('', 1, 2, 3)}</annotation>",
}


@pytest.mark.parametrize("xml", DAMAGED_XML.values(), ids=DAMAGED_XML.keys())
def test_voc_names_a_damaged_annotation(tmp_path, xml):
    file = write_voc(tmp_path, VOC) / "Annotations" / "000003.xml"
    file.write_text(xml)
    with pytest.raises(ValueError, match=re.escape(str(file))):
        read_table("voc2007", "trainval", root=tmp_path)


def test_voc_names_an_annotation_that_is_no_text(tmp_path):
    file = write_voc(tmp_path, VOC) / "Annotations" / "000003.xml"
    file.write_bytes(bytes(range(128, 256)))
    with pytest.raises(ValueError, match=re.escape(str(file))):
        read_table("voc2007", "trainval", root=tmp_path)


def test_voc_names_what_is_missing(tmp_path):
    file = write_voc(tmp_path, VOC) / "Annotations" / "000012.xml"
    file.unlink()
    with pytest.raises(ValueError, match=re.escape(str(file))):
        read_table("voc2007", "trainval", root=tmp_path)
    with pytest.raises(ValueError, match="VOCdevkit: holds no split 'test'"):
        read_table("voc2007", "test", root=tmp_path)
    with pytest.raises(ValueError, match="VOCdevkit: holds no split 'trainval'"):
        read_table("voc2012", "trainval", root=tmp_path)
    with pytest.raises(ValueError, match="split: got 'train', voc2007 accepts trainval, test"):
        read_table("voc2007", "train", root=tmp_path)
    with pytest.raises(ValueError, match="root: got .*VOCdevkit"):
        read_table("voc2007", "test", root=tmp_path / "VOCdevkit")


def described():
    """Images in no order; the second has a crowd, the third nothing but a crowd, the last nothing at all."""
    return {
        "images": [
            {"id": 9, "file_name": "000009.jpg"},
            {"id": 2, "file_name": "000002.jpg"},
            {"id": 5, "file_name": "000005.jpg"},
            {"id": 1, "file_name": "000010.jpg"},
        ],
        "annotations": [
            {"id": 1, "image_id": 2, "bbox": [1, 2, 3, 4], "iscrowd": 0},
            {"id": 2, "image_id": 9, "bbox": [0.5, 0, 10.25, 9], "category_id": 7},
            {"id": 3, "image_id": 2, "bbox": [0, 0, 12, 9], "iscrowd": 1},
            {"id": 4, "image_id": 2, "bbox": [5, 5, 0, 1], "iscrowd": 0},
            {"id": 5, "image_id": 5, "bbox": [0, 0, 12, 9], "iscrowd": 1},
        ],
    }


COCO_BOXES = {"000002.jpg": [[1, 2, 4, 6], [5, 5, 5, 6]], "000005.jpg": [], "000009.jpg": [[0.5, 0, 10.75, 9]], "000010.jpg": []}


def write_coco(root, content=None, *, folder="coco2017", split="val2017"):
    file = root / folder / "annotations" / f"instances_{split}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(described() if content is None else content))
    for i, name in enumerate(COCO_BOXES):
        picture(root / folder / split / name, seed=i)
    return file


@pytest.mark.parametrize("folder", ["coco2017", "coco", "coco2017-subset"])
@pytest.mark.parametrize("split, theirs", [("validation", "val2017"), ("train", "train2017")])
def test_coco(tmp_path, folder, split, theirs):
    write_coco(tmp_path, folder=folder, split=theirs)
    table = read_table("coco2017", split, root=tmp_path)
    assert table.column_names == ["image", "filename", "boxes"]
    assert dict(zip(table["filename"].to_pylist(), table["boxes"].to_pylist())) == COCO_BOXES
    assert table["filename"].to_pylist() == sorted(COCO_BOXES)
    assert [row["path"] for row in table["image"].to_pylist()] == [str(tmp_path / folder / theirs / name) for name in sorted(COCO_BOXES)]


@pytest.mark.parametrize("prefix", ["", "train2014/"])
def test_coco_20k_takes_the_listed_names(tmp_path, prefix):
    write_coco(tmp_path, folder="coco2014", split="train2014")
    listing = tmp_path / "coco2014" / "coco_20k_filenames.txt"
    listing.write_text(f"{prefix}000009.jpg\n\n{prefix}000005.jpg  \n")
    table = read_table("coco20k", "train", root=tmp_path)
    assert table["filename"].to_pylist() == ["000005.jpg", "000009.jpg"] and table["boxes"].to_pylist() == [[], [[0.5, 0, 10.75, 9]]]
    assert [row["path"] for row in table["image"].to_pylist()] == [
        str(tmp_path / "coco2014" / "train2014" / name) for name in ("000005.jpg", "000009.jpg")
    ]


def test_coco_20k_names_what_is_missing(tmp_path):
    write_coco(tmp_path, folder="coco2014", split="train2014")
    listing = tmp_path / "coco2014" / "coco_20k_filenames.txt"
    with pytest.raises(ValueError, match="coco2014: holds no split 'train'"):
        read_table("coco20k", "train", root=tmp_path)
    listing.write_text("000009.jpg\n000077.jpg\n000078.jpg\n")
    with pytest.raises(ValueError, match=rf"{re.escape(str(listing))}: lists 000077.jpg.*2 such"):
        read_table("coco20k", "train", root=tmp_path)


def test_coco_names_a_missing_split(tmp_path):
    write_coco(tmp_path)
    with pytest.raises(ValueError, match="coco2017: holds no split 'train'"):
        read_table("coco2017", "train", root=tmp_path)
    with pytest.raises(ValueError, match="split: got 'test', coco2017 accepts train, validation"):
        read_table("coco2017", "test", root=tmp_path)


def changed(part, row, **others):
    content = described()
    content[part][row] |= others
    return content


DAMAGED_JSON = {
    "a list": [],
    "nothing": None,
    "no images": {"annotations": []},
    "no annotations": {"images": []},
    "another image": changed("annotations", 0, image_id=77),
    "three numbers": changed("annotations", 0, bbox=[1, 2, 3]),
    "no box": changed("annotations", 0, bbox=None),
    "text in a box": changed("annotations", 0, bbox=["a", "b", "c", "d"]),
    "a name that is none": changed("images", 0, file_name=None),
    "an annotation that is a list": described() | {"annotations": [[1, 2, 3, 4]]},
    "an image that is a number": described() | {"images": [3]},
}


@pytest.mark.parametrize("content", DAMAGED_JSON.values(), ids=DAMAGED_JSON.keys())
def test_coco_names_damaged_annotations(tmp_path, content):
    file = write_coco(tmp_path)
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=re.escape(str(file))):
        read_table("coco2017", "validation", root=tmp_path)


@pytest.mark.parametrize("data", [b"", json.dumps(described()).encode()[:-40], b"\xff\xfe\x00\x81"], ids=["empty", "cut", "no text"])
def test_coco_names_a_damaged_file(tmp_path, data):
    file = write_coco(tmp_path)
    file.write_bytes(data)
    with pytest.raises(ValueError, match=re.escape(str(file))):
        read_table("coco2017", "validation", root=tmp_path)


def write_horses(root, stems=("b", "a", "c")):
    for split in ("train", "test"):
        for i, stem in enumerate(stems):
            picture(root / "weizmann-horse" / f"horse_{split}" / f"{stem}.jpg", seed=i)
            mask = np.zeros((9, 12), np.uint8)
            mask[1 : 3 + i, 2:5] = 1
            file = root / "weizmann-horse" / f"mask_{split}" / f"{stem}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(file)
    (root / "weizmann-horse" / "horse_train" / "notes.txt").write_text("no image")
    return root / "weizmann-horse"


@pytest.mark.parametrize("split", ["train", "test"])
def test_images_and_masks(tmp_path, split):
    folder = write_horses(tmp_path)
    table = read_table("horses", split, root=tmp_path)
    assert table.column_names == ["image", "filename", "mask"] and table["filename"].to_pylist() == ["a.jpg", "b.jpg", "c.jpg"]
    assert [row["path"] for row in table["mask"].to_pylist()] == [str(folder / f"mask_{split}" / f"{stem}.png") for stem in "abc"]
    assert [int(read_mask(row).sum()) for row in table["mask"].to_pylist()] == [9, 6, 12]


def test_images_and_masks_through_load(tmp_path):
    pytest.importorskip("datasets")
    write_horses(tmp_path)
    dataset = load("horses", "test", root=tmp_path)
    assert set(dataset.features) == {"image", "mask", "filename"} and len(dataset) == 3
    assert np.asarray(dataset[0]["mask"]).sum() == 9 and dataset[0]["image"].size == (12, 9)


def test_images_and_masks_name_what_is_missing(tmp_path):
    folder = write_horses(tmp_path)
    (folder / "mask_test" / "b.png").unlink()
    rows = read_table("horses", "test", root=tmp_path)["mask"].to_pylist()
    with pytest.raises(ValueError, match=re.escape(str(folder / "mask_test" / "b.png"))):
        read_mask(rows[1])
    for file in (folder / "horse_train").glob("*.jpg"):
        file.unlink()
    with pytest.raises(ValueError, match="horse_train: holds no images"):
        read_table("horses", "train", root=tmp_path)
    shutil.rmtree(folder / "horse_train")
    with pytest.raises(ValueError, match="weizmann-horse: holds no split 'train'"):
        read_table("horses", "train", root=tmp_path)


@pytest.mark.parametrize("name", ["voc2007", "voc2012", "coco20k", "coco2017", "horses"])
def test_sets_that_are_nowhere(tmp_path, name):
    split = {"voc2012": "trainval", "coco20k": "train"}.get(name, "test" if name != "coco2017" else "train")
    with pytest.raises(ValueError, match=f"{name}: needs .COMPANION_DATA"):
        read_table(name, split)
    with pytest.raises(ValueError, match=f"root: got {re.escape(str(tmp_path))}.* of {name}"):
        read_table(name, split, root=tmp_path)


# ---- real data --------------------------------------------------------------------------------------------------------


def real_table(real_data, folder, name, split):
    if not (real_data / folder).is_dir():
        pytest.skip(f"no {folder} in {real_data}")
    return read_table(name, split, root=real_data)


@pytest.mark.data
def test_real_voc(real_data):
    table = real_table(real_data, "voc2007-subset", "voc2007", "test")
    base = real_data / "voc2007-subset" / "VOC2007"
    assert len(table) == 248
    for row in table.to_pylist():
        xml = (base / "Annotations" / f"{row['filename'][:6]}.xml").read_text()
        size = [int(re.search(f"<{side}>(.*?)</", xml)[1]) for side in ("width", "height")]
        objects = [re.sub("<part>.*?</part>", "", part, flags=re.S) for part in re.findall("<object>.*?</object>", xml, re.S)]
        sides = [[float(re.search(f"<{side}>(.*?)</", part)[1]) for side in ("xmin", "ymin", "xmax", "ymax")] for part in objects]
        assert row["boxes"] == [[x0 - 1, y0 - 1, x1, y1] for x0, y0, x1, y1 in sides] and row["boxes"]
        for x0, y0, x1, y1 in row["boxes"]:
            assert 0 <= x0 < x1 <= size[0] and 0 <= y0 < y1 <= size[1]
        with Image.open(row["image"]["path"]) as image:
            assert list(image.size) == size


@pytest.mark.data
def test_real_coco(real_data):
    table = real_table(real_data, "coco2017-subset", "coco2017", "validation")
    content = json.loads((real_data / "coco2017-subset" / "annotations" / "instances_val2017.json").read_text())
    assert len(table) == 100 and table["filename"].to_pylist() == sorted(image["file_name"] for image in content["images"])
    ids = {image["file_name"]: image["id"] for image in content["images"]}
    for row in table.to_pylist():
        mine = [a["bbox"] for a in content["annotations"] if a["image_id"] == ids[row["filename"]] and a["iscrowd"] == 0]
        assert row["boxes"] == np.float32([[x, y, x + w, y + h] for x, y, w, h in mine]).tolist()
        with Image.open(row["image"]["path"]) as image:
            assert all(x1 <= image.width and y1 <= image.height for _, _, x1, y1 in row["boxes"])


@pytest.mark.data
@pytest.mark.parametrize("split, count", [("train", 278), ("test", 49)])
def test_real_horses(real_data, split, count):
    table = real_table(real_data, "weizmann-horse-224", "horses", split)
    assert len(table) == count
    for row in table.slice(0, 40).to_pylist():
        mask, image = read_mask(row["mask"]), read_image(row["image"])
        assert mask.shape == (image.height, image.width) and mask.unique().tolist() == [0, 1]


@pytest.mark.data
def test_real_images_whole(real_data):
    table = real_table(real_data, "voc2007-subset", "voc2007", "test").slice(0, 12)
    seen = list(full_images(table, longest=64, multiple=8))
    assert [w.row for w in seen] == list(range(12)) and max(max(w.view.shape[2:]) for w in seen) == 64
    assert {w.size for w in seen} == {read_image(row).size[::-1] for row in table["image"].to_pylist()}


# ---- whole images -----------------------------------------------------------------------------------------------------


def table_of(files, boxes=None):
    columns = {"image": pa.array([{"bytes": None, "path": str(file)} for file in files], IMAGE), "filename": [file.name for file in files]}
    if boxes is not None:
        columns["boxes"] = pa.array(boxes, BOXES)
    return pa.table(columns)


def some_files(folder, count):
    """Images of rising width; ``size`` of image i is (20 + i, 15)."""
    return [picture(folder / f"picture{i}.png", (20 + i, 15), seed=i) for i in range(count)]


@pytest.mark.parametrize("count", [0, 1, 2, 8, 9, 10, 30])
def test_every_image_in_its_order(tmp_path, count):
    seen = list(full_images(table_of(some_files(tmp_path, count))))
    assert [(w.row, w.size, tuple(w.view.shape)) for w in seen] == [(i, (15, 20 + i), (1, 3, 15, 20 + i)) for i in range(count)]


def test_one_image_can_be_taken(tmp_path):
    assert next(full_images(table_of(some_files(tmp_path, 20)), longest=8)).row == 0


@pytest.mark.parametrize(
    "options", [{}, dict(longest=32, multiple=8), dict(shortest=48, multiple=16), dict(multiple=4), dict(longest=3, multiple=8)]
)
def test_views_are_the_resized_pixels(tmp_path, options):
    files = [picture(tmp_path / "wide.png", (50, 31)), picture(tmp_path / "tall.png", (17, 40))]
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    for file, whole in zip(files, full_images(table_of(files), **options)):
        with Image.open(file) as image:
            height, width = fitted((image.height, image.width), **options)
            pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)) / 255
            assert whole.size == (image.height, image.width)
        assert whole.view.dtype == torch.float32 and whole.view.shape == (1, 3, height, width)
        np.testing.assert_allclose(whole.view[0].permute(1, 2, 0).numpy(), (pixels - mean) / std, atol=1e-5)


@pytest.mark.parametrize(
    "mode, suffix", [("L", "png"), ("P", "png"), ("RGBA", "png"), ("1", "png"), ("CMYK", "jpg"), ("L", "jpg"), ("RGB", "bmp")]
)
def test_images_of_other_modes_become_colours(tmp_path, mode, suffix):
    file = picture(tmp_path / f"image.{suffix}", mode=mode)
    with Image.open(file) as image:
        assert image.mode == mode
        expected = np.asarray(image.convert("RGB"))
    found = read_image({"bytes": None, "path": str(file)})
    assert found.mode == "RGB" and np.array_equal(np.asarray(found), expected)
    assert np.array_equal(np.asarray(read_image({"bytes": file.read_bytes(), "path": "elsewhere.png"})), expected)
    assert [w.view.shape for w in full_images(table_of([file]))] == [(1, 3, 9, 12)]


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 1500), st.sampled_from([1, 8, 14, 16, 32]))
@settings(max_examples=150, deadline=None)
def test_fitted_sizes_are_exact(height, width, target, multiple):
    for name, side in (("shortest", min(height, width)), ("longest", max(height, width))):
        expected = tuple(max(multiple, math.floor(Fraction(s * target, side)) // multiple * multiple) for s in (height, width))
        assert fitted((height, width), **{name: target}, multiple=multiple) == expected
    assert fitted((height, width), multiple=multiple) == tuple(max(multiple, s // multiple * multiple) for s in (height, width))
    assert fitted((height, width)) == (height, width)


def harm(file, how):
    if how == "missing":
        file.unlink()
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "cut":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif how == "text":
        file.write_text("not an image")
    else:
        file.unlink()
        file.mkdir()


PLACES = {
    "start": [0],
    "middle": [11],
    "end": [19],
    "the last two": [18, 19],
    "start and end": [0, 19],
    "many": range(1, 20, 2),
    "all": range(20),
}


@pytest.mark.parametrize("places", PLACES.values(), ids=PLACES.keys())
def test_damaged_images_are_named_and_left_out(tmp_path, places):
    files = some_files(tmp_path, 20)
    for i in places:
        harm(files[i], ("missing", "empty", "cut", "text", "folder")[i % 5])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        seen = list(full_images(table_of(files), longest=16, multiple=8))
    named = [str(w.message) for w in caught if issubclass(w.category, Damage)]
    assert len(named) == len(list(places)) and all(str(files[i]) in message for i, message in zip(places, named))
    assert [(w.row, w.size) for w in seen] == [(i, (15, 20 + i)) for i in range(20) if i not in set(places)]


@pytest.mark.parametrize("how", ["missing", "empty", "cut", "text", "folder"])
@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp"])
def test_every_kind_of_damage_is_named(tmp_path, how, suffix):
    file = picture(tmp_path / f"image.{suffix}", (40, 30))
    harm(file, how)
    for reader in (read_image, read_mask):
        with pytest.raises(ValueError, match=re.escape(str(file))):
            reader({"bytes": None, "path": str(file)})
    with pytest.warns(Damage, match=re.escape(str(file))):
        assert list(full_images(table_of([file]))) == []


@pytest.mark.parametrize("suffix", ["png", "jpeg", "bmp", "webp", "gif"])
def test_bytes_damaged_anywhere_raise_nothing_else(suffix):
    stream, g = io.BytesIO(), np.random.default_rng(0)
    Image.fromarray(g.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(stream, suffix)
    data = stream.getvalue()
    damaged = [data[:cut] for cut in range(1, len(data), max(1, len(data) // 100))]
    for place in range(0, len(data), max(1, len(data) // 150)):
        damaged.append(data[:place] + bytes([g.integers(256)]) + data[place + 1 :])
    refused = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for content in damaged:
            try:
                assert read_image({"bytes": content, "path": "some.file"}).mode == "RGB"
            except ValueError as error:
                refused += 1
                assert str(error).startswith("some.file: damaged")
    assert refused >= 20


@pytest.mark.parametrize("content", [b"junk", None, b""])
def test_images_without_a_name(content):
    with pytest.raises(ValueError, match="picture without a name"):
        read_image({"bytes": content, "path": None})


def test_masks_keep_their_numbers(tmp_path):
    numbers = np.array([[0, 1, 2], [7, 200, 255]], np.uint8)
    palette = Image.fromarray(numbers)
    palette.putpalette(list(np.random.default_rng(0).permutation(768) % 256))
    images = {"P": palette, "L": Image.fromarray(numbers), "I;16": Image.fromarray(numbers.astype(np.uint16) * 200)}
    for mode, image in images.items():
        assert image.mode == mode
        image.save(tmp_path / "mask.png")
        found = read_mask({"bytes": None, "path": str(tmp_path / "mask.png")})
        assert found.dtype == torch.int64 and found.tolist() == (numbers.astype(int) * (200 if mode == "I;16" else 1)).tolist()
    Image.fromarray(numbers > 1).save(tmp_path / "mask.png")
    assert read_mask({"bytes": (tmp_path / "mask.png").read_bytes(), "path": None}).tolist() == [[0, 0, 1], [1, 1, 1]]


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_masks_with_colours_are_refused(tmp_path, mode):
    file = picture(tmp_path / "mask.png", mode=mode)
    with pytest.raises(ValueError, match=re.escape(str(file))):
        read_mask({"bytes": None, "path": str(file)})


# ---- discovery in images ----------------------------------------------------------------------------------------------


class Looking(nn.Module):
    """Sees white objects on black: keys of a patch are its sign, and each head attends to what ``heads`` says of it."""

    def __init__(self, heads=("bright",), patch=8, upside_down=False):
        super().__init__()
        self.heads, self.patch, self.upside_down = heads, patch, upside_down
        self.unused = nn.Parameter(torch.zeros(1))

    def seen(self, images):
        assert not torch.is_grad_enabled() and not self.training
        patches = nn.functional.avg_pool2d(images.mean(1, keepdim=True), self.patch)
        return patches.flip(2) if self.upside_down else patches

    def keys(self, images):
        patches = self.seen(images)
        return patches.sign().flatten(2).mT, tuple(patches.shape[2:])

    def features(self, images):
        patches = self.seen(images).flatten(1)
        attention = {"bright": (patches > 0).float(), "dark": (patches < 0).float(), "first": torch.eye(patches.shape[1])[:1]}
        found = torch.stack([attention[head] for head in self.heads], 1) if self.heads else None
        return Features(torch.zeros(1, 2), patches[..., None], tuple(self.seen(images).shape[2:]), found)


def white_on_black(folder, boxes, sizes):
    files = []
    for i, ((x0, y0, x1, y1), (height, width)) in enumerate(zip(boxes, sizes)):
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[y0:y1, x0:x1] = 255
        files.append(folder / f"object{i}.png")
        Image.fromarray(pixels).save(files[-1])
    return files


SIZES = [(80, 160), (160, 80), (128, 128), (320, 160)]  # at 64 pixels one patch is 20, 20, 16 and 40 pixels
TRUE = [[20, 20, 60, 40], [0, 40, 40, 80], [64, 0, 128, 16], [40, 0, 80, 80]]
SEEN_WITH = dict(longest=64, patch_size=8, k_patches=100)


@pytest.fixture
def objects(tmp_path):
    return white_on_black(tmp_path, TRUE, SIZES)


def test_boxes_are_in_the_pixels_of_the_original(objects):
    found = list(discover(Looking(("dark",) * 4 + ("bright", "first")).train(), table_of(objects), **SEEN_WITH))
    assert [f.row for f in found] == [0, 1, 2, 3] and [f.size for f in found] == SIZES
    for f, box, (height, width) in zip(found, TRUE, SIZES):
        assert set(f.discoveries) == {"lost", "dino_seg", "dino_seg_official"}
        assert f.discoveries["lost"].box.tolist() == pytest.approx(box)
        scale = max(height, width) / 64
        assert f.discoveries["lost"].mask.shape == (height / scale / 8, width / scale / 8)
        x0, y0, x1, y1 = f.discoveries["dino_seg"].box.tolist()
        assert (x0, y0) == pytest.approx(box[:2]) and x1 <= box[2] + 1e-3 and y1 <= box[3] + 1e-3


@pytest.mark.parametrize(
    "heads, seeds",
    [
        (("dark",) * 4 + ("bright",) + ("dark",) * 3, "bright"),
        (("dark", "dark", "bright"), "bright"),
        (("bright", "dark"), "dark"),
        (("bright",), "bright"),
    ],
)
def test_the_fifth_head_or_the_last_one(objects, heads, seeds):
    for f, (x0, y0, _, _), (height, width) in zip(discover(Looking(heads), table_of(objects), **SEEN_WITH), TRUE, SIZES):
        side = max(height, width) // 8
        bright = y0 // side * (width // side) + x0 // side
        dark = 0 if bright else next(i for i in range(99) if not f.discoveries["lost"].mask.flatten()[i])
        assert f.discoveries["dino_seg"].seed == {"bright": bright, "dark": dark}[seeds]


def test_the_released_rule_gives_the_background_of_a_single_object(objects):
    found = next(discover(Looking(), table_of(objects), **SEEN_WITH))
    assert found.discoveries["dino_seg_official"].box.tolist() == pytest.approx([0, 0, 160, 80])


def test_networks_without_attention_have_lost_alone(objects):
    found = list(discover(Looking(()), table_of(objects), **SEEN_WITH))
    assert [set(f.discoveries) for f in found] == [{"lost"}] * 4
    figures = twin_figures("discovery", Looking(()), Looking(()), table_of(objects, [[b] for b in TRUE]), **SEEN_WITH)
    assert set(figures) == {"lost", "untrained_lost", "whole_image", "centred_box", "images", "left_out"}


def test_perfect_boxes_are_all_right_and_the_untrained_network_is_measured_apart(objects):
    figures = twin_figures("discovery", Looking(), Looking(upside_down=True), table_of(objects, [[b] for b in TRUE]), **SEEN_WITH)
    assert figures["lost"] == 100 and figures["images"] == 4 and figures["left_out"] == 0 and figures["dino_seg_official"] == 0
    assert figures["whole_image"] == 0 and figures["untrained_lost"] == 0


def test_boxes_that_know_nothing(objects):
    def centred(height, width, share):
        return [width * (1 - share) / 2, height * (1 - share) / 2, width * (1 + share) / 2, height * (1 + share) / 2]

    boxes = [
        [centred(*SIZES[0], 0.49**0.5)],  # 0.49 of the image's area, 0.98 of the centred box's
        [centred(*SIZES[1], 0.51**0.5)],  # of both
        [centred(*SIZES[2], 0.3**0.5)],  # 0.3 and 0.6
        [[0, 0, 160, 192]],  # 0.6 of the image's area, and 0.41 of its union with the centred box
    ]
    figures = twin_figures("discovery", Looking(), Looking(), table_of(objects, boxes), **SEEN_WITH)
    assert figures["whole_image"] == 50 and figures["centred_box"] == 75


@pytest.mark.parametrize("bad", [[0], [1, 2], [3]])
def test_what_is_left_out_is_counted_and_the_rest_keeps_its_boxes(objects, bad):
    for i in bad:
        harm(objects[i], "cut")
    with pytest.warns(Damage, match=re.escape(str(objects[bad[0]]))):
        figures = twin_figures("discovery", Looking(), Looking(upside_down=True), table_of(objects, [[b] for b in TRUE]), **SEEN_WITH)
    assert (figures["lost"], figures["untrained_lost"]) == (100, 0) and (figures["images"], figures["left_out"]) == (4 - len(bad), len(bad))


@pytest.mark.filterwarnings("ignore::lib.data.reading.Damage")
def test_a_set_of_which_nothing_can_be_read_has_no_figures(objects):
    for file in objects:
        harm(file, "empty")
    with pytest.raises(ValueError, match="table: got 4 images, .*accepts "):
        twin_figures("discovery", Looking(), Looking(), table_of(objects, [[b] for b in TRUE]), **SEEN_WITH)


def test_images_without_boxes_do_not_count(objects):
    boxes = [[TRUE[0]], [], [[0, 0, 5, 5]], [TRUE[3], [0, 0, 5, 5]]]
    assert twin_figures("discovery", Looking(), Looking(), table_of(objects, boxes), **SEEN_WITH)["lost"] == pytest.approx(
        200 / 3, abs=1e-3
    )


METHODS = {"lost", "dino_seg", "dino_seg_official"}


@pytest.mark.parametrize("arch, pooling", [("vit_nano", None), ("vit_nano", "simpool"), ("resnet_mini", "simpool")])
def test_figures_of_a_network_on_scenes(arch, pooling):
    table = scenes.table("validation", 4)
    trained, untrained = (network(arch, pooling=pooling).train(), create_model(arch, pooling=pooling, img_size=64))
    options = dict(longest=64, patch_size=8, k_patches=20)
    figures = twin_figures("discovery", trained, untrained, table, **options)
    assert set(figures) == METHODS | {f"untrained_{m}" for m in METHODS} | {"whole_image", "centred_box", "images", "left_out"}
    assert figures["images"] == 4 and figures["left_out"] == 0 and not trained.training
    assert figures == twin_figures("discovery", trained, untrained, table, **options)
    assert {name: value for name, value in figures.items() if "untrained" not in name} == discovery_accuracy(trained, table, **options)
    truth = [torch.tensor(boxes) for boxes in table["boxes"].to_pylist()]
    for prefix, model in (("", trained), ("untrained_", untrained)):
        found = list(discover(model, table, **options))
        for method in METHODS:
            predicted = torch.stack([f.discoveries[method].box for f in found])
            assert (predicted >= 0).all() and (predicted <= 64).all() and (predicted[:, 2:] > predicted[:, :2]).all()
            assert figures[prefix + method] == pytest.approx(literal_corloc(predicted, truth), abs=1e-3)


@torch.no_grad()
def test_discoveries_are_those_of_the_keys_and_the_attention(tmp_path):
    """At the images' own size, whose sides are cut to whole patches."""
    model, table = network("vit_nano"), table_of([picture(tmp_path / f"{i}.png", (62, 62), seed=i) for i in range(3)])
    for whole, found in zip(full_images(table, multiple=8), discover(model, table, longest=None, patch_size=8, k_patches=9)):
        assert whole.view.shape == (1, 3, 56, 56) and found.size == (62, 62)
        keys, grid = model.keys(whole.view)
        attention = model.features(whole.view).attention[0, 3:]
        expected = {
            "lost": lost(keys[0], grid, patch_size=8, k_patches=9),
            "dino_seg": dino_seg(attention, grid, patch_size=8),
            "dino_seg_official": dino_seg(attention, grid, patch_size=8, component="official"),
        }
        assert found.discoveries.keys() == expected.keys()
        for name, discovery in found.discoveries.items():
            assert torch.equal(discovery.mask, expected[name].mask) and discovery.seed == expected[name].seed
            torch.testing.assert_close(discovery.box, expected[name].box * 62 / 56)
