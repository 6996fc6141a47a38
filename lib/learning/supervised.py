"""Supervised training with the augmentations of timm's recipes, on whole batches."""

import copy
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from timm.data.mixup import mixup_target
from timm.loss import JsdCrossEntropy
from torch import Tensor, nn
from torchvision.transforms import v2

from lib.data.views import View, make_views
from lib.learning.base import Learner, MethodConfig, TrainingConfig
from lib.learning.optimizers import make_optimizer
from lib.models import network_of


@dataclass(frozen=True, kw_only=True)
class ClassificationConfig(TrainingConfig):
    """Keys of every training of a classifier."""

    num_classes: int  # of the dataset
    eval_crop: float  # side of the evaluated crop as a fraction of the image's shorter side
    knn_epochs: int  # epochs between evaluations; 0 evaluates at the end only
    optimizer: str  # adamw or sgd
    crop_scale: list[float]  # area of the random crop as a fraction of the image
    jitter: float  # of brightness, contrast and saturation
    randaugment: int  # magnitude, up to 30, of two random operations per image; 0 is none
    mixup: float  # parameter of mixup's beta distribution; 0 is none
    cutmix: float  # the same for CutMix; with both, each batch gets one of them at random
    smoothing: float  # of labels
    erasing: float  # probability that a box of an image is erased
    splits: int  # views for Jensen-Shannon consistency, the first without RandAugment; 0 is none
    dropout: float  # before the classifier
    ema: float  # decay of the moving average of the weights, which is evaluated; 0 evaluates the weights themselves

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optimizer not in ("adamw", "sgd"):
            raise ValueError(f"optimizer: got {self.optimizer!r}, accepts adamw, sgd")
        bounds = {"randaugment": (0, 30), "mixup": (0, math.inf), "cutmix": (0, math.inf)}
        bounds |= dict.fromkeys(("smoothing", "erasing", "dropout"), (0, 1))
        for name, (low, high) in bounds.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}: got {getattr(self, name)}, accepts {low} to {high}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema: got {self.ema}, accepts 0 to below 1")
        if self.splits == 1 or self.splits < 0:
            raise ValueError(f"splits: got {self.splits}, accepts 0 or at least 2")
        if self.splits and (self.mixup or self.cutmix):
            raise ValueError("splits: Jensen-Shannon consistency accepts no mixup and no cutmix beside it")


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig(ClassificationConfig, MethodConfig):
    """Keys of a recipe entry with ``method: supervised``."""

    depth: int  # blocks of a Vision Transformer; 0 is the architecture's own

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth < 0:
            raise ValueError(f"depth: got {self.depth}, accepts 0 or more")


class Classification(Learner):
    """Trains ``network``, which has a classifier, to classify images."""

    def __init__(self, config: ClassificationConfig, network: nn.Module):
        super().__init__()
        self.config, self.student = config, network
        self.average = copy.deepcopy(network).requires_grad_(False) if config.ema else None
        jitter = (config.jitter, config.jitter, config.jitter, 0.0)
        self.view = View(config.train_size, config.crop_scale, jitter=jitter, jitter_probability=float(config.jitter > 0), grey=0.0)
        self.consistency = JsdCrossEntropy(config.splits, smoothing=config.smoothing) if config.splits else None
        self.operations = v2.RandAugment(2, config.randaugment) if config.randaugment else None

    @property
    def encoder(self) -> nn.Module:
        return self.student if self.average is None else self.average

    def make_optimizer(self) -> torch.optim.Optimizer:
        return make_optimizer(self, self.config.optimizer)

    def forward(self, images: Tensor, sizes: Tensor, targets: Tensor, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Cross-entropy of one step, with soft targets where images are mixed."""
        config = self.config
        views = [self._view(images, sizes, generator, plain=i == 0 and config.splits > 0) for i in range(max(config.splits, 1))]
        pixels = torch.cat(views)
        if config.erasing:
            pixels = erase(pixels, config.erasing, generator, first=len(images) if config.splits else 0)
        soft = mixup_target(targets, config.num_classes, 1.0, config.smoothing)
        if config.mixup or config.cutmix:
            pixels, soft = self._mix(pixels, targets, generator)
        logits = self.student(pixels)
        return {"loss": self.consistency(logits, targets) if self.consistency else F.cross_entropy(logits, soft)}

    def _view(self, images: Tensor, sizes: Tensor, generator: torch.Generator, *, plain: bool) -> Tensor:
        if self.operations and not plain:  # its draws come from torch's global generator, which the loop seeds for each step
            images = torch.stack([self.operations(image) for image in images])
        return make_views(images, [self.view], sizes=sizes, generator=generator)[0]

    def _mix(self, pixels: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Mix each image with the one at the mirrored position in the batch, as timm does: mixup (Zhang et al., 2018) or CutMix (Yun et al.,
        2019).
        """
        config = self.config
        draw = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        cut = config.cutmix > 0 and (config.mixup == 0 or draw.random() < 0.5)
        share = draw.beta(config.cutmix, config.cutmix) if cut else draw.beta(config.mixup, config.mixup)
        if cut:
            height, width = pixels.shape[-2:]
            h, w = round(height * math.sqrt(1 - share)), round(width * math.sqrt(1 - share))
            y, x = draw.integers(height), draw.integers(width)
            top, bottom = np.clip([y - h // 2, y + h // 2], 0, height)
            left, right = np.clip([x - w // 2, x + w // 2], 0, width)
            mixed = pixels.clone()
            mixed[..., top:bottom, left:right] = pixels.flip(0)[..., top:bottom, left:right]
            share = 1 - (bottom - top) * (right - left) / (height * width)
        else:
            mixed = torch.lerp(pixels.flip(0), pixels, share)
        return mixed, mixup_target(labels, config.num_classes, share, config.smoothing)

    @torch.no_grad()
    def after_update(self, step: int) -> None:
        """Update the moving average of the weights; the statistics of batch norms are copied."""
        if self.average is not None:
            torch._foreach_lerp_(list(self.average.parameters()), list(self.student.parameters()), 1 - self.config.ema)
            for buffer, source in zip(self.average.buffers(), self.student.buffers()):
                buffer.copy_(source)


class Supervised(Classification, method="supervised"):
    """Training of a classifier from random weights."""

    Config = SupervisedConfig

    def __init__(self, config: SupervisedConfig, steps: int):
        super().__init__(config, network_of(vars(config), drop_path_rate=config.drop_path, drop_rate=config.dropout))


def erase(pixels: Tensor, probability: float, generator: torch.Generator, *, first: int = 0) -> Tensor:
    """Random erasing (Zhong et al., 2020) with noise: with ``probability``, an image of Float[B, 3, h, w] loses a box of 2% to a third of its
    area, of aspect 0.3 to 3.3. The ``first`` images of the batch are never erased.
    """
    batch, _, height, width = pixels.shape
    draws = torch.rand(5, batch, 1, generator=generator).to(pixels.device)
    area, aspect = 0.02 + draws[0] * (1 / 3 - 0.02), torch.exp((2 * draws[1] - 1) * math.log(3.3))
    h, w = (area * aspect).sqrt().clamp(max=1) * height, (area / aspect).sqrt().clamp(max=1) * width  # [B, 1] pixels
    top, left = draws[2] * (height - h), draws[3] * (width - w)
    y, x = torch.arange(height, device=pixels.device) + 0.5, torch.arange(width, device=pixels.device) + 0.5
    rows, columns = (y >= top) & (y < top + h), (x >= left) & (x < left + w)  # [B, height], [B, width]
    erased = (draws[4] < probability) & (torch.arange(batch, device=pixels.device) >= first)[:, None]
    box = (rows & erased)[:, None, :, None] & columns[:, None, None, :]
    noise = torch.randn(pixels.shape, generator=generator).to(pixels.device)
    return torch.where(box, noise, pixels)
