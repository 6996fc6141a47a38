"""Linear probing: a linear classifier on frozen features, trained at several learning rates at once.

Source: DINO section 4.1 and appendix F; AttMask section 4.1; SimPool, appendix.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from lib.data.bank import Bank, Stream
from lib.data.dataset import Dataset
from lib.data.views import View, make_views
from lib.evaluation.base import DEFAULT, Context, Inputs
from lib.evaluation.features import Labelled, pooled_features
from lib.evaluation.frozen import ProbeEvaluation, ProbeSettings
from lib.models import Model

Batches = Iterable[Labelled]


class Probes(NamedTuple):
    """One linear classifier for each learning rate, and their accuracies in percent on the test set, [epochs][rates]."""

    lrs: list[float]
    classifiers: nn.ModuleList
    history: list[list[float]]

    @property
    def best(self) -> int:
        """Index of the learning rate with the highest accuracy after the last epoch; the first of equal ones."""
        return max(range(len(self.lrs)), key=lambda i: self.history[-1][i])


def train_probes(
    train: Callable[[int], Batches],
    test: Labelled,
    *,
    num_classes: int,
    lrs: list[float],
    epochs: int,
    seed: int = 0,
    progress: bool = False,
) -> Probes:
    """Train linear classifiers by SGD with momentum 0.9 and no weight decay; the learning rate falls to 0 by a cosine over the epochs.

    Every learning rate has a classifier of its own. All start from the same weights (normal with standard deviation 0.01, biases 0) and see
    the same batches.

    Args:
        train: returns the batches of an epoch (from 0), like the results of ``banked`` and ``viewed``.
        test: (Float[Q, D], Long[Q]).
        lrs: learning rates of the first epoch.
        epochs: passes over the training set.
        seed: of the initial weights.
    """
    if not lrs or not all(lr > 0 for lr in lrs):
        raise ValueError(f"lrs: got {lrs}, accepts one positive number or more")
    if epochs < 1:
        raise ValueError(f"epochs: got {epochs}, accepts 1 or more")
    test_x, test_y = test
    if test_x.ndim != 2 or test_y.shape != test_x.shape[:1] or not len(test_x):
        raise ValueError(f"test: got shapes {tuple(test_x.shape)} and {tuple(test_y.shape)}, accepts [Q, D] and [Q] with Q >= 1")
    start = 0.01 * torch.randn(num_classes, test_x.shape[1], generator=torch.Generator().manual_seed(seed))
    probes = [nn.Linear(test_x.shape[1], num_classes, device=test_x.device) for _ in lrs]
    for classifier in probes:
        classifier.weight.data.copy_(start)
        nn.init.zeros_(classifier.bias)
    optimizer = torch.optim.SGD([dict(params=c.parameters(), lr=lr) for c, lr in zip(probes, lrs)], momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    history: list[list[float]] = []
    for epoch in tqdm(range(epochs), "linear probe", disable=not progress, mininterval=2):
        steps = 0
        for x, y in train(epoch):
            if x.shape != (len(y), test_x.shape[1]):
                raise ValueError(f"train: got features {tuple(x.shape)} and {len(y)} labels, accepts [b, {test_x.shape[1]}] and [b]")
            if steps == 0 and not 0 <= y.min() <= y.max() < num_classes:
                raise ValueError(f"train: got labels from {y.min()} to {y.max()}, accepts 0 to {num_classes - 1}")
            optimizer.zero_grad()
            torch.stack([F.cross_entropy(classifier(x), y) for classifier in probes]).sum().backward()
            optimizer.step()
            steps += 1
        if not steps:
            raise ValueError("train: got no batches, accepts at least one")
        schedule.step()
        with torch.no_grad():
            history.append([100 * (classifier(test_x).argmax(1) == test_y).double().mean().item() for classifier in probes])
    return Probes(lrs, nn.ModuleList(probes), history)


def linear_probe(train: Callable[[int], Batches], test: tuple[Tensor, Tensor], **options) -> dict[str, float]:
    """Accuracy of linear classifiers in percent; arguments and errors as of ``train_probes``.

    Returns:
        ``linear``, the accuracy after the last epoch with the best learning rate; ``linear_best``, the best of all epochs and rates, as the
        released code reports it; ``linear_lr``, the learning rate of ``linear``.
    """
    return probe_figures(train_probes(train, test, **options))


def probe_figures(probes: Probes) -> dict[str, float]:
    """The figures of ``linear_probe``."""
    return {"linear": probes.history[-1][probes.best], "linear_best": max(map(max, probes.history)), "linear_lr": probes.lrs[probes.best]}


def probed(
    network: Model, train: Bank | Stream, test: Dataset, *, size: int, crop: float, blocks: int, batch_size: int, **options
) -> Callable[[Tensor], Tensor]:
    """A frozen network with the best of ``train_probes`` on top: views Float[b, 3, size, size] -> logits Float[b, C].

    The probes are trained on the images of ``train`` in batches of ``batch_size``, and the best of them is selected on those of ``test``.
    Further arguments as of ``pooled_features``; ``options`` of ``train_probes``.
    """
    train_set = pooled_features(network, train, size=size, crop=crop, blocks=blocks)
    test_set = train_set if test is train else pooled_features(network, test, size=size, crop=crop, blocks=blocks)
    probes = train_probes(banked(*train_set, batch_size=batch_size), test_set, num_classes=int(train.labels.max()) + 1, **options)
    best = probes.classifiers[probes.best]

    def classify(views: Tensor) -> Tensor:
        with torch.no_grad():
            return best(network.last_cls(views, blocks).float())

    return classify


def banked(features: Tensor, labels: Tensor, *, batch_size: int, seed: int = 0) -> Callable[[int], Batches]:
    """Batches of features Float[M, D] and labels Long[M] that were computed once, in a different order each epoch. The last one may be
    smaller than the others.
    """
    if len(features) != len(labels):
        raise ValueError(f"labels: got {len(labels)}, accepts {len(features)}, one a feature")

    def batches(epoch: int) -> Iterator[Labelled]:
        order = torch.randperm(len(features), generator=_generator(seed, epoch)).to(features.device)
        for indices in order.split(batch_size):
            yield features[indices], labels[indices]

    return batches


def viewed(network: Model, source: Dataset, view: View, *, blocks: int, batch_size: int, seed: int = 0) -> Callable[[int], Batches]:
    """Batches of features of new random views of the images of a ``Bank`` or ``Stream``, in a different order each epoch. The last one may
    be smaller than the others; ``blocks`` as of ``pooled_features``.
    """
    device = next(network.parameters()).device

    def batches(epoch: int) -> Iterator[Labelled]:
        network.eval()
        indices = torch.randperm(len(source), generator=_generator(seed, epoch)).split(batch_size)
        draws = _generator(seed, epoch, device)
        for images, sizes, labels in source.batches(indices):
            with torch.no_grad():
                views = make_views(images.to(device), [view], sizes=sizes, generator=draws)[0]
                features = network.last_cls(views, blocks).float()
            yield features, labels.to(device)

    return batches


def _generator(seed: int, epoch: int, device: str | torch.device = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed * 1_000_003 + epoch)


@dataclass(frozen=True, kw_only=True)
class LinearSettings(ProbeSettings):
    """Settings of the measurement ``linear``."""

    blocks: int  # number of last blocks whose class tokens are joined; networks with another pooling give their pooled vector
    lrs: list[float]  # learning rates, one for each probe
    epochs: int
    batch_size: int
    # Area of the random crops, flipped half of the time, that the papers train on; null trains on centre views with features computed once.
    crop_scale: list[float] | None = None

    def blocks_of(self, network: Model) -> int:
        """The number of last blocks of a network whose class tokens are joined."""
        return self.blocks if network.pooling is None else 1


class Linear(ProbeEvaluation, name="linear"):
    """``linear_probe`` of frozen features."""

    Settings: ClassVar[type[LinearSettings]] = LinearSettings

    def measure(self, network: Model, inputs: Inputs, context: Context = DEFAULT) -> dict[str, float]:
        return probe_figures(self.probes(network, inputs, context))

    def probes(self, network: Model, inputs: Inputs, context: Context) -> Probes:
        """The trained classifiers of a network."""
        settings, train = self.settings, inputs.train
        blocks, view = settings.blocks_of(network), self.view()
        features: dict[str, Any] = dict(blocks=blocks, progress=context.progress, **view)
        if settings.crop_scale is None:
            batches = banked(*pooled_features(network, train, **features), batch_size=settings.batch_size)
        else:
            crops = View(view["size"], tuple(settings.crop_scale), jitter_probability=0.0, grey=0.0)
            batches = viewed(network, train, crops, blocks=blocks, batch_size=settings.batch_size)
        options = dict(num_classes=int(train.labels.max()) + 1, lrs=settings.lrs, epochs=settings.epochs, progress=context.progress)
        return train_probes(batches, pooled_features(network, inputs.test, **features), **options)
