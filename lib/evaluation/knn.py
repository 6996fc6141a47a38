"""The weighted k-nearest-neighbour classifier of DINO, with all training images or with a few examples of each class.

Source: DINO section 4.2.1 (after Wu et al., CVPR 2018); few examples: AttMask section 4.3 and appendix.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.evaluation.base import DEFAULT, Context, Inputs
from lib.evaluation.features import Labelled, pooled_features
from lib.evaluation.frozen import ProbeEvaluation, ProbeSettings
from lib.models import Model

FEW_EXAMPLES = {1: 1, 5: 20, 10: 20, 20: 20}  # examples of each class -> k
DRAWS = 5  # disjoint draws of the few examples
BLOCK_ELEMENTS = 2**24  # similarities held at a time: 128 MiB in float64


def knn_predict(train_x: Tensor, train_y: Tensor, test_x: Tensor, *, k: int = 20, temperature: float = 0.07, num_classes: int) -> Tensor:
    """Rank classes by the votes exp(cosine / temperature) of the k nearest training vectors.

    The search is exact and uses blocks of bounded memory. Of equal similarities the lower training index comes first, of equal votes the
    lower class.

    Args:
        train_x: Float[M, D], not necessarily normalised.
        train_y: Long[M], classes in [0, num_classes).
        test_x: Float[Q, D].
        k: neighbours; more than M uses M.
        temperature: of the votes.

    Returns:
        Long[Q, min(5, C)], classes by falling vote.
    """
    if train_x.ndim != 2 or not len(train_x):
        raise ValueError(f"train_x: got shape {tuple(train_x.shape)}, accepts [M, D] with M >= 1")
    if test_x.ndim != 2 or test_x.shape[1] != train_x.shape[1]:
        raise ValueError(f"test_x: got shape {tuple(test_x.shape)}, accepts [Q, {train_x.shape[1]}]")
    if train_y.shape != train_x.shape[:1] or train_y.dtype != torch.int64:
        raise ValueError(f"train_y: got {train_y.dtype} of shape {tuple(train_y.shape)}, accepts int64 of shape [{len(train_x)}]")
    if k < 1:
        raise ValueError(f"k: got {k}, accepts 1 or more")
    if temperature <= 0:
        raise ValueError(f"temperature: got {temperature}, accepts a positive number")
    if num_classes < 1 or train_y.min() < 0 or train_y.max() >= num_classes:
        raise ValueError(f"num_classes: got {num_classes}, accepts more than the largest label, {int(train_y.max())}, and labels from 0")
    k = min(k, len(train_x))
    queries = max(1, min(1024, BLOCK_ELEMENTS // num_classes))
    rows = max(k, BLOCK_ELEMENTS // queries)
    test_x = F.normalize(test_x.double(), dim=1)
    predictions = []
    for query in test_x.split(queries):
        similarity, index = _nearest(train_x, query, k, rows)
        weights = ((similarity - similarity[:, :1]) / temperature).exp()  # a common factor does not change the order
        votes = torch.zeros(len(query), num_classes, dtype=weights.dtype, device=weights.device)
        votes.scatter_add_(1, train_y[index], weights)
        predictions.append(votes.argsort(dim=1, descending=True, stable=True)[:, :5])
    return torch.cat(predictions)


def _nearest(train_x: Tensor, query: Tensor, k: int, rows: int) -> tuple[Tensor, Tensor]:
    """Falling cosines Float[q, k] and indices Long[q, k] of the k nearest rows; rows of equal cosine by rising index."""
    best = torch.empty(len(query), 0, dtype=query.dtype, device=query.device)
    index = torch.empty(len(query), 0, dtype=torch.int64, device=query.device)
    for start in range(0, len(train_x), rows):
        block = F.normalize(train_x[start : start + rows].double(), dim=1)
        # Rounded, so that copies of a vector have the same cosine, independent of the order of summation in the matrix product.
        values, places = stable_topk((query @ block.T).round_(decimals=12), min(k, len(block)))
        # Earlier blocks come first, so a stable sort keeps ties in the order of their index.
        values, order = torch.cat([best, values], 1).sort(dim=1, descending=True, stable=True)
        index = torch.cat([index, places + start], 1).gather(1, order)[:, :k]
        best = values[:, :k]
    return best, index


def stable_topk(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """``topk`` with equal values by rising index; ``topk`` itself guarantees no order of equal values."""
    values, places = similarity.topk(k, dim=1)
    places = places.sort(1)[0]
    values, order = similarity.gather(1, places).sort(dim=1, descending=True, stable=True)
    places = places.gather(1, order)
    # If the k-th value occurs more often than topk returned it, these may be the wrong indices: sort such rows completely.
    last = values[:, -1:]
    ambiguous = (similarity == last).sum(1) > (values == last).sum(1)
    if ambiguous.any():
        ordered, order = similarity[ambiguous].sort(dim=1, descending=True, stable=True)
        values[ambiguous], places[ambiguous] = ordered[:, :k], order[:, :k]
    return values, places


def knn_accuracy(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, *, k: int, num_classes: int, temperature: float = 0.07
) -> float:
    """Top-1 accuracy of ``knn_predict`` in percent."""
    predicted = knn_predict(train_x, train_y, test_x, k=k, temperature=temperature, num_classes=num_classes)
    return 100 * (predicted[:, 0] == test_y).double().mean().item()


def few_example_accuracy(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    *,
    examples: int,
    k: int,
    num_classes: int,
    temperature: float = 0.07,
    draws: int = DRAWS,
    step: int = 0,
    generator: torch.Generator | None = None,
) -> float:
    """Top-1 accuracy in percent with ``examples`` training images of each class, mean over disjoint random draws; or, with a ``step``, over
    the images from place 0 on, from place ``step`` on, and so on, in the order of the training set (``subset_starts`` of AttMask's code).

    Raises:
        ValueError: a class with fewer images than the draws need.
    """
    random = torch.randperm(len(train_y), generator=generator).to(train_y.device)
    order = torch.arange(len(train_y), device=train_y.device) if step else random
    of_class = [order[train_y[order] == c] for c in range(num_classes)]
    fewest, needed = min(len(rows) for rows in of_class), needed_images(examples, step, draws)
    if needed > fewest:
        accepted = f"at most {fewest // draws}: the smallest class has {fewest} images"
        if step:
            raise ValueError(
                f"step: got {step} for {examples} examples and {draws} draws, {needed} images; the smallest class has {fewest}"
            )
        raise ValueError(f"examples: got {examples} for {draws} disjoint draws, accepts {accepted}")
    accuracies = []
    for draw in range(draws):
        start = draw * (step or examples)
        indices = torch.cat([rows[start : start + examples] for rows in of_class])
        train = train_x[indices], train_y[indices]
        accuracies.append(knn_accuracy(*train, test_x, test_y, k=k, num_classes=num_classes, temperature=temperature))
    return sum(accuracies) / draws


def needed_images(examples: int, step: int = 0, draws: int = DRAWS) -> int:
    """How many images of each class the draws of ``few_example_accuracy`` need."""
    return (draws - 1) * (step or examples) + examples


def evaluate_knn(
    train: Labelled,
    test: Labelled,
    *,
    neighbours: list[int],
    num_classes: int,
    few: bool = False,
    steps: Sequence[int] = (),
    temperature: float = 0.07,
) -> dict[str, float]:
    """Top-1 accuracy in percent for each number of neighbours (``"knn_10"``, …) and their maximum, ``"knn"``. With ``few`` also from few
    examples of each class (``"knn_nu1"``, …), for those of ``FEW_EXAMPLES`` for which every class has enough images; ``steps``, one for each
    of ``FEW_EXAMPLES``, are those of ``few_example_accuracy``, and without them the draws are random.
    """
    figures = {f"knn_{k}": knn_accuracy(*train, *test, k=k, num_classes=num_classes, temperature=temperature) for k in neighbours}
    figures["knn"] = max(figures.values())
    smallest = int(train[1].bincount(minlength=num_classes).min())
    for (examples, k), step in zip(FEW_EXAMPLES.items(), steps or [0] * len(FEW_EXAMPLES)) if few else ():
        if needed_images(examples, step) <= smallest:
            generator = torch.Generator().manual_seed(examples)
            figures[f"knn_nu{examples}"] = few_example_accuracy(
                *train, *test, examples=examples, k=k, num_classes=num_classes, temperature=temperature, step=step, generator=generator
            )
    return figures


@dataclass(frozen=True, kw_only=True)
class KnnSettings(ProbeSettings):
    """Settings of the measurement ``knn``."""

    neighbours: list[int]  # the values of k
    temperature: float = 0.07  # of the votes
    steps: list[int] = field(default_factory=list)  # from draw to draw of the 1, 5, 10 and 20 examples; [] draws them at random

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps and (len(self.steps) != len(FEW_EXAMPLES) or min(self.steps) < 1):
            raise ValueError(f"steps: got {self.steps}, accepts [], or a positive step for each of {', '.join(map(str, FEW_EXAMPLES))}")


class Knn(ProbeEvaluation, name="knn"):
    """``evaluate_knn`` of the pooled vectors, also from few examples."""

    Settings = KnnSettings

    def measure(self, network: Model, inputs: Inputs, context: Context = DEFAULT) -> dict[str, float]:
        train, test = (pooled_features(network, images, progress=context.progress, **self.view()) for images in (inputs.train, inputs.test))
        classes, settings = int(inputs.train.labels.max()) + 1, self.settings
        return evaluate_knn(
            train,
            test,
            neighbours=settings.neighbours,
            num_classes=classes,
            few=True,
            steps=settings.steps,
            temperature=settings.temperature,
        )
