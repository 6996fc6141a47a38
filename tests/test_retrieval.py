import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lib.data import Bank
from lib.data.scenes import render
from lib.data.views import center_view
from lib.evaluation.features import pooled_features
from lib.evaluation.retrieval import descriptors, rank, revisited_map, revisited_precision
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


class Means(nn.Module):
    """Sees the mean of each channel and the side of the image, and remembers the sides."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))
        self.sides = []

    def features(self, images):
        self.sides.append(tuple(images.shape[-2:]))
        vector = torch.cat([images.mean((2, 3)), images.new_full((len(images), 1), images.shape[-1] / 10)], 1)
        return type("Found", (), dict(cls=self.factor * vector * images.shape[-1] ** 2))


def small_bank(count=5, size=32):
    scenes = render(torch.arange(count), size=size)
    sizes = torch.tensor([[size, size], [40, 64], [90, 45], [32, 33], [20, 80]], dtype=torch.int32)[:count]
    return Bank(scenes.images, sizes, scenes.labels, "")


def small_vit():
    torch.manual_seed(0)
    return create_model("vit_nano", img_size=32, patch_size=8)


def literal_descriptors(network, bank, sides):
    rows = []
    for i in range(len(bank)):
        total = 0
        for side in sides:
            view = center_view(bank.images[i : i + 1], side, crop=1.0, sizes=bank.sizes[i : i + 1])
            vector = network.features(view).cls[0].detach()
            total = total + vector / vector.norm()
        rows.append(total / total.norm())
    return torch.stack(rows)


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_descriptors_equal_a_loop_over_images_and_sizes(batch_size):
    network, bank = small_vit().train(), small_bank()
    found = descriptors(network, bank, size=48, multiple=8, batch_size=batch_size)
    assert not network.training
    assert found.shape == (5, 128) and found.dtype == torch.float32 and not found.requires_grad
    torch.testing.assert_close(found.clone(), literal_descriptors(network, bank, [48, 32, 24]), atol=1e-5, rtol=1e-4)


def test_every_size_counts_the_same():
    network, bank = Means(), small_bank()
    found = descriptors(network, bank, size=64, scales=(1.0, 0.25))
    assert network.sides == [(64, 64), (16, 16)]
    torch.testing.assert_close(found.clone(), literal_descriptors(network, bank, [64, 16]), atol=1e-5, rtol=1e-4)


def test_descriptors_have_unit_norm():
    found = descriptors(small_vit(), small_bank(), size=32, multiple=8, scales=(1.0, 0.5, 2.0))
    torch.testing.assert_close(found.norm(dim=1), torch.ones(5))


def test_descriptors_of_one_size_are_normalised_features():
    network, bank = small_vit(), small_bank()
    found = descriptors(network, bank, size=32, multiple=8, scales=(1.0,))
    features = pooled_features(network, bank, size=32, crop=1.0)[0]
    torch.testing.assert_close(found, F.normalize(features, dim=1))


@pytest.mark.parametrize(
    "size, options, sides",
    [
        (512, {}, [512, 368, 256]),
        (64, {}, [64, 48, 32]),
        (64, dict(multiple=1), [64, 45, 32]),
        (60, dict(multiple=16, scales=(1.0,)), [64]),
        (16, dict(multiple=16, scales=(1.0, 0.25)), [16, 16]),
        (224, dict(multiple=14, scales=(2**0.5, 1.0)), [322, 224]),
    ],
)
def test_sides_are_rounded_to_the_patch(size, options, sides):
    network = Means()
    descriptors(network, small_bank(1, 16), size=size, **options)
    assert network.sides == [(side, side) for side in sides]
