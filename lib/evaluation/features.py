"""Features and predictions of a whole split, computed once."""

from collections.abc import Iterator

import torch
from torch import Tensor
from tqdm import tqdm

from lib.data.dataset import Dataset
from lib.data.views import center_view
from lib.models import Model

Labelled = tuple[Tensor, Tensor]  # features Float[M, D] and labels Long[M]


@torch.no_grad()
def pooled_features(
    encoder: Model, source: Dataset, *, size: int, crop: float = 0.875, blocks: int = 1, batch_size: int = 256, progress: bool = False
) -> Labelled:
    """The pooled vector ([CLS]) of the centre view of every image.

    Args:
        source: a ``lib.data.Bank`` or ``Stream`` of M images.
        crop: part of the shorter side that is cut out.
        blocks: for a network with a class token, the number of last blocks whose class tokens are joined, as in linear probing.

    Returns:
        (Float32[M, blocks D], Long[M]): features and labels, on the encoder's device.
    """
    features, labels = [], []
    for views, targets in centre_views(encoder, source, size, crop, batch_size, progress):
        features.append(encoder.last_cls(views, blocks).float())
        labels.append(targets)
    return torch.cat(features), torch.cat(labels)


@torch.no_grad()
def features_and_logits(
    classifier: Model, source: Dataset, *, size: int, crop: float = 0.875, batch_size: int = 256, progress: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Pooled vectors Float32[M, D], labels Long[M] and logits Float32[M, classes] of the centre view of every image, in one pass.

    Arguments as of ``pooled_features``, with M >= 1.
    """
    if not len(source):
        raise ValueError("source: got no images, accepts at least one")
    vectors, labels, logits = [], [], []
    for views, targets in centre_views(classifier, source, size, crop, batch_size, progress):
        vector = classifier.pool(views).cls
        vectors.append((vector.amax(1) if vector.ndim == 3 else vector).float())
        labels.append(targets)
        logits.append(classifier.logits(vector).float())
    return torch.cat(vectors), torch.cat(labels), torch.cat(logits)


def accuracy(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """``{"accuracy", "accuracy_top5"}`` in percent: the share of the images whose class of labels Long[M] has the highest of logits
    Float[M, C], or one of the five highest; top-5 only with more than five classes.
    """
    hits = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
    figures = {"accuracy": hits[:, 0]} | ({"accuracy_top5": hits.any(1)} if logits.shape[1] > 5 else {})
    return {name: 100 * hit.double().mean().item() for name, hit in figures.items()}


def centre_views(
    network: Model, source: Dataset, size: int, crop: float | None, batch_size: int, progress: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Centre views and labels on the network's device, the network in evaluation mode. None as ``crop`` squeezes the whole image."""
    network.eval()
    device = next(network.parameters()).device
    indices = torch.arange(len(source)).split(batch_size)
    for images, sizes, labels in tqdm(source.batches(indices), "features", len(indices), disable=not progress, mininterval=2):
        view = center_view(images, size, crop=1.0) if crop is None else center_view(images, size, crop=crop, sizes=sizes)
        yield view.to(device), labels.to(device)
