"""Pretext tasks: questions about an image whose answers cost nothing, because they were taken out of the image before.

Rotation: Gidaris et al., ICLR 2018. Jigsaw: Noroozi and Favaro, ECCV 2016. Colorization: Zhang et al., ECCV 2016.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.data.views import View, denormalise, make_views, normalise
from lib.learning.colours import BINS, quantise, rgb_to_lab
from lib.models import network_of
from lib.training import Learner, TrainingConfig

SIDE = 3  # of the puzzle, in tiles


@dataclass(frozen=True, kw_only=True)
class RotationConfig(TrainingConfig):
    """Keys of a recipe entry with ``method: rotation``."""

    crop_scale: list[float]  # area of the random crop as a fraction of the image


@dataclass(frozen=True, kw_only=True)
class JigsawConfig(TrainingConfig):
    """Keys of a recipe entry with ``method: jigsaw``."""

    crop_scale: list[float]  # area of the random crop as a fraction of the image
    grey: float  # probability of an image without colours, so that they do not give the answer away
    cell_size: int  # pixels a side of each of the nine cells
    tile_size: int  # pixels a side of the tile that is cut out of a cell, at a random place
    permutations: int  # among which to tell
    hidden_dim: int  # of the classifier

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.tile_size <= self.cell_size or self.tile_size % self.patch_size:
            raise ValueError(
                f"tile_size: got {self.tile_size}, accepts whole patches of {self.patch_size} pixels, at most cell_size ({self.cell_size})"
            )


@dataclass(frozen=True, kw_only=True)
class ColorizationConfig(TrainingConfig):
    """Keys of a recipe entry with ``method: colorization``."""

    crop_scale: list[float]  # area of the random crop as a fraction of the image
    cells: int  # predicted colours a side of a patch; 2 in patches of 8 pixels are the paper's 4-pixel cells
    rebalancing: float  # share of the uniform distribution in that of the colours by which the loss is weighted

    def __post_init__(self):
        super().__post_init__()
        if self.cells < 1 or self.patch_size % self.cells:
            raise ValueError(f"cells: got {self.cells}, accepts divisors of patch_size ({self.patch_size})")
        if not 0 < self.rebalancing <= 1:
            raise ValueError(f"rebalancing: got {self.rebalancing}, accepts a number in (0, 1]")


class Pretext(Learner):
    """An encoder that answers questions about random crops.

    Args:
        config: the recipe.
        size: pixels a side of the crops.
        grey: probability that a crop loses its colours.
    """

    answers = True

    def __init__(self, config: TrainingConfig, size: int, *, grey: float = 0.0):
        super().__init__()
        self.config = config
        self.student = network_of(vars(config), drop_path_rate=config.drop_path)
        self.view = View(size, tuple(config.crop_scale), jitter_probability=0.0, grey=grey)

    @property
    def encoder(self) -> nn.Module:
        return self.student

    def crops(self, images: Tensor, sizes: Tensor, generator: torch.Generator) -> Tensor:
        """Float[B, 3, size, size], normalised."""
        return make_views(images, [self.view], sizes=sizes, generator=generator)[0]


class Rotation(Pretext):
    """By how many quarter turns was the image turned? Every image is shown in all four."""

    def __init__(self, config: RotationConfig, steps: int):
        super().__init__(config, config.train_size)
        self.head = nn.Linear(self.student.num_features, 4)

    def forward(self, images: Tensor, sizes: Tensor, labels: Tensor, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        crops = self.crops(images, sizes, generator)
        turned = torch.cat([crops.rot90(times, (2, 3)) for times in range(4)])  # [4B, 3, S, S]
        turns = torch.arange(4, device=crops.device).repeat_interleave(len(crops))
        return _answers(self.head(self.student.features(turned).cls), turns)


class Jigsaw(Pretext):
    """In which order were the nine tiles of the image laid out? Each tile is seen alone; their vectors are joined in that order.

    Tiles are normalised one by one and cut out at random places of their cells, so that neither a common tint nor the continued
    edges tell which were neighbours (section 3.2).
    """

    def __init__(self, config: JigsawConfig, steps: int):
        super().__init__(config, SIDE * config.cell_size, grey=config.grey)
        self.head = nn.Sequential(
            nn.Linear(SIDE**2 * self.student.num_features, config.hidden_dim), nn.GELU(), nn.Linear(config.hidden_dim, config.permutations)
        )
        self.register_buffer("orders", distant_permutations(config.permutations, SIDE**2))

    def forward(self, images: Tensor, sizes: Tensor, labels: Tensor, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        crops = self.crops(images, sizes, generator)
        tiles = cut_tiles(crops, self.config.cell_size, self.config.tile_size, generator)  # [B, 9, 3, t, t]
        chosen = torch.randint(len(self.orders), (len(crops),), generator=generator).to(crops.device)
        shuffled = tiles[torch.arange(len(crops), device=crops.device)[:, None], self.orders[chosen]]
        vectors = self.student.features(shuffled.flatten(0, 1)).cls.unflatten(0, (len(crops), -1))  # [B, 9, D]
        return _answers(self.head(vectors.flatten(1)), chosen)


class Colorization(Pretext):
    """Which colours has the grey image? One of the quantised ab bins for each cell of a patch, from the patch and the pooled vector.

    The loss weights colours by (1 - lambda) p + lambda / Q to the power of -1 (eq. 4), so that greyish ones do not drown all others;
    p is the distribution in all images seen so far, where the paper counts ImageNet's beforehand and smooths it. Answers are
    counted with the same weights. The encoder sees lightness alone in training, in all three channels.
    """

    def __init__(self, config: ColorizationConfig, steps: int):
        super().__init__(config, config.train_size)
        self.head = nn.Linear(self.student.num_features, config.cells**2 * len(BINS))
        self.register_buffer("counts", torch.zeros(len(BINS)))

    def forward(self, images: Tensor, sizes: Tensor, labels: Tensor, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        crops = self.crops(images, sizes, generator)
        lab = rgb_to_lab(denormalise(crops))
        seen = self.student.features(normalise((lab[:, :1] / 100).expand(-1, 3, -1, -1)))
        height, width = seen.grid[0] * self.config.cells, seen.grid[1] * self.config.cells
        bins, soft = quantise(F.adaptive_avg_pool2d(lab[:, 1:], (height, width)).permute(0, 2, 3, 1))  # [B, h, w], [B, h, w, Q]
        if self.training:
            self.counts += soft.detach().flatten(0, 2).sum(0)
        logits = self.head(seen.patches + seen.cls[:, None])  # [B, N, cells cells Q]
        logits = logits.view(len(crops), *seen.grid, self.config.cells, self.config.cells, -1).transpose(2, 3)
        logits = logits.reshape(*bins.shape, -1)  # [B, h, w, Q]
        weights = self.weights()[bins]
        entropy = F.cross_entropy(logits.flatten(0, 2), soft.flatten(0, 2), reduction="none").view_as(weights)
        right = ((logits.argmax(-1) == bins) * weights).sum() / weights.sum()
        guess = torch.zeros_like(self.counts).index_add_(0, bins.flatten(), weights.flatten()).max() / weights.sum()
        return {"loss": (weights * entropy).mean(), "right": right, "guess": guess}

    def weights(self) -> Tensor:
        """Float[Q], of the mean 1 over the colours seen so far."""
        share = self.counts / self.counts.sum() if self.counts.sum() > 0 else torch.full_like(self.counts, 1 / len(BINS))
        weights = 1 / ((1 - self.config.rebalancing) * share + self.config.rebalancing / len(BINS))
        return weights / (share * weights).sum()


def distant_permutations(count: int, tiles: int) -> Tensor:
    """Permutations that differ in as many places as possible, Long[count, tiles]: from the identity on, always the one of the
    largest Hamming distance from all before it together, the first of equal ones (Noroozi and Favaro, algorithm 1, which starts at a
    random one).

    Raises:
        ValueError: more than there are.
    """
    every = np.array(list(itertools.permutations(range(tiles))), dtype=np.int8)
    if not 2 <= count <= len(every):
        raise ValueError(f"count: got {count}, {tiles} tiles accept 2 to {len(every)}")
    distances = np.zeros(len(every), dtype=np.int64)
    chosen = [0]
    while len(chosen) < count:
        distances += (every != every[chosen[-1]]).sum(1)
        distances[chosen[-1]] = np.iinfo(np.int64).min // 2
        chosen.append(int(distances.argmax()))
    return torch.from_numpy(every[chosen]).long()


def cut_tiles(crops: Tensor, cell: int, tile: int, generator: torch.Generator) -> Tensor:
    """A tile from a random place of every cell, each of mean 0 and standard deviation 1 a channel.

    Args:
        crops: Float[B, 3, k cell, k cell].
        cell, tile: pixels a side.
        generator: source of randomness, on the CPU.

    Returns:
        Float[B, k k, 3, tile, tile], row-major.
    """
    cells = crops.unfold(2, cell, cell).unfold(3, cell, cell).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)  # [B, k k, 3, cell, cell]
    corners = torch.randint(cell - tile + 1, (*cells.shape[:2], 2, 1), generator=generator).to(crops.device)
    rows, columns = (corners + torch.arange(tile, device=crops.device)).unbind(2)  # [B, k k, tile]
    batch, place = (torch.arange(n, device=crops.device) for n in cells.shape[:2])
    index = (batch[:, None, None, None], place[:, None, None], slice(None), rows[..., :, None], columns[..., None, :])
    tiles = cells[index].permute(0, 1, 4, 2, 3)
    return (tiles - tiles.mean((3, 4), keepdim=True)) / tiles.std((3, 4), keepdim=True, correction=0).clamp(min=1e-3)


def _answers(logits: Tensor, truth: Tensor) -> dict[str, Tensor]:
    right = (logits.argmax(1) == truth).float().mean()
    return {"loss": F.cross_entropy(logits, truth), "right": right, "guess": right.new_tensor(1 / logits.shape[1])}
