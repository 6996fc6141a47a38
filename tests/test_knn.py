import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from twins import twin_figures

from lib.data.bank import bank
from lib.evaluation import knn
from lib.evaluation.features import pooled_features
from lib.evaluation.knn import evaluate_knn, few_example_accuracy, knn_predict
from lib.measure import create_evaluation
from lib.models import create_model


def literal_predict(train_x, train_y, test_x, k, temperature, num_classes):
    """One query and one neighbour at a time, in Python's floats."""

    def unit(row):
        length = math.hypot(*row)
        return [v / max(length, 1e-12) for v in row]

    train, predictions = [unit(row) for row in train_x.tolist()], []
    for query in map(unit, test_x.tolist()):
        cosines = [math.fsum(a * b for a, b in zip(query, row)) for row in train]
        nearest = sorted(range(len(train)), key=lambda i: (-cosines[i], i))[:k]
        votes = [0.0] * num_classes
        for i in nearest:
            votes[train_y[i]] += math.exp(cosines[i] / temperature)
        predictions.append(sorted(range(num_classes), key=lambda c: (-votes[c], c))[: min(5, num_classes)])
    return predictions


def problem(train=60, test=15, dim=8, classes=7, seed=0, dtype=torch.float64):
    """Un-normalised random features, some of them of great length, and random labels."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(train + test, dim, generator=g, dtype=torch.float64) * 10 ** (
        2 * torch.rand(train + test, 1, generator=g, dtype=torch.float64)
    )
    return x[:train].to(dtype), torch.randint(classes, (train,), generator=g), x[train:].to(dtype)


# ---- predictions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [1, 2, 20, 60, 61, 1000])
@pytest.mark.parametrize("classes", [1, 3, 5, 7])
def test_predictions_equal_the_literal_vote(k, classes, dtype):
    x, y, queries = problem(classes=classes, seed=k, dtype=dtype)
    found = knn_predict(x, y, queries, k=k, num_classes=classes)
    assert found.dtype == torch.int64 and found.shape == (15, min(5, classes))
    assert found.tolist() == literal_predict(x, y, queries, k, 0.07, classes)


@pytest.mark.parametrize("temperature", [0.02, 0.07, 0.5, 10.0])
def test_the_temperature_weighs_the_votes(temperature):
    x, y, queries = problem(train=200, test=40, dim=4, classes=6)
    found = knn_predict(x, y, queries, k=50, temperature=temperature, num_classes=6)
    assert found.tolist() == literal_predict(x, y, queries, 50, temperature, 6)


def test_defaults_are_twenty_neighbours_at_a_temperature_of_007():
    x, y, queries = problem(train=200, test=40, dim=4)
    assert knn_predict(x, y, queries, num_classes=7).tolist() == literal_predict(x, y, queries, 20, 0.07, 7)


@pytest.mark.parametrize("block", [1, 40, 700])
@pytest.mark.parametrize("k", [1, 5, 30])
def test_blocks_change_nothing(monkeypatch, block, k):
    x, y, queries = problem(train=90, test=25)
    expected = knn_predict(x, y, queries, k=k, num_classes=7)
    monkeypatch.setattr(knn, "BLOCK_ELEMENTS", block)
    assert torch.equal(knn_predict(x, y, queries, k=k, num_classes=7), expected)
    assert expected.tolist() == literal_predict(x, y, queries, k, 0.07, 7)


@pytest.mark.parametrize("scale", [1e-6, 3.0, 1e6])
def test_lengths_do_not_count(scale):
    x, y, queries = problem()
    expected = knn_predict(x, y, queries, num_classes=7)
    factors = scale * (1 + torch.arange(60, dtype=torch.float64)[:, None])
    assert torch.equal(knn_predict(factors * x, y, queries / scale, num_classes=7), expected)


def test_inputs_are_left_alone():
    inputs = problem()
    before = [t.clone() for t in inputs]
    knn_predict(*inputs, num_classes=7)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before))


def test_no_queries_give_no_predictions():
    x, y, _ = problem()
    assert knn_predict(x, y, x[:0], num_classes=7).shape == (0, 5)


# ---- ties -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 64, 2**25])
@pytest.mark.parametrize("k", [1, 3, 10])
def test_equal_similarities_go_to_the_lower_index(monkeypatch, block, k):
    """Every vector points along one of four axes, so that most similarities are equal, and exactly so."""
    monkeypatch.setattr(knn, "BLOCK_ELEMENTS", block)
    g = torch.Generator().manual_seed(k)
    x = torch.eye(4)[torch.randint(4, (80,), generator=g)]
    y, queries = torch.randint(9, (80,), generator=g), torch.eye(4) * 2
    assert knn_predict(x, y, queries, k=k, num_classes=9).tolist() == literal_predict(x, y, queries, k, 0.07, 9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("copies, dim", [(7, 16), (33, 128), (100, 384), (1001, 128)])
def test_copies_of_a_vector_are_equally_near(copies, dim, dtype):
    """Copies rank by their index, wherever they stand and whatever rounding a matrix product has."""
    g = torch.Generator().manual_seed(copies)
    x = torch.randn(copies, dim, generator=g, dtype=torch.float64).to(dtype)
    x[copies // 2] = x[copies - 1] = x[0]
    y = torch.full((copies,), 3)
    y[0], y[copies // 2], y[copies - 1] = 2, 0, 1
    queries = x[:1] + 0.02 * torch.randn(64, dim, generator=g).to(dtype)
    assert knn_predict(x, y, queries, k=1, num_classes=4).tolist() == [[2, 0, 1, 3]] * 64  # class 2 has the vote, the others none
    assert knn_predict(x, y, queries, k=2, num_classes=4).tolist() == [[0, 2, 1, 3]] * 64
    assert knn_predict(x, y, queries, k=3, num_classes=4).tolist() == [[0, 1, 2, 3]] * 64


@pytest.mark.parametrize("block", [1, 64, 2**25])
def test_equal_votes_go_to_the_lower_class(monkeypatch, block):
    monkeypatch.setattr(knn, "BLOCK_ELEMENTS", block)
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(6, 1)
    y = torch.tensor([5, 0, 4, 0, 3, 0, 2, 0, 1, 0, 1, 0])
    query = torch.tensor([[3.0, 0.0]])
    assert knn_predict(x, y, query, k=6, num_classes=6).tolist() == [[1, 2, 3, 4, 5]]  # two votes, then one each
    assert knn_predict(x, y, query, k=4, num_classes=6).tolist() == [[2, 3, 4, 5, 0]]
    assert knn_predict(x, y, query, k=1, num_classes=6).tolist() == [[5, 0, 1, 2, 3]]  # and the classes without a vote


# ---- memory -----------------------------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for made in result if isinstance(result, (tuple, list)) else (result,):
            self.elements = max(self.elements, made.numel() if isinstance(made, torch.Tensor) else 0)
        return result


def test_memory_stays_bounded_by_default():
    g = torch.Generator().manual_seed(0)
    x, y, queries = torch.randn(200_000, 16, generator=g), torch.randint(10, (200_000,), generator=g), torch.randn(200, 16, generator=g)
    with Largest() as largest:
        knn_predict(x, y, queries, num_classes=10)
    assert largest.elements <= knn.BLOCK_ELEMENTS + 1024 * 20 < len(x) * len(queries)


@pytest.mark.parametrize("train, test, classes, k", [(3000, 700, 5, 7), (50, 3000, 900, 7), (3000, 300, 900, 2000)])
def test_memory_is_bounded_in_every_direction(monkeypatch, train, test, classes, k):
    monkeypatch.setattr(knn, "BLOCK_ELEMENTS", 2**14)
    x, y, queries = problem(train, test, dim=4, classes=classes, dtype=torch.float32)
    with Largest() as largest:
        knn_predict(x, y, queries, k=k, num_classes=classes)
    floor = max(x.numel(), queries.numel(), 5 * test)  # inputs and outputs
    assert largest.elements <= max(floor, 2 * 2**14, 1024 * 2 * k)
    assert largest.elements < train * test


# ---- few examples and figures -----------------------------------------------------------------------------------------


def blobs(per_class=30, classes=4, seed=0):
    """Classes around axes, far enough apart to be told with enough examples."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(classes).repeat_interleave(per_class)[torch.randperm(classes * per_class, generator=g)]
    return torch.eye(classes)[y] + 0.5 * torch.randn(len(y), classes, generator=g), y


def test_few_examples_are_disjoint_draws_of_every_class(monkeypatch):
    x, y = blobs()
    x = torch.cat([x, torch.arange(len(x))[:, None].float()], 1)
    seen, figures = [], iter([10.0, 20.0, 60.0])

    def accuracy(train_x, train_y, test_x, test_y, *, k, num_classes, temperature):
        assert k == 20 and num_classes == 4 and temperature == 0.07 and test_x is x and test_y is y
        assert train_y.bincount().tolist() == [7] * 4 and torch.equal(y[train_x[:, -1].long()], train_y)
        seen.append(train_x[:, -1])
        return next(figures)

    monkeypatch.setattr(knn, "knn_accuracy", accuracy)
    options = dict(examples=7, k=20, num_classes=4, draws=3)
    assert few_example_accuracy(x, y, x, y, generator=torch.Generator().manual_seed(0), **options) == pytest.approx(30.0)
    assert len(torch.cat(seen).unique()) == 3 * 7 * 4
    first, figures = torch.cat(seen), iter([0.0] * 6)
    few_example_accuracy(x, y, x, y, generator=torch.Generator().manual_seed(0), **options)
    assert torch.equal(torch.cat(seen[3:]), first)
    few_example_accuracy(x, y, x, y, generator=torch.Generator().manual_seed(1), **options)
    assert not torch.equal(torch.cat(seen[6:]), first)


def test_few_examples_take_five_draws():
    x, y = blobs(per_class=10)
    assert 50 < few_example_accuracy(x, y, x, y, examples=2, k=20, num_classes=4) <= 100
    with pytest.raises(ValueError, match="^examples: got 3 .* accepts at most 2"):
        few_example_accuracy(x, y, x, y, examples=3, k=20, num_classes=4)


def test_few_examples_from_places_that_lie_a_step_apart(monkeypatch):
    x, y = blobs(per_class=12, classes=3)
    x, seen = torch.cat([x, torch.arange(len(x))[:, None].float()], 1), []
    monkeypatch.setattr(knn, "knn_accuracy", lambda train_x, train_y, *rest, **options: seen.append(train_x[:, -1].long()) or 0.0)
    few_example_accuracy(x, y, x, y, examples=3, step=2, draws=4, k=1, num_classes=3)
    of_class = [(y == c).nonzero().flatten() for c in range(3)]
    assert [rows.tolist() for rows in seen] == [torch.cat([rows[s : s + 3] for rows in of_class]).tolist() for s in (0, 2, 4, 6)]
    with pytest.raises(ValueError, match="^step: got 3 for 3 examples and 5 draws, 15 images; the smallest class has 12"):
        few_example_accuracy(x, y, x, y, examples=3, step=3, k=1, num_classes=3)


def test_few_examples_have_the_steps_of_the_settings(monkeypatch):
    x, y = blobs(per_class=41, classes=2)
    steps = []
    monkeypatch.setattr(knn, "few_example_accuracy", lambda *data, examples, step, **options: steps.append((examples, step)) or 0.0)
    figures = evaluate_knn((x, y), (x, y), neighbours=[1], num_classes=2, few=True, steps=[5, 5, 7, 20])
    assert steps == [(1, 5), (5, 5), (10, 7)] and set(figures) == {"knn", "knn_1", "knn_nu1", "knn_nu5", "knn_nu10"}
    for wrong in ([5], [5, 5, 0, 20]):
        with pytest.raises(ValueError, match="steps: got"):
            create_evaluation("knn", "smoke", steps=wrong)


def test_few_examples_of_an_absent_class_are_refused():
    x, y = blobs()
    with pytest.raises(ValueError, match="^examples: got 1 .* accepts at most 0"):
        few_example_accuracy(x, y, x, y, examples=1, k=1, num_classes=5)


def test_accuracy_is_the_share_of_right_first_classes():
    x, y, queries = problem()
    truth = torch.randint(7, (15,), generator=torch.Generator().manual_seed(5))
    right = sum(row[0] == t for row, t in zip(literal_predict(x, y, queries, 5, 0.07, 7), truth.tolist()))
    assert knn.knn_accuracy(x, y, queries, truth, k=5, num_classes=7) == pytest.approx(100 * right / 15)


def test_figures_of_an_evaluation():
    train, test = blobs(), blobs(per_class=8, seed=1)
    plain = knn.evaluate_knn(train, test, neighbours=[1, 10, 25], num_classes=4)
    assert set(plain) == {"knn", "knn_1", "knn_10", "knn_25"}
    for k in (1, 10, 25):
        assert plain[f"knn_{k}"] == knn.knn_accuracy(*train, *test, k=k, num_classes=4)
    assert plain["knn"] == max(plain[f"knn_{k}"] for k in (1, 10, 25)) > 50
    few = knn.evaluate_knn(train, test, neighbours=[1, 10, 25], num_classes=4, few=True)
    assert set(few) - set(plain) == {"knn_nu1", "knn_nu5"}  # 30 images a class are too few for five draws of 10
    assert few == knn.evaluate_knn(train, test, neighbours=[1, 10, 25], num_classes=4, few=True)
    assert few["knn_nu1"] < few["knn_nu5"]


# ---- refusals ---------------------------------------------------------------------------------------------------------

X, Y, Q = torch.ones(6, 3), torch.tensor([0, 1, 2, 0, 1, 2]), torch.ones(2, 3)


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("train_x", dict(train_x=X[0])),
        ("train_x", dict(train_x=X[:0], train_y=Y[:0])),
        ("test_x", dict(test_x=Q[0])),
        ("test_x", dict(test_x=torch.ones(2, 4))),
        ("train_y", dict(train_y=Y[:5])),
        ("train_y", dict(train_y=Y[:, None])),
        ("train_y", dict(train_y=Y.float())),
        ("k", dict(k=0)),
        ("k", dict(k=-1)),
        ("temperature", dict(temperature=0.0)),
        ("temperature", dict(temperature=-0.07)),
        ("num_classes", dict(num_classes=0)),
        ("num_classes", dict(num_classes=2)),
        ("num_classes", dict(train_y=Y - 1)),
    ],
)
def test_bad_arguments_are_named(name, arguments):
    with pytest.raises(ValueError, match=f"^{name}: got .* accepts"):
        knn_predict(**dict(train_x=X, train_y=Y, test_x=Q, num_classes=3) | arguments)


def test_a_measurement_votes_with_both_networks():
    torch.manual_seed(0)
    networks = [create_model("vit_nano", img_size=16, depth=1) for _ in range(2)]
    train, test = bank("scenes", "train", 16, fraction=0.1, progress=False), bank("scenes", "validation", 16, progress=False)
    found = twin_figures("knn", *networks, test, train=train, size=16, crop=1.0, neighbours=[1, 5])
    for prefix, network in zip(("", "untrained_"), networks):
        seen = [pooled_features(network, source, size=16, crop=1.0) for source in (train, test)]
        expected = evaluate_knn(*seen, neighbours=[1, 5], num_classes=10, few=True)
        assert {"knn_1", "knn_5", "knn", "knn_nu1"} <= expected.keys()
        assert {name: found[prefix + name] for name in expected} == pytest.approx(expected, abs=1e-3)
