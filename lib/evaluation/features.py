"""Features and predictions of a whole split, computed once."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lib.data.views import center_view


@torch.no_grad()
def pooled_features(
    encoder: nn.Module, source, *, size: int, crop: float = 0.875, blocks: int = 1, batch_size: int = 256, progress: bool = False
) -> tuple[Tensor, Tensor]:
    """The pooled vector ([CLS]) of every image's centre view.

    Args:
        encoder: a network with ``last_cls``; it is left in evaluation mode.
        source: a ``lib.data.Bank`` or ``Stream`` of M images.
        size: pixels a side that the network sees.
        crop: part of the shorter side that is cut out.
        blocks: of a network with a class token, how many of the last blocks' tokens to join, as linear probes see them.
        batch_size: images at a time.
        progress: show a bar.

    Returns:
        (Float32[M, blocks D], Long[M]): features and labels, on the encoder's device.
    """
    features, labels = [], []
    for views, targets in _views(encoder, source, size, crop, batch_size, progress):
        features.append(encoder.last_cls(views, blocks).float())
        labels.append(targets)
    return torch.cat(features), torch.cat(labels)


@torch.no_grad()
def features_and_logits(
    classifier: nn.Module, source, *, size: int, crop: float = 0.875, batch_size: int = 256, progress: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """What a classifier makes of every image's centre view, in one pass.

    Args:
        classifier, source, size, crop, batch_size, progress: as of ``pooled_features``.

    Returns:
        (Float32[M, D], Long[M], Float32[M, classes]): pooled vectors, labels and logits.

    Raises:
        ValueError: a source without images.
    """
    if not len(source):
        raise ValueError("source: got no images, accepts at least one")
    found = []
    for views, targets in _views(classifier, source, size, crop, batch_size, progress):
        vector = classifier.pool(views).cls
        found.append(((vector.amax(1) if vector.ndim == 3 else vector).float(), targets, classifier.logits(vector).float()))
    return tuple(torch.cat(parts) for parts in zip(*found))


def accuracy(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Share of images whose class has the highest, or one of the five highest, logits.

    Args:
        logits: Float[M, C], M >= 1.
        labels: Long[M].

    Returns:
        ``{"accuracy", "accuracy_top5"}`` in percent; top-5 only with more than five classes.
    """
    hits = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
    figures = {"accuracy": hits[:, 0], "accuracy_top5": hits.any(1)}
    if logits.shape[1] <= 5:
        del figures["accuracy_top5"]
    return {name: 100 * hit.double().mean().item() for name, hit in figures.items()}


def _views(network: nn.Module, source, size: int, crop: float, batch_size: int, progress: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Centre views and labels on the network's device, the network in evaluation mode."""
    network.eval()
    device = next(network.parameters()).device
    indices = torch.arange(len(source)).split(batch_size)
    for images, sizes, labels in tqdm(source.batches(indices), "features", len(indices), disable=not progress, mininterval=2):
        yield center_view(images, size, crop=crop, sizes=sizes).to(device), labels.to(device)
