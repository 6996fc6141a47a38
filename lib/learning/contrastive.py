"""Contrastive learning: the two views of an image are identified among the views of all images (SimCLR: Chen et al., ICML 2020)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.data.views import View
from lib.keys import Positive
from lib.learning.base import Pretext, PretextConfig, mlp
from lib.tensors import without_autocast


@dataclass(frozen=True, kw_only=True)
class ContrastiveConfig(PretextConfig):
    """Keys of a recipe entry with ``method: contrastive``."""

    jitter: float  # strength of the colour jitter; 1 is SimCLR's
    temperature: Positive  # of the similarities
    hidden_dim: int  # of the projection head
    out_dim: int  # of the projections that are compared


class Contrastive(Pretext, method="contrastive"):
    """Which of the other views shows the same image? The projection head serves the loss only (section 4.2).

    With several processes, each compares the images of its own part of the batch.
    """

    Config = ContrastiveConfig
    config: ContrastiveConfig

    def __init__(self, config: ContrastiveConfig, steps: int):
        strength = config.jitter
        jitter = (0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength)
        super().__init__(config, View(config.train_size, config.crop_scale, jitter=jitter, grey=0.2, blur=0.5))
        self.head = mlp(self.student.num_features, config.hidden_dim, config.out_dim)

    def forward(self, images: Tensor, sizes: Tensor, targets: Tensor, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        crops = self.crops(images, sizes, generator, count=2)
        first, second = self.head(self.student.features(crops).cls).chunk(2)
        loss, right = info_nce(first, second, temperature=self.config.temperature)
        return {"loss": loss, "right": right, "chance": right.new_tensor(1 / (2 * len(images) - 1))}


def info_nce(first: Tensor, second: Tensor, *, temperature: float = 0.1) -> tuple[Tensor, Tensor]:
    """Cross-entropy of identifying the other view of the same image among all other views, by cosine (SimCLR, eq. 1: NT-Xent).

    ``first`` and ``second`` Float[B, D] are two views of the same B images. The results are scalars: the loss in nats, the mean over all 2B
    views, and the fraction of views for which the right one is the most similar.

    Raises:
        ValueError: shapes that differ, or a batch of one image.
    """
    if first.shape != second.shape or first.ndim != 2 or len(first) < 2:
        raise ValueError(f"second: got shape {tuple(second.shape)} beside first {tuple(first.shape)}, accepts two [B, D] with B >= 2")
    with without_autocast(first):  # bfloat16 is too coarse for cosines
        vectors = F.normalize(torch.cat([first, second]).float(), dim=1)  # [2B, D]
        similarity = (vectors @ vectors.T / temperature).fill_diagonal_(-torch.inf)
    partner = torch.arange(len(vectors), device=first.device).roll(len(first))
    return F.cross_entropy(similarity, partner), (similarity.argmax(1) == partner).float().mean()
