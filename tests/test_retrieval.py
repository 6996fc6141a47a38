import itertools
import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from twins import twin_figures

from lib.data import load
from lib.data.layouts import IMAGE
from lib.data.pickled import read_plain
from lib.data.reading import Damage, read_image
from lib.data.retrieval import RetrievalSet, load_retrieval
from lib.data.scenes import render
from lib.data.views import normalise
from lib.evaluation.retrieval import (
    image_descriptors,
    rank,
    retrieval_accuracy,
    retrieve,
    revisited_figures,
    revisited_map,
    revisited_precision,
)
from lib.models import create_model

OK = {"easy": ["easy"], "medium": ["easy", "hard"], "hard": ["hard"]}
IGNORED = {"easy": ["junk", "hard"], "medium": ["junk"], "hard": ["junk", "easy"]}


def literal_places(ranking, truth, protocol):
    """Where the positives are, from 0, once ignored images are taken out of the ranking."""
    ok = {image for kind in OK[protocol] for image in truth[kind]}
    ignored = {image for kind in IGNORED[protocol] for image in truth[kind]}
    places, before = [], 0
    for place, image in enumerate(ranking):
        if image in ignored:
            before += 1
        elif image in ok:
            places.append(place - before)
    return places


def literal_figures(rankings, truths, protocol):
    """(mAP, {k: mP@k}) in percent of lists of images, or None where no query has positives."""
    averages, precisions = [], []
    for ranking, truth in zip(rankings, truths):
        places = literal_places(ranking, truth, protocol)
        if not places:
            continue
        area = 0.0
        for j, place in enumerate(places):
            before = 1.0 if place == 0 else j / place
            area += (before + (j + 1) / (place + 1)) / 2 / len(places)
        averages.append(area)
        cuts = {k: min(k, places[-1] + 1) for k in (1, 5, 10)}
        precisions.append({k: sum(place + 1 <= cut for place in places) / cut for k, cut in cuts.items()})
    if not averages:
        return None
    return 100 * sum(averages) / len(averages), {k: 100 * sum(p[k] for p in precisions) / len(precisions) for k in (1, 5, 10)}


def as_ranks(*rankings):
    return torch.tensor(rankings).T


def truth(easy=(), hard=(), junk=()):
    return dict(easy=list(easy), hard=list(hard), junk=list(junk))


# ---- mean average precision and precision -----------------------------------------------------------------------------


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_figures_equal_the_literal_walk(data):
    images = list(range(data.draw(st.integers(1, 16))))
    queries = data.draw(st.integers(1, 4))
    rankings = [data.draw(st.permutations(images)) for _ in range(queries)]
    truths = []
    for _ in range(queries):
        kinds = data.draw(st.lists(st.sampled_from(["easy", "hard", "junk", "other"]), min_size=len(images), max_size=len(images)))
        truths.append({kind: [i for i in images if kinds[i] == kind] for kind in ("easy", "hard", "junk")})
    protocol = data.draw(st.sampled_from(list(OK)))
    expected = literal_figures(rankings, truths, protocol)
    for measure, figure in zip((revisited_map, revisited_precision), expected or (None, None)):
        if figure is None:
            with pytest.raises(ValueError, match=f"^ground_truth: .*positives.*{protocol}.*accepts"):
                measure(as_ranks(*rankings), truths, protocol=protocol)
        else:
            assert measure(as_ranks(*rankings), truths, protocol=protocol) == pytest.approx(figure, abs=1e-9)


@pytest.mark.parametrize("protocol", list(OK))
def test_figures_of_a_large_problem(protocol):
    r = np.random.default_rng(0)
    rankings = [r.permutation(1000).tolist() for _ in range(20)]
    truths = []
    for count in range(20):
        drawn = r.permutation(1000)
        truths.append(truth(drawn[: 3 * count], drawn[100 : 100 + 2 * count], drawn[500 : 500 + 15 * count]))
    expected = literal_figures(rankings, truths, protocol)
    assert revisited_map(as_ranks(*rankings), truths, protocol=protocol) == pytest.approx(expected[0], abs=1e-9)
    assert revisited_precision(as_ranks(*rankings), truths, protocol=protocol) == pytest.approx(expected[1], abs=1e-9)


@pytest.mark.parametrize(
    "protocol, average, precision",
    [
        ("easy", 19 / 24, {1: 1, 5: 2 / 3, 10: 2 / 3}),
        ("medium", 65 / 72, {1: 1, 5: 3 / 4, 10: 3 / 4}),
        ("hard", 1, {1: 1, 5: 1, 10: 1}),
    ],
)
def test_five_images_by_hand(protocol, average, precision):
    ranks, truths = as_ranks([0, 1, 2, 3, 4]), [truth(easy=[2, 4], hard=[1], junk=[0])]
    assert revisited_map(ranks, truths, protocol=protocol) == pytest.approx(100 * average)
    assert revisited_precision(ranks, truths, protocol=protocol) == pytest.approx({k: 100 * p for k, p in precision.items()})


def test_the_protocol_is_easy_unless_told():
    ranks, truths = as_ranks([3, 1, 0, 2]), [truth(easy=[0], hard=[2, 1])]
    assert revisited_map(ranks, truths) == revisited_map(ranks, truths, protocol="easy") == pytest.approx(25)
    assert revisited_map(ranks, truths, protocol="medium") != pytest.approx(25)
    assert revisited_precision(ranks, truths) == {1: 0, 5: 50, 10: 50}


@pytest.mark.parametrize("positives", [1, 4, 12, 30])
def test_a_perfect_ranking_reaches_100(positives):
    ranks, truths = as_ranks(list(range(30))), [truth(easy=range(positives))]
    assert revisited_map(ranks, truths) == pytest.approx(100)
    assert revisited_precision(ranks, truths) == pytest.approx({1: 100, 5: 100, 10: 100})


@pytest.mark.parametrize("positives", [1, 4, 12, 29])
def test_the_worst_ranking(positives):
    first = 30 - positives
    ranks, truths = as_ranks(list(range(30))), [truth(hard=range(first, 30))]
    area = sum(j / (first + j) + (j + 1) / (first + j + 1) for j in range(positives)) / (2 * positives)
    assert revisited_map(ranks, truths, protocol="hard") == pytest.approx(100 * area)
    found = revisited_precision(ranks, truths, protocol="hard")
    assert found == pytest.approx({k: 100 * max(0, k - first) / k for k in (1, 5, 10)})


@pytest.mark.parametrize("place", [1, 2, 9, 29])
def test_a_single_positive_behind_others(place):
    found = revisited_map(as_ranks(list(range(30))), [truth(easy=[place])])
    assert found == pytest.approx(50 / (place + 1))


def test_precision_is_cut_at_the_last_positive_and_not_elsewhere():
    ranks = as_ranks(list(range(20)))
    assert revisited_precision(ranks, [truth(easy=[0, 12])]) == pytest.approx({1: 100, 5: 20, 10: 10})
    assert revisited_precision(ranks, [truth(easy=[1, 6])]) == pytest.approx({1: 0, 5: 20, 10: 200 / 7})
    assert revisited_precision(ranks, [truth(easy=[2])]) == pytest.approx({1: 0, 5: 100 / 3, 10: 100 / 3})


def test_queries_without_positives_are_left_out():
    rankings, truths = [[2, 0, 1], [0, 1, 2]], [truth(easy=[0]), truth(easy=[1, 2])]
    alone = [measure(as_ranks(*rankings), truths) for measure in (revisited_map, revisited_precision)]
    rankings, truths = [[1, 0, 2], *rankings, [2, 1, 0]], [truth(hard=[0]), *truths, truth(junk=[0, 1])]
    together = [measure(as_ranks(*rankings), truths) for measure in (revisited_map, revisited_precision)]
    assert alone == together
    assert 0 < alone[0] < 100


@pytest.mark.parametrize("protocol", list(OK))
@pytest.mark.parametrize("measure", [revisited_map, revisited_precision])
def test_queries_of_which_none_has_positives(measure, protocol):
    truths = [truth(junk=[0]), truth(**{kind: [1] for kind in ("easy", "hard") if kind not in OK[protocol]})]
    with pytest.raises(ValueError, match=f"^ground_truth: got no query with positives, .*{protocol}.* accepts"):
        measure(as_ranks([0, 1], [0, 1]), truths, protocol=protocol)
    with pytest.raises(ValueError, match="^ground_truth: "):
        measure(torch.empty(2, 0, dtype=torch.int64), [], protocol=protocol)


@pytest.mark.parametrize("protocol", list(OK))
def test_it_does_not_matter_where_junk_lies(protocol):
    truths = [truth(easy=[3, 5], hard=[4, 6], junk=[7, 8, 9])]
    rest = [0, 3, 6, 1, 4, 2, 5]
    places = [[7, 8, 9, *rest], [*rest, 9, 8, 7], [7, *rest[:3], 8, *rest[3:], 9]]
    maps = [revisited_map(as_ranks(ranking), truths, protocol=protocol) for ranking in places]
    precisions = [revisited_precision(as_ranks(ranking), truths, protocol=protocol) for ranking in places]
    assert maps[0] == maps[1] == maps[2] < 100
    assert precisions[0] == precisions[1] == precisions[2]


def test_a_database_of_one_image():
    assert revisited_map(as_ranks([0]), [truth(easy=[0])]) == 100
    assert revisited_precision(as_ranks([0]), [truth(easy=[0])]) == {1: 100, 5: 100, 10: 100}
    with pytest.raises(ValueError, match="^ground_truth: "):
        revisited_map(as_ranks([0]), [truth(junk=[0])])


@pytest.mark.parametrize(
    "kind", [list, tuple, torch.tensor, np.array, lambda v: np.array(v, np.int32), lambda v: torch.tensor(v, dtype=torch.int32)]
)
def test_ground_truth_may_be_lists_tensors_or_arrays(kind):
    ranks = as_ranks([4, 2, 0, 3, 1], [0, 1, 2, 3, 4])
    plain = [truth(easy=[0, 3], hard=[1]), truth(easy=[4], junk=[2, 0])]
    other = [{name: kind(images) for name, images in single.items()} | {"bbx": [0.5, 1, 2, 3]} for single in plain]
    for protocol in ("easy", "medium"):
        assert revisited_map(ranks, other, protocol=protocol) == revisited_map(ranks, plain, protocol=protocol)
        assert revisited_precision(ranks, other, protocol=protocol) == revisited_precision(ranks, plain, protocol=protocol)


def test_ranks_may_be_short_integers_and_lie_anyhow_in_memory():
    ranks = as_ranks([4, 2, 0, 3, 1], [0, 1, 2, 3, 4])
    truths = [truth(easy=[0, 3], hard=[1]), truth(easy=[4], junk=[2, 0])]
    assert not ranks.is_contiguous()
    for other in (ranks.contiguous(), ranks.int(), ranks.to(torch.int16)):
        assert revisited_map(other, truths) == revisited_map(ranks, truths)


# ---- bad input --------------------------------------------------------------------------------------------------------

RANKS = as_ranks([0, 1, 2], [2, 1, 0])
TRUTHS = [truth(easy=[0]), truth(easy=[1], junk=[2])]


@pytest.mark.parametrize("measure", [revisited_map, revisited_precision])
@pytest.mark.parametrize(
    "name, arguments",
    [
        ("protocol", dict(protocol="difficult")),
        ("protocol", dict(protocol="Easy")),
        ("ranks", dict(ranks=RANKS[:, 0])),
        ("ranks", dict(ranks=RANKS[None])),
        ("ranks", dict(ranks=RANKS.float())),
        ("ranks", dict(ranks=RANKS > 0)),
        ("ranks", dict(ranks=as_ranks([0, 1, 3], [2, 1, 0]))),
        ("ranks", dict(ranks=as_ranks([0, 1, 2], [2, 1, -1]))),
        ("ranks", dict(ranks=as_ranks([0, 0, 2], [2, 1, 0]))),
        ("ground_truth", dict(ground_truth=TRUTHS[:1])),
        ("ground_truth", dict(ground_truth=[*TRUTHS, TRUTHS[0]])),
    ],
)
def test_bad_arguments_are_named(measure, name, arguments):
    arguments = dict(ranks=RANKS, ground_truth=TRUTHS) | arguments
    with pytest.raises(ValueError, match=f"^{name}: got .* accepts"):
        measure(arguments.pop("ranks"), arguments.pop("ground_truth"), **arguments)


@pytest.mark.parametrize("kind", ["easy", "hard", "junk"])
@pytest.mark.parametrize("image", [3, -1, 1000])
def test_an_image_that_is_not_in_the_database_is_named(image, kind):
    truths = [truth(easy=[0], hard=[0]), TRUTHS[1] | {kind: [1, image, 0]}]
    for protocol in OK:
        with pytest.raises(ValueError, match=rf"^ground_truth: .*query 1\b.* {image}\b.* {kind}\b.*accepts 0 to 2"):
            revisited_map(RANKS, truths, protocol=protocol)


@pytest.mark.parametrize("images", [[True, False, True], np.array([False, True, False]), [0.5, 1.7], torch.tensor([1.5])])
def test_images_that_are_not_whole_numbers_are_refused(images):
    with pytest.raises(ValueError, match="^ground_truth: .*query 1.*accepts"):
        revisited_map(RANKS, [TRUTHS[0], TRUTHS[1] | dict(easy=images)])


@pytest.mark.parametrize("kind", ["easy", "hard", "junk"])
def test_a_missing_kind_of_images_is_named(kind):
    lacking = {name: images for name, images in TRUTHS[1].items() if name != kind}
    with pytest.raises(ValueError, match="^ground_truth: .*query 1 .*accepts easy, hard, junk"):
        revisited_map(RANKS, [TRUTHS[0], lacking])


# ---- ranking ----------------------------------------------------------------------------------------------------------


def test_ranks_fall_with_the_cosine():
    g = torch.Generator().manual_seed(0)
    queries = torch.randn(5, 8, generator=g, dtype=torch.float64)
    database = torch.randn(60, 8, generator=g, dtype=torch.float64) * 10 ** torch.linspace(-3, 3, 60, dtype=torch.float64)[:, None]
    found = rank(queries, database)
    assert found.shape == (60, 5) and found.dtype == torch.int64
    for number, query in enumerate(queries):
        cosines = [F.cosine_similarity(query, image, dim=0).item() for image in database]
        assert found[:, number].tolist() == sorted(range(60), key=lambda i, c=cosines: -c[i])


def test_equal_images_are_ranked_by_their_number():
    """Signs in four dimensions, scaled by powers of two: every cosine is exact, and one of five."""
    g = torch.Generator().manual_seed(1)
    signs = 2 * torch.randint(2, (305, 4), generator=g) - 1
    queries, database = signs[:5].float(), signs[5:].float() * 2.0 ** torch.randint(-3, 4, (300, 1), generator=g)
    found = rank(queries, database)
    for number, query in enumerate(signs[:5].tolist()):
        products = [sum(a * b for a, b in zip(query, image)) for image in signs[5:].tolist()]
        assert found[:, number].tolist() == sorted(range(300), key=lambda i, p=products: (-p[i], i))


def test_ranking_a_database_by_itself_finds_each_image_first():
    x = torch.randn(40, 16, generator=torch.Generator().manual_seed(2))
    found = rank(x, x)
    assert found[0].tolist() == list(range(40))
    assert revisited_map(found, [truth(easy=[i]) for i in range(40)]) == 100


# ---- descriptors ------------------------------------------------------------------------------------------------------

SHAPES = [(32, 48), (32, 48), (40, 40), (50, 24), (32, 48), (64, 64)]  # (height, width)


def some_images(folder, shapes=SHAPES):
    """Files of noise, and their table."""
    r = np.random.default_rng(0)
    files = [folder / f"{number}.png" for number in range(len(shapes))]
    for file, shape in zip(files, shapes):
        Image.fromarray(r.integers(256, size=(*shape, 3), dtype=np.uint8)).save(file)
    return pa.table({"image": pa.array([{"bytes": None, "path": str(file)} for file in files], IMAGE)})


def with_boxes(table, boxes):
    return table.append_column("box", pa.array(boxes, pa.list_(pa.float32())))


class Means(nn.Module):
    """Sees the mean of each channel and the size of the image, and remembers the sizes."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))
        self.seen = []

    def features(self, images):
        self.seen.append(tuple(images.shape))
        vector = torch.cat([images.mean((2, 3)), images.new_full((len(images), 1), images.shape[-1] / 10)], 1)
        return type("Found", (), dict(cls=self.factor * vector * images.shape[-1] ** 2))


def small_vit():
    torch.manual_seed(0)
    return create_model("vit_nano", img_size=32, patch_size=8)


def literal_descriptors(network, pictures, longest, patch_size, scales):
    """One PIL image after the other, one size after the other."""
    rows = []
    for picture in pictures:
        views = []
        for scale in sorted(scales, reverse=True):
            sides = [round(longest * scale) / max(picture.size) * side for side in picture.size]
            width, height = (max(patch_size, int(side + 1e-6) // patch_size * patch_size) for side in sides)
            if not views:
                resized = picture.resize((width, height), Image.Resampling.BICUBIC)
                views.append(normalise(torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None].float() / 255))
            else:
                views.append(F.interpolate(views[0], size=(height, width), mode="bilinear", align_corners=False))
        vectors = [network.features(view).cls[0].detach() for view in views]
        total = sum(vector / vector.norm() for vector in vectors)
        rows.append(total / total.norm())
    return torch.stack(rows)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
@pytest.mark.parametrize("scales", [(1.0, 2**-0.5, 0.5), (1.0,), (0.5, 1.5)])
def test_descriptors_equal_a_loop_over_images_and_sizes(tmp_path, scales, batch_size):
    network, table = small_vit().train(), some_images(tmp_path)
    found, rows = image_descriptors(network, table, longest=48, patch_size=8, scales=scales, batch_size=batch_size)
    assert not network.training and rows == list(range(len(SHAPES)))
    assert found.shape == (6, 128) and found.dtype == torch.float32 and not found.requires_grad
    pictures = [read_image(row) for row in table["image"].to_pylist()]
    torch.testing.assert_close(found.clone(), literal_descriptors(network, pictures, 48, 8, scales), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(6))


def test_every_size_counts_the_same(tmp_path):
    """However long the vectors are."""
    network, table = Means(), some_images(tmp_path)
    found, _ = image_descriptors(network, table, longest=64, patch_size=8, scales=(1.0, 0.25))
    pictures = [read_image(row) for row in table["image"].to_pylist()]
    torch.testing.assert_close(found.clone(), literal_descriptors(network, pictures, 64, 8, (1.0, 0.25)), atol=1e-5, rtol=1e-4)


def test_images_of_one_size_are_seen_together_at_their_own_aspect_ratio(tmp_path):
    network = Means()
    image_descriptors(network, some_images(tmp_path), longest=48, patch_size=8, scales=(1.0, 0.5), batch_size=16)
    assert network.seen[:2] == [(2, 3, 32, 48), (2, 3, 16, 24)]
    assert [shape[0] for shape in network.seen[::2]] == [2, 1, 1, 1, 1]
    assert network.seen[4][2:] == (48, 16)  # 23 pixels wide are two patches


@pytest.mark.parametrize(
    "box, seen", [([10.4, 4.6, 30.2, 20.4], (10, 5, 30, 20)), ([0, 0, 48, 32], (0, 0, 48, 32)), ([-5, 8, 20, 99], (0, 8, 20, 32))]
)
def test_of_an_image_with_a_box_the_part_in_it_is_seen(tmp_path, box, seen):
    network, table = small_vit(), some_images(tmp_path, SHAPES[:1])
    found, _ = image_descriptors(network, with_boxes(table, [box]), longest=32, patch_size=8)
    part = read_image(table["image"][0].as_py()).crop(seen)
    expected = literal_descriptors(network, [part], 32, 8, (1.0, 2**-0.5, 0.5))
    torch.testing.assert_close(found.clone(), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("box", [[5, 5, 5, 9], [9, 5, 3, 9], [48, 0, 60, 9]])
def test_a_box_without_pixels_is_named_and_left_out(tmp_path, box):
    table = with_boxes(some_images(tmp_path, SHAPES[:2]), [box, None])
    with pytest.warns(Damage, match=r"0\.png \(row 0\): the box .* holds none of its 48 x 32 pixels; left out"):
        assert image_descriptors(small_vit(), table, longest=32, patch_size=8)[1] == [1]


def test_damaged_images_are_named_and_left_out(tmp_path):
    table = some_images(tmp_path)
    expected, _ = image_descriptors(small_vit(), table, longest=32, patch_size=8)
    (tmp_path / "1.png").write_bytes(b"nothing")
    (tmp_path / "4.png").unlink()
    with pytest.warns(Damage) as warned:
        found, rows = image_descriptors(small_vit(), table, longest=32, patch_size=8)
    assert rows == [0, 2, 3, 5] and {name for name in ("1.png", "4.png") for w in warned if name in str(w.message)} == {"1.png", "4.png"}
    torch.testing.assert_close(found, expected[rows], atol=1e-6, rtol=1e-5)


def test_bad_scales_and_a_table_without_images_are_refused(tmp_path):
    table = some_images(tmp_path, SHAPES[:1])
    for scales in ((), (1.0, 0.0), (-1.0,)):
        with pytest.raises(ValueError, match="^scales: got .* accepts"):
            image_descriptors(small_vit(), table, longest=32, patch_size=8, scales=scales)
    with pytest.raises(ValueError, match="^table: got 0 images"):
        image_descriptors(small_vit(), table.slice(0, 0), longest=32, patch_size=8)


# ---- the figures of a network -----------------------------------------------------------------------------------------


def small_retrieval(folder):
    """Six images, three of which are asked for again: from a part of them."""
    table = some_images(folder)
    queries = with_boxes(table.take([0, 2, 5]), [[0, 0, 40, 32], [0, 0, 40, 40], [3, 3, 60, 64]])
    return RetrievalSet(table, queries, [truth(easy=[0], hard=[4], junk=[1]), truth(easy=[2, 3]), truth(easy=[1], junk=[5])])


def test_figures_of_a_network_are_those_of_its_ranking(tmp_path):
    network, retrieval = small_vit(), small_retrieval(tmp_path)
    found = retrieval_accuracy(network, retrieval, longest=32, patch_size=8)
    vectors = [image_descriptors(network, table, longest=32, patch_size=8)[0] for table in (retrieval.queries, retrieval.database)]
    ranks = rank(*vectors)
    expected = {"images": 6.0, "queries": 3.0, "left_out": 0.0}
    for protocol in OK:
        mean, precision = literal_figures(ranks.T.tolist(), retrieval.ground_truth, protocol)
        expected |= {f"{protocol}_map": mean} | {f"{protocol}_p{k}": value for k, value in precision.items()}
    assert found == pytest.approx(expected, abs=1e-3)
    answer = retrieve(network, retrieval, longest=32, patch_size=8)
    assert torch.equal(answer.ranks, ranks) and answer.ground_truth == retrieval.ground_truth
    assert answer.database.tolist() == list(range(6)) and answer.queries.tolist() == [0, 1, 2]


def test_protocols_without_positives_are_left_out():
    ranks = as_ranks([0, 1, 2], [2, 1, 0])
    assert {name.partition("_")[0] for name in revisited_figures(ranks, [truth(easy=[0]), truth(junk=[1])])} == {"easy", "medium"}
    assert {name.partition("_")[0] for name in revisited_figures(ranks, [truth(hard=[0]), truth()])} == {"medium", "hard"}
    with pytest.raises(ValueError, match="^ground_truth: got 2 queries without positives, accepts"):
        revisited_figures(ranks, [truth(junk=[0]), truth()])


def test_what_cannot_be_read_is_left_out_of_ranking_and_truth(tmp_path):
    """As if it had never been there."""
    network, retrieval = small_vit(), small_retrieval(tmp_path)
    (tmp_path / "3.png").write_bytes(b"")
    (tmp_path / "5.png").write_bytes(b"")
    with pytest.warns(Damage):
        answer = retrieve(network, retrieval, longest=32, patch_size=8)
        found = retrieval_accuracy(network, retrieval, longest=32, patch_size=8)
    assert answer.database.tolist() == [0, 1, 2, 4] and answer.queries.tolist() == [0, 1] and answer.ranks.shape == (4, 2)
    assert answer.ground_truth == [truth(easy=[0], hard=[3], junk=[1]), truth(easy=[2])]
    kept = RetrievalSet(retrieval.database.take([0, 1, 2, 4]), retrieval.queries.slice(0, 2), answer.ground_truth)
    expected = retrieval_accuracy(network, kept, longest=32, patch_size=8)
    assert found == expected | {"left_out": 3.0} and expected["images"] == 4 and expected["left_out"] == 0


def test_a_measurement_has_the_untrained_figures_beside_its_own(tmp_path):
    retrieval, networks = small_retrieval(tmp_path), [small_vit(), Means()]
    own, before = (retrieval_accuracy(network, retrieval, longest=32, patch_size=8) for network in networks)
    counts = ("images", "queries", "left_out")
    expected = own | {f"untrained_{name}": value for name, value in before.items() if name not in counts}
    rounded = {name: round(value, 3) for name, value in expected.items()}
    assert twin_figures("retrieval", *networks, retrieval, longest=32, patch_size=8) == rounded


# ---- the sets ---------------------------------------------------------------------------------------------------------


def gnd(**changed):
    """As the authors' pickles are: three images, two queries."""
    first = dict(bbx=[1.5, 2.0, 20.0, 18.5], easy=np.array([0, 2]), hard=np.array([1]), junk=np.array([]))
    second = dict(bbx=np.array([0, 0, 30, 30.0]), easy=[], hard=[np.int64(2)], junk=[0, 1])
    return dict(imlist=["all_souls_1", "b", "c"], qimlist=["q_1", "q_2"], gnd=[first, second]) | changed


def pickled(folder, described, name="roxford5k", protocol=4):
    (folder / name / "jpg").mkdir(parents=True, exist_ok=True)
    file = folder / name / f"gnd_{name}.pkl"
    file.write_bytes(described if isinstance(described, bytes) else pickle.dumps(described, protocol))
    return file


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", ["roxford5k", "rparis6k"])
def test_a_revisited_set_is_read_from_its_official_layout(tmp_path, name, protocol):
    pickled(tmp_path, gnd(), name, protocol)
    found = load_retrieval(name, root=tmp_path)
    assert found.ground_truth == [truth(easy=[0, 2], hard=[1]), truth(hard=[2], junk=[0, 1])]
    assert found.queries["box"].to_pylist() == [[1.5, 2.0, 20.0, 18.5], [0, 0, 30, 30]]
    assert found.database["filename"].to_pylist() == ["all_souls_1.jpg", "b.jpg", "c.jpg"]
    assert found.queries["image"][1].as_py()["path"] == str(tmp_path / name / "jpg" / "q_2.jpg")
    assert "box" not in found.database.column_names and "easy" not in found.queries.column_names


def test_a_revisited_set_is_measured_and_loaded(tmp_path):
    pickled(tmp_path, gnd())
    some_images(tmp_path, [(32, 48)] * 5)
    for number, stem in enumerate(["all_souls_1", "b", "c", "q_1", "q_2"]):
        Image.open(tmp_path / f"{number}.png").save(tmp_path / "roxford5k" / "jpg" / f"{stem}.jpg")
    found = retrieval_accuracy(small_vit(), load_retrieval("roxford5k", root=tmp_path), longest=32, patch_size=8)
    assert found["images"] == 3 and found["queries"] == 2 and {"easy_map", "medium_map", "hard_map", "hard_p10"} <= set(found)
    dataset = load("roxford5k", "queries", root=tmp_path)
    assert dataset[0]["image"].size == (48, 32) and dataset[1]["hard"] == [2] and dataset[1]["box"] == [0, 0, 30, 30]


class Shout:
    """A pickle of it runs a command where it is loaded as usual."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize(
    "function, arguments, named",
    [
        (os.system, ("touch {}",), r"(posix|nt)\.system"),
        (eval, ("open('{}', 'w')",), "(builtins|__builtin__).eval"),
        (getattr, ("{}", "upper"), "(builtins|__builtin__).getattr"),
        (np.load, ("{}",), "numpy.load"),
        (np.fromfile, ("{}",), "numpy.*fromfile"),
        (Path, ("{}",), "pathlib.*Path"),
    ],
    ids=["system", "eval", "getattr", "np.load", "fromfile", "Path"],
)
def test_a_pickle_that_would_run_something_is_refused(tmp_path, function, arguments, named, protocol):
    trace = tmp_path / "trace"
    shout = Shout(function, *(argument.format(trace) for argument in arguments))
    file = pickled(tmp_path, gnd(more=shout), protocol=protocol)
    with pytest.raises(ValueError, match=f"^{file}: refers to {named}.*, accepts plain data"):
        load_retrieval("roxford5k", root=tmp_path)
    assert not trace.exists()


@pytest.mark.parametrize(
    "content, named",
    [
        (b"cnumpy\ncore.multiarray.os.system\n.", "numpy.core.multiarray.os.system"),
        (b"\x80\x04\x8c\x08builtins\x8c\x10str.__class__.eq\x93.", r"builtins\.str\.__class__"),
        (b"\x80\x04\x8c\x16numpy._core.multiarray\x8c\x05array\x93.", "numpy._core.multiarray.array"),
        (b"cbuiltins\nobject\n.", "builtins.object"),
        (b"cnumpy\nnothing\n.", "numpy.nothing"),
    ],
)
def test_only_what_arrays_need_is_known(tmp_path, content, named):
    file = tmp_path / "any.pkl"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{file}: refers to {named}"):
        read_plain(file)


def test_a_codec_is_not_chosen_by_the_file(tmp_path):
    file = tmp_path / "any.pkl"
    file.write_bytes(b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13tR.")
    with pytest.raises(ValueError, match=f"^{file}: .*encoding: got 'rot13', accepts latin1"):
        read_plain(file)


def test_a_pickle_cannot_change_what_the_next_one_is_given(tmp_path):
    """It may set attributes of functions that it is given."""
    file = tmp_path / "any.pkl"
    state = pickle.dumps((None, {"__defaults__": (1, 2), "__name__": "other"}), 2)[2:-1]
    file.write_bytes(b"\x80\x02cnumpy._core.numeric\n_frombuffer\n" + state + b"b.")
    before = np.empty(1).__reduce_ex__(5)[0].__name__
    read_plain(file)
    assert np.empty(1).__reduce_ex__(5)[0].__name__ == before
    file.write_bytes(pickle.dumps(np.arange(5), 5))
    assert read_plain(file).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("module", [b"numpy.core", b"numpy._core"])
def test_plain_data_and_arrays_are_read_whoever_wrote_them(tmp_path, module, protocol):
    plain = {"a": [1, 2.5, None, True, "ä", b"\xff", (3, {4})], "b": np.arange(6.0).reshape(2, 3), "c": np.float32(1.5)}
    file = tmp_path / "any.pkl"
    content = pickle.dumps(plain, protocol)
    own = b"numpy._core" if b"numpy._core" in content else b"numpy.core"
    if protocol < 4:  # later ones say how long a name is
        content = content.replace(own, module)
    file.write_bytes(content)
    found = read_plain(file)
    assert found["a"] == plain["a"] and np.array_equal(found["b"], plain["b"]) and found["c"] == 1.5 and found["c"].dtype == np.float32


def test_python_2_wrote_pickles_too(tmp_path):
    file = tmp_path / "any.pkl"
    file.write_bytes(b"\x80\x02}q\x00U\x01aq\x01c__builtin__\nset\nq\x02]q\x03K\x01a\x85q\x04Rq\x05s.")
    assert read_plain(file) == {"a": {1}}


def without(key):
    return {name: value for name, value in gnd().items() if name != key}


@pytest.mark.parametrize(
    "described",
    [
        b"",
        b"nothing",
        pickle.dumps(gnd(), 4)[:-40],
        [1, 2],
        None,
        *(without(key) for key in gnd()),
        *(gnd(gnd=[{k: v for k, v in gnd()["gnd"][0].items() if k != key}] * 2) for key in gnd()["gnd"][0]),
        gnd(gnd=gnd()["gnd"][:1]),
        gnd(gnd=[gnd()["gnd"][0], 3]),
        *(gnd(gnd=[gnd()["gnd"][0] | {key: value}] * 2) for key, value in [
            ("easy", [3]), ("hard", [-1]), ("junk", [0.5]), ("easy", ["b"]), ("easy", 7),
            ("bbx", [1, 2, 3]), ("bbx", [0, 0, 9, np.nan]), ("bbx", "box"),
        ]),
        gnd(imlist=["../../b", "b", "c"]),
        gnd(qimlist=["/b", "c"]),
        gnd(imlist=5),
    ],
)  # fmt: skip
def test_damaged_ground_truth_is_named(tmp_path, described):
    file = pickled(tmp_path, described)
    with pytest.raises(ValueError, match=f"^{file}: "):
        load_retrieval("roxford5k", root=tmp_path)


def test_missing_sets_and_other_cards_are_named(tmp_path):
    with pytest.raises(ValueError, match="^name: got 'imagenette', accepts roxford5k, rparis6k, scenes"):
        load_retrieval("imagenette")
    with pytest.raises(ValueError, match="^root: got .*roxford5k"):
        load_retrieval("roxford5k", root=tmp_path)
    (tmp_path / "roxford5k").mkdir()
    with pytest.raises(ValueError, match=f"^{tmp_path / 'roxford5k'}: holds no split"):
        load_retrieval("roxford5k", root=tmp_path)


def test_scenes_are_asked_for_by_a_second_view_of_the_same_thing():
    found = load_retrieval("scenes")
    assert len(found.queries) == 60 and len(found.database) == 160 and "box" not in found.queries.column_names
    assert found.ground_truth == [truth(easy=[i]) for i in range(60)]
    pairs = render(torch.arange(320), seed=4, instances=True)
    for i, (table, at) in itertools.product((0, 17, 59), ((found.queries, 0), (found.database, 1))):
        pixels = np.array(read_image(table["image"][i].as_py()))
        assert np.array_equal(pixels, pairs.images[2 * i + at].permute(1, 2, 0).numpy())
    assert found.queries["label"].to_pylist() == found.database["label"].to_pylist()[:60]
