"""The plain versions that ours are compared with: every formula as it is written, nothing left out and nothing fused."""

import torch
import torch.nn.functional as F
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode, v2

from lib.data.views import MEAN, STD, View, make_views


class LiteralStep:
    """iBOT's step with all tokens through all layers: full attention maps, logits of every patch, a loop over pairs of views."""

    def __init__(self, learner):
        self.learner = learner
        for network in (learner.student, learner.teacher):
            for block in network.blocks:
                block.attn.fused_attn = False

    def __call__(self, images, generator) -> dict:
        ours, batch = self.learner, len(images)
        views = make_views(images, ours.global_views + ours.local_views, generator=generator)
        whole = torch.cat(views[:2])
        with torch.no_grad():
            target, attention = features(ours.teacher, whole)
            teacher_cls, teacher_patches = ours.teacher_head(target[:, 0]), ours.teacher_head(target[:, 1:])
        seen = type("Seen", (), {"patches": target[:, 1:], "grid": (14, 14), "attention": attention[:, :, 0, 1:]})
        masks = ours.draw_masks(seen, generator)
        student, _ = features(ours.student, whole, masks)
        student_cls = [*ours.student_head(student[:, 0]).split(batch)]
        student_patches = ours.student_head(student[:, 1:])
        student_cls += [ours.student_head(features(ours.student, view)[0][:, 0]) for view in views[2:]]
        return {
            "loss": loss(ours.loss, student_cls, student_patches, teacher_cls.split(batch), teacher_patches, masks, ours.temperatures[0])
        }


def features(network, images, mask=None):
    """All normalised tokens, and the last block's whole attention map, which the un-fused blocks compute anyhow."""
    x = network.patch_embed(images)
    if mask is not None:
        x = torch.where(mask.view(*x.shape[:3], 1), network.masked_embed, x)
    x = network._pos_embed(x)
    for block in network.blocks[:-1]:
        x = block(x)
    block = network.blocks[-1]
    attn, inner = block.attn, block.norm1(x)
    q, k, v = attn.qkv(inner).reshape(*inner.shape[:2], 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4)
    attention = (q * attn.scale @ k.mT).softmax(-1)
    x = x + attn.proj((attention @ v).transpose(1, 2).reshape(inner.shape))
    return network.norm(x + block.mlp(block.norm2(x))), attention


def loss(state, student_cls, student_patches, teacher_cls, teacher_patches, masks, temperature):
    """Both sums term by term (iBOT eq. 2 and 3), and the centers from all logits."""
    total, terms = 0, 0
    for q, target in enumerate(teacher_cls):
        p = F.softmax((target - state.center) / temperature, dim=-1)
        for v, logits in enumerate(student_cls):
            if v != q:
                total = total + torch.sum(-p * F.log_softmax(logits / state.student_temp, dim=-1), dim=-1).mean()
                terms += 1
    p = F.softmax((teacher_patches - state.patch_center) / temperature, dim=-1)
    entropy = torch.sum(-p * F.log_softmax(student_patches / state.student_temp, dim=-1), dim=-1)  # [2B, N]
    patch = ((entropy * masks).sum(-1) / masks.sum(-1).clamp(min=1)).mean()
    state.center.lerp_(torch.cat(teacher_cls).mean(0), 1 - state.center_momentum)
    state.patch_center.lerp_(teacher_patches.mean((0, 1)), 1 - state.patch_center_momentum)
    return total / terms + patch


def update(learner, optimizer) -> None:
    """Clip, step and average one parameter after the other."""
    for parameter in learner.parameters():
        if parameter.grad is not None:
            norm = parameter.grad.norm()
            parameter.grad.mul_((3.0 / (norm + 1e-6)).clamp(max=1.0))
    optimizer.step()
    with torch.no_grad():
        students = dict(learner.student.named_parameters())
        for name, parameter in learner.teacher.named_parameters():
            parameter.mul_(learner.momenta[0]).add_(students[name], alpha=1 - learner.momenta[0])
        for mine, theirs in zip(learner.teacher_head.parameters(), learner.student_head.parameters()):
            mine.mul_(learner.momenta[0]).add_(theirs, alpha=1 - learner.momenta[0])


class Crops(Dataset):
    """Every view of each picture, one picture at a time."""

    def __init__(self, pictures, pipelines):
        self.pictures, self.pipelines = pictures, pipelines

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, i: int):
        return [pipeline(self.pictures[i]) for pipeline in self.pipelines]


def torchvision_pipeline(view: View):
    """The same augmentations by torchvision, on one Pillow image."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(view.size, scale=view.scale, ratio=view.ratio, interpolation=InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(view.flip),
            v2.RandomApply([v2.ColorJitter(*view.jitter)], p=view.jitter_probability),
            v2.RandomGrayscale(view.grey),
            v2.RandomApply([v2.GaussianBlur(_odd(view.blur_sigma[1]), view.blur_sigma)], p=view.blur),
            v2.RandomSolarize(128, p=view.solarise),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )


def _odd(sigma: float) -> int:
    return 2 * round(3 * sigma) + 1
