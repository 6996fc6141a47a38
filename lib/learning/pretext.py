"""Pretext tasks: questions about an image whose answers are known without labels, because they were removed from the image before.

Rotation: Gidaris et al., ICLR 2018. Jigsaw: Noroozi and Favaro, ECCV 2016. Colorization: Zhang et al., ECCV 2016.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.data.views import View, denormalise, normalise
from lib.keys import Count, Part, Probability
from lib.learning.base import Pretext, PretextConfig, mlp
from lib.learning.colours import BINS, quantise, rgb_to_lab

SIDE = 3  # of the puzzle, in tiles


@dataclass(frozen=True, kw_only=True)
class JigsawConfig(PretextConfig):
    """Keys of a recipe entry with ``method: jigsaw``."""

    grey: Probability  # probability that an image loses its colours, so that they do not reveal the answer
    cell_size: Count  # pixels a side of each of the nine cells
    tile_size: Count  # pixels a side of the tile that is cut from a random place in each cell
    permutations: Count  # number of classes
    hidden_dim: Count  # of the classifier

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tile_size > self.cell_size or self.tile_size % self.patch_size:
            accepted = f"whole patches of {self.patch_size} pixels, at most cell_size ({self.cell_size})"
            raise ValueError(f"tile_size: got {self.tile_size}, accepts {accepted}")


@dataclass(frozen=True, kw_only=True)
class ColorizationConfig(PretextConfig):
    """Keys of a recipe entry with ``method: colorization``."""

    cells: Count  # predicted colours a side of a patch; 2 in patches of 8 pixels are the paper's 4-pixel cells
    rebalancing: Part  # lambda: share of the uniform distribution in the distribution of colours that weights the loss

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patch_size % self.cells:
            raise ValueError(f"cells: got {self.cells}, accepts divisors of patch_size ({self.patch_size})")


class Rotation(Pretext, method="rotation"):
    """By how many quarter turns was the image turned? Every image appears in all four orientations."""

    Config = PretextConfig

    def __init__(self, config: PretextConfig, steps: int):
        super().__init__(config, View(config.train_size, config.crop_scale, jitter_probability=0.0, grey=0.0))
        self.head = nn.Linear(self.student.num_features, 4)

    def forward(self, images: Tensor, sizes: Tensor, targets: Tensor, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        crops = self.crops(images, sizes, generator)
        turned = torch.cat([crops.rot90(times, (2, 3)) for times in range(4)])  # [4B, 3, S, S]
        turns = torch.arange(4, device=crops.device).repeat_interleave(len(crops))
        return _answers(self.head(self.student.features(turned).cls), turns)


class Jigsaw(Pretext, method="jigsaw"):
    """In which order are the nine tiles of the image? The network sees each tile alone; the vectors are concatenated in that order.

    Tiles are normalised one by one and cut from random places in their cells, so that neither a common tint nor continued edges show which
    tiles were neighbours (section 3.2).
    """

    Config = JigsawConfig
    config: JigsawConfig
    orders: Tensor

    def __init__(self, config: JigsawConfig, steps: int):
        super().__init__(config, View(SIDE * config.cell_size, config.crop_scale, jitter_probability=0.0, grey=config.grey))
        self.head = mlp(SIDE**2 * self.student.num_features, config.hidden_dim, config.permutations)
        self.register_buffer("orders", distant_permutations(config.permutations, SIDE**2))

    def forward(self, images: Tensor, sizes: Tensor, targets: Tensor, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        crops = self.crops(images, sizes, generator)
        tiles = cut_tiles(crops, self.config.cell_size, self.config.tile_size, generator)  # [B, 9, 3, t, t]
        labels = torch.randint(len(self.orders), (len(crops),), generator=generator).to(crops.device)
        shuffled = tiles[torch.arange(len(crops), device=crops.device)[:, None], self.orders[labels]]
        vectors = self.student.features(shuffled.flatten(0, 1)).cls.unflatten(0, (len(crops), -1))  # [B, 9, D]
        return _answers(self.head(vectors.flatten(1)), labels)


class Colorization(Pretext, method="colorization"):
    """Which colours does the grey image have? For each cell of a patch, one of the quantised ab bins, from the patch and the pooled vector.

    The loss weights colours by ((1 - lambda) p + lambda / Q)^-1 (eq. 4), so that greyish colours do not dominate; p is the distribution in all
    images so far, while the paper counts it in ImageNet beforehand and smooths it. Accuracy has the same weights. In training, all three
    channels of the network's input are the lightness.
    """

    Config = ColorizationConfig
    config: ColorizationConfig
    counts: Tensor

    def __init__(self, config: ColorizationConfig, steps: int):
        super().__init__(config, View(config.train_size, config.crop_scale, jitter_probability=0.0, grey=0.0))
        self.head = nn.Linear(self.student.num_features, config.cells**2 * len(BINS))
        self.register_buffer("counts", torch.zeros(len(BINS)))

    def forward(self, images: Tensor, sizes: Tensor, targets: Tensor, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        crops = self.crops(images, sizes, generator)
        lab = rgb_to_lab(denormalise(crops))
        features = self.student.features(normalise((lab[:, :1] / 100).expand(-1, 3, -1, -1)))
        height, width = (side * self.config.cells for side in features.grid)
        bins, soft = quantise(F.adaptive_avg_pool2d(lab[:, 1:], (height, width)).permute(0, 2, 3, 1))  # [B, h, w], [B, h, w, Q]
        if self.training:
            self.counts += soft.detach().flatten(0, 2).sum(0)
        logits = self.head(features.patches + features.cls[:, None])  # [B, N, cells cells Q]
        logits = logits.view(len(crops), *features.grid, self.config.cells, self.config.cells, -1).transpose(2, 3)
        logits = logits.reshape(*bins.shape, -1)  # [B, h, w, Q]
        weights = self.weights()[bins]
        entropy = F.cross_entropy(logits.flatten(0, 2), soft.flatten(0, 2), reduction="none").view_as(weights)
        right = ((logits.argmax(-1) == bins) * weights).sum() / weights.sum()
        chance = torch.zeros_like(self.counts).index_add_(0, bins.flatten(), weights.flatten()).max() / weights.sum()
        return {"loss": (weights * entropy).mean(), "right": right, "chance": chance}

    def weights(self) -> Tensor:
        """Float[Q], with mean 1 over the colours so far."""
        share = self.counts / self.counts.sum() if self.counts.sum() > 0 else torch.full_like(self.counts, 1 / len(BINS))
        weights = 1 / ((1 - self.config.rebalancing) * share + self.config.rebalancing / len(BINS))
        return weights / (share * weights).sum()


def distant_permutations(count: int, tiles: int) -> Tensor:
    """Permutations that differ in as many places as possible, Long[count, tiles].

    The first is the identity. Each of the others has the largest sum of Hamming distances to all before it; of equal ones, the first is taken
    (Noroozi and Favaro, algorithm 1, which starts at a random permutation).

    Raises:
        ValueError: fewer than 2, or more permutations than exist.
    """
    every = np.array(list(itertools.permutations(range(tiles))), dtype=np.int8)
    if not 2 <= count <= len(every):
        raise ValueError(f"count: got {count}, {tiles} tiles accept 2 to {len(every)}")
    distances = np.zeros(len(every), dtype=np.int64)
    rows = [0]
    while len(rows) < count:
        distances += (every != every[rows[-1]]).sum(1)
        distances[rows[-1]] = np.iinfo(np.int64).min // 2
        rows.append(int(distances.argmax()))
    return torch.from_numpy(every[rows]).long()


def cut_tiles(crops: Tensor, cell: int, tile: int, generator: torch.Generator) -> Tensor:
    """A tile from a random place in every cell of crops Float[B, 3, k cell, k cell]: Float[B, k k, 3, tile, tile], row-major. Each channel of
    a tile has mean 0 and standard deviation 1; the generator is on the CPU.
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
    return {"loss": F.cross_entropy(logits, truth), "right": right, "chance": right.new_tensor(1 / logits.shape[1])}
