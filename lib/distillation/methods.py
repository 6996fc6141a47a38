"""DINO, MST and iBOT with any masking strategy: one learner, one step."""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib import masking
from lib.data.views import make_views, multi_crop_recipe
from lib.distillation.losses import DINOLoss, IBOTLoss
from lib.distillation.schedules import cosine_schedule, linear_then_constant
from lib.models import ProjectionHead, RestorationDecoder, network_of
from lib.training import Learner, TrainingConfig


@dataclass(frozen=True, kw_only=True)
class DistillationConfig(TrainingConfig):
    """Keys of a recipe entry with ``method: dino`` or ``method: ibot``."""

    masking: str  # a strategy of lib.masking.STRATEGIES; DINO also accepts none, its own
    mask_ratio: list[float]  # bounds of the ratio r
    mask_probability: float  # that a global crop is masked at all
    share_ratio: bool  # one r a batch instead of one a crop
    local_size: int  # pixels
    local_crops: int
    global_scale: list[float]  # area of a crop as a fraction of the image
    local_scale: list[float]
    out_dim: int  # prototypes K
    hidden_dim: int  # of the projection head
    bottleneck_dim: int  # of the projection head
    norm_last_layer: bool  # keep the last layer's gain at 1
    freeze_epochs: int  # epochs without updates of the last layer
    student_temp: float
    teacher_temp: list[float]  # at the start, after the ramp
    teacher_temp_epochs: int  # length of the ramp
    center_momentum: float
    momentum: float  # of the teacher at the start; a cosine takes it to 1

    def __post_init__(self):
        super().__post_init__()
        choices = ("none",) * (self.method == "dino") + masking.STRATEGIES
        if self.masking not in choices:
            raise ValueError(f"masking: got {self.masking!r}, method {self.method} accepts {', '.join(choices)}")


@dataclass(frozen=True, kw_only=True)
class MSTConfig(DistillationConfig):
    """Keys of a recipe entry with ``method: mst``."""

    decoder_dim: int  # width of the restoration decoder
    restoration: float  # weight of its loss beside the [CLS] loss


class Distillation(Learner):
    """A student that learns the outputs of its own moving average on other views.

    With masks, patches of its global views are hidden from it. iBOT also learns the outputs for these patches. MST (Li et al., NeurIPS
    2021, section 3.3) also restores the whole view from all tokens. DINO (Caron et al., ICCV 2021) has no masks of its own and learns
    nothing more with them.

    Args:
        config: the recipe.
        steps: length of the training.
    """

    def __init__(self, config: DistillationConfig, steps: int):
        super().__init__()
        self.config, self.steps_per_epoch = config, max(steps // config.epochs, 1)
        settings = vars(config)
        head = dict(hidden_dim=config.hidden_dim, bottleneck_dim=config.bottleneck_dim, norm_last_layer=config.norm_last_layer)
        self.student = network_of(settings, mask_token=config.masking != "none", drop_path_rate=config.drop_path)
        self.student_head = ProjectionHead(self.student.embed_dim, config.out_dim, **head)
        self.teacher = network_of(settings)
        self.teacher.load_state_dict({k: v for k, v in self.student.state_dict().items() if k != "masked_embed"})
        self.teacher_head = copy.deepcopy(self.student_head)
        self.teacher.requires_grad_(False).eval()
        self.teacher_head.requires_grad_(False).eval()
        loss = dict(student_temp=config.student_temp, center_momentum=config.center_momentum)
        if config.method == "ibot":
            self.loss = IBOTLoss(config.out_dim, patch_center_momentum=config.center_momentum, **loss)
        else:
            self.loss = DINOLoss(config.out_dim, **loss)
        self.decoder = None
        if config.method == "mst":
            self.decoder = RestorationDecoder(self.student.embed_dim, config.decoder_dim, config.patch_size)
        self.momenta = cosine_schedule(config.momentum, 1.0, steps).tolist()
        self.temperatures = linear_then_constant(*config.teacher_temp, config.epochs, config.teacher_temp_epochs).tolist()
        self.global_views, self.local_views = multi_crop_recipe(
            config.train_size, config.local_size, config.local_crops, config.global_scale, config.local_scale
        )

    @property
    def encoder(self) -> nn.Module:
        return self.teacher

    def forward(self, images: Tensor, sizes: Tensor, labels: Tensor, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Losses of one step: images uint8[B, 3, S, S], sizes Int[B, 2]; ``labels`` are not looked at.

        Returns:
            ``{"loss", …}``, scalars: the loss to descend, its parts, and ``agreement``, the share of [CLS] targets of which the
            student, on the other global view, names the same most likely prototype.
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
        if self.config.method != "ibot":
            loss = self.loss(student_cls, teacher_cls, temperature)
            figures = {"cls": loss.detach(), "agreement": agreement}
            if self.decoder is not None:
                image = F.l1_loss(self.decoder(student.patches, student.grid), whole)
                loss, figures["image"] = loss + self.config.restoration * image, image.detach()
            return {"loss": loss, **figures}

        # Only masked tokens count in the loss, so only they reach the last layer. The center is the mean over all tokens of a
        # bias-free linear layer's outputs, which is that layer's output of the mean.
        with torch.no_grad():
            projected = self.teacher_head.project(target.patches)  # [2B, N, bottleneck]
            teacher_masked = self.teacher_head.last_layer(projected[masks])  # [M, K]
            teacher_mean = self.teacher_head.last_layer(projected.mean((0, 1)).unsqueeze(0)).squeeze(0)  # [K]
        student_masked = self.student_head(student.patches[masks])  # [M, K]
        masks = masks.unflatten(0, (2, batch))
        losses = self.loss.of_masked(
            student_cls, student_masked, teacher_cls, teacher_masked, masks, teacher_mean, temperature, temperature
        )
        return {"loss": losses["total"], "cls": losses["cls"].detach(), "patch": losses["patch"].detach(), "agreement": agreement}

    def draw_masks(self, target, generator: torch.Generator) -> Tensor:
        """Bool[2B, N] for the global crops, from the teacher's ``Features`` of them."""
        attends = masking.needs_attention(self.config.masking)
        if attends and target.attention is None:
            raise ValueError(
                f"pooling: got {self.config.pooling!r}, which has no attention; AttMask accepts none, cls or simpool among others"
            )
        return masking.draw_masks(
            self.config.masking,
            len(target.patches),
            target.grid,
            attention=target.attention.float().mean(1) if attends else None,
            ratio_range=tuple(self.config.mask_ratio),
            probability=self.config.mask_probability,
            share_ratio=self.config.share_ratio,
            generator=generator,
        ).to(target.patches.device)

    def before_update(self, step: int) -> None:
        """Keep the last layer still during the first epochs (DINO, appendix C)."""
        if step < self.config.freeze_epochs * self.steps_per_epoch:
            for parameter in self.student_head.last_layer.parameters():
                parameter.grad = None

    @torch.no_grad()
    def after_update(self, step: int) -> None:
        """Move the teacher towards the student."""
        student = dict(self.student.named_parameters()) | {f"head.{n}": p for n, p in self.student_head.named_parameters()}
        teacher = dict(self.teacher.named_parameters()) | {f"head.{n}": p for n, p in self.teacher_head.named_parameters()}
        torch._foreach_lerp_(list(teacher.values()), [student[name] for name in teacher], 1 - self.momenta[step])

    def train(self, mode: bool = True):
        super().train(mode)
        self.teacher.eval()
        self.teacher_head.eval()
        return self
