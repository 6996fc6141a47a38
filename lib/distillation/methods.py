"""DINO, MST and iBOT with any masking strategy."""

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Self

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers import DropPath, convert_sync_batchnorm
from torch import Tensor, nn

from lib import masking
from lib.data.views import make_views, multi_crop_recipe
from lib.distillation.losses import CenteredLoss, Centering, DINOLoss, IBOTLoss, at_least_float32, koleo
from lib.keys import Amount, Count, Number, Part, Positive, Probability
from lib.learning.base import Learner, MethodConfig
from lib.learning.optimizers import Optimizer, make_optimizer
from lib.models import Features, Model, ProjectionHead, RestorationDecoder, network_of
from lib.models.heads import HeadNorm
from lib.schedules import cosine_schedule, linear_then_constant


@dataclass(frozen=True, kw_only=True)
class DistillationConfig(MethodConfig):
    """Keys of a recipe entry with ``method: dino`` or ``method: ibot``."""

    masking: str  # a strategy in lib.masking.STRATEGIES; DINO also accepts none, its own
    mask_ratio: list[Probability]  # lower and upper bound of the ratio r
    mask_probability: Probability  # probability that a global crop is masked
    share_ratio: bool  # one r per batch, of all processes, instead of one per crop
    hint_pool: Probability = 0.1  # fraction of the tokens, the most attended ones, of which AttMask-Hint reveals some
    local_size: Count  # pixels a side
    local_crops: Number
    global_scale: list[Part]  # area of a crop as a fraction of the image
    local_scale: list[Part]
    out_dim: Count  # prototypes K
    hidden_dim: Count  # of the projection head
    bottleneck_dim: Count  # of the projection head
    norm_last_layer: bool  # the last layer's gain stays 1
    freeze_epochs: Number  # epochs without updates of the last layer
    student_temp: Positive
    teacher_temp: list[Positive]  # at the start and after the ramp
    teacher_temp_epochs: Number  # length of the ramp
    center_momentum: Probability
    momentum: Probability  # of the teacher at the start; it follows a cosine to 1
    centering: Centering = "ema"  # of the teacher's outputs, see lib.distillation.losses.CenteredLoss
    head_norm: HeadNorm = "none"  # in the hidden layers of the projection head
    koleo: Amount = 0.0  # weight of the loss that spreads the class tokens of a batch, lib.distillation.losses.koleo
    blur: list[Probability] = field(default_factory=lambda: [1.0, 0.1, 0.5])  # in the first and second global view, and in local ones
    blur_sigma: list[Amount] = field(default_factory=lambda: [0.1, 2.0])  # lower and upper bound, in pixels
    solarise: Probability = 0.2  # probability in the second global view
    optimizer: Optimizer = "adamw"
    teacher_drop_path: Probability = 0.0  # probability, at the last block of the teacher, which DINO's code has for ConvNeXts
    released_positions: bool = False  # interpolate positions, for local crops, like the released code, see lib.models.create_model
    guide: str = ""  # a kept network whose attention the masks follow in place of the teacher's, see lib.keep

    def __post_init__(self) -> None:
        super().__post_init__()
        choices = [*["none"] * (self.method == "dino"), *masking.STRATEGIES]
        if self.masking not in choices:
            raise ValueError(f"masking: got {self.masking!r}, method {self.method} accepts {', '.join(choices)}")


@dataclass(frozen=True, kw_only=True)
class MSTConfig(DistillationConfig):
    """Keys of a recipe entry with ``method: mst``."""

    decoder_dim: Count  # width of the restoration decoder
    restoration: Amount  # weight of its loss beside the [CLS] loss


class Views(NamedTuple):
    """The views of one step and the outputs of student and teacher. Of V views, the two global ones come first."""

    whole: Tensor  # Float[2B, 3, S, S], the global views
    masks: Tensor | None  # Bool[2B, N], True = hidden from the student
    target: Features  # the teacher's, of the global views
    student: Features  # the student's, of the global views
    teacher_cls: Tensor  # Float[2, B, K], logits of the class tokens
    student_cls: Tensor  # Float[V, B, K], logits of the class tokens
    temperature: float  # of the teacher's softmax


class Distillation(Learner, ABC):
    """A student that learns the outputs of its own moving average on other views; with masks, patches of its global views are hidden."""

    Config: ClassVar[type[DistillationConfig]] = DistillationConfig

    def __init__(self, config: DistillationConfig, steps: int):
        super().__init__()
        self.config, self.steps_per_epoch = config, max(steps // config.epochs, 1)
        settings = vars(config)
        head: dict[str, Any] = dict(
            hidden_dim=config.hidden_dim,
            bottleneck_dim=config.bottleneck_dim,
            norm_last_layer=config.norm_last_layer,
            norm=config.head_norm,
        )
        # As in DINO's code, batch norms take their statistics over all processes.
        self.student = convert_sync_batchnorm(network_of(settings, mask_token=config.masking != "none", drop_path_rate=config.drop_path))
        self.student_head = ProjectionHead(self.student.embed_dim, config.out_dim, **head)
        self.teacher = convert_sync_batchnorm(network_of(settings, drop_path_rate=config.teacher_drop_path))
        self.teacher.load_state_dict({k: v for k, v in self.student.state_dict().items() if k != "masked_embed"})
        self.teacher_head = copy.deepcopy(self.student_head)
        self.teacher.requires_grad_(False).eval()
        self.teacher_head.requires_grad_(False).eval()
        self.guide: Model | None = None  # set by who builds the learner, see ``DistillationConfig.guide``
        self.loss = self.make_loss()
        self.momenta = cosine_schedule(config.momentum, 1.0, steps).tolist()
        start, end = config.teacher_temp
        self.temperatures = linear_then_constant(start, end, config.epochs, config.teacher_temp_epochs).tolist()
        self.global_views, self.local_views = multi_crop_recipe(
            config.train_size,
            config.local_size,
            config.local_crops,
            config.global_scale,
            config.local_scale,
            blur=config.blur,
            blur_sigma=config.blur_sigma,
            solarise=config.solarise,
        )

    @property
    def encoder(self) -> nn.Module:
        return self.teacher

    def forward(self, images: Tensor, sizes: Tensor, targets: Tensor, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Losses of one step: images uint8[B, 3, S, S], sizes Int[B, 2]; ``targets`` are not used.

        Returns:
            ``{"loss", …}``, scalars: the loss to minimise, its parts, and ``agreement``, the fraction of [CLS] targets whose most likely
            prototype is also the student's on the other global view.
        """
        batch = len(images)
        views = make_views(images, self.global_views + self.local_views, sizes=sizes, generator=generator)
        whole, parts = torch.cat(views[:2]), torch.cat(views[2:]) if len(views) > 2 else None  # [2B, 3, S, S], [LB, 3, s, s]
        temperature = self.temperatures[min(step // self.steps_per_epoch, len(self.temperatures) - 1)]

        with torch.no_grad():
            target = self.teacher.features(whole)
            teacher_cls = self.teacher_head.precise(self.teacher_head.project(target.cls)).unflatten(0, (2, batch))
        masks = (
            None
            if self.config.masking == "none"
            else self.draw_masks(target if self.guide is None else self.guide.features(whole), generator)
        )
        student = self.student.features(whole, masks)
        cls = [student.cls] if parts is None else [student.cls, self.student.features(parts).cls]
        student_cls = self.student_head(torch.cat(cls)).unflatten(0, (-1, batch))  # [V, B, K]
        agreement = (student_cls[:2].argmax(-1).flip(0) == (teacher_cls - self.loss.center).argmax(-1)).float().mean()
        losses = self.losses(Views(whole, masks, target, student, teacher_cls, student_cls, temperature)) | {"agreement": agreement}
        if self.config.koleo:
            spread = torch.stack([koleo(view) for view in student.cls.chunk(2)]).mean()
            losses |= {"loss": losses["loss"] + self.config.koleo * spread, "koleo": spread.detach()}
        return losses

    @abstractmethod
    def make_loss(self) -> CenteredLoss:
        """The loss; the agreement is measured with its ``center``."""

    @abstractmethod
    def losses(self, views: Views) -> dict[str, Tensor]:
        """``{"loss", …}``, scalars: the loss to minimise, and its parts."""

    def draw_masks(self, target: Features, generator: torch.Generator) -> Tensor:
        """Bool[2B, N] for the global crops, from the teacher's, or the guide's, ``Features`` of them."""
        config, attention = self.config, None
        if masking.needs_attention(config.masking):
            if target.attention is None:
                raise ValueError(
                    f"pooling: got {config.pooling!r}, which has no attention; AttMask accepts none, cls or simpool among others"
                )
            attention = target.attention.float().mean(1)
        low, high = config.mask_ratio
        if config.share_ratio and dist.is_available() and dist.is_initialized():  # the first process's draw for all
            low = high = _of_first_process(low + (high - low) * torch.rand((), generator=generator), target.patches.device)
        return masking.draw_masks(
            config.masking,
            len(target.patches),
            target.grid,
            attention=attention,
            ratio_range=(low, high),
            probability=config.mask_probability,
            share_ratio=config.share_ratio,
            hint_pool=config.hint_pool,
            generator=generator,
        ).to(target.patches.device)

    def make_optimizer(self) -> torch.optim.Optimizer:
        return make_optimizer(self, self.config.optimizer)

    def before_update(self, step: int) -> None:
        """Do not train the last layer during the first epochs (DINO, appendix C)."""
        if step < self.config.freeze_epochs * self.steps_per_epoch:
            for parameter in self.student_head.last_layer.parameters():
                parameter.grad = None

    @torch.no_grad()
    def after_update(self, step: int) -> None:
        """Move the teacher towards the student."""
        student = dict(self.student.named_parameters()) | {f"head.{n}": p for n, p in self.student_head.named_parameters()}
        teacher = dict(self.teacher.named_parameters()) | {f"head.{n}": p for n, p in self.teacher_head.named_parameters()}
        torch._foreach_lerp_(list(teacher.values()), [student[name] for name in teacher], 1 - self.momenta[step])

    def train(self, mode: bool = True) -> Self:
        """Only the student is in training mode. The teacher's batch norms are as well, as in DINO's code: they use the statistics of its
        batches, and collect the running averages with which it is evaluated. So is its drop-path, where it has one.
        """
        super().train(mode)
        for network in (self.teacher, self.teacher_head, self.guide):
            if network is not None:
                network.eval()
        for module in self.teacher.modules():
            if isinstance(module, (nn.modules.batchnorm._BatchNorm, DropPath)):
                module.train(mode)
        return self


class DINO(Distillation, method="dino"):
    """DINO (Caron et al., ICCV 2021). It has no masks of its own; with masks, the loss is the same."""

    loss: DINOLoss

    def make_loss(self) -> DINOLoss:
        config = self.config
        common: dict[str, Any] = dict(student_temp=config.student_temp, center_momentum=config.center_momentum)
        return DINOLoss(config.out_dim, centering=config.centering, **common)

    def losses(self, views: Views) -> dict[str, Tensor]:
        loss = self.loss(views.student_cls, views.teacher_cls, views.temperature)
        return {"loss": loss, "cls": loss.detach()}


class MST(DINO, method="mst"):
    """MST (Li et al., NeurIPS 2021, section 3.3), which also restores the whole view from all tokens."""

    Config = MSTConfig
    config: MSTConfig

    def __init__(self, config: MSTConfig, steps: int):
        super().__init__(config, steps)
        self.decoder = RestorationDecoder(self.student.embed_dim, config.decoder_dim, config.patch_size)

    def losses(self, views: Views) -> dict[str, Tensor]:
        losses = super().losses(views)
        image = F.l1_loss(self.decoder(views.student.patches, views.student.grid), views.whole)
        return losses | {"loss": losses["loss"] + self.config.restoration * image, "image": image.detach()}


class IBOT(Distillation, method="ibot"):
    """iBOT (Zhou et al., ICLR 2022), which also learns the outputs for the masked patches."""

    loss: IBOTLoss

    def make_loss(self) -> IBOTLoss:
        config, momentum = self.config, self.config.center_momentum
        common: dict[str, Any] = dict(student_temp=config.student_temp, center_momentum=momentum, patch_center_momentum=momentum)
        return IBOTLoss(config.out_dim, centering=config.centering, **common)

    def losses(self, views: Views) -> dict[str, Tensor]:
        assert views.masks is not None
        *masked, teacher_mean = self.masked_logits(views.student, views.target, views.masks)
        tensors = views.student_cls, masked[0], views.teacher_cls, masked[1], views.masks.unflatten(0, (2, -1)), teacher_mean
        losses = self.loss.of_masked(*tensors, views.temperature, views.temperature)
        return {"loss": losses["total"], "cls": losses["cls"].detach(), "patch": losses["patch"].detach()}

    def masked_logits(self, student: Features, target: Features, masks: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Logits Float[M, K] of student and teacher for the masked tokens, and the teacher's mean logits Float[K] over all patches.

        Only masked tokens count in the loss, so only they go through the last layer. It is linear without bias, so the mean of its outputs
        is its output for the mean input. Only a center that is a moving average needs this mean; otherwise it is None.
        """
        student_masked, mean = self.student_head(student.patches[masks]), None
        with torch.no_grad():
            if self.loss.centering == "ema":
                projected = self.teacher_head.project(target.patches)  # [2B, N, bottleneck]
                teacher_masked = self.teacher_head.precise(projected[masks])
                mean = self.teacher_head.precise(projected.mean((0, 1)).unsqueeze(0)).squeeze(0)
            else:
                teacher_masked = self.teacher_head.precise(self.teacher_head.project(target.patches[masks]))
        return student_masked, teacher_masked, mean

    @torch.no_grad()
    def patch_loss(self, images: Tensor, target: Features, masks: Tensor) -> Tensor:
        """How hard it is to fill in masked patches: the mean cross-entropy of the masked tokens, in nats, without an update of the center.

        Args:
            images: Float[B, 3, S, S], normalised views.
            target: the teacher's features of them.
            masks: Bool[B, N], True = masked.
        """
        student_masked, teacher_masked, _ = self.masked_logits(self.student.features(images, masks), target, masks)
        targets = self.loss.targets(teacher_masked, self.loss.patch_center, self.temperatures[-1])
        return F.cross_entropy(at_least_float32(student_masked) / self.loss.student_temp, targets)


def _of_first_process(value: Tensor, device: torch.device) -> float:
    """A number, as the first process has it."""
    value = value.to(device)
    dist.broadcast(value, 0)
    return value.item()
