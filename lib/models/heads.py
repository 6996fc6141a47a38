"""The projection head of DINO and iBOT, and the decoder of MST."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WeightNormLinear(nn.Module):
    """A linear layer without bias, with the rows ``g * v / |v|`` and the parameter names of the released checkpoints."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out_dim, 1))
        self.weight_v = nn.Parameter(torch.empty(out_dim, in_dim))
        nn.init.kaiming_uniform_(self.weight_v, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, torch._weight_norm(self.weight_v, self.weight_g, 0))


class ProjectionHead(nn.Module):
    """MLP, l2 normalisation, and a weight-normed linear layer onto K prototypes (DINO section 3.1, appendix C).

    Args:
        in_dim, out_dim: channels D of the network, and prototypes K.
        hidden_dim, bottleneck_dim: width of the MLP, and of the normalised vector.
        layers: linear layers of the MLP, with GELU between them.
        norm_last_layer: freeze the gain of the last layer at 1.

    Raises:
        ValueError: fewer than one layer.
    """

    def __init__(
        self, in_dim: int, out_dim: int, *, hidden_dim: int = 2048, bottleneck_dim: int = 256, layers: int = 3, norm_last_layer: bool = True
    ):
        super().__init__()
        if layers < 1:
            raise ValueError(f"layers: got {layers}, accepts 1 or more")
        widths = [in_dim] + [hidden_dim] * (layers - 1) + [bottleneck_dim]
        modules: list[nn.Module] = []
        for i, (a, b) in enumerate(zip(widths, widths[1:])):
            modules += [nn.GELU()] * (i > 0) + [nn.Linear(a, b)]
        self.mlp = nn.Sequential(*modules)
        self.last_layer = WeightNormLinear(bottleneck_dim, out_dim)
        self.last_layer.weight_g.requires_grad_(not norm_last_layer)
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def project(self, x: Tensor) -> Tensor:
        """Float[..., D] -> Float[..., bottleneck_dim] of unit length: all but the last layer."""
        return F.normalize(self.mlp(x), dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """Float[..., D] -> logits Float[..., K]."""
        return self.last_layer(self.project(x))


class RestorationDecoder(nn.Sequential):
    """Reconstructs pixels from patch tokens: a 3x3 convolution over the grid, GELU, and a linear layer to the pixels of each patch.

    Args:
        dim, hidden_dim: channels D of the tokens, and of the convolution.
        patch_size: side of a patch in pixels.
    """

    def __init__(self, dim: int, hidden_dim: int, patch_size: int):
        pixels = nn.Conv2d(hidden_dim, 3 * patch_size**2, 1)
        super().__init__(nn.Conv2d(dim, hidden_dim, 3, padding=1), nn.GELU(), pixels, nn.PixelShuffle(patch_size))

    def forward(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:  # type: ignore[override]  # Sequential takes one argument
        """Float[B, N, D] on a grid (H, W) -> images Float[B, 3, H patch_size, W patch_size], normalised as the views are."""
        return super().forward(patches.mT.unflatten(2, grid))
