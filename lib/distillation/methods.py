"""DINO, MST and iBOT with any masking strategy."""

import copy
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib import masking
from lib.data.views import make_views, multi_crop_recipe
from lib.distillation.losses import CenteredLoss, DINOLoss, IBOTLoss
from lib.learning.base import Learner, MethodConfig
from lib.models import Features, ProjectionHead, RestorationDecoder, network_of
from lib.schedules import cosine_schedule, linear_then_constant


@dataclass(frozen=True, kw_only=True)
class DistillationConfig(MethodConfig):
    """Keys of a recipe entry with ``method: dino`` or ``method: ibot``."""

    masking: str  # a strategy in lib.masking.STRATEGIES; DINO also accepts none, its own
    mask_ratio: list[float]  # lower and upper bound of the ratio r
    mask_probability: float  # probability that a global crop is masked
    share_ratio: bool  # one r per batch instead of one per crop
    hint_pool: float = 0.1  # fraction of the tokens, the most attended ones, of which AttMask-Hint reveals some
    local_size: int  # pixels a side
    local_crops: int
    global_scale: list[float]  # area of a crop as a fraction of the image
    local_scale: list[float]
    out_dim: int  # prototypes K
    hidden_dim: int  # of the projection head
    bottleneck_dim: int  # of the projection head
    norm_last_layer: bool  # the last layer's gain stays 1
    freeze_epochs: int  # epochs without updates of the last layer
    student_temp: float
    teacher_temp: list[float]  # at the start and after the ramp
    teacher_temp_epochs: int  # length of the ramp
    center_momentum: float
    momentum: float  # of the teacher at the start; it follows a cosine to 1

    def __post_init__(self) -> None:
        super().__post_init__()
        choices = [*["none"] * (self.method == "dino"), *masking.STRATEGIES]
        if self.masking not in choices:
            raise ValueError(f"masking: got {self.masking!r}, method {self.method} accepts {', '.join(choices)}")


@dataclass(frozen=True, kw_only=True)
class MSTConfig(DistillationConfig):
    """Keys of a recipe entry with ``method: mst``."""

    decoder_dim: int  # width of the restoration decoder
    restoration: float  # weight of its loss beside the [CLS] loss


class Views(NamedTuple):
    """The views of one step and the outputs of student and teacher. Of V views, the two global ones come first."""

    whole: Tensor  # Float[2B, 3, S, S], the global views
    masks: Tensor | None  # Bool[2B, N], True = hidden from the student
    target: Features  # the teacher's, of the global views
    student: Features  # the student's, of the global views
    teacher_cls: Tensor  # Float[2, B, K], logits of the class tokens
    student_cls: Tensor  # Float[V, B, K], logits of the class tokens
    temperature: float  # of the teacher's softmax


class Distillation(Learner):
    """A student that learns the outputs of its own moving average on other views; with masks, patches of its global views are hidden."""

    Config: ClassVar[type[DistillationConfig]] = DistillationConfig

    def __init__(self, config: DistillationConfig, steps: int):
        super().__init__()
        self.config, self.steps_per_epoch = config, max(steps // config.epochs, 1)
        settings = vars(config)
        head: dict[str, Any] = dict(
            hidden_dim=config.hidden_dim, bottleneck_dim=config.bottleneck_dim, norm_last_layer=config.norm_last_layer
        )
        self.student = network_of(settings, mask_token=config.masking != "none", drop_path_rate=config.drop_path)
        self.student_head = ProjectionHead(self.student.embed_dim, config.out_dim, **head)
        self.teacher = network_of(settings)
        self.teacher.load_state_dict({k: v for k, v in self.student.state_dict().items() if k != "masked_embed"})
        self.teacher_head = copy.deepcopy(self.student_head)
        self.teacher.requires_grad_(False).eval()
        self.teacher_head.requires_grad_(False).eval()
        self.loss = self.make_loss()
        self.momenta = cosine_schedule(config.momentum, 1.0, steps).tolist()
        start, end = config.teacher_temp
        self.temperatures = linear_then_constant(start, end, config.epochs, config.teacher_temp_epochs).tolist()
        self.global_views, self.local_views = multi_crop_recipe(
            config.train_size, config.local_size, config.local_crops, config.global_scale, config.local_scale
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
            teacher_cls = self.teacher_head(target.cls).unflatten(0, (2, batch))
        masks = None if self.config.masking == "none" else self.draw_masks(target, generator)
        student = self.student.features(whole, masks)
        cls = [student.cls] if parts is None else [student.cls, self.student.features(parts).cls]
        student_cls = self.student_head(torch.cat(cls)).unflatten(0, (-1, batch))  # [V, B, K]
        agreement = (student_cls[:2].argmax(-1).flip(0) == (teacher_cls - self.loss.center).argmax(-1)).float().mean()
        return self.losses(Views(whole, masks, target, student, teacher_cls, student_cls, temperature)) | {"agreement": agreement}

    @abstractmethod
    def make_loss(self) -> CenteredLoss:
        """The loss; the agreement is measured with its ``center``."""

    @abstractmethod
    def losses(self, views: Views) -> dict[str, Tensor]:
        """``{"loss", …}``, scalars: the loss to minimise, and its parts."""

    def draw_masks(self, target: Features, generator: torch.Generator) -> Tensor:
        """Bool[2B, N] for the global crops, from the teacher's ``Features`` of them."""
        config, attention = self.config, None
        if masking.needs_attention(config.masking):
            if target.attention is None:
                raise ValueError(
                    f"pooling: got {config.pooling!r}, which has no attention; AttMask accepts none, cls or simpool among others"
                )
            attention = target.attention.float().mean(1)
        low, high = config.mask_ratio
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
        super().train(mode)
        self.teacher.eval()
        self.teacher_head.eval()
        return self


class DINO(Distillation, method="dino"):
    """DINO (Caron et al., ICCV 2021). It has no masks of its own; with masks, the loss is the same."""

    loss: DINOLoss

    def make_loss(self) -> DINOLoss:
        return DINOLoss(self.config.out_dim, student_temp=self.config.student_temp, center_momentum=self.config.center_momentum)

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
        return IBOTLoss(config.out_dim, student_temp=config.student_temp, center_momentum=momentum, patch_center_momentum=momentum)

    def losses(self, views: Views) -> dict[str, Tensor]:
        # Only masked tokens count in the loss, so only they go through the last layer. The center is the mean output over all tokens; the
        # last layer is linear without bias, so this is its output for the mean input.
        masks = views.masks
        assert masks is not None
        with torch.no_grad():
            projected = self.teacher_head.project(views.target.patches)  # [2B, N, bottleneck]
            teacher_masked = self.teacher_head.last_layer(projected[masks])  # [M, K]
            teacher_mean = self.teacher_head.last_layer(projected.mean((0, 1)).unsqueeze(0)).squeeze(0)  # [K]
        student_masked = self.student_head(views.student.patches[masks])  # [M, K]
        masked = views.student_cls, student_masked, views.teacher_cls, teacher_masked, masks.unflatten(0, (2, -1))
        losses = self.loss.of_masked(*masked, teacher_mean, views.temperature, views.temperature)
        return {"loss": losses["total"], "cls": losses["cls"].detach(), "patch": losses["patch"].detach()}
