"""The objects that the training loop trains: a learner and its configuration. Each method declares both, and its name, in one file."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lib.data.views import View, make_views
from lib.keys import Amount, Count, Keys, Number, Part, Positive, Probability, Seed
from lib.learning.optimizers import make_optimizer
from lib.models import Model, network_of
from lib.pooling import pooling_names

METHODS: dict[str, type["Learner"]] = {}  # by name, in the order of their declaration


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Keys):
    """Keys of every training. Their values are in ``recipes/``."""

    data: str  # a card in data_cards/
    fraction: Part  # of each class's training images
    canvas: Count  # pixels a side of the decoded images
    train_size: Count  # pixels a side in training; of the global crops with multi-crop
    eval_size: Count  # pixels a side in evaluation
    epochs: Count
    batch_size: Count  # images a step, over all processes
    lr: Amount  # at a batch of 256; scaled linearly
    lr_final: Amount  # end of the cosine, not scaled
    warmup_epochs: Amount
    weight_decay: Amount  # of matrices, at the start
    weight_decay_final: Amount  # end of the cosine
    clip: Amount  # upper bound of each parameter's gradient norm; 0 is none
    precision: Literal["float32", "bfloat16"]  # bfloat16 is autocast
    compile: bool  # torch.compile
    drop_path: Probability  # probability, at the last block
    checkpoint_steps: Count  # steps between checkpoints
    log_steps: Count  # steps between lines of the log


@dataclass(frozen=True, kw_only=True)
class MethodConfig(TrainingConfig):
    """Keys that every recipe entry has: those of a training, its network, and its evaluation by k-NN."""

    method: str  # a name in METHODS
    seed: Seed
    arch: str  # a name that lib.models.create_model accepts
    patch_size: Count  # pixels; of Vision Transformers
    pooling: str  # a name in lib.pooling.pooling_names(); none is the network's own
    gamma: Positive  # of SimPool
    pooling_options: dict = field(default_factory=dict)  # other options of the pooling, see its class
    eval_crop: Part  # side of the evaluated crop as a fraction of the image's shorter side
    knn_epochs: Number  # epochs between k-NN evaluations; 0 evaluates at the end only
    knn_k: list[Count]  # neighbours
    checks: dict = field(default_factory=dict)  # measurements of the network after each epoch, by name, with all their settings

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.knn_k:
            raise ValueError("knn_k: got [], accepts at least one number of neighbours")
        if self.pooling != "none" and self.pooling not in pooling_names():
            raise ValueError(f"pooling: got {self.pooling!r}, accepts none, {', '.join(pooling_names())}")
        if "gamma" in self.pooling_options or (self.pooling_options and self.pooling == "none"):
            raise ValueError(f"pooling_options: got {self.pooling_options}, accepts options of a pooling; gamma is a key of its own")


class Learner(nn.Module):
    """A module that ``lib.engine.loop.train`` trains.

    ``learner(images, sizes, targets, step, generator)`` on a batch of a ``lib.data.Dataset`` returns a dict of scalars: ``"loss"`` is minimised,
    and all are logged. A subclass with a name, ``class DINO(Learner, method="dino")``, is a method of recipe entries; it is created as
    ``DINO(config, steps)`` from its ``Config`` and the length of the training.

    A learner with ``pretext`` also returns ``"right"`` and ``"chance"``: the fractions in [0, 1] of its pretext questions that the network, and
    the best constant answer, answer correctly.
    """

    Config: ClassVar[type[TrainingConfig]]
    pretext: ClassVar[bool] = False
    encoder: Any  # the network that is evaluated and kept; an attribute or a property

    def __init_subclass__(cls, *, method: str | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        if method is not None:
            METHODS[method] = cls

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Its parameter groups have ``"decays"``, whether weight decay applies, and optionally ``"lr_scale"``, a factor of the rate."""
        return make_optimizer(self)

    def before_update(self, step: int) -> None:
        """Called between the backward pass and the optimiser's step."""

    def after_update(self, step: int) -> None:
        """Called after the optimiser's step."""

    def compile_blocks(self) -> None:
        """Compile each transformer block on its own, which is quick and accepts any shape; other networks are compiled whole."""
        for network in [module for module in self.modules() if isinstance(module, Model)]:
            blocks = getattr(network, "blocks", None)
            for block in [network] if blocks is None else blocks[:-1]:  # the last block returns its attention
                block.compile()


@dataclass(frozen=True, kw_only=True)
class PretextConfig(MethodConfig):
    """Keys of a recipe entry with ``method: rotation``, and of every pretext task."""

    crop_scale: list[Part]  # area of the random crop as a fraction of the image


class Pretext(Learner):
    """A network that solves a pretext task on random crops.

    Args:
        config: the recipe.
        view: how a crop is made.
    """

    pretext = True

    def __init__(self, config: PretextConfig, view: View):
        super().__init__()
        self.config, self.view = config, view
        self.student = network_of(vars(config), drop_path_rate=config.drop_path)

    @property
    def encoder(self) -> nn.Module:
        return self.student

    def crops(self, images: Tensor, sizes: Tensor, generator: torch.Generator, *, count: int = 1) -> Tensor:
        """Float[count B, 3, size, size], normalised."""
        return torch.cat(make_views(images, [self.view] * count, sizes=sizes, generator=generator))


def mlp(in_dim: int, hidden_dim: int, out_dim: int) -> nn.Sequential:
    """Two linear layers with GELU between them."""
    return nn.Sequential(nn.Linear(in_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, out_dim))
