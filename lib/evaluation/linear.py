"""Linear probing: a linear classifier on frozen features, trained at several learning rates at once.

Source: DINO section 4.1 and appendix F; AttMask section 4.1; SimPool, appendix.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from lib.data.views import View, make_views
from lib.evaluation.features import pooled_features

Batches = Iterable[tuple[Tensor, Tensor]]  # of features Float[b, D] and labels Long[b]


class Probes(NamedTuple):
    """Linear classifiers, one a learning rate, and their accuracies in percent on the test set, [epochs][rates]."""

    lrs: list[float]
    classifiers: nn.ModuleList
    history: list[list[float]]

    @property
    def best(self) -> int:
        """The rate that is best after the last epoch; the first of equal ones."""
        return max(range(len(self.lrs)), key=lambda i: self.history[-1][i])


def train_probes(
    train: Callable[[int], Batches],
    test: tuple[Tensor, Tensor],
    *,
    num_classes: int,
    lrs: list[float],
    epochs: int,
    seed: int = 0,
    progress: bool = False,
) -> Probes:
    """Train linear classifiers by SGD with momentum 0.9 and no weight decay, the rate falling to 0 by a cosine over the epochs.

    Every learning rate has a classifier of its own; all start alike and see the same batches. Weights start from a normal
    distribution of standard deviation 0.01, biases from 0.

    Args:
        train: epoch (from 0) -> its batches, as ``banked`` or ``viewed`` give them.
        test: (Float[Q, D], Long[Q]).
        num_classes: C.
        lrs: learning rates of the first epoch.
        epochs: passes over the training set.
        seed: of the initial weights.
        progress: show a bar.

    Raises:
        ValueError: no learning rate, epoch, or batch, or features and labels that do not fit.
    """
    if not lrs or not all(lr > 0 for lr in lrs):
        raise ValueError(f"lrs: got {lrs}, accepts one positive number or more")
    if epochs < 1:
        raise ValueError(f"epochs: got {epochs}, accepts 1 or more")
    test_x, test_y = test
    if test_x.ndim != 2 or test_y.shape != test_x.shape[:1] or not len(test_x):
        raise ValueError(f"test: got shapes {tuple(test_x.shape)} and {tuple(test_y.shape)}, accepts [Q, D] and [Q] with Q >= 1")
    start = 0.01 * torch.randn(num_classes, test_x.shape[1], generator=torch.Generator().manual_seed(seed))
    classifiers = nn.ModuleList(nn.Linear(test_x.shape[1], num_classes, device=test_x.device) for _ in lrs)
    for classifier in classifiers:
        classifier.weight.data.copy_(start)
        nn.init.zeros_(classifier.bias)
    optimizer = torch.optim.SGD([dict(params=c.parameters(), lr=lr) for c, lr in zip(classifiers, lrs)], momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    history = []
    for epoch in tqdm(range(epochs), "linear probe", disable=not progress, mininterval=2):
        steps = 0
        for x, y in train(epoch):
            if x.shape != (len(y), test_x.shape[1]):
                raise ValueError(f"train: got features {tuple(x.shape)} and {len(y)} labels, accepts [b, {test_x.shape[1]}] and [b]")
            if steps == 0 and not 0 <= y.min() <= y.max() < num_classes:
                raise ValueError(f"train: got labels from {y.min()} to {y.max()}, accepts 0 to {num_classes - 1}")
            optimizer.zero_grad()
            sum(F.cross_entropy(classifier(x), y) for classifier in classifiers).backward()
            optimizer.step()
            steps += 1
        if not steps:
            raise ValueError("train: got no batches, accepts at least one")
        schedule.step()
        with torch.no_grad():
            history.append([100 * (classifier(test_x).argmax(1) == test_y).double().mean().item() for classifier in classifiers])
    return Probes(lrs, classifiers, history)


def linear_probe(train: Callable[[int], Batches], test: tuple[Tensor, Tensor], **options) -> dict[str, float]:
    """Accuracy of linear classifiers; arguments and errors as of ``train_probes``.

    Returns:
        ``linear``, the accuracy after the last epoch in percent, of the learning rate that is best there; ``linear_best``, the
        best of any epoch and rate, as the released code reports it; ``linear_lr``, the rate of ``linear``.
    """
    probes = train_probes(train, test, **options)
    return {"linear": probes.history[-1][probes.best], "linear_best": max(map(max, probes.history)), "linear_lr": probes.lrs[probes.best]}


def probed(
    network: nn.Module, train, test, *, size: int, crop: float, blocks: int, batch_size: int, **options
) -> Callable[[Tensor], Tensor]:
    """A frozen network with the best of ``train_probes`` on top: views Float[b, 3, size, size] -> logits Float[b, C].

    Args:
        network: with ``last_cls``.
        train, test: a ``lib.data.Bank`` or ``Stream`` each, to train on and to choose the best on.
        size, crop, blocks: as of ``pooled_features``.
        batch_size: of the probe's training.
        options: of ``train_probes``.
    """
    seen = dict(size=size, crop=crop, blocks=blocks)
    known = pooled_features(network, train, **seen)
    asked = known if test is train else pooled_features(network, test, **seen)
    probes = train_probes(banked(*known, batch_size=batch_size), asked, num_classes=int(train.labels.max()) + 1, **options)
    best = probes.classifiers[probes.best]

    def classify(views: Tensor) -> Tensor:
        with torch.no_grad():
            return best(network.last_cls(views, blocks).float())

    return classify


def measure_linear(
    network: nn.Module,
    untrained: nn.Module,
    source,
    *,
    train,
    size: int,
    crop: float,
    blocks: int,
    lrs: list[float],
    epochs: int,
    batch_size: int,
    crop_scale: list[float] | None = None,
    progress: bool = False,
) -> dict[str, float]:
    """``linear_probe`` of a network and, with ``untrained_`` before them, of the one from which it started.

    Args:
        network, untrained: the trained network and the one from which it started.
        source, train: a ``lib.data.Bank`` or ``Stream`` to test and to train on.
        size, crop: as of ``pooled_features``.
        blocks: last blocks whose class tokens are joined; networks that pool otherwise give their vector.
        lrs, epochs, batch_size: as of ``linear_probe`` and ``banked``.
        crop_scale: area of the random crops, flipped half of the time, on which to train, as the papers do; None trains on the
            centre views, whose features are computed once.
        progress: show bars.
    """
    figures = {}
    for prefix, net in (("", network), ("untrained_", untrained)):
        joined = blocks if net.pooling is None else 1
        seen = dict(size=size, crop=crop, blocks=joined, progress=progress)
        if crop_scale is None:
            features = banked(*pooled_features(net, train, **seen), batch_size=batch_size)
        else:
            view = View(size, tuple(crop_scale), jitter_probability=0.0, grey=0.0)
            features = viewed(net, train, view, blocks=joined, batch_size=batch_size)
        options = dict(num_classes=int(train.labels.max()) + 1, lrs=lrs, epochs=epochs, progress=progress)
        figures |= {prefix + name: value for name, value in linear_probe(features, pooled_features(net, source, **seen), **options).items()}
    return {name: round(value, 3) for name, value in figures.items()}


def banked(features: Tensor, labels: Tensor, *, batch_size: int, seed: int = 0) -> Callable[[int], Batches]:
    """Batches of features that were computed once, in another order each epoch.

    Args:
        features: Float[M, D].
        labels: Long[M].
        batch_size: images at a time; the last batch may be smaller.
        seed: of the order.

    Raises:
        ValueError: other numbers of features and labels.
    """
    if len(features) != len(labels):
        raise ValueError(f"labels: got {len(labels)}, accepts {len(features)}, one a feature")

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(features), generator=_generator(seed, epoch)).to(features.device)
        for chosen in order.split(batch_size):
            yield features[chosen], labels[chosen]

    return batches


def viewed(network: nn.Module, source, view: View, *, blocks: int, batch_size: int, seed: int = 0) -> Callable[[int], Batches]:
    """Batches of features of fresh views of the images, in another order each epoch.

    Args:
        network: with ``last_cls``; it is left in evaluation mode.
        source: a ``lib.data.Bank`` or ``Stream``.
        view: the augmentation.
        blocks: as in ``lib.evaluation.features.pooled_features``.
        batch_size: images at a time; the last batch may be smaller.
        seed: of the order and the views.
    """
    device = next(network.parameters()).device

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        network.eval()
        indices = torch.randperm(len(source), generator=_generator(seed, epoch)).split(batch_size)
        draws = _generator(seed, epoch, device)
        for images, sizes, labels in source.batches(indices):
            with torch.no_grad():
                views = make_views(images.to(device), [view], sizes=sizes, generator=draws)[0]
                features = network.last_cls(views, blocks).float()
            yield features, labels.to(device)

    return batches


def _generator(seed: int, epoch: int, device="cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed * 1_000_003 + epoch)
