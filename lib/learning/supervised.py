"""Supervised training with the augmentations of timm's recipes, on whole batches."""

import copy
import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.mixup import mixup_target
from timm.loss import JsdCrossEntropy
from torch import Tensor, nn
from torchvision.transforms import v2

from lib.data.views import MEAN, STD, View, denormalise, make_views, normalise
from lib.learning.base import Learner, MethodConfig, TrainingConfig
from lib.learning.optimizers import check_optimizer, make_optimizer
from lib.models import Model, network_of

POLICY = r"rand(-m\d+|-n\d+|-p[01](\.\d+)?|-mstd\d+(\.\d+)?|-mmax\d+|-inc[01])*"


@dataclass(frozen=True, kw_only=True)
class ClassificationConfig(TrainingConfig):
    """Keys of every training of a classifier."""

    num_classes: int  # of the dataset
    eval_crop: float  # side of the evaluated crop as a fraction of the image's shorter side
    knn_epochs: int  # epochs between evaluations; 0 evaluates at the end only
    optimizer: str  # a name in lib.learning.optimizers.OPTIMIZERS
    crop_scale: list[float]  # area of the random crop as a fraction of the image
    jitter: float  # of brightness, contrast and saturation
    randaugment: int  # magnitude, up to 30, of two random operations per image; 0 is none
    auto_augment: str = ""  # timm's RandAugment in timm's words, such as rand-m9-mstd0.5-inc1, of the crops; it replaces randaugment
    repeats: int = 1  # views of an image in a batch, which then holds so many times fewer images
    mixup: float  # parameter of mixup's beta distribution; 0 is none
    cutmix: float  # the same for CutMix; with both, each batch gets one of them at random
    smoothing: float  # of labels
    erasing: float  # probability that a box of an image is erased
    splits: int  # views for Jensen-Shannon consistency, the first without RandAugment; with auto_augment, of one crop; 0 is none
    dropout: float  # before the classifier
    ema: float  # decay of the moving average of the weights, which is evaluated; 0 evaluates the weights themselves

    def __post_init__(self) -> None:
        super().__post_init__()
        check_optimizer(self.optimizer)
        if self.auto_augment and (self.randaugment or not re.fullmatch(POLICY, self.auto_augment)):
            raise ValueError(
                f"auto_augment: got {self.auto_augment!r}, accepts timm's RandAugment, such as rand-m9-mstd0.5, and randaugment 0"
            )
        self.check_counts("repeats")
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
    token_dropout: float = 0.0  # of a Vision Transformer, see lib.models.create_model
    split_norm: bool = False  # a batch norm of its own for each of the splits
    mean: list[float] = field(default_factory=lambda: list(MEAN))  # of the network's inputs, see lib.models.create_model
    std: list[float] = field(default_factory=lambda: list(STD))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split_norm and not self.splits:
            raise ValueError("split_norm: got True, accepts False without splits")
        if not 0 <= self.token_dropout <= 1:
            raise ValueError(f"token_dropout: got {self.token_dropout}, accepts 0 to 1")
        if self.depth < 0:
            raise ValueError(f"depth: got {self.depth}, accepts 0 or more")


class Classification(Learner):
    """Trains ``network``, which has a classifier, to classify images."""

    def __init__(self, config: ClassificationConfig, network: Model):
        super().__init__()
        self.config, self.student = config, network
        self.average = copy.deepcopy(network).requires_grad_(False) if config.ema else None
        jitter = (config.jitter, config.jitter, config.jitter, 0.0)
        self.view = View(config.train_size, config.crop_scale, jitter=jitter, jitter_probability=float(config.jitter > 0), grey=0.0)
        self.consistency = JsdCrossEntropy(config.splits, smoothing=config.smoothing) if config.splits else None
        self.operations = v2.RandAugment(2, config.randaugment) if config.randaugment else None
        self.mean, self.std = network.statistics or (MEAN, STD)
        fill = tuple(round(255 * value) for value in self.mean)  # as timm fills what an operation uncovers, and bounds its shifts
        details = dict(translate_const=int(0.45 * config.train_size), img_mean=fill, interpolation=Image.Resampling.BICUBIC)
        self.policy = rand_augment_transform(config.auto_augment, details) if config.auto_augment else None

    @property
    def encoder(self) -> nn.Module:
        return self.student if self.average is None else self.average

    def make_optimizer(self) -> torch.optim.Optimizer:
        return make_optimizer(self, self.config.optimizer)

    def forward(self, images: Tensor, sizes: Tensor, targets: Tensor, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Cross-entropy of one step, with soft targets where images are mixed."""
        config = self.config
        if config.repeats > 1:  # an epoch then sees a part of the images, each several times, like timm's RepeatAugSampler
            kept = torch.arange(len(images), device=images.device) // config.repeats
            images, sizes, targets = images[kept], sizes[kept], targets[kept]
        pixels = torch.cat(self._views(images, sizes, generator))
        if config.erasing:
            first = len(images) if config.splits else 0
            pixels = erase(pixels, config.erasing, generator, first=first, mean=self.mean, std=self.std)
        soft = mixup_target(targets, config.num_classes, 1.0, config.smoothing)
        if config.mixup or config.cutmix:
            pixels, soft = self._mix(pixels, targets, generator)
        logits = self.student(pixels)
        return {"loss": self.consistency(logits, targets) if self.consistency else F.cross_entropy(logits, soft)}

    def _views(self, images: Tensor, sizes: Tensor, generator: torch.Generator) -> list[Tensor]:
        """One view of each image, or one for each of the splits."""
        splits = self.config.splits
        if self.policy is None:
            return [self._view(images, sizes, generator, plain=i == 0 and splits > 0) for i in range(max(splits, 1))]
        crops = make_views(images, [self.view], sizes=sizes, generator=generator)[0]
        plain = [crops] if splits else []
        return plain + [_changed(crops, self.policy, generator) for _ in range(max(splits, 1) - len(plain))]

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
        regularisers = dict(drop_path_rate=config.drop_path, drop_rate=config.dropout, token_dropout=config.token_dropout)
        super().__init__(config, network_of(vars(config), **regularisers))


def erase(
    pixels: Tensor,
    probability: float,
    generator: torch.Generator,
    *,
    first: int = 0,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> Tensor:
    """Random erasing (Zhong et al., 2020) with noise: with ``probability``, a view of Float[B, 3, h, w] loses a box of 2% to a third of its
    area, of aspect 0.3 to 3.3. The ``first`` views of the batch are never erased. The noise is normal with mean 0 and variance 1 where inputs
    are normalised by ``mean`` and ``std``, which are those of the network.
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
    if (*mean, *std) != (*MEAN, *STD):
        noise = normalise(noise * noise.new_tensor(std).view(3, 1, 1) + noise.new_tensor(mean).view(3, 1, 1))
    return torch.where(box, noise, pixels)


def _changed(crops: Tensor, policy: Callable[[Image.Image], Image.Image], generator: torch.Generator) -> Tensor:
    """Crops Float[B, 3, s, s] changed by a policy of timm, which works on 8-bit images and draws from the generators of Python and NumPy."""
    seed = int(torch.randint(2**32, (), generator=generator))
    random.seed(seed)
    np.random.seed(seed)
    pixels = (255 * denormalise(crops)).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    changed = np.stack([np.asarray(policy(Image.fromarray(image))) for image in pixels])
    return normalise(torch.from_numpy(changed).to(crops.device).permute(0, 3, 1, 2).float() / 255)
