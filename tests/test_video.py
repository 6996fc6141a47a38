"""Labels carried through videos, against literal searches; DAVIS' measures, layouts and mask files."""

import inspect
import math
import re

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from scipy import ndimage
from twins import twin_figures

from lib.data import load, scenes
from lib.data.loading import read_table
from lib.data.reading import read_mask
from lib.evaluation import video
from lib.evaluation.knn import stable_topk
from lib.evaluation.video import (
    boundary_accuracy,
    hard_labels,
    propagate_labels,
    region_similarity,
    segment_videos,
)
from lib.models import create_model

VIEW = dict(shortest=64, patch_size=8)


def literal_propagation(features, first_labels, grid, *, topk=5, radius=12, n_last=7, temperature=0.1):
    """One patch at a time looks at every patch of every frame."""
    height, width = grid
    frames = [(f / f.norm(dim=1, keepdim=True)).numpy().reshape(height, width, -1) for f in (f.double() for f in features)]
    labels = [first_labels.double().numpy()]
    for t in range(1, len(frames)):
        context = [0] + [i for i in range(t - n_last, t) if i > 0]
        carried = np.zeros(labels[0].shape)
        for y in range(height):
            for x in range(width):
                near = []
                for i in context:
                    for v in range(height):
                        for u in range(width):
                            if abs(v - y) <= radius and abs(u - x) <= radius:
                                near.append((frames[t][y, x] @ frames[i][v, u], labels[i][:, v, u]))
                near = sorted(near, key=lambda pair: -pair[0])[:topk]
                weights = np.exp(np.array([cosine for cosine, _ in near]) / temperature)
                carried[:, y, x] = sum(w * label for w, (_, label) in zip(weights / weights.sum(), near))
        labels.append(carried)
    return [torch.from_numpy(label) for label in labels]


def film(seed, grid, frames=10, dim=6, channels=3, scale=1.0):
    """Random features of frames that resemble each other a little, and soft labels."""
    g = torch.Generator().manual_seed(seed)
    still, count = torch.randn(math.prod(grid), dim, generator=g, dtype=torch.float64), math.prod(grid)
    features = [scale * (still + 1.5 * torch.randn(count, dim, generator=g, dtype=torch.float64)) for _ in range(frames)]
    return features, torch.rand(channels, *grid, generator=g, dtype=torch.float64).softmax(0)


def same(found, expected, atol=1e-9):
    return len(found) == len(expected) and all(torch.allclose(a.double(), b, rtol=0, atol=atol) for a, b in zip(found, expected))


def literal_region(mask, truth):
    pairs = [(a, b) for row in zip(mask.tolist(), truth.tolist()) for a, b in zip(*row)]
    either = sum(a or b for a, b in pairs)
    return sum(a and b for a, b in pairs) / either if either else 1.0


def literal_boundary(mask):
    """DAVIS' published ``seg2bmap``."""
    mask = mask.numpy()
    right, below, corner = (np.zeros_like(mask) for _ in range(3))
    right[:, :-1], below[:-1], corner[:-1, :-1] = mask[:, 1:], mask[1:], mask[1:, 1:]
    found = (mask ^ right) | (mask ^ below) | (mask ^ corner)
    found[-1] = mask[-1] ^ right[-1]
    found[:, -1] = mask[:, -1] ^ below[:, -1]
    found[-1, -1] = False
    return found


def disk(radius):
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return x**2 + y**2 <= radius**2


def by_scipy(mask, radius):
    return ndimage.binary_dilation(mask, disk(radius))


def by_opencv(mask, radius):
    return pytest.importorskip("cv2").dilate(mask.astype(np.uint8), disk(radius).astype(np.uint8)).astype(bool)


def by_distance(mask, radius):
    return ndimage.distance_transform_edt(~mask) <= radius if mask.any() else mask


def literal_accuracy(mask, truth, grown=by_scipy, bound=0.008):
    """DAVIS' published evaluation."""
    radius = math.ceil(bound * math.hypot(*mask.shape))
    found, wanted = literal_boundary(mask), literal_boundary(truth)
    if not found.sum() or not wanted.sum():
        return float(found.sum() == wanted.sum())
    precision, recall = (found & grown(wanted, radius)).sum() / found.sum(), (wanted & grown(found, radius)).sum() / wanted.sum()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def blobs(seed, size, smooth=1.0):
    """Two masks that agree in part."""
    g = np.random.default_rng(seed)
    noise = g.standard_normal((2, *size))
    noise[1] += noise[0]
    return [torch.from_numpy(ndimage.gaussian_filter(n, smooth) > 0) for n in noise]


def box(size, top, bottom, left, right):
    mask = torch.zeros(size, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


def literal_palette():
    """The colour map of VOC's development kit."""
    colours = []
    for number in range(256):
        colour, rest = [0, 0, 0], number
        for bit in range(7, -1, -1):
            for channel in range(3):
                colour[channel] |= (rest >> channel & 1) << bit
            rest >>= 3
        colours += colour
    return colours


# ---- propagation against the literal search ---------------------------------------------------------------------------


@pytest.mark.parametrize("radius", [0, 1, 2, 9])
@pytest.mark.parametrize("topk", [1, 5, 400])
@pytest.mark.parametrize("grid, n_last", [((3, 5), 7), ((1, 8), 1), ((7, 1), 0), ((4, 3), 2)])
def test_labels_equal_the_literal_search(grid, n_last, topk, radius):
    features, first = film(sum(grid) + radius, grid, channels=2 + grid[0] % 3)
    options = dict(topk=topk, radius=radius, n_last=n_last)
    found = propagate_labels(features, first, grid, **options)
    assert same(found, literal_propagation(features, first, grid, **options))
    assert torch.equal(found[0], first) and found[-1].shape == first.shape
    assert torch.allclose(found[-1], first) == (radius == 0)


@pytest.mark.parametrize("grid", [(1, 30), (15, 2)])
def test_defaults_are_five_of_twelve_patches_around_in_seven_frames(grid):
    features, first = film(2, grid, frames=10)
    found = propagate_labels(features, first, grid)
    assert same(found, literal_propagation(features, first, grid))
    for other in (dict(topk=4), dict(radius=11), dict(n_last=6), dict(temperature=0.11)):
        assert not same(propagate_labels(features, first, grid, **other), found)
    signature = inspect.signature(propagate_labels).parameters
    assert {n: p.default for n, p in signature.items() if p.kind is p.KEYWORD_ONLY} == dict(topk=5, radius=12, n_last=7, temperature=0.1)


@pytest.mark.parametrize("temperature", [0.002, 0.02, 1.0, 100.0])
def test_temperatures(temperature):
    features, first = film(3, (4, 4), frames=5)
    found = propagate_labels(features, first, (4, 4), temperature=temperature)
    assert same(found, literal_propagation(features, first, (4, 4), temperature=temperature))


@pytest.mark.parametrize("scale, dtype, atol", [(1e6, torch.float64, 1e-9), (1e-6, torch.float64, 1e-9), (1e4, torch.float32, 1e-4)])
def test_features_need_not_be_normalised(scale, dtype, atol):
    features, first = film(4, (4, 5), frames=6, scale=scale)
    for row, f in enumerate(features):
        f *= torch.linspace(1, 20, len(f), dtype=f.dtype)[:, None] * (row + 1)
    features = [f.to(dtype) for f in features]
    assert same(propagate_labels(features, first.to(dtype), (4, 5)), literal_propagation(features, first, (4, 5)), atol)


@pytest.mark.parametrize("radius", [0, 1, 2, 20])
@pytest.mark.parametrize("block", [1, 7 * 2 * 5 * 5 * 3, 2000])
def test_blocks_change_nothing(block, radius, monkeypatch):
    features, first = film(5, (7, 5), frames=6)
    options = dict(radius=radius, n_last=3)
    whole = propagate_labels(features, first, (7, 5), **options)
    monkeypatch.setattr(video, "BLOCK_ELEMENTS", block)
    assert same(propagate_labels(features, first, (7, 5), **options), whole, 1e-12)


def test_rows_are_worked_off_within_the_bound(monkeypatch):
    """Of the similarities, no more are held than a bound that leaves room for a row of patches."""
    features, first = film(6, (24, 6), frames=4)
    held = []
    monkeypatch.setattr(video, "stable_topk", lambda similarity, k: held.append(similarity.numel()) or stable_topk(similarity, k))
    for radius in (0, 1, 30):
        one_row = 3 * 6 * 6 * min(24, 2 * radius + 1)
        monkeypatch.setattr(video, "BLOCK_ELEMENTS", 4 * one_row)
        propagate_labels(features, first, (24, 6), radius=radius, n_last=2)
        assert max(held) <= 4 * one_row and len(held) > 3, radius
        held.clear()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_types_stay(dtype):
    features, first = film(7, (3, 4), frames=4)
    found = propagate_labels([f.to(dtype) for f in features], first.to(dtype), (3, 4))
    assert {f.dtype for f in found} == {dtype}
    assert same(found, literal_propagation(features, first, (3, 4)), 1e-9 if dtype == torch.float64 else 0.1)


def test_inputs_are_left_alone():
    features, first = film(8, (3, 4))
    before = [f.clone() for f in features], first.clone()
    propagate_labels(features, first, (3, 4))
    assert all(torch.equal(a, b) for a, b in zip(features, before[0])) and torch.equal(first, before[1])


# ---- closed cases of propagation --------------------------------------------------------------------------------------


def test_one_frame_keeps_its_labels():
    features, first = film(0, (3, 4), frames=1)
    (found,) = propagate_labels(features, first, (3, 4))
    assert torch.equal(found, first)


def test_identical_frames_keep_labels():
    features, first = film(1, (5, 6), frames=1)
    for found in propagate_labels(features * 12, first, (5, 6), topk=1):
        assert torch.equal(found, first)


def test_soft_labels_stay_a_distribution():
    features, first = film(9, (5, 6), channels=4)
    for found in propagate_labels(features, first, (5, 6)):
        assert found.min() >= 0 and torch.allclose(found.sum(0), torch.ones(5, 6, dtype=found.dtype))


@pytest.mark.parametrize("step", [(0, 1), (1, 0), (-1, 2), (2, -2)])
@pytest.mark.parametrize("n_last", [1, 3])
def test_a_moving_pattern_is_followed_as_far_as_the_window_reaches(step, n_last):
    height, width, frames, margin = 9, 10, 4, 8
    g = torch.Generator().manual_seed(0)
    world = torch.randn(height + 2 * margin, width + 2 * margin, 16, generator=g)
    marks = torch.rand(2, height + 2 * margin, width + 2 * margin, generator=g)
    corners = [(margin - t * step[0], margin - t * step[1]) for t in range(frames)]
    features = [world[y : y + height, x : x + width].flatten(0, 1) for y, x in corners]
    expected = [marks[:, y : y + height, x : x + width] for y, x in corners]
    options, far = dict(topk=1, n_last=n_last), max(map(abs, step))
    found = propagate_labels(features, expected[0], (height, width), radius=far, **options)
    for t in range(frames):
        down, along = t * step[0], t * step[1]
        seen = slice(max(down, 0), height + min(down, 0)), slice(max(along, 0), width + min(along, 0))
        assert torch.equal(found[t][:, *seen], expected[t][:, *seen]), t
    short = propagate_labels(features, expected[0], (height, width), radius=far - 1, **options)
    assert not (short[1] == expected[1]).any()


@pytest.mark.parametrize("n_last", [0, 1, 7])
def test_the_first_frame_is_seen_for_ever(n_last):
    features, first = film(10, (3, 4), frames=6, dim=20)
    features[5] = features[0]
    assert torch.equal(propagate_labels(features, first, (3, 4), topk=1, n_last=n_last)[5], first)


@pytest.mark.parametrize("n_last, expected", [(4, 1.0), (3, 1.0), (2, 0.0), (0, 0.0)])
def test_frames_before_count_as_far_as_asked(n_last, expected):
    """Frame 4 resembles frame 1 alone, which resembled the first frame's marked patch; all else resembles nothing."""
    faces = torch.eye(9)
    mixed = faces[[1, 2]].sum(0)
    features = [faces[[0, 1]], torch.stack([mixed, mixed]), faces[[3, 4]], faces[[5, 6]], faces[[2, 2]]]
    first = torch.tensor([[[0.0, 1.0]]])
    found = propagate_labels(features, first, (1, 2), topk=1, n_last=n_last)
    assert found[1].flatten().tolist() == [1.0, 1.0] and found[4].flatten().tolist() == [expected] * 2


def test_the_first_frame_counts_once():
    """With topk = 2 a frame that stood twice in the context would outvote the second patch."""
    features = [torch.eye(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)[[0, 0]]]
    weight = math.exp(10) / (math.exp(10) + 1)
    found = propagate_labels(features, torch.tensor([[[1.0, 0.0]]], dtype=torch.float64), (1, 2), topk=2, n_last=7)
    assert found[1].flatten().tolist() == pytest.approx([weight, weight], abs=1e-9)


@pytest.mark.parametrize("radius", [0, 1, 3, 50])
def test_ties_go_to_the_lower_index(radius):
    """All patches are alike: the first row and column in reach, of the first frame, are taken."""
    grid = (6, 9)
    first = torch.rand(2, *grid, generator=torch.Generator().manual_seed(0))
    rows, columns = ((torch.arange(side) - radius).clamp(min=0) for side in grid)
    for face in (torch.eye(5)[2], torch.randn(37, generator=torch.Generator().manual_seed(1))):
        found = propagate_labels([face.expand(54, -1)] * 4, first, grid, topk=1, radius=radius)
        for t in (1, 2, 3):
            assert torch.equal(found[t], first[:, rows][:, :, columns]), t


def test_ties_between_copies_of_a_few_patches():
    grid, g = (8, 7), torch.Generator().manual_seed(3)
    for dim in (3, 16, 129):
        faces = torch.randn(4, dim, generator=g)
        kinds = torch.randint(4, (3, 56), generator=g)
        first = torch.arange(56.0).view(1, *grid)
        lowest = torch.tensor([(kinds[0] == kind).nonzero()[0].item() for kind in range(4)]).float()
        found = propagate_labels([faces[k] for k in kinds], first, grid, topk=1, radius=9)
        for t in (1, 2):
            assert torch.equal(found[t].flatten(), lowest[kinds[t]]), (dim, t)


@pytest.mark.parametrize("seed", range(6))
def test_topk_is_a_stable_sort(seed):
    g = torch.Generator().manual_seed(seed)
    values = torch.randint(4, (40, 9 + seed), generator=g).float()
    values[torch.rand(values.shape, generator=g) < 0.3] = -torch.inf
    values[0] = -torch.inf
    before = values.clone()
    for k in (1, 2, 5, values.shape[1]):
        found, places = stable_topk(values, k)
        for row, taken, at in zip(before.tolist(), found.tolist(), places.tolist()):
            expected = sorted(range(len(row)), key=lambda i: (-row[i], i))[:k]
            assert at == expected and taken == [row[i] for i in expected]
    assert torch.equal(values, before)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(features=[]), "features: got"),
        (dict(features=[torch.ones(12, 3), torch.ones(12, 4)]), "features: got"),
        (dict(features=[torch.ones(11, 3)] * 2), "features: got"),
        (dict(features=[torch.ones(3, 4, 3)] * 2), "features: got"),
        (dict(first_labels=torch.ones(3, 4)), "first_labels: got"),
        (dict(first_labels=torch.ones(2, 4, 3)), "first_labels: got"),
        (dict(first_labels=torch.ones(2, 12)), "first_labels: got"),
        (dict(topk=0), "topk: got 0"),
        (dict(radius=-1), "radius: got -1"),
        (dict(n_last=-1), "n_last: got -1"),
        (dict(temperature=0.0), "temperature: got 0.0"),
        (dict(temperature=-0.1), "temperature: got -0.1"),
    ],
)
def test_mistakes_are_named(change, message):
    good = dict(features=[torch.ones(12, 3)] * 2, first_labels=torch.ones(2, 3, 4), grid=(3, 4))
    assert len(propagate_labels(**good)) == 2
    with pytest.raises(ValueError, match=f"^{message}.*accepts"):
        propagate_labels(**good | change)


# ---- soft labels to objects -------------------------------------------------------------------------------------------


def literal_segmentation(labels, size):
    channels, height, width = labels.shape
    enlarged = np.zeros((channels, *size))
    for y in range(size[0]):
        for x in range(size[1]):
            v, u = (min(max((i + 0.5) * a / b - 0.5, 0), a - 1) for i, a, b in ((y, height, size[0]), (x, width, size[1])))
            top, left = int(v), int(u)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            across = [labels[:, row, left] * (1 - u + left) + labels[:, row, right] * (u - left) for row in (top, bottom)]
            enlarged[:, y, x] = across[0] * (1 - v + top) + across[1] * (v - top)
    low, high = enlarged.min((1, 2), keepdims=True), enlarged.max((1, 2), keepdims=True)
    return torch.from_numpy(((enlarged - low) / (high - low)).argmax(0))


@pytest.mark.parametrize("grid, size", [((4, 5), (32, 40)), ((3, 7), (25, 31)), ((6, 6), (6, 6)), ((1, 4), (9, 30)), ((5, 1), (16, 3))])
@pytest.mark.parametrize("channels", [1, 2, 4])
def test_segmentation_equals_the_literal_one(grid, size, channels):
    labels = torch.rand(channels, *grid, generator=torch.Generator().manual_seed(channels), dtype=torch.float64)
    labels *= torch.linspace(1, 0.1, channels, dtype=torch.float64)[:, None, None]
    found = hard_labels(labels, size)
    assert found.shape == size and found.dtype == torch.int64 and torch.equal(found, literal_segmentation(labels.numpy(), size))
    assert len(found.unique()) == channels


def test_weak_labels_are_stretched():
    labels = torch.tensor([[[0.9, 0.6]], [[0.1, 0.4]]])
    assert hard_labels(labels, (1, 2)).tolist() == [[0, 1]]
    assert hard_labels(1e-6 * labels, (1, 2)).tolist() == [[0, 1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, 0.25, 0.3, 1 / 3])
@pytest.mark.parametrize("size", [(4, 4), (37, 53)])
def test_a_constant_label_takes_no_pixel_from_others(value, dtype, size):
    labels = torch.zeros(3, 4, 4, dtype=dtype)
    labels[0, :, :2] = labels[2, :, 2:] = 0.6
    without = hard_labels(labels[[0, 2]], size)
    labels[1] = value
    assert torch.equal(hard_labels(labels, size), 2 * without) and without.float().mean() > 0.4


def test_a_lost_object_leaves_background_and_one_that_fills_the_frame_stays():
    lost = torch.stack([torch.ones(4, 5), torch.zeros(4, 5)])
    assert not hard_labels(lost, (31, 42)).any()
    assert hard_labels(lost.flip(0), (31, 42)).all()


# ---- J and F against literal versions ---------------------------------------------------------------------------------

SIZES = [(1, 1), (1, 2), (1, 17), (13, 1), (2, 2), (5, 8), (9, 7), (31, 20), (90, 95), (101, 200)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("smooth", [0.01, 1.5])
def test_figures_equal_the_literal_ones(size, smooth):
    for seed in range(3 if max(size) < 50 else 1):
        mask, truth = blobs(seed, size, smooth)
        assert region_similarity(mask, truth) == pytest.approx(literal_region(mask, truth), abs=1e-12)
        assert boundary_accuracy(mask, truth) == pytest.approx(literal_accuracy(mask, truth), abs=1e-12)
        assert boundary_accuracy(truth, mask) == pytest.approx(boundary_accuracy(mask, truth), abs=1e-12)


@pytest.mark.parametrize("grown", [by_scipy, by_opencv, by_distance])
@pytest.mark.parametrize("bound", [0.05, 0.2, 0.45, 1.2])
@pytest.mark.parametrize("size", [(1, 17), (13, 1), (9, 7), (12, 15)])
def test_tolerances_are_disks(size, bound, grown, monkeypatch):
    monkeypatch.setattr(video, "BOUND", bound)
    g = np.random.default_rng(int(100 * bound))
    for _ in range(4):
        mask, truth = (torch.from_numpy(g.random(size) < 0.04) for _ in range(2))
        assert boundary_accuracy(mask, truth) == pytest.approx(literal_accuracy(mask, truth, grown, bound), abs=1e-12)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (6, 1), (7, 10), (120, 200)])
def test_nothing_everything_and_the_same(size):
    none, everything = torch.zeros(size, dtype=torch.bool), torch.ones(size, dtype=torch.bool)
    some = box(size, 0, (size[0] + 1) // 2, 0, (size[1] + 1) // 2)
    for mask in (none, everything, some, ~some):
        assert region_similarity(mask, mask) == boundary_accuracy(mask, mask) == 1.0
    assert region_similarity(none, everything) == region_similarity(some, none) == region_similarity(none, some) == 0.0
    assert boundary_accuracy(none, everything) == 1.0  # neither has a boundary
    if math.prod(size) > 1:
        for mask in (none, everything):
            assert boundary_accuracy(mask, some) == boundary_accuracy(some, mask) == 0.0
    assert all(type(function(some, none)) is float for function in (region_similarity, boundary_accuracy))


def test_region_similarity_by_hand():
    size = (10, 12)
    assert region_similarity(box(size, 0, 4, 0, 4), box(size, 2, 6, 2, 6)) == 4 / 28
    assert region_similarity(box(size, 0, 1, 0, 1), box(size, 0, 1, 0, 3)) == 1 / 3
    assert region_similarity(box(size, 9, 10, 11, 12), box(size, 9, 10, 10, 11)) == 0.0


EDGES = {(60, 80): 1, (75, 100): 1, (75, 101): 2, (150, 200): 2, (300, 400): 4, (480, 854): 8, (1, 999): 8, (1, 4000): 33}


@pytest.mark.parametrize("size, radius", EDGES.items())
def test_edges_count_as_right_up_to_the_radius(size, radius):
    middle = size[1] // 2
    for step in (radius, -radius):
        assert boundary_accuracy(box(size, 0, size[0], 0, middle), box(size, 0, size[0], 0, middle + step)) == 1.0
    for step in (radius + 1, -radius - 1):
        assert boundary_accuracy(box(size, 0, size[0], 0, middle), box(size, 0, size[0], 0, middle + step)) == 0.0
    assert boundary_accuracy(box(size[::-1], 0, middle, 0, size[0]), box(size[::-1], 0, middle + radius, 0, size[0])) == 1.0
    assert boundary_accuracy(box(size[::-1], 0, middle, 0, size[0]), box(size[::-1], 0, middle + radius + 1, 0, size[0])) == 0.0
    assert math.ceil(0.008 * math.hypot(*size)) == radius


def test_one_pixel_objects():
    """Their boundary is the pixel, and the ones above, to the left and between: 2 x 2 pixels."""
    size = (75, 100)  # radius 1
    one = box(size, 10, 11, 10, 11)
    for (y, x), expected in {
        (10, 10): 1.0,
        (10, 11): 1.0,
        (11, 11): 0.75,
        (10, 12): 0.5,
        (11, 12): 0.25,
        (12, 12): 0.0,
        (10, 13): 0.0,
    }.items():
        other = box(size, y, y + 1, x, x + 1)
        assert boundary_accuracy(one, other) == pytest.approx(expected), (y, x)
        assert region_similarity(one, other) == float((y, x) == (10, 10))


@pytest.mark.parametrize(
    "at, boundary",
    [
        ((0, 0), {(0, 0)}),
        ((0, 5), {(0, 4), (0, 5)}),
        ((5, 0), {(4, 0), (5, 0)}),
        ((0, 9), {(0, 8), (0, 9)}),
        ((7, 0), {(6, 0), (7, 0)}),
        ((4, 5), {(3, 4), (3, 5), (4, 4), (4, 5)}),
        ((7, 5), {(6, 4), (6, 5), (7, 4), (7, 5)}),
        ((5, 9), {(4, 8), (4, 9), (5, 8), (5, 9)}),
        ((7, 9), {(6, 8), (6, 9), (7, 8)}),
    ],
)
def test_boundaries_of_pixels_at_the_border(at, boundary):
    one = box((8, 10), at[0], at[0] + 1, at[1], at[1] + 1)
    assert {tuple(place) for place in video._boundary(one).nonzero().tolist()} == boundary
    assert {tuple(place) for place in video._boundary(~one).nonzero().tolist()} == boundary


def test_thin_lines():
    """A line's boundary is two pixels wide."""
    size = (75, 100)
    line = [box(size, 0, 75, x, x + 1) for x in range(100)]
    assert [boundary_accuracy(line[40], line[x]) for x in (40, 41, 42, 43, 44)] == [1.0, 1.0, 0.5, 0.0, 0.0]
    assert boundary_accuracy(line[0], line[1]) == 1.0 and boundary_accuracy(line[99], line[98]) == 1.0
    assert boundary_accuracy(line[40], box(size, 0, 75, 40, 100)) == pytest.approx(1.0)
    assert boundary_accuracy(line[40], box(size, 0, 75, 41, 60)) == pytest.approx(2 * 1 * 0.5 / 1.5)
    assert region_similarity(line[40], line[41]) == 0.0


@pytest.mark.parametrize("function", [region_similarity, boundary_accuracy])
def test_other_masks_are_refused(function):
    good = torch.zeros(4, 5, dtype=torch.bool)
    for bad in (good.byte(), good.float(), good.long(), good[0], good[None]):
        with pytest.raises(ValueError, match="^mask: got .*accepts"):
            function(bad, good)
        with pytest.raises(ValueError, match="^truth: got .*accepts"):
            function(good, bad)
    for bad in (good.T, good[:, :1], good[:1]):
        with pytest.raises(ValueError, match=r"^truth: got .*accepts \(4, 5\)"):
            function(good, bad)


# ---- DAVIS' layout ----------------------------------------------------------------------------------------------------


def picture(folder, sequence, name, pixels, mask):
    """A frame uint8[h, w, 3] and its mask uint8[h, w], as a palette image unless its only number is 255."""
    frames, masks = (folder / part / "480p" / sequence for part in ("JPEGImages", "Annotations"))
    for place in (frames, masks):
        place.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(frames / f"{name}.jpg", quality=95)
    image = Image.fromarray(mask)
    if mask.max() < 255:
        image.putpalette(literal_palette())
    image.save(masks / f"{name}.png")


def write(folder, numbers, frames=5, size=(48, 64)):
    """Sequences ``a``, ``b`` … with objects of the given numbers, which drift before a background."""
    count = max(map(len, numbers))
    drawn = scenes.videos(torch.arange(len(numbers)), frames, objects=count)
    for i, of_sequence in enumerate(numbers):
        for t in reversed(range(frames)):
            pixels = drawn.images[i, t].permute(1, 2, 0).numpy()[: size[0], : size[1]]
            mask = sum(drawn.masks[i, t, k].numpy() * np.uint8(number) for k, number in enumerate(of_sequence))
            picture(folder, "abcdef"[i], f"{t:05d}", np.ascontiguousarray(pixels), np.ascontiguousarray(mask[: size[0], : size[1]]))
    return folder


def listed(folder, year, split, *lines):
    file = folder / "ImageSets" / year / f"{split}.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines))


def rows_of(table):
    return list(zip(table["sequence"].to_pylist(), table["filename"].to_pylist()))


def test_lists_of_frames(tmp_path):
    folder = write(tmp_path / "davis2016", [[255], [255], [255]], frames=3)
    lines = [f"/JPEGImages/480p/{s}/{t:05d}.jpg /Annotations/480p/{s}/{t:05d}.png " for s in "ca" for t in range(3)]
    listed(folder, "480p", "val", *lines, "")
    listed(folder, "480p", "train", "/JPEGImages/480p/b/00000.jpg /Annotations/480p/b/00000.png")
    table = read_table("davis2016", "val", root=tmp_path)
    assert rows_of(table) == [(s, f"{t:05d}.jpg") for s in "ca" for t in range(3)]
    assert set(read_table("davis2016", "train", root=tmp_path)["sequence"].to_pylist()) == {"b"}
    for (sequence, name), image, mask in zip(rows_of(table), table["image"].to_pylist(), table["mask"].to_pylist()):
        assert image["path"] == str(folder / "JPEGImages" / "480p" / sequence / name)
        assert mask["path"] == str(folder / "Annotations" / "480p" / sequence / name.replace("jpg", "png"))
        assert read_mask(mask).unique().tolist() == [0, 255]


def test_lists_of_sequences(tmp_path):
    folder = write(tmp_path / "davis2017", [[1, 2], [1, 2], [1, 2]], frames=3)
    listed(folder, "2017", "val", "b", "", "a  ")
    listed(folder, "2017", "train", "c")
    listed(folder, "480p", "val", "c")
    assert rows_of(read_table("davis2017", "val", root=tmp_path)) == [(s, f"{t:05d}.jpg") for s in "ba" for t in range(3)]
    assert rows_of(read_table("davis2017", "train", root=tmp_path)) == [("c", f"{t:05d}.jpg") for t in range(3)]


@pytest.mark.parametrize("name, folder", [("davis2016", "davis2016"), ("davis2016", "davis2016-subset"), ("davis2017", "DAVIS")])
def test_without_a_list_all_sequences_are_read(name, folder, tmp_path):
    write(tmp_path / folder, [[1], [1]], frames=12)
    (tmp_path / folder / "JPEGImages" / "480p" / "notes.txt").write_text("x")
    (tmp_path / folder / "JPEGImages" / "480p" / "b" / "Thumbs.db").write_text("x")
    for split in ("train", "val"):
        assert rows_of(read_table(name, split, root=tmp_path)) == [(s, f"{t:05d}.jpg") for s in "ab" for t in range(12)]


def test_masks_are_loaded_with_the_numbers_of_objects(tmp_path):
    folder = write(tmp_path / "davis2017", [[1, 2]], frames=3)
    dataset = load("davis2017", "val", root=tmp_path)
    drawn = scenes.videos(torch.arange(1), 3, objects=2)
    assert len(dataset) == 3 and set(dataset.column_names) == {"image", "mask", "filename", "sequence"}
    for t, row in enumerate(dataset):
        truth = (drawn.masks[0, t, 0] + 2 * drawn.masks[0, t, 1].long())[:48]
        assert row["image"].mode == "RGB" and row["image"].size == row["mask"].size == (64, 48) and row["sequence"] == "a"
        assert row["mask"].mode == "P" and np.array_equal(np.asarray(row["mask"]), truth.numpy())
        assert torch.equal(read_mask({"bytes": None, "path": str(folder / f"Annotations/480p/a/{t:05d}.png")}), truth)


def test_what_a_folder_lacks_is_named(tmp_path):
    frames = tmp_path / "davis2017" / "JPEGImages" / "480p"
    (tmp_path / "davis2017").mkdir()
    with pytest.raises(ValueError, match=f"^{re.escape(str(tmp_path / 'davis2017'))}: holds no split 'val'"):
        read_table("davis2017", "val", root=tmp_path)
    frames.mkdir(parents=True)
    with pytest.raises(ValueError, match=f"^{re.escape(str(frames))}"):
        read_table("davis2017", "val", root=tmp_path)
    (frames / "a").mkdir()
    with pytest.raises(ValueError, match=f"^{re.escape(str(frames))}"):
        read_table("davis2017", "val", root=tmp_path)
    with pytest.raises(ValueError, match="^split: got 'test'"):
        read_table("davis2017", "test", root=tmp_path)
    with pytest.raises(ValueError, match="^root: got"):
        read_table("davis2016", "val", root=tmp_path)


@pytest.mark.parametrize("there", [False, True], ids=["missing", "empty"])
def test_a_listed_sequence_without_frames_is_named(there, tmp_path):
    folder = write(tmp_path / "davis2017", [[1]], frames=3)
    listed(folder, "2017", "val", "a", "lost")
    if there:
        (folder / "JPEGImages" / "480p" / "lost").mkdir()
    with pytest.raises(ValueError, match=f"^{re.escape(str(folder / 'JPEGImages' / '480p' / 'lost'))}"):
        read_table("davis2017", "val", root=tmp_path)


# ---- videos of a table ------------------------------------------------------------------------------------------------


def network(seed=0):
    torch.manual_seed(seed)
    model = create_model("vit_nano", img_size=64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def two_videos(root, frames=5):
    """Objects of other numbers in each video; the second object of the second video is small and soon hidden."""
    write(root / "davis2017", [[2, 5], [1, 3]], frames)
    return read_table("davis2017", "val", root=root)


def masks_of(root, sequence):
    return torch.stack(
        [read_mask({"bytes": None, "path": str(f)}) for f in sorted((root / "davis2017/Annotations/480p" / sequence).iterdir())]
    )


def literal_video(model, root, sequence, size, **options):
    """Predicted numbers of objects, from the files on."""
    model.eval()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    features = []
    for file in sorted((root / "davis2017" / "JPEGImages" / "480p" / sequence).iterdir()):
        with Image.open(file) as image:
            pixels = np.array(image.convert("RGB").resize(size[::-1], Image.Resampling.BICUBIC))
        view = ((torch.from_numpy(pixels).float() / 255 - mean) / std).permute(2, 0, 1)[None]
        with torch.no_grad():
            features.append(model.features(view).patches[0])
    truth = masks_of(root, sequence)
    grid, numbers = (size[0] // 8, size[1] // 8), sorted({0, *truth[0].flatten().tolist()})
    rows, columns = (((torch.arange(a) + 0.5) * b / a).long() for a, b in zip(grid, truth.shape[1:]))
    first = torch.stack([truth[0][rows][:, columns] == number for number in numbers]).double()
    soft = literal_propagation(features, first, grid, **options)
    numbers = torch.tensor(numbers)
    return torch.stack([truth[0], *(numbers[plain_segmentation(labels, truth.shape[1:])] for labels in soft[1:])])


def plain_segmentation(labels, size):
    """Without labels that are nowhere."""
    there = labels.amax((1, 2)) > 0
    return there.nonzero().squeeze(1)[literal_segmentation(labels[there].numpy(), size)]


def test_videos_equal_the_literal_way_through(tmp_path):
    table, model = two_videos(tmp_path, frames=3), network()
    options = dict(topk=3, radius=2, n_last=1)
    found = list(segment_videos(model, table, **VIEW, **options))
    assert [sequence for sequence, *_ in found] == ["a", "b"] and [objects for _, objects, *_ in found] == [[2, 5], [1, 3]]
    for sequence, objects, predicted, truth in found:
        numbers = torch.tensor([0, *objects])
        assert predicted.dtype == truth.dtype == torch.int64 and predicted.shape == truth.shape == (3, 48, 64)
        assert torch.equal(numbers[truth], masks_of(tmp_path, sequence)) and torch.equal(predicted[0], truth[0])
        expected = literal_video(model, tmp_path, sequence, (64, 80), **options)
        assert (numbers[predicted] == expected).float().mean() > 0.999 and len(predicted[1:].unique()) >= 2
        assert not torch.equal(predicted[1], truth[0]) and not predicted.requires_grad
    assert not model.training
    others = list(segment_videos(model, table, **VIEW, **options | dict(radius=8)))
    assert any(not torch.equal(a[2], b[2]) for a, b in zip(found, others))


def test_figures_equal_a_loop_over_objects_and_frames(tmp_path):
    table, trained, untrained = two_videos(tmp_path), network(0).train(), network(1).train()
    found = twin_figures("video", trained, untrained, table, **VIEW, radius=3)
    assert not trained.training and not untrained.training
    expected = {}
    for prefix, model in (("", trained), ("untrained_", untrained), ("still_", trained)):
        regions, boundaries = [], []
        for _, objects, predicted, truth in segment_videos(model, table, **VIEW, radius=3):
            guess = truth[:1].repeat(5, 1, 1) if prefix == "still_" else predicted
            for i in range(1, len(objects) + 1):
                regions.append(sum(literal_region(guess[t] == i, truth[t] == i) for t in (1, 2, 3)) / 3)
                boundaries.append(sum(literal_accuracy(guess[t] == i, truth[t] == i) for t in (1, 2, 3)) / 3)
        assert len(regions) == 4
        j, f = 100 * sum(regions) / 4, 100 * sum(boundaries) / 4
        expected |= {f"{prefix}j_mean": j, f"{prefix}f_mean": f, f"{prefix}jf_mean": (j + f) / 2}
    assert found == {name: pytest.approx(value, abs=5.1e-4) for name, value in expected.items()} | {"objects": 4.0}
    assert len(set(found.values())) == 10 and all(type(value) is float for value in found.values())


def test_single_objects_of_255(tmp_path):
    write(tmp_path / "davis2016", [[255]], frames=3)
    table = read_table("davis2016", "val", root=tmp_path)
    ((_, objects, predicted, truth),) = segment_videos(network(), table, **VIEW)
    assert objects == [255] and truth.unique().tolist() == [0, 1] == predicted.unique().tolist()
    found = twin_figures("video", network(), network(), table, **VIEW)
    assert found["objects"] == 1 and found["still_j_mean"] == round(100 * literal_region(truth[0] == 1, truth[1] == 1), 3)
    assert found["j_mean"] == found["untrained_j_mean"] == round(100 * literal_region(predicted[1] == 1, truth[1] == 1), 3)


def test_still_videos_are_kept(tmp_path):
    """With one neighbour each patch finds itself, and the masks of patches come back."""
    mask = np.zeros((64, 64), np.uint8)
    mask[16:40, 24:56] = 1
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for t in range(4):
        picture(tmp_path / "davis2017", "a", f"{t:05d}", pixels, mask)
    found = twin_figures("video", network(), network(1), read_table("davis2017", "val", root=tmp_path), **VIEW, topk=1)
    assert found["still_j_mean"] == found["still_f_mean"] == 100 and found["j_mean"] == found["untrained_j_mean"] > 90


def rewritten(root, sequence, t, change):
    file = root / "davis2017" / "Annotations" / "480p" / sequence / f"{t:05d}.png"
    with Image.open(file) as image:
        values = change(np.array(image))
    Image.fromarray(values).save(file)


def test_the_last_frame_is_not_measured_and_those_between_are(tmp_path):
    table, model = two_videos(tmp_path, frames=3), network()
    before = twin_figures("video", model, model, table, **VIEW)
    for sequence in "ab":
        rewritten(tmp_path, sequence, 2, lambda values: np.full_like(values, 5))
    assert twin_figures("video", model, model, table, **VIEW) == before
    rewritten(tmp_path, "a", 1, np.zeros_like)
    after = twin_figures("video", model, model, table, **VIEW)
    assert after["j_mean"] < before["j_mean"] and after["still_j_mean"] < before["still_j_mean"]


def test_later_objects_are_background(tmp_path):
    table, model = two_videos(tmp_path, frames=3), network()
    before = twin_figures("video", model, model, table, **VIEW)
    rewritten(tmp_path, "a", 1, lambda values: np.where(values == 0, 9, values).astype(np.uint8))
    assert twin_figures("video", model, model, table, **VIEW) == before


def test_frames_of_videos_may_stand_among_each_other(tmp_path):
    table, model = two_videos(tmp_path, frames=3), network()
    mixed = table.take(pa.array([3, 0, 4, 1, 2, 5]))
    there = {sequence: predicted for sequence, _, predicted, _ in segment_videos(model, table, **VIEW)}
    found = {sequence: predicted for sequence, _, predicted, _ in segment_videos(model, mixed, **VIEW)}
    assert list(found) == ["b", "a"] and all(torch.equal(found[sequence], there[sequence]) for sequence in "ab")


@pytest.mark.parametrize("part, suffix", [("JPEGImages", "jpg"), ("Annotations", "png")])
@pytest.mark.parametrize("how", ["missing", "cut", "empty"])
def test_missing_and_damaged_files_are_named(part, suffix, how, tmp_path):
    table, model = two_videos(tmp_path, frames=3), network()
    file = tmp_path / "davis2017" / part / "480p" / "b" / f"00001.{suffix}"
    content = file.read_bytes()
    file.unlink()
    if how != "missing":
        file.write_bytes(content[: len(content) // 2 if how == "cut" else 0])
    with pytest.raises(ValueError, match=rf"^{re.escape(str(file))} \(row 4\): ") as raised:
        twin_figures("video", model, model, table, **VIEW)
    assert "left out" not in str(raised.value)


def test_masks_of_two_sizes_are_named(tmp_path):
    table = two_videos(tmp_path, frames=3)
    rewritten(tmp_path, "b", 1, lambda values: values[:40])
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "davis2017/Annotations/480p/b/00001.png"))):
        list(segment_videos(network(), table, **VIEW))


def test_frames_of_two_shapes_are_refused(tmp_path):
    """Turned by a right angle, a frame has as many patches."""
    table = two_videos(tmp_path, frames=3)
    file = tmp_path / "davis2017" / "JPEGImages" / "480p" / "b" / "00001.jpg"
    with Image.open(file) as image:
        turned = image.transpose(Image.Transpose.ROTATE_90)
    turned.save(file)
    with pytest.raises(ValueError):
        list(segment_videos(network(), table, **VIEW))


@pytest.mark.parametrize("frames", [1, 2])
def test_videos_without_frames_between_are_refused(frames, tmp_path):
    table, model = two_videos(tmp_path, frames), network()
    with pytest.raises(ValueError, match=f"^table: a has {frames} frames, accepts 3 or more"):
        twin_figures("video", model, model, table, **VIEW)


@pytest.mark.parametrize("empty", [True, False], ids=["no frames", "no objects"])
def test_tables_without_objects_are_refused(empty, tmp_path):
    table, model = two_videos(tmp_path, frames=3), network()
    for sequence in "ab":
        rewritten(tmp_path, sequence, 0, np.zeros_like)
    with pytest.raises(ValueError, match="^table: "):
        twin_figures("video", model, model, table[:0] if empty else table, **VIEW)


def test_options_reach_the_propagation(tmp_path):
    table = two_videos(tmp_path, frames=3)
    with pytest.raises(ValueError, match="^topk: got 0"):
        twin_figures("video", network(), network(), table, **VIEW, topk=0)


# ---- real data --------------------------------------------------------------------------------------------------------


@pytest.mark.data
def test_real_sequences(real_data):
    if not (real_data / "davis2016-subset").is_dir():
        pytest.skip(f"no davis2016-subset in {real_data}")
    dataset = load("davis2016", "val", root=real_data)
    assert list(zip(dataset["sequence"], dataset["filename"])) == [
        (sequence, f"{t:05d}.jpg") for sequence in ("blackswan", "camel", "dog", "goat") for t in range(24)
    ]
    masks = {}
    for t in (0, 1, 23, 24, 50, 95):
        row = dataset[t]
        masks[t] = torch.from_numpy(np.array(row["mask"]))
        assert row["image"].mode == "RGB" and row["image"].size == row["mask"].size == (854, 480)
        assert masks[t].unique().tolist() == [0, 255]
    pair = masks[0] == 255, masks[23] == 255
    assert boundary_accuracy(*pair) == pytest.approx(literal_accuracy(*pair, by_distance), abs=1e-12)
    assert region_similarity(*pair) == pytest.approx(literal_region(*pair), abs=1e-12)
    assert 0.2 < region_similarity(*pair) < 1 > boundary_accuracy(*pair) > 0.1
