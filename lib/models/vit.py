"""timm's Vision Transformers that also take masks and give the class token's attention."""

from typing import NamedTuple

import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn

# Small networks for small images; everything else is timm's.
SMALL = {
    "vit_nano": dict(embed_dim=128, depth=4, num_heads=4),
    "vit_micro": dict(embed_dim=192, depth=6, num_heads=6),
}


class Features(NamedTuple):
    """What a network makes of images.

    cls: Float[B, D] pooled token, or None; patches: Float[B, N, D], row-major; grid: (H, W) with N = H W;
    attention: Float[B, heads, N], of the pooled token over the patches (its softmax includes the token itself).
    """

    cls: Tensor | None
    patches: Tensor
    grid: tuple[int, int]
    attention: Tensor | None


class ViT(VisionTransformer):
    """timm's network with timm's parameter names, plus ``masked_embed`` [1, D] in students."""

    def features(self, images: Tensor, mask: Tensor | None = None) -> Features:
        """Normalised last features, and the last block's attention of [CLS].

        Every block uses fused attention; of the last one, the single softmax row that belongs to [CLS] is computed apart,
        so that attention costs next to nothing (AttMask section 3.3).

        Args:
            images: Float[B, 3, h, w], normalised; sides are multiples of the patch size.
            mask: Bool[B, N], True = masked: those patch embeddings are replaced by ``masked_embed`` before the position
                embedding is added.

        Returns:
            Features.

        Raises:
            ValueError: images or a mask of the wrong shape, or a mask for a network without a mask embedding.
        """
        patch = self.patch_embed.patch_size
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] % patch[0] or images.shape[3] % patch[1]:
            raise ValueError(f"images: got shape {tuple(images.shape)}, accepts [B, 3, h, w] with sides divisible by {patch}")
        x = self.patch_embed(images)  # [B, H, W, D]
        grid = (x.shape[1], x.shape[2])
        if mask is not None:
            if not hasattr(self, "masked_embed"):
                raise ValueError("mask: got one, but this network has no mask embedding; accepts None (see create_model's mask_token)")
            if mask.dtype != torch.bool or mask.shape != (len(x), grid[0] * grid[1]):
                raise ValueError(
                    f"mask: got {mask.dtype} of shape {tuple(mask.shape)}, accepts bool of shape {(len(x), grid[0] * grid[1])}"
                )
            x = torch.where(mask.view(*x.shape[:3], 1), self.masked_embed.to(x.dtype), x)
        x = self.norm_pre(self.patch_drop(self._pos_embed(x)))  # [B, 1 + N, D]
        for block in self.blocks[:-1]:
            x = block(x)
        x, attention = last_block(self.blocks[-1], x)
        x = self.norm(x)
        prefix = self.num_prefix_tokens
        return Features(x[:, 0], x[:, prefix:], grid, attention[..., prefix:])

    def forward(self, images: Tensor) -> Tensor:
        """Float[B, 3, h, w] -> Float[B, num_classes], or [B, D] without a classifier."""
        return self.head(self.head_drop(self.fc_norm(self.features(images).cls)))


def last_block(block: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """A timm block on x [B, T, D], and the first token's attention Float[B, heads, T] in it."""
    y, attention = _attend(block.attn, block.norm1(x))
    x = x + block.drop_path1(block.ls1(y))
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x)))), attention


def _attend(attn: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    batch, tokens, _ = x.shape
    q, k, v = attn.qkv(x).reshape(batch, tokens, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
    q, k = attn.q_norm(q), attn.k_norm(k)  # [B, heads, T, d]
    first = ((q[:, :, :1] * attn.scale) @ k.mT).softmax(-1).squeeze(2)  # [B, heads, T]
    y = F.scaled_dot_product_attention(q, k, v, dropout_p=attn.attn_drop.p if attn.training else 0.0)
    y = attn.norm(y.transpose(1, 2).reshape(batch, tokens, -1))
    if attn.gate is not None:
        y = y * attn.gate(x).sigmoid()
    return attn.proj_drop(attn.proj(y)), first


def create_model(
    arch: str,
    *,
    pooling: str | None = None,
    img_size=224,
    patch_size: int | None = None,
    num_classes: int = 0,
    mask_token: bool = False,
    **options,
) -> nn.Module:
    """A Vision Transformer by name.

    Args:
        arch: any of timm's ViTs with a class token, or one of the small ones: ``vit_nano``, ``vit_micro``.
        pooling: None, the network's own class token.
        img_size: pixels a side of the position embedding's grid, (height, width) or one number; images of other sizes
            interpolate it.
        patch_size: pixels a side; None keeps timm's (8 for the small networks).
        num_classes: 0 leaves the classifier out.
        mask_token: add the learned mask embedding, initialised at 0, that students need.
        options: passed on to timm, ``drop_path_rate`` for one.

    Returns:
        A module with ``features(images, mask=None)``.

    Raises:
        ValueError: a name that is neither small nor a timm ViT with a class token, or a pooling other than None.
    """
    if pooling is not None:
        raise ValueError(f"pooling: got {pooling!r}, accepts None (the class token)")
    options |= dict(img_size=img_size, num_classes=num_classes, dynamic_img_size=True)
    if arch in SMALL:
        model = ViT(**SMALL[arch], patch_size=patch_size or 8, **options)
    else:
        if not timm.is_model(arch) or not timm.models.is_model_in_modules(arch, {"vision_transformer", "deit"}):
            raise ValueError(f"arch: got {arch!r}, accepts {', '.join(SMALL)} or a timm Vision Transformer such as vit_small_patch16_224")
        model = timm.create_model(arch, **options, **({} if patch_size is None else dict(patch_size=patch_size)))
        plain = type(model) is VisionTransformer and type(model.blocks[-1]) is Block and type(model.blocks[-1].attn) is Attention
        if not plain or model.cls_token is None or model.attn_pool is not None or model.global_pool != "token":
            raise ValueError(f"arch: got {arch!r}, a {type(model).__name__}; accepts a timm VisionTransformer with a class token")
        model.__class__ = ViT  # the same parameters and layers; only `features` and `forward` are ours
    if mask_token:
        model.masked_embed = nn.Parameter(torch.zeros(1, model.embed_dim))
    return model
