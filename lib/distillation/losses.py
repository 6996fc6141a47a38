"""Distillation losses: DINO (Caron et al., ICCV 2021) and iBOT (Zhou et al., ICLR 2022)."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

CENTERINGS = ("ema", "sinkhorn")


class CenteredLoss(nn.Module):
    """Cross-entropy between views, with centered targets of the teacher: without centering, all targets become the same.

    Args:
        out_dim: number of prototypes K.
        student_temp: temperature of the student's softmax.
        center_momentum: of the moving average.
        centering: ``ema`` subtracts the moving average of the teacher's logits, the buffer ``center [K]``, from them. It is updated after it
            has been used, and averaged over processes. ``sinkhorn`` gives all prototypes the same weight in each batch, see ``sinkhorn``;
            ``center`` stays 0.

    Raises:
        ValueError: an unknown centering.
    """

    center: Tensor

    def __init__(self, out_dim: int, *, student_temp: float = 0.1, center_momentum: float = 0.9, centering: str = "ema"):
        super().__init__()
        if centering not in CENTERINGS:
            raise ValueError(f"centering: got {centering!r}, accepts {', '.join(CENTERINGS)}")
        self.student_temp, self.center_momentum, self.centering = student_temp, center_momentum, centering
        self.register_buffer("center", torch.zeros(out_dim))

    def targets(self, teacher: Tensor, center: Tensor, temperature: float) -> Tensor:
        """The teacher's targets, distributions over the prototypes, of its logits Float[..., K]."""
        return sinkhorn(teacher, temperature) if self.centering == "sinkhorn" else sharpen(teacher, center, temperature)

    def update(self, center: Tensor, batch_mean: Tensor | None, momentum: float) -> None:
        """Move a center towards the mean of the batch if the centering is ``ema``."""
        if self.centering == "ema" and batch_mean is not None:
            update_center(center, batch_mean, momentum)

    def cross_entropy(self, student: Tensor, teacher: Tensor, teacher_temp: float) -> Tensor:
        """The mean over pairs of each teacher global view with every other student view, see ``DINOLoss.forward``."""
        targets = self.targets(teacher, self.center, teacher_temp)  # [2, B, K]
        logits = at_least_float32(student) / self.student_temp  # [V, B, K]
        # CE(t, s) = logsumexp(s) - <t, s>. The sum over all pairs without those of a view with itself needs one pass over [V, B, K] for
        # the dot products: sum_q <t_q, sum_v s_v> - sum_q <t_q, s_q>.
        normalisers = logits.logsumexp(-1)  # [V, B]
        others = logits.sum(0, keepdim=True) - logits[:2]  # [2, B, K]
        agreement = (targets * others).sum(-1)  # [2, B]
        total = (normalisers.sum(0, keepdim=True) - normalisers[:2] - agreement).sum(0)  # [B]
        return total.mean() / (2 * (len(student) - 1))


class DINOLoss(CenteredLoss):
    """Cross-entropy of each teacher global view against every other student view (DINO eq. 3)."""

    def forward(self, student: Tensor, teacher: Tensor, teacher_temp: float) -> Tensor:
        """
        Args:
            student: Float[V, B, K] logits, the two global views first.
            teacher: Float[2, B, K] logits of the global views.
            teacher_temp: temperature of the teacher's softmax.

        Returns:
            The loss in nats, a scalar: mean over the 2 (V - 1) pairs of different views and over the batch.

        Raises:
            ValueError: shapes that do not fit.
        """
        _check_views(student, teacher, self.center)
        loss = self.cross_entropy(student, teacher, teacher_temp)
        self.update(self.center, at_least_float32(teacher).flatten(0, 1).mean(0), self.center_momentum)
        return loss


class IBOTLoss(CenteredLoss):
    """iBOT: the DINO loss on [CLS] plus self-distillation of the masked patches (iBOT eq. 2 and 3).

    Args:
        out_dim, student_temp, center_momentum: as in ``CenteredLoss``, for [CLS].
        centering: as in ``CenteredLoss``, of the [CLS] tokens and, apart from them, of the patches.
        patch_dim: number of patch prototypes P; None is K.
        patch_center_momentum: of the buffer ``patch_center [P]``, which averages over all patches, masked or not.
    """

    patch_center: Tensor

    def __init__(
        self,
        out_dim: int,
        patch_dim: int | None = None,
        *,
        student_temp: float = 0.1,
        center_momentum: float = 0.9,
        patch_center_momentum: float = 0.9,
        centering: str = "ema",
    ):
        super().__init__(out_dim, student_temp=student_temp, center_momentum=center_momentum, centering=centering)
        self.patch_center_momentum = patch_center_momentum
        self.register_buffer("patch_center", torch.zeros(out_dim if patch_dim is None else patch_dim))

    def forward(
        self,
        student_cls: Tensor,
        student_patches: Tensor,
        teacher_cls: Tensor,
        teacher_patches: Tensor,
        masks: Tensor,
        teacher_temp: float,
        teacher_patch_temp: float,
    ) -> dict[str, Tensor]:
        """
        Args:
            student_cls: Float[V, B, K] logits, globals first.
            student_patches: Float[2, B, N, P] logits of the masked global views.
            teacher_cls: Float[2, B, K] logits.
            teacher_patches: Float[2, B, N, P] logits of the unmasked views.
            masks: Bool[2, B, N], True = masked.
            teacher_temp, teacher_patch_temp: temperatures of the teacher's [CLS] and patch softmax.

        Returns:
            ``{"cls", "patch", "total"}``, scalars in nats. The patch loss is the mean over masked tokens of an image, then over all images of
            both views; an image without masked tokens counts as 0.

        Raises:
            ValueError: shapes that do not fit.
        """
        _check_views(student_cls, teacher_cls, self.center)
        batch, width, shape, teacher_shape = teacher_cls.shape[1], len(self.patch_center), student_patches.shape, teacher_patches.shape
        if shape != teacher_shape or len(shape) != 4 or (shape[0], shape[1], shape[3]) != (2, batch, width):
            got = f"got {tuple(shape)} beside teacher_patches {tuple(teacher_shape)}"
            raise ValueError(f"student_patches: {got}, accepts two [2, {batch}, N, {width}]")
        if masks.dtype != torch.bool or masks.shape != shape[:3]:
            raise ValueError(f"masks: got {masks.dtype} of shape {tuple(masks.shape)}, accepts bool of shape {tuple(shape[:3])}")
        teacher_mean = at_least_float32(teacher_patches).flatten(0, 2).mean(0)
        masked = student_cls, student_patches[masks], teacher_cls, teacher_patches[masks], masks
        return self.of_masked(*masked, teacher_mean, teacher_temp, teacher_patch_temp)

    def of_masked(
        self,
        student_cls: Tensor,
        student_masked: Tensor,
        teacher_cls: Tensor,
        teacher_masked: Tensor,
        masks: Tensor,
        teacher_patch_mean: Tensor | None,
        teacher_temp: float,
        teacher_patch_temp: float,
    ) -> dict[str, Tensor]:
        """The same loss from the M masked tokens alone, so that no head runs on tokens that do not count.

        Args:
            student_cls, teacher_cls, masks, teacher_temp, teacher_patch_temp: as in ``forward``.
            student_masked: Float[M, P] logits of the masked tokens, in the order of ``masks.nonzero()``.
            teacher_masked: Float[M, P] logits of the same tokens.
            teacher_patch_mean: Float[P], mean of the teacher's logits over all patches, for the center; ``sinkhorn`` needs none.
        """
        _check_views(student_cls, teacher_cls, self.center)
        cls = self.cross_entropy(student_cls, teacher_cls, teacher_temp)
        counts = masks.sum(-1, keepdim=True).clamp(min=1).expand(masks.shape)[masks]  # [M], masked tokens in the token's image
        targets = self.targets(teacher_masked, self.patch_center, teacher_patch_temp)  # [M, P]
        logits = at_least_float32(student_masked) / self.student_temp
        entropy = F.cross_entropy(logits, targets, reduction="none")  # [M]
        patch = (entropy / counts).sum() / (masks.shape[0] * masks.shape[1])
        self.update(self.center, at_least_float32(teacher_cls).flatten(0, 1).mean(0), self.center_momentum)
        self.update(self.patch_center, teacher_patch_mean, self.patch_center_momentum)
        return {"cls": cls, "patch": patch, "total": cls + patch}


def sharpen(teacher: Tensor, center: Tensor, temperature: float) -> Tensor:
    """The teacher's targets: softmax over the last dimension of the centered logits, without gradient."""
    return ((at_least_float32(teacher.detach()) - center) / temperature).softmax(-1)


@torch.no_grad()
def sinkhorn(teacher: Tensor, temperature: float, *, iterations: int = 3) -> Tensor:
    """The teacher's targets, with the same weight for all prototypes in the batch, by the algorithm of Sinkhorn and Knopp.

    It starts from the softmax of each sample. Each iteration gives all prototypes the same weight in the batch, and then every sample the
    weight 1 (SwAV: Caron et al., NeurIPS 2020, section 3.1; in place of the center in DINOv2: Oquab et al., TMLR 2024, section 4).

    Args:
        teacher: logits Float[..., K]. All leading dimensions, and those of all processes, are one batch of samples; a process may have none.
        temperature: of the softmax.
        iterations: their number.

    Returns:
        Float of the same shape, at least 32 bits; each sample sums to 1.
    """
    targets = (at_least_float32(teacher) / temperature).softmax(-1).flatten(0, -2)  # [n, K]
    for _ in range(iterations):
        weights = targets.sum(0)  # [K], of the prototypes
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(weights)
        targets = targets / weights.clamp(min=torch.finfo(weights.dtype).tiny)
        targets = targets / targets.sum(-1, keepdim=True)
    return targets.view(teacher.shape)


def koleo(vectors: Tensor) -> Tensor:
    """Minus the mean log distance of each vector to the nearest of the others, after scaling all to unit length: the regulariser that
    spreads vectors evenly over the sphere (Sablayrolles et al., ICLR 2019; DINOv2, section 4). The batch is that of one process.

    Args:
        vectors: Float[B, D], B >= 2.
    """
    unit = F.normalize(at_least_float32(vectors), dim=-1)
    with torch.no_grad():
        nearest = (unit @ unit.T).fill_diagonal_(-2).argmax(1)
    return -(F.pairwise_distance(unit, unit[nearest]) + 1e-8).log().mean()


@torch.no_grad()
def update_center(center: Tensor, batch_mean: Tensor, momentum: float) -> None:
    """Move ``center`` [K] towards the mean over the batch and over all processes, in place."""
    batch_mean = batch_mean.detach().to(center.dtype)
    if dist.is_available() and dist.is_initialized():
        batch_mean = batch_mean.clone()
        dist.all_reduce(batch_mean)
        batch_mean /= dist.get_world_size()
    center.lerp_(batch_mean, 1 - momentum)


def at_least_float32(logits: Tensor) -> Tensor:
    """16-bit logits as float32; others unchanged."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _check_views(student: Tensor, teacher: Tensor, center: Tensor) -> None:
    if teacher.ndim != 3 or len(teacher) != 2 or teacher.shape[-1] != len(center):
        raise ValueError(f"teacher: got shape {tuple(teacher.shape)}, accepts [2, B, {len(center)}]")
    if student.ndim != 3 or len(student) < 2 or student.shape[1:] != teacher.shape[1:]:
        accepted = f"[V, {teacher.shape[1]}, {len(center)}] with V >= 2, globals first"
        raise ValueError(f"student: got shape {tuple(student.shape)}, accepts {accepted}")
