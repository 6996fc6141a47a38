"""Pretext accuracy: how well a learner solves its own pretext task on images that it has not been trained on."""

import torch

from lib.data.dataset import Dataset
from lib.learning.base import Learner


@torch.no_grad()
def pretext_accuracy(learner: Learner, source: Dataset, *, batch_size: int, seed: int = 0) -> dict[str, float]:
    """``task``, the pretext accuracy in percent, and ``task_guess``, chance: the accuracy of the best constant answer.

    The learner is left in evaluation mode. The last, incomplete batch is left out, because contrastive learning distinguishes an image from
    the others of its batch; ``seed`` is that of the draws of the pretext task.
    """
    learner.eval()
    generator = torch.Generator().manual_seed(seed)
    count = len(source) // batch_size
    if not count:
        raise ValueError(f"batch_size: got {batch_size}, accepts at most {len(source)}, the number of images")
    right = chance = 0.0
    for images, sizes, labels in source.batches(torch.arange(count * batch_size).split(batch_size)):
        losses = learner(images, sizes, labels, 0, generator)
        right, chance = right + losses["right"].item(), chance + losses["chance"].item()
    return {"task": 100 * right / count, "task_guess": 100 * chance / count}
