"""timm's Vision Transformers with masks, the attention of the class token, and any pooling method in place of that token."""

from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from lib.models.base import Features, Model, simpool_keys
from lib.pooling import SimPool

# Small networks for small images; all other architectures are timm's.
SMALL: dict[str, dict[str, Any]] = {
    "vit_nano": dict(embed_dim=128, depth=4, num_heads=4),
    "vit_micro": dict(embed_dim=192, depth=6, num_heads=6),
}


class ViT(Model, VisionTransformer):  # type: ignore[misc]  # Model.forward takes images only
    """timm's network with timm's parameter names, ``masked_embed`` [1, D] in students, and ``pooling`` instead of a class token.

    Attributes:
        pooling: a ``lib.pooling`` method; None uses the class token.
        norm_after: pool tokens before the final norm and normalise the pooled vector (self-supervised SimPool). False pools
            normalised tokens (supervised).
        released_positions: interpolate positions to other grids like the papers' released code: it adds 0.1 to the new size, and
            interpolates even to the same grid in networks without a class token. False interpolates like timm.
    """

    norm_after: bool = False
    released_positions: bool = False
    masked_embed: nn.Parameter
    pos_embed: nn.Parameter

    def pool(self, images: Tensor, mask: Tensor | None = None) -> Features:  # type: ignore[override]  # timm's pools tokens
        """Normalised last features, the pooled vector and its attention.

        All blocks use fused attention. The single softmax row of [CLS] in the last block is computed separately, so attention
        costs almost nothing (AttMask section 3.3).

        Args:
            images: Float[B, 3, h, w], normalised; sides are multiples of the patch size.
            mask: Bool[B, N], True = masked: ``masked_embed`` replaces these patch embeddings before positions are added.

        Raises:
            ValueError: images or a mask of the wrong shape, or a mask for a network without a mask embedding.
        """
        x, grid = self._embed(images, mask)
        for block in self.blocks[:-1]:
            x = block(x)
        if self.pooling is None:
            x, attention = last_block(self.blocks[-1], x)
            x = self.norm(x)
            prefix = self.num_prefix_tokens
            return Features(x[:, 0], x[:, prefix:], grid, attention[..., prefix:])
        x = self.blocks[-1](x)[:, self.num_prefix_tokens :]  # without registers
        patches = self.norm(x)
        vector, attention = self.pooling(x if self.norm_after else patches, grid)
        return Features(self.norm(vector) if self.norm_after else vector, patches, grid, attention)

    def last_cls(self, images: Tensor, blocks: int = 1) -> Tensor:
        if self.pooling is not None or blocks == 1:
            return super().last_cls(images, blocks)
        if not 1 <= blocks <= len(self.blocks):
            raise ValueError(f"blocks: got {blocks}, accepts 1 to {len(self.blocks)}")
        x, _ = self._embed(images, None)
        tokens = []
        for block in self.blocks:
            x = block(x)
            tokens.append(x[:, 0])
        return torch.cat([self.norm(token) for token in tokens[-blocks:]], 1)

    def keys(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        x, grid = self._embed(images, None)
        for block in self.blocks[:-1]:
            x = block(x)
        prefix = self.num_prefix_tokens
        last: Any = self.blocks[-1]
        if isinstance(self.pooling, SimPool):
            x = last(x)[:, prefix:]
            return simpool_keys(self.pooling, x if self.norm_after else self.norm(x)), grid
        _, keys, _ = _query_key_value(last.attn, last.norm1(x))
        return keys[:, :, prefix:].transpose(1, 2).flatten(2), grid

    def classify(self, vector: Tensor) -> Tensor:
        return self.head(self.head_drop(self.fc_norm(vector)))

    def _embed(self, images: Tensor, mask: Tensor | None) -> tuple[Tensor, tuple[int, int]]:
        """Tokens [B, prefix + N, D] before the first block, and their grid."""
        patch = self.patch_embed.patch_size
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] % patch[0] or images.shape[3] % patch[1]:
            raise ValueError(f"images: got shape {tuple(images.shape)}, accepts [B, 3, h, w] with sides divisible by {patch}")
        x = self.patch_embed(self.own_inputs(images))  # [B, H, W, D]
        grid = (x.shape[1], x.shape[2])
        if mask is not None:
            if not hasattr(self, "masked_embed"):
                raise ValueError("mask: got one, but this network has no mask embedding; accepts None (see create_model's mask_token)")
            shape = (len(x), grid[0] * grid[1])
            if mask.dtype != torch.bool or mask.shape != shape:
                raise ValueError(f"mask: got {mask.dtype} of shape {tuple(mask.shape)}, accepts bool of shape {shape}")
            x = torch.where(mask.view(*x.shape[:3], 1), self.masked_embed.to(x.dtype), x)
        return self.norm_pre(self.patch_drop(self._pos_embed(x))), grid

    def _pos_embed(self, x: Tensor) -> Tensor:
        """Patch embeddings [B, H, W, D] -> tokens [B, prefix + N, D] with positions."""
        if not self.released_positions:
            return super()._pos_embed(x)
        prefix = self.num_prefix_tokens
        first, positions = self.pos_embed[:, :prefix], self.pos_embed[:, prefix:]
        side = round(positions.shape[1] ** 0.5)
        if side * side != positions.shape[1]:
            raise ValueError(f"img_size: got one with {positions.shape[1]} patches, released_positions accepts a square number of them")
        height, width = x.shape[1:3]
        if prefix == 0 or (height, width) != (side, side):
            squares = positions.unflatten(1, (side, side)).permute(0, 3, 1, 2)
            scale = ((height + 0.1) / side, (width + 0.1) / side)
            positions = F.interpolate(squares, scale_factor=scale, mode="bicubic").flatten(2).mT
        tokens = [] if self.cls_token is None else [self.cls_token.expand(len(x), -1, -1)]
        return self.pos_drop(torch.cat([*tokens, x.flatten(1, 2)], 1) + torch.cat([first, positions], 1))


def last_block(block: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """The output of a timm block for x [B, T, D], and the attention Float[B, heads, T] of the first token in it."""
    attn, y = block.attn, block.norm1(x)
    q, k, v = _query_key_value(attn, y)
    with torch.autocast(x.device.type, enabled=False):  # eight bits are too few to rank tokens by
        wide = torch.promote_types(q.dtype, torch.float32)
        attention = ((q[:, :, :1].to(wide) * attn.scale) @ k.to(wide).mT).softmax(-1).squeeze(2)
    z = F.scaled_dot_product_attention(q, k, v, dropout_p=attn.attn_drop.p if attn.training else 0.0)
    z = attn.norm(z.transpose(1, 2).flatten(2))
    if attn.gate is not None:
        z = z * attn.gate(y).sigmoid()
    x = x + block.drop_path1(block.ls1(attn.proj_drop(attn.proj(z))))
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x)))), attention


def _query_key_value(attn: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, Float[B, heads, T, d] each."""
    q, k, v = attn.qkv(x).unflatten(2, (3, attn.num_heads, attn.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
    return attn.q_norm(q), attn.k_norm(k), v
