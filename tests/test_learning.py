"""Learners without labels: questions, answers and losses by hand, colours, tiles, whole runs, accuracy on the task."""

import itertools
import math

import cv2
import numpy as np
import pytest
import torch

from lib import recipes
from lib.data import Bank, bank
from lib.data.views import View, denormalise, make_views, normalise
from lib.engine.checkpoint import load_checkpoint
from lib.engine.log import read_log
from lib.evaluation.pretext import pretext_accuracy
from lib.learning.colours import BINS, quantise, rgb_to_lab
from lib.learning.contrastive import info_nce
from lib.learning.pretext import cut_tiles, distant_permutations
from lib.train import build, configure, find_run, load_encoder, run

METHODS = ("rotation", "jigsaw", "colorization", "contrastive")
TINY = dict(
    fraction=0.016, epochs=1, batch_size=8, canvas=32, train_size=16, eval_size=16, knn_epochs=0, knn_k=[1], checkpoint_steps=2, log_steps=1,
    arch="vit_nano", patch_size=8, pooling="none", drop_path=0.0, crop_scale=[0.5, 1.0],
)  # fmt: skip
OWN = {
    "rotation": {},
    "jigsaw": dict(cell_size=12, tile_size=8, grey=0.3, permutations=8, hidden_dim=64),
    "colorization": dict(cells=2, rebalancing=0.5),
    "contrastive": dict(jitter=0.5, temperature=0.2, hidden_dim=64, out_dim=32),
}


def settings(method, **overrides):
    return configure(recipes.entry(f"smoke/{method}"), TINY | OWN[method] | overrides)


def learner(method, **overrides):
    return build(settings(method, **overrides), 4, "cpu").train()


def photos(count=8, size=32) -> Bank:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    sizes = torch.randint(20, 60, (count, 2), generator=generator)
    return Bank(images, sizes, torch.arange(count), "photos")


def seeded(seed=5):
    return torch.Generator().manual_seed(seed)


def whole_view(size):
    """The image as it is, where its canvas has this size."""
    return View(size, (1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, jitter_probability=0.0, grey=0.0)


def step_of(made, images, sizes=None, seed=5):
    """What the student sees in a step, what it makes of it, and what the step returns."""
    seen, features = [], made.student.features

    def watched(x, mask=None):
        assert mask is None
        seen.append((x, features(x)))
        return seen[-1][1]

    made.student.features = watched
    sizes = torch.full((len(images), 2), images.shape[-1]) if sizes is None else sizes
    found = made(images, sizes, torch.zeros(len(images)).long(), 0, seeded(seed))
    made.student.features = features
    assert len(seen) == 1 and set(found) == {"loss", "right", "chance"}
    return *seen[0], found


def literal_answers(logits, truth):
    """(mean of -ln p of the truth, share of rows whose largest logit is the truth)"""
    losses = [math.log(sum(math.exp(x) for x in row)) - row[t] for row, t in zip(logits.tolist(), truth)]
    return sum(losses) / len(losses), sum(row.index(max(row)) == t for row, t in zip(logits.tolist(), truth)) / len(losses)


# ---- contrastive loss -------------------------------------------------------------------------------------------------


def literal_info_nce(first, second, temperature):
    views = [v / v.norm() for v in [*first.double(), *second.double()]]
    count, loss, right = len(views), 0.0, 0
    for i in range(count):
        partner = (i + count // 2) % count
        scores = {j: (views[i] @ views[j]).item() / temperature for j in range(count) if j != i}
        loss += math.log(sum(math.exp(s) for s in scores.values())) - scores[partner]
        right += max(scores, key=scores.get) == partner
    return loss / count, right / count


@pytest.mark.parametrize("batch", [2, 3, 9])
@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_info_nce_is_a_literal_double_loop(batch, temperature):
    first, second = torch.randn(2, batch, 7, generator=seeded(batch))
    second = first + second
    loss, right = info_nce(first, second, temperature=temperature)
    assert (loss.item(), right.item()) == pytest.approx(literal_info_nce(first, second, temperature), abs=1e-5)
    assert loss.shape == right.shape == ()


def test_neither_order_nor_length_of_vectors_counts():
    first, second = torch.randn(2, 6, 5, generator=seeded())
    order, lengths = torch.randperm(6, generator=seeded()), torch.rand(2, 6, 1, generator=seeded()) + 0.1
    expected = info_nce(first, second)
    for a, b in ((first[order], second[order]), (second, first), (lengths[0] * first, 100 * lengths[1] * second)):
        torch.testing.assert_close(info_nce(a, b), expected)


def test_equal_views_find_each_other():
    vectors = torch.randn(16, 8, generator=seeded())
    loss, right = info_nce(vectors, vectors, temperature=0.05)
    assert right == 1 and loss < math.log(31)
    loss, right = info_nce(torch.eye(4), torch.eye(4), temperature=0.5)
    assert right == 1 and loss.item() == pytest.approx(math.log(1 + 6 * math.exp(-2)))


def test_equal_vectors_of_all_images_leave_the_guess():
    assert info_nce(torch.ones(5, 3), torch.ones(5, 3))[0].item() == pytest.approx(math.log(9))


@pytest.mark.parametrize("shapes", [((4, 3), (5, 3)), ((4, 3), (4, 2)), ((1, 3), (1, 3)), ((0, 3), (0, 3)), ((3,), (3,)), ((2, 2, 3),) * 2])
def test_info_nce_refuses_other_shapes(shapes):
    with pytest.raises(ValueError, match=r"^second: got shape .* accepts two \[B, D\]"):
        info_nce(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


def test_info_nce_has_finite_gradients_even_of_nothing():
    first, second = torch.randn(2, 4, 3, generator=seeded())
    first[0] = 0
    first.requires_grad_()
    info_nce(first, second)[0].backward()
    assert first.grad.isfinite().all() and first.grad[1:].abs().sum(1).min() > 0


def test_half_precision_vectors_are_compared_in_full():
    first, second = torch.randn(2, 12, 16, generator=seeded()).bfloat16()
    found = info_nce(first, second)
    assert found[0].dtype == torch.float32
    torch.testing.assert_close(found, info_nce(first.float(), second.float()), rtol=0, atol=0)


def test_autocast_leaves_the_similarities_alone():
    first, second = torch.randn(2, 12, 16, generator=seeded())
    expected = info_nce(first, second)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(info_nce(first, second), expected)


def test_contrastive_compares_two_views_of_each_image():
    made, data = learner("contrastive"), photos(3)
    pixels, features, found = step_of(made, data.images, data.sizes)
    config = made.config
    view = View(16, (0.5, 1.0), jitter=(0.4, 0.4, 0.4, 0.1), grey=0.2, blur=0.5)
    assert torch.equal(pixels, torch.cat(make_views(data.images, [view] * 2, sizes=data.sizes, generator=seeded())))
    first, second = made.head(features.cls).chunk(2)
    expected = literal_info_nce(first, second, config.temperature)
    assert (found["loss"].item(), found["right"].item()) == pytest.approx(expected, abs=1e-5)
    assert found["chance"].item() == pytest.approx(1 / 5)


# ---- colours ----------------------------------------------------------------------------------------------------------


def literal_linear(rgb):
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4).astype(np.float32)


def test_lab_is_opencvs():
    """Exactly from linear light; from sRGB OpenCV interpolates a table."""
    rgb = torch.rand(1, 3, 100, 100, generator=seeded())
    rgb[..., :20] *= 0.06  # both sides of the linear parts
    found = rgb_to_lab(rgb)[0].permute(1, 2, 0).numpy()
    pixels = rgb[0].permute(1, 2, 0).contiguous().numpy()
    assert np.abs(found - cv2.cvtColor(literal_linear(pixels), cv2.COLOR_LRGB2LAB)).max() < 0.03
    difference = np.abs(found - cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB))
    assert difference.max() < 0.6 and difference.mean() < 0.15


def test_lab_is_scikit_images():
    color = pytest.importorskip("skimage.color")
    rgb = torch.rand(2, 3, 20, 30, generator=seeded())
    expected = color.rgb2lab(rgb.double().numpy(), channel_axis=1)
    np.testing.assert_allclose(rgb_to_lab(rgb).numpy(), expected, rtol=0, atol=0.01)


@pytest.mark.parametrize("level, lightness", [(1.0, 100.0), (0.0, 0.0), (0.5, 53.389), (0.2, 21.247), (0.01, 0.2741 * 903.3 / 354.2)])
def test_greys_have_no_colour(level, lightness):
    found = rgb_to_lab(torch.full((1, 3, 1, 2), level))
    assert found.shape == (1, 3, 1, 2) and found[:, 1:].abs().max() < 0.01
    assert found[:, 0].flatten().tolist() == pytest.approx([lightness] * 2, abs=0.01)


def test_primaries_lie_where_they_should():
    """Of sRGB under D65, from tables."""
    expected = [[53.24, 80.09, 67.20], [87.73, -86.18, 83.18], [32.30, 79.19, -107.86]]
    torch.testing.assert_close(rgb_to_lab(torch.eye(3).view(3, 3, 1, 1))[..., 0, 0], torch.tensor(expected), rtol=0, atol=0.03)


def test_lab_has_finite_gradients():
    rgb = torch.tensor([0.0, 1e-9, 0.04045, 0.5, 1.0, -0.1]).view(1, 1, 1, 6).repeat(1, 3, 1, 1)
    rgb[0, 1:, 0, 4] = 0  # pure red
    rgb.requires_grad_()
    rgb_to_lab(rgb)[:, 0].sum().backward()
    assert rgb.grad.isfinite().all() and (rgb.grad[..., :5] > 0).all()


def test_autocast_leaves_colours_alone():
    rgb = torch.rand(1, 3, 8, 8, generator=seeded())
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(rgb_to_lab(rgb), rgb_to_lab(rgb.double()).float(), rtol=0, atol=0.01)


def test_bins_are_distinct_multiples_of_ten():
    assert torch.equal(BINS % 10, torch.zeros_like(BINS)) and len(BINS.unique(dim=0)) == len(BINS) > 200
    assert [0.0, 0.0] in BINS.tolist() and BINS.abs().max() < 120


def test_every_colour_of_a_screen_has_its_bin():
    """Of all on the cube's faces at 8 bits; the others lie between them."""
    level = torch.arange(256) / 255
    face = torch.cartesian_prod(level, level)
    for channel, end in itertools.product(range(3), (0.0, 1.0)):
        rgb = torch.cat([face[:, :channel], torch.full((len(face), 1), end), face[:, channel:]], 1)
        centres = (rgb_to_lab(rgb.T[None, :, :, None])[0, 1:, :, 0].T / 10).round().unique(dim=0) * 10
        assert {tuple(c) for c in centres.tolist()} <= {tuple(b) for b in BINS.tolist()}


def literal_code(a, b):
    """The nearest bin, and {bin: share} of the five nearest by a Gaussian of width 5."""
    distances = [math.hypot(a - x, b - y) for x, y in BINS.tolist()]
    nearest = sorted(range(len(BINS)), key=distances.__getitem__)[:5]
    heights = [math.exp(-(distances[q] ** 2) / 50) for q in nearest]
    return nearest[0], {q: h / sum(heights) for q, h in zip(nearest, heights)}


@pytest.mark.parametrize("reach", [8.0, 60.0, 130.0])
def test_colours_are_shared_among_the_five_nearest_bins(reach):
    ab = (2 * torch.rand(3, 5, 2, generator=seeded()) - 1) * reach
    bins, soft = quantise(ab)
    assert bins.shape == (3, 5) and bins.dtype == torch.long and soft.shape == (3, 5, len(BINS))
    torch.testing.assert_close(soft.sum(-1), torch.ones(3, 5))
    assert ((soft > 0).sum(-1) == 5).all() and torch.equal(soft.argmax(-1), bins)
    for (a, b), found, shares in zip(ab.flatten(0, 1).tolist(), bins.flatten().tolist(), soft.flatten(0, 1)):
        nearest, expected = literal_code(a, b)
        assert found == nearest and {q: shares[q].item() for q in expected} == pytest.approx(expected, abs=1e-4)


def test_centres_are_their_own_bins():
    bins, soft = quantise(BINS)
    assert torch.equal(bins, torch.arange(len(BINS)))
    inner = BINS.tolist().index([0.0, 0.0])
    assert soft[inner, inner].item() == pytest.approx(1 / (1 + 4 * math.exp(-2)), abs=1e-4)


# ---- puzzles ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 10, 24])
def test_permutations_are_chosen_greedily(count):
    every = list(itertools.permutations(range(4)))
    chosen = [every[0]]
    while len(chosen) < count:
        left = [p for p in every if p not in chosen]
        chosen.append(max(left, key=lambda p: sum(a != b for other in chosen for a, b in zip(p, other))))  # the first of equal ones
    assert distant_permutations(count, 4).tolist() == [list(p) for p in chosen]


def test_permutations_of_the_puzzle_are_distinct_and_far_apart():
    found = distant_permutations(64, 9)
    assert found.dtype == torch.long and torch.equal(found.sort(1).values, torch.arange(9).expand(64, 9))
    assert len(found.unique(dim=0)) == 64 and torch.equal(found[0], torch.arange(9))
    different = (found[:, None] != found[None]).sum(-1)
    assert (different[:9, :9].fill_diagonal_(9) == 9).all()  # nine can differ everywhere
    assert different[~torch.eye(64, dtype=torch.bool)].float().mean() > 8


@pytest.mark.parametrize("count, tiles", [(1, 4), (0, 4), (25, 4), (7, 3)])
def test_more_permutations_than_there_are_are_refused(count, tiles):
    with pytest.raises(ValueError, match=f"^count: got {count}, {tiles} tiles accept 2 to {math.factorial(tiles)}"):
        distant_permutations(count, tiles)


def standardised(tile):
    """Every channel of mean 0 and standard deviation 1."""
    return torch.stack([(c - c.mean()) / max((c - c.mean()).square().mean().sqrt().item(), 1e-3) for c in tile])


@pytest.mark.parametrize("cell, tile, side", [(12, 8, 3), (5, 5, 3), (7, 6, 2), (6, 2, 3)])
def test_tiles_are_cut_where_the_corners_are(cell, tile, side):
    crops = torch.randn(3, 3, side * cell, side * cell, generator=seeded())
    before = crops.clone()
    found = cut_tiles(crops, cell, tile, seeded(1))
    assert torch.equal(crops, before) and found.shape == (3, side**2, 3, tile, tile)
    corners = torch.randint(cell - tile + 1, (3, side**2, 2), generator=seeded(1)).tolist()
    for b, r, c in itertools.product(range(3), range(side), range(side)):
        down, right = corners[b][side * r + c]
        y, x = r * cell + down, c * cell + right
        torch.testing.assert_close(found[b, side * r + c], standardised(crops[b, :, y : y + tile, x : x + tile]))
    torch.testing.assert_close(found.mean((3, 4)), torch.zeros(3, side**2, 3), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.std((3, 4), correction=0), torch.ones(3, side**2, 3))


def test_cells_are_read_row_by_row():
    """Cell k slopes down by cos k and to the right by sin k, and lies 10 k higher."""
    y, x = torch.meshgrid(torch.arange(6.0), torch.arange(6.0), indexing="ij")
    slopes = [math.cos(k) * y + math.sin(k) * x + 10 * k for k in range(9)]
    image = torch.cat([torch.cat(slopes[3 * r : 3 * r + 3], 1) for r in range(3)]).expand(1, 3, -1, -1)
    for tile in (6, 4):  # wherever a tile lies, its slope is that of its cell
        for found, slope in zip(cut_tiles(image, 6, tile, seeded())[0], slopes):
            torch.testing.assert_close(found, standardised(slope[:tile, :tile].expand(3, -1, -1)), rtol=1e-4, atol=1e-4)


def test_every_place_of_a_cell_is_cut_out():
    ramp = torch.arange(16.0).view(4, 4).repeat(3, 3)
    ramp = (ramp**2).expand(400, 3, -1, -1)
    found = cut_tiles(ramp, 4, 3, seeded()).flatten(0, 1).flatten(1)
    assert len(torch.unique(found.mul(1000).round(), dim=0)) == 4


@pytest.mark.parametrize("level", [0.0, -2.117904, 0.3])
def test_tiles_without_anything_in_them_stay_finite(level):
    found = cut_tiles(torch.full((2, 3, 18, 18), level), 6, 4, seeded())
    assert found.isfinite().all() and found.abs().max() < 0.01


# ---- rotation and jigsaw ----------------------------------------------------------------------------------------------


def test_rotation_shows_every_image_in_all_four_turns():
    made, data = learner("rotation"), photos(3)
    pixels, features, found = step_of(made, data.images, data.sizes)
    upright = make_views(data.images, [View(16, (0.5, 1.0), jitter_probability=0.0, grey=0.0)], sizes=data.sizes, generator=seeded())[0]
    expected, size = upright, 16
    for turns in range(4):
        assert torch.equal(pixels[3 * turns : 3 * turns + 3], expected)
        # a quarter turn to the left: what was the right edge comes to the top
        expected = torch.stack([torch.stack([expected[..., j, size - 1 - i] for j in range(size)], -1) for i in range(size)], -2)
    assert torch.equal(expected, upright)
    loss, right = literal_answers(made.head(features.cls), [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3)
    assert (found["loss"].item(), found["right"].item()) == pytest.approx((loss, right), abs=1e-5)
    assert found["chance"] == 0.25


@pytest.mark.parametrize("permutations", [2, 30])
def test_the_answer_to_a_puzzle_is_the_order_of_its_tiles(permutations):
    made, data = learner("jigsaw", cell_size=8, tile_size=8, grey=0.0, permutations=permutations), photos(6, 24)
    made.view = whole_view(24)
    pixels, features, found = step_of(made, data.images)
    image = normalise(data.images / 255)
    laid, truth = pixels.unflatten(0, (6, 9)), []
    for b in range(6):
        cells = [standardised(image[b, :, 8 * r : 8 * r + 8, 8 * c : 8 * c + 8]) for r in range(3) for c in range(3)]
        order = [[(tile - cell).abs().max() < 1e-3 for cell in cells].index(True) for tile in laid[b]]
        truth.append(made.orders.tolist().index(order))
    assert len(set(truth)) > 1
    loss, right = literal_answers(made.head(features.cls.reshape(6, -1)), truth)
    assert (found["loss"].item(), found["right"].item()) == pytest.approx((loss, right), abs=1e-5)
    assert found["chance"].item() == pytest.approx(1 / permutations)


def test_tiles_are_of_crops_of_which_some_are_grey():
    made, data = learner("jigsaw", grey=0.5), photos(20)
    pixels, _, _ = step_of(made, data.images, data.sizes)
    generator = seeded()
    view = View(36, (0.5, 1.0), jitter_probability=0.0, grey=0.5)
    crops = make_views(data.images, [view], sizes=data.sizes, generator=generator)[0]
    expected = cut_tiles(crops, 12, 8, generator)
    orders = made.orders[torch.randint(8, (20,), generator=generator)]
    laid = pixels.unflatten(0, (20, 9))
    assert all(torch.equal(laid[b, place], expected[b, orders[b, place]]) for b in range(20) for place in range(9))
    grey = (laid - laid[:, :, :1]).abs().amax((1, 2, 3, 4)) < 1e-2
    assert 3 < grey.sum() < 17


# ---- colorization -----------------------------------------------------------------------------------------------------


def literal_weights(made):
    counts, share = made.counts.tolist(), made.config.rebalancing
    total = sum(counts)
    p = [c / total if total else 1 / len(counts) for c in counts]
    inverse = [1 / ((1 - share) * x + share / len(p)) for x in p]
    mean = sum(x * w for x, w in zip(p, inverse))
    return [w / mean for w in inverse]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("cells", [1, 2, 4])
def test_the_first_loss_of_colorization_is_a_literal_one(cells, training):
    made, data = learner("colorization", cells=cells, rebalancing=0.3).train(training), photos(2)
    assert made.counts.sum() == 0 and literal_weights(made) == pytest.approx([1.0] * len(BINS))
    pixels, features, found = step_of(made, data.images, data.sizes)
    crops = make_views(data.images, [View(16, (0.5, 1.0), jitter_probability=0.0, grey=0.0)], sizes=data.sizes, generator=seeded())[0]
    lab = rgb_to_lab(denormalise(crops))
    for channel in denormalise(pixels).unbind(1):
        torch.testing.assert_close(channel, lab[:, 0] / 100)
    logs = made.head(features.patches + features.cls[:, None]).unflatten(2, (cells, cells, len(BINS))).log_softmax(-1)
    side, count = 8 // cells, 2 * cells  # pixels of a cell, cells a side of the image
    answers = {}
    for b, y, x in itertools.product(range(2), range(count), range(count)):
        ab = lab[b, 1:, y * side : (y + 1) * side, x * side : (x + 1) * side].mean((1, 2)).tolist()
        patch = 2 * (y // cells) + x // cells
        answers[b, y, x] = *literal_code(*ab), logs[b, patch, y % cells, x % cells]
    if training:
        for q in range(len(BINS)):
            assert made.counts[q].item() == pytest.approx(sum(shares.get(q, 0) for _, shares, _ in answers.values()), abs=1e-3)
    else:
        assert made.counts.sum() == 0
    weights = literal_weights(made)
    losses = [-weights[best] * sum(s * log[q].item() for q, s in shares.items()) for best, shares, log in answers.values()]
    assert found["loss"].item() == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    total = sum(weights[best] for best, _, _ in answers.values())
    right = sum(weights[best] * (log.argmax().item() == best) for best, _, log in answers.values())
    guess = max(sum(weights[best] for best, _, _ in answers.values() if best == q) for q in range(len(BINS)))
    assert found["right"].item() == pytest.approx(right / total, abs=1e-5)
    assert found["chance"].item() == pytest.approx(guess / total, rel=1e-4)


@pytest.mark.parametrize("row, column", itertools.product(range(2), range(2)))
def test_cells_of_a_patch_lie_at_their_pixels(row, column):
    """A head that sees nothing and calls one cell of each patch red, the others blue."""
    made = learner("colorization").eval()
    made.view = whole_view(16)
    red, blue = quantise(rgb_to_lab(torch.eye(3)[[0, 2]].view(2, 3, 1, 1))[:, 1:, 0, 0])[0].tolist()
    with torch.no_grad():
        made.head.weight.zero_()
        bias = made.head.bias.zero_().view(2, 2, len(BINS))
        bias[..., blue] = 1
        bias[row, column, red] = 2
    image = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    image[:, 2] = 255
    for r, c in itertools.product(range(2), range(2)):
        y, x = 8 * r + 4 * row, 8 * c + 4 * column
        image[:, :, y : y + 4, x : x + 4] = torch.tensor([255, 0, 0], dtype=torch.uint8).view(3, 1, 1)
    found = step_of(made, image)[2]
    assert found["right"] == 1 and found["chance"] == 0.75
    assert step_of(made, image.roll(4, 3))[2]["right"] == step_of(made, image.roll(4, 2))[2]["right"] == 0.5


def test_colours_are_counted_in_training_alone():
    made, data = learner("colorization"), photos()
    for steps in (1, 2):
        step_of(made, data.images, data.sizes)
        assert made.counts.sum().item() == pytest.approx(steps * 8 * 16, rel=1e-4)
    before = made.counts.clone()
    step_of(made.eval(), data.images, data.sizes)
    assert torch.equal(made.counts, before) and not made.counts.requires_grad and "counts" in made.state_dict()


@pytest.mark.parametrize("rebalancing", [0.1, 0.5, 1.0])
def test_rare_colours_weigh_more_and_all_together_one(rebalancing):
    made = learner("colorization", rebalancing=rebalancing)
    assert torch.allclose(made.weights(), torch.ones(len(BINS)))
    made.counts = torch.rand(len(BINS), generator=seeded()) ** 8 * 1e6
    made.counts[7] = 0
    weights, share = made.weights(), made.counts / made.counts.sum()
    assert (share * weights).sum().item() == pytest.approx(1) and weights.tolist() == pytest.approx(literal_weights(made), rel=1e-4)
    if rebalancing == 1:
        assert torch.allclose(weights, torch.ones(len(BINS)))
    else:
        assert weights[7] == weights.max() and (weights[share.argsort()].diff() <= 1e-6).all()


def test_images_of_one_colour_have_a_finite_loss():
    made = learner("colorization")
    for level in (0, 255, 128):
        found = step_of(made, torch.full((2, 3, 32, 32), level, dtype=torch.uint8))[2]
        assert found["loss"].isfinite() and found["loss"] > 0 and found["chance"].item() == pytest.approx(1)


# ---- any network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [dict(arch="resnet_mini"), dict(pooling="simpool"), dict(pooling="slot")], ids=str)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", METHODS)
def test_gradients_reach_every_weight(method, precision, network):
    made, data = learner(method, **network), photos()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        found = made(data.images, data.sizes, data.labels, 0, seeded())
    found["loss"].backward()
    assert found["loss"].isfinite() and all(0 <= found[name] <= 1 and not found[name].requires_grad for name in ("right", "chance"))
    for name, p in made.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
    assert made.pretext and made.encoder is made.student


# ---- accuracy on the task ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_accuracy_on_the_task_leaves_no_traces(method):
    made, data = learner(method, arch="resnet_mini", drop_path=0.5), photos(11)
    state, randomness = {name: value.clone() for name, value in made.state_dict().items()}, torch.get_rng_state()
    first = pretext_accuracy(made, data, batch_size=4)
    assert not made.training and set(first) == {"task", "task_guess"} and all(0 <= value <= 100 for value in first.values())
    assert first == pretext_accuracy(made.train(), data, batch_size=4)
    assert torch.equal(torch.get_rng_state(), randomness)
    assert all(torch.equal(value, state[name]) for name, value in made.state_dict().items())
    assert all(p.grad is None for p in made.parameters())
    generator, batches = seeded(0), []
    with torch.no_grad():
        for start in (0, 4):  # the last three images are left out
            part = slice(start, start + 4)
            batches.append(made(data.images[part], data.sizes[part], data.labels[part], 0, generator))
    for name, key in (("task", "right"), ("task_guess", "chance")):
        assert first[name] == pytest.approx(100 * sum(found[key].item() for found in batches) / 2)


def test_questions_follow_from_the_seed():
    made, data = learner("jigsaw"), photos(16)
    found = {pretext_accuracy(made, data, batch_size=16, seed=seed)["task"] for seed in range(12)}
    assert len(found) > 1


@pytest.mark.parametrize("batch_size", [9, 100])
def test_accuracy_on_the_task_needs_a_whole_batch(batch_size):
    with pytest.raises(ValueError, match=f"^batch_size: got {batch_size}, accepts at most 8"):
        pretext_accuracy(learner("rotation"), photos(8), batch_size=batch_size)


# ---- configurations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method, overrides, message",
    [
        ("jigsaw", dict(tile_size=24), "tile_size: got 24, accepts whole patches of 8 pixels, at most cell_size"),
        ("jigsaw", dict(tile_size=12), "tile_size: got 12"),
        ("jigsaw", dict(tile_size=0), "tile_size: got 0"),
        ("jigsaw", dict(tile_size=-8), "tile_size: got -8"),
        ("colorization", dict(cells=3), r"cells: got 3, accepts divisors of patch_size \(8\)"),
        ("colorization", dict(cells=0), "cells: got 0"),
        ("colorization", dict(cells=-2), "cells: got -2"),
        ("colorization", dict(cells=16), "cells: got 16"),
        ("colorization", dict(rebalancing=0), "rebalancing: got 0"),
        ("colorization", dict(rebalancing=1.01), "rebalancing: got 1.01"),
        ("colorization", dict(rebalancing=float("nan")), "rebalancing: got nan"),
        ("contrastive", dict(temperature=0.0), r"temperature: got 0.0, accepts a number in \(0, inf\)"),
        ("contrastive", dict(temperature=-1), "temperature: got -1"),
        ("contrastive", dict(temperature=float("nan")), "temperature: got nan"),
        ("rotation", dict(crop_scale=0.5), "crop_scale: got 0.5, accepts a list"),
        ("rotation", dict(tile_size=8), "tile_size: unknown key"),
        ("contrastive", dict(knn_k=[]), "knn_k: got"),
    ],
)
def test_a_wrong_recipe_is_refused(method, overrides, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        settings(method, **overrides)


# ---- runs -------------------------------------------------------------------------------------------------------------


def tiny(method, **more):
    return run(f"smoke/{method}", device="cpu", progress=False, **TINY | OWN[method] | dict(drop_path=0.2) | more)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_stops_ends_as_if_it_had_not(method, tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_RUNS", str(tmp_path / "whole"))
    whole = tiny(method)
    assert whole.finished
    whole_folder, metrics, weights, log = whole.folder, whole.metrics, whole.encoder_weights(), read_log(whole.folder)
    state = load_checkpoint(whole.folder)["learner"]
    assert {"knn", "untrained_knn", "task", "task_guess", "untrained_task", "untrained_task_guess"} <= set(metrics)
    assert all(0 <= value <= 100 for name, value in metrics.items() if "task" in name)
    assert metrics["task_guess"] == {"rotation": 25.0, "jigsaw": 12.5, "contrastive": 6.667}.get(method, metrics["task_guess"])
    assert all({"loss", "right", "chance"} <= set(line) for line in log if "loss" in line) and len(log) == 6
    encoder = load_encoder(whole)
    assert not encoder.training and encoder.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, state[f"student.{name}"]) for name, value in encoder.state_dict().items())

    monkeypatch.setenv("COMPANION_RUNS", str(tmp_path / "stopped"))
    assert not tiny(method, budget=0.0).finished
    stopped = tiny(method)
    assert stopped.finished and stopped.folder != whole_folder and stopped.metrics == metrics
    assert all(torch.equal(value, weights[name]) for name, value in stopped.encoder_weights().items())
    found = load_checkpoint(find_run(stopped.entry, **stopped.config).folder)["learner"]
    assert found.keys() == state.keys() and all(torch.equal(found[name], value) for name, value in state.items())


LEARNABLE = {
    "rotation": dict(crop_scale=[0.9, 1.0]),
    "jigsaw": dict(crop_scale=[0.9, 1.0], grey=0.0, tile_size=8, cell_size=8, permutations=2),
    "colorization": dict(crop_scale=[0.9, 1.0]),
    "contrastive": dict(crop_scale=[0.9, 1.0], jitter=0.2),
}


@pytest.mark.parametrize("method", METHODS)
def test_the_questions_about_a_few_images_can_be_learned(method):
    made, data = learner(method, **LEARNABLE[method]), bank("scenes", "train", 32, fraction=0.004, progress=False)
    optimizer, generator, lines = torch.optim.AdamW(made.parameters(), lr=7e-4), seeded(), []
    for step in range(60):
        found = made(data.images, data.sizes, data.labels, step, generator)
        optimizer.zero_grad()
        found["loss"].backward()
        optimizer.step()
        lines.append([found[name].item() for name in ("loss", "right", "chance")])
    (before, *_), (after, right, chance) = np.mean(lines[:5], 0), np.mean(lines[-10:], 0)
    assert len(data) == 8 and after < 0.9 * before and right > chance + 0.25
