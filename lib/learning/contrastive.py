"""Contrastive learning: two views of an image find each other among the views of others (SimCLR: Chen et al., ICML 2020)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.data.views import View, make_views
from lib.models import network_of
from lib.training import Learner, TrainingConfig


@dataclass(frozen=True, kw_only=True)
class ContrastiveConfig(TrainingConfig):
    """Keys of a recipe entry with ``method: contrastive``."""

    crop_scale: list[float]  # area of the random crops as a fraction of the image
    jitter: float  # strength of the colour jitter; 1 is SimCLR's
    temperature: float  # of the similarities
    hidden_dim: int  # of the projection head
    out_dim: int  # of the projections that are compared

    def __post_init__(self):
        super().__post_init__()
        if not self.temperature > 0:
            raise ValueError(f"temperature: got {self.temperature}, accepts a positive number")


class Contrastive(Learner):
    """An encoder and a projection head; the head is for the loss alone (section 4.2).

    Of several processes each compares the images of its own part of the batch.
    """

    answers = True

    def __init__(self, config: ContrastiveConfig, steps: int):
        super().__init__()
        self.config = config
        self.student = network_of(vars(config), drop_path_rate=config.drop_path)
        self.head = nn.Sequential(
            nn.Linear(self.student.num_features, config.hidden_dim), nn.GELU(), nn.Linear(config.hidden_dim, config.out_dim)
        )
        strength = config.jitter
        jitter = (0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength)
        self.view = View(config.train_size, tuple(config.crop_scale), jitter=jitter, grey=0.2, blur=0.5)

    @property
    def encoder(self) -> nn.Module:
        return self.student

    def forward(self, images: Tensor, sizes: Tensor, labels: Tensor, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Which of the other views shows the same image?"""
        views = make_views(images, [self.view] * 2, sizes=sizes, generator=generator)
        first, second = self.head(self.student.features(torch.cat(views)).cls).chunk(2)
        loss, right = info_nce(first, second, temperature=self.config.temperature)
        return {"loss": loss, "right": right, "guess": right.new_tensor(1 / (2 * len(images) - 1))}


def info_nce(first: Tensor, second: Tensor, *, temperature: float = 0.1) -> tuple[Tensor, Tensor]:
    """Cross-entropy of naming the other view of the same image among all other views, by cosine (SimCLR, eq. 1: NT-Xent).

    Args:
        first, second: Float[B, D], two views of the same B images.
        temperature: of the softmax.

    Returns:
        The loss in nats, the mean over all 2B views, and the share of views that name the right one; scalars.

    Raises:
        ValueError: shapes that differ, or a batch of one image, which has nothing to be told from.
    """
    if first.shape != second.shape or first.ndim != 2 or len(first) < 2:
        raise ValueError(f"second: got shape {tuple(second.shape)} beside first {tuple(first.shape)}, accepts two [B, D] with B >= 2")
    with torch.autocast(first.device.type, enabled=False):  # eight bits of a cosine are too few
        vectors = F.normalize(torch.cat([first, second]).float(), dim=1)  # [2B, D]
        similarity = (vectors @ vectors.T / temperature).fill_diagonal_(-torch.inf)
    partner = torch.arange(len(vectors), device=first.device).roll(len(first))
    return F.cross_entropy(similarity, partner), (similarity.argmax(1) == partner).float().mean()
