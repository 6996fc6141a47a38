"""What masks hide: the manipulation check of AttMask.

A comparison of masking strategies says something only if they hide different things. On images whose objects are known, this measures how
much of the objects each strategy would hide by the attention of a network, beside a fixed map of the distance to the centre of the image.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from lib import masking
from lib.data.dataset import Dataset
from lib.data.views import center_view
from lib.distillation.methods import IBOT
from lib.evaluation.base import DEFAULT, Context, Inputs
from lib.evaluation.frozen import ViewEvaluation, ViewSettings
from lib.evaluation.localization import attention_mass, localization_maps
from lib.evaluation.objects import true_objects
from lib.keys import Count, Ratio
from lib.models import Model

COVER_SIZE = 224  # pixels a side at which objects are drawn
STRATEGIES = tuple(name for name, strategy in masking.STRATEGIES.items() if strategy.ratio is None)


@dataclass(frozen=True, kw_only=True)
class HidingSettings(ViewSettings):
    """Settings of the measurement ``hiding``."""

    ratio: Ratio  # masked fraction of the patches
    draws: Count  # masks of each image, of strategies that draw at random


class Hiding(ViewEvaluation, name="hiding"):
    """How much of the objects masks hide, in percent of the objects' area in the view.

    Figures: ``hidden_`` and the name of a strategy; ``hidden_centre``, of a mask of the patches nearest to the centre of the image;
    ``attention_mass``, the share of the attention that lies on objects; ``attention_entropy``, in percent of that of a uniform attention;
    ``object_area``, the part of the views that objects cover; ``images``, their number.
    """

    Settings = HidingSettings
    once = ("images", "object_area", "hidden_centre", "hidden_random", "hidden_block")

    def load(self, *, root: str | Path | None = None, device: str | torch.device = "cpu", progress: bool = False) -> Inputs:
        """``test`` is the images and Float[M, S, S], 1 on an object: from the masks if there are masks, else from the boxes."""
        images, left_out = self.test_stream(root=root, device=device, progress=progress, boxed=True)
        _, covers = true_objects(images, crop=self.view()["crop"], size=COVER_SIZE)
        return Inputs((images, covers.get("mask_area", covers["box_area"])), None, {"test": images.fingerprint}, left_out)

    def measure(self, network: Model, inputs: Inputs, context: Context = DEFAULT) -> dict[str, float]:
        images, objects = inputs.test
        maps = localization_maps(network, images, **self.view()).get("attention")
        if maps is None:
            raise ValueError("network: got one without attention, hiding accepts networks with a class token or attention pooling")
        grid, attention = (maps.shape[1], maps.shape[2]), maps.flatten(1)
        cover = F.adaptive_avg_pool2d(objects, grid).flatten(1)  # [M, N]
        shares = attention / attention.sum(1, keepdim=True)
        entropy = -torch.xlogy(shares, shares).sum(1) / torch.tensor(float(shares.shape[1])).log()
        figures = {
            "images": float(len(maps)),
            "object_area": 100 * objects.mean().item(),
            "attention_mass": 100 * attention_mass(maps, objects).mean().item(),
            "attention_entropy": 100 * entropy.mean().item(),
            "hidden_centre": self.hidden("attmask_low", _from_centre(grid).expand_as(attention), cover, grid),
        }
        return figures | {f"hidden_{name}": self.hidden(name, attention, cover, grid) for name in STRATEGIES}

    def hidden(self, strategy: str, attention: Tensor, cover: Tensor, grid: tuple[int, int]) -> float:
        """The part of the objects that masks of a strategy hide, in percent: attention and cover Float[M, N]."""
        generator = torch.Generator().manual_seed(0)
        draws = 1 if strategy in ("attmask_high", "attmask_low") else self.settings.draws
        masks = [_masks(strategy, attention, grid, self.settings.ratio, generator) for _ in range(draws)]
        return 100 * (torch.stack(masks).float().mean(0) * cover).sum().item() / cover.sum().item()


@torch.no_grad()
def fill_in_losses(learner: IBOT, source: Dataset, *, ratio: float = 0.3, images: int = 256) -> dict[str, float]:
    """How hard it is to fill in what each strategy hides: ``fill_`` and the name of a strategy, the patch loss in nats.

    Args:
        learner: student and teacher; they are left in evaluation mode.
        source: held-out images, one or more.
        ratio: masked fraction of the patches of every image.
        images: how many of them, evenly spaced, so that all classes are there.

    Returns:
        Nothing for a network without attention; nor where several processes train, of which one evaluates: Sinkhorn-Knopp centering and batch
        norm would wait for the others.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return {}
    learner.eval()
    config, device = learner.config, next(learner.parameters()).device
    rows = torch.linspace(0, len(source) - 1, min(images, len(source))).long()
    [(pixels, sizes, _)] = source.batches([rows])
    views = center_view(pixels, config.eval_size, crop=config.eval_crop, sizes=sizes).to(device)
    target = learner.teacher.features(views)
    if target.attention is None:
        return {}
    attention, losses = target.attention.float().mean(1), {}
    for name in STRATEGIES:
        masks = _masks(name, attention, target.grid, ratio, torch.Generator().manual_seed(0))
        losses[f"fill_{name}"] = learner.patch_loss(views, target, masks).item()
    return losses


def _masks(strategy: str, attention: Tensor, grid: tuple[int, int], ratio: float, generator: torch.Generator) -> Tensor:
    """A mask Bool[M, N] of the same ratio for every attention of Float[M, N]."""
    ratios = (ratio, ratio)
    return masking.draw_masks(strategy, len(attention), grid, attention=attention, ratio_range=ratios, probability=1.0, generator=generator)


def _from_centre(grid: tuple[int, int]) -> Tensor:
    """Distances Float[H W] of the patches to the centre of the image."""
    rows, columns = (torch.arange(side) - (side - 1) / 2 for side in grid)
    return (rows[:, None].square() + columns.square()).sqrt().flatten()
