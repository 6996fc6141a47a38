"""How well a learner answers the questions that it learned from, on images that it has not seen."""

import torch

from lib.training import Learner


@torch.no_grad()
def task_accuracy(learner: Learner, source, *, batch_size: int, seed: int = 0) -> dict[str, float]:
    """Share of right answers in percent.

    Args:
        learner: one that ``answers``; it is left in evaluation mode.
        source: a ``lib.data.Bank`` or ``Stream`` of at least ``batch_size`` images; the last, incomplete batch is left out.
        batch_size: images at a time; contrastive learning tells an image from the others of its batch.
        seed: of the questions.

    Returns:
        ``task`` and ``task_guess``, the share that the best constant answer gets right.
    """
    learner.eval()
    generator = torch.Generator().manual_seed(seed)
    count = len(source) // batch_size
    if not count:
        raise ValueError(f"batch_size: got {batch_size}, accepts at most {len(source)}, the number of images")
    right = guess = 0.0
    for images, sizes, labels in source.batches(torch.arange(count * batch_size).split(batch_size)):
        found = learner(images, sizes, labels, 0, generator)
        right, guess = right + found["right"].item(), guess + found["guess"].item()
    return {"task": 100 * right / count, "task_guess": 100 * guess / count}
