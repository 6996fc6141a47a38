"""Accuracy of a network's own classifier."""

import torch
from torch import nn

from lib.data.views import center_view


@torch.inference_mode()
def classifier_accuracy(network: nn.Module, source, *, size: int, crop: float = 0.875, batch_size: int = 256) -> dict[str, float]:
    """Share of images whose class is the first, or among the first five, of the classifier's.

    Args:
        network: images Float[B, 3, size, size] -> logits Float[B, classes]; it is left in evaluation mode.
        source: a ``lib.data.Bank`` or ``Stream``.
        size: pixels a side that the network sees.
        crop: part of the shorter side that is cut out.
        batch_size: images at a time.

    Returns:
        ``{"accuracy", "accuracy_top5"}`` in percent; top-5 only with more than five classes.

    Raises:
        ValueError: a source without images.
    """
    if not len(source):
        raise ValueError("source: got no images, accepts at least one")
    network.eval()
    device = next(network.parameters()).device
    found = torch.zeros(2, device=device)
    for images, sizes, labels in source.batches(torch.arange(len(source)).split(batch_size)):
        logits = network(center_view(images, size, crop=crop, sizes=sizes).to(device)).float()
        hits = logits.topk(min(5, logits.shape[1])).indices == labels.to(device)[:, None]
        found += torch.stack([hits[:, 0].sum(), hits.any(1).sum()])
    accuracy, top5 = (100 * found / len(source)).tolist()
    return {"accuracy": accuracy} | ({"accuracy_top5": top5} if logits.shape[1] > 5 else {})
