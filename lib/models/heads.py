"""The projection head of DINO and iBOT, and the decoder of MST."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

HEAD_NORMS = ("none", "batch")


class WeightNormLinear(nn.Module):
    """A linear layer without bias, with the rows ``g * v / |v|`` and the parameter names of the released checkpoints."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out_dim, 1))
        self.weight_v = nn.Parameter(torch.empty(out_dim, in_dim))
        nn.init.kaiming_uniform_(self.weight_v, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, torch._weight_norm(self.weight_v, self.weight_g, 0))


class BatchNorm(nn.Module):
    """Batch normalisation by the statistics of the vectors Float[..., D] that it is given, in evaluation mode too, over all processes.

    It has no running averages, so that a teacher is the moving average of its student in everything. A single vector has no statistics, and
    is only scaled and shifted.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        y = x.to(torch.promote_types(x.dtype, torch.float32)).flatten(0, -2)  # [n, D]
        count = _over_processes(y.new_tensor(float(len(y))))
        if count > 1:
            y = y - _over_processes(y.sum(0)) / count
            y = y * torch.rsqrt(_over_processes(y.square().sum(0)) / count + 1e-5)
        return torch.addcmul(self.bias, y, self.weight).to(x.dtype).view(x.shape)


class ProjectionHead(nn.Module):
    """MLP, l2 normalisation, and a weight-normed linear layer onto K prototypes (DINO section 3.1, appendix C).

    Args:
        in_dim, out_dim: channels D of the network, and prototypes K.
        hidden_dim, bottleneck_dim: width of the MLP, and of the normalised vector.
        layers: linear layers of the MLP, with GELU between them.
        norm_last_layer: freeze the gain of the last layer at 1.
        norm: ``batch`` normalises the hidden layers over the batch, like ``use_bn_in_head`` of DINO's code; ``none`` does not.

    Raises:
        ValueError: fewer than one layer, or an unknown norm.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        layers: int = 3,
        norm_last_layer: bool = True,
        norm: str = "none",
    ):
        super().__init__()
        if norm not in HEAD_NORMS:
            raise ValueError(f"norm: got {norm!r}, accepts {', '.join(HEAD_NORMS)}")
        if layers < 1:
            raise ValueError(f"layers: got {layers}, accepts 1 or more")
        widths = [in_dim] + [hidden_dim] * (layers - 1) + [bottleneck_dim]
        modules: list[nn.Module] = []
        for i, (a, b) in enumerate(zip(widths, widths[1:])):
            if i > 0:
                modules += [BatchNorm(a)] * (norm == "batch") + [nn.GELU()]
            modules.append(nn.Linear(a, b))
        self.mlp = nn.Sequential(*modules)
        self.last_layer = WeightNormLinear(bottleneck_dim, out_dim)
        self.last_layer.weight_g.requires_grad_(not norm_last_layer)
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def project(self, x: Tensor) -> Tensor:
        """Float[..., D] -> Float[..., bottleneck_dim] of unit length: all but the last layer."""
        y = self.mlp(x)
        return F.normalize(y.float() if torch.is_autocast_enabled(y.device.type) else y, dim=-1)

    def precise(self, projected: Tensor) -> Tensor:
        """The last layer, Float[..., bottleneck_dim] -> logits Float[..., K], in the precision of its weights also under autocast: the
        teacher's targets are a softmax of its logits at a temperature of 0.04, which makes errors 25 times larger.
        """
        with torch.autocast(projected.device.type, enabled=False):
            return self.last_layer(projected)

    def forward(self, x: Tensor) -> Tensor:
        """Float[..., D] -> logits Float[..., K]."""
        return self.last_layer(self.project(x))


class RestorationDecoder(nn.Sequential):
    """Reconstructs pixels from patch tokens of D = ``dim`` channels: a 3x3 convolution over the grid to ``hidden_dim`` channels, GELU, and a
    linear layer to the pixels of each patch.
    """

    def __init__(self, dim: int, hidden_dim: int, patch_size: int):
        pixels = nn.Conv2d(hidden_dim, 3 * patch_size**2, 1)
        super().__init__(nn.Conv2d(dim, hidden_dim, 3, padding=1), nn.GELU(), pixels, nn.PixelShuffle(patch_size))

    def forward(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:  # type: ignore[override]  # Sequential takes one argument
        """Float[B, N, D] on a grid (H, W) -> images Float[B, 3, H patch_size, W patch_size], normalised as the views are."""
        return super().forward(patches.mT.unflatten(2, grid))


def _over_processes(x: Tensor) -> Tensor:
    """The sum over all processes, through which gradients flow."""
    return all_reduce(x) if dist.is_available() and dist.is_initialized() else x
