"""Features of a whole split, computed once."""

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lib.data.views import center_view


@torch.inference_mode()
def pooled_features(
    encoder: nn.Module, source, *, size: int, crop: float = 0.875, batch_size: int = 256, progress: bool = False
) -> tuple[Tensor, Tensor]:
    """The pooled vector ([CLS]) of every image's centre view.

    Args:
        encoder: a network with ``features``; it is left in evaluation mode.
        source: a ``lib.data.Bank`` or ``Stream`` of M images.
        size: pixels a side that the network sees.
        crop: part of the shorter side that is cut out.
        batch_size: images at a time.
        progress: show a bar.

    Returns:
        (Float32[M, D], Long[M]): features and labels, on the encoder's device.
    """
    encoder.eval()
    device = next(encoder.parameters()).device
    indices = torch.arange(len(source)).split(batch_size)
    features, labels = [], []
    for images, sizes, targets in tqdm(source.batches(indices), "features", len(indices), disable=not progress, mininterval=2):
        views = center_view(images, size, crop=crop, sizes=sizes).to(device)
        features.append(encoder.features(views).cls.float())
        labels.append(targets.to(device))
    return torch.cat(features), torch.cat(labels)
