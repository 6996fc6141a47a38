"""The pooling methods of the talk's landscape. Each class declares its parts of the algorithm in ``lib.pooling.framework``.

Order and groups are those of the talk's table: simple functions of the features, clustering, re-weighting of the features, and
transformers. The fifth group, SimPool, is in ``lib.pooling.simpool``. Layers are timm's if timm has them. The first argument of every
method, ``dim``, is the number of channels D.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import SqueezeExcite
from timm.layers.conv_bn_act import ConvNormAct
from timm.models.cait import LayerScaleBlockClassAttn
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from lib.pooling.framework import (
    Exponential,
    Pooling,
    Power,
    Variables,
    average,
    current_vectors,
    dot_product,
    features,
    learned_vectors,
    merge_heads,
    negative_distance,
    over_tokens,
    part,
    pooled_values,
    split_heads,
    uniform,
    values,
    weighted_sum,
)

# ---- group 1: simple functions ----------------------------------------------------------------------------------------


class GAP(Pooling, name="gap"):
    """Global average pooling."""

    group, category_level = 1, True
    h, phi_V, f, phi_U = uniform, features, weighted_sum, pooled_values


class Max(Pooling, name="max"):
    """The largest value of each channel."""

    group = 1
    phi_V, phi_U = features, pooled_values

    @part("1_p")
    def h(self, t: Variables) -> Tensor:
        return torch.ones_like(t.X[..., :1])

    @part("f_-inf")
    def f(self, t: Variables) -> Power:
        return Power(math.inf)


class GeM(Pooling, name="gem"):
    """Generalised mean (Radenović et al., 2018) of the features' positive part.

    Args:
        gamma: the power; 1 gives the average, infinity the maximum.
        sums: sum the powers, as SimPool's released code does, instead of averaging them.
    """

    group = 1
    phi_U = pooled_values

    def __init__(self, dim: int, gamma: float = 2.0, *, sums: bool = False):
        super().__init__(dim)
        _check_positive("gamma", gamma)
        self.gamma, self.sums = float(gamma), sums

    @part("1_p/p")
    def h(self, t: Variables) -> Tensor:
        return torch.ones_like(t.X[..., :1]) if self.sums else uniform(self, t)

    @part("X")
    def phi_V(self, t: Variables) -> Tensor:
        return t.X.clamp(min=1e-6)

    @part("f_alpha")
    def f(self, t: Variables) -> Power:
        return Power(self.gamma)


class LSE(Pooling, name="lse"):
    """Log-sum-exp (Pinheiro & Collobert, 2015), a smooth maximum with a learned sharpness, which starts at ``tau``."""

    group, category_level = 1, True
    h, phi_V, phi_U = uniform, features, pooled_values

    def __init__(self, dim: int, tau: float = 10.0):
        super().__init__(dim)
        _check_positive("tau", tau, finite=True)
        self.tau = nn.Parameter(torch.tensor(float(tau)))

    @part("exp(tau x)")
    def f(self, t: Variables) -> Exponential:
        return Exponential(self.tau.clamp(min=1e-3))  # tau = 0 is undefined, and tau < 0 would give a minimum


class HOW(Pooling, name="how"):
    """Local descriptors weighted by their norm (Tolias et al., 2020).

    Args:
        squared: weight by squared norms (the definition) instead of norms (SimPool's released code).
        normalise: scale the weights of an image to a sum of 1. The definition does not, but its authors normalise the pooled vector
            afterwards; without either, no classifier can be trained on the vector.
    """

    group = 1
    f, phi_U = weighted_sum, pooled_values

    def __init__(self, dim: int, *, squared: bool = True, normalise: bool = True):
        super().__init__(dim)
        self.squared, self.normalise = squared, normalise
        self.fc = nn.Linear(dim, dim)

    @part("diag(X^T X)")
    def h(self, t: Variables) -> Tensor:
        weights = t.X.square().sum(-1, keepdim=True)
        tiny = torch.finfo(weights.dtype).tiny
        weights = weights if self.squared else weights.clamp(min=tiny).sqrt()
        return weights / weights.sum(1, keepdim=True).clamp(min=tiny) if self.normalise else weights

    @part("FC(avg_3(X))")
    def phi_V(self, t: Variables) -> Tensor:
        averages = F.avg_pool2d(t.as_map(t.X), 3, stride=1, padding=1, count_include_pad=False)
        return self.fc(averages.flatten(2).mT)


# ---- group 2: clustering ----------------------------------------------------------------------------------------------


class OTK(Pooling, name="otk"):
    """Optimal transport kernel embedding (Mialon et al., 2021): tokens are transported to learned references.

    Args:
        k: number of references.
        eps: entropic regularisation in units of D, the squared distance between vectors that differ by 1 in every channel.
        iterations: iterations of Sinkhorn's algorithm.
    """

    group, category_level, pooled_vectors = 2, True, "k"
    U0, phi_Q, phi_K, s, f, phi_U = learned_vectors, current_vectors, features, negative_distance, weighted_sum, pooled_values

    def __init__(self, dim: int, k: int = 3, *, eps: float = 1.0, iterations: int = 1):
        super().__init__(dim)
        _check_count("k", k)
        _check_count("iterations", iterations)
        _check_positive("eps", eps)
        self.eps, self.sinkhorn = eps * dim, iterations
        self.initial = nn.Parameter(torch.randn(k, dim))
        self.psi = nn.Sequential(nn.Linear(dim, dim), nn.ReLU())

    @part("Sinkhorn(exp(S/eps))")
    def h(self, t: Variables) -> Tensor:
        """Each iteration normalises over references, so that all tokens have equal weight, then over tokens: columns sum to 1."""
        logits = t.S.to(torch.promote_types(t.S.dtype, torch.float32)) / self.eps
        for _ in range(self.sinkhorn):
            logits = logits.log_softmax(-1).log_softmax(-2)
        return logits.exp().to(t.S.dtype)

    @part("psi(X)")
    def phi_V(self, t: Variables) -> Tensor:
        return self.psi(t.X)


class KMeans(Pooling, name="kmeans"):
    """k-means over the tokens of an image, starting from k random tokens (in evaluation mode always at the same positions).

    Args:
        k: number of clusters; an image with fewer tokens starts with repeated ones.
        iterations: iterations of Lloyd's algorithm.
    """

    group, iterative, pooled_vectors = 2, True, "k"
    phi_Q, phi_K, s, phi_V, f, phi_X = current_vectors, features, negative_distance, features, weighted_sum, features

    def __init__(self, dim: int, k: int = 3, *, iterations: int = 5):
        super().__init__(dim)
        _check_count("k", k)
        _check_count("iterations", iterations)
        self.k, self.iterations = k, iterations

    @part("random")
    def U0(self, t: Variables) -> Tensor:
        generator = None if self.training else torch.Generator().manual_seed(0)
        positions = torch.randperm(t.X.shape[1], generator=generator).repeat(-(-self.k // t.X.shape[1]))[: self.k]
        return t.X[:, positions.to(t.X.device)]

    @part("eta_2(argmax_1(S))")
    def h(self, t: Variables) -> Tensor:
        """Each token belongs to its nearest vector. Columns sum to 1, or to 0 for a vector without tokens."""
        members = F.one_hot(t.S.argmax(-1), self.k).to(t.X.dtype)  # [B, N, k]
        return members / members.sum(1, keepdim=True).clamp(min=1)

    @part("Z")
    def phi_U(self, t: Variables) -> Tensor:
        return torch.where(t.A.sum(1).unsqueeze(-1) > 0, t.Z, t.U)  # a vector without tokens does not move


class Slot(Pooling, name="slot"):
    """Slot attention (Locatello et al., 2020) with slots that start from learned vectors.

    Args:
        k, iterations: number of slots, and of their refinements.
        compete: let slots compete for tokens, as in the original (softmax over slots, then normalisation over tokens). The talk's
            table simplifies this to a softmax over tokens.
    """

    group, category_level, iterative, simplified, pooled_vectors = 2, True, True, True, "k"
    U0, s, f, phi_X = learned_vectors, dot_product, weighted_sum, features

    def __init__(self, dim: int, k: int = 3, *, iterations: int = 3, compete: bool = False):
        super().__init__(dim)
        _check_count("k", k)
        _check_count("iterations", iterations)
        self.iterations, self.compete = iterations, compete
        self.initial = nn.Parameter(torch.randn(k, dim) * dim**-0.5)
        self.norm_x, self.norm_u, self.norm_mlp = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.wq, self.wk, self.wv = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.gru = nn.GRUCell(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim))

    @part("W_Q U")
    def phi_Q(self, t: Variables) -> Tensor:
        return self.wq(self.norm_u(t.U))

    @part("W_K X")
    def phi_K(self, t: Variables) -> Tensor:
        return self.wk(self.norm_x(t.X))

    @part("sigma_2(S/sqrt d)")
    def h(self, t: Variables) -> Tensor:
        scores = t.S * self.dim**-0.5
        if not self.compete:
            return over_tokens(scores)
        shares = scores.softmax(-1) + 1e-8
        return shares / shares.sum(-2, keepdim=True)

    @part("W_V X")
    def phi_V(self, t: Variables) -> Tensor:
        return self.wv(self.norm_x(t.X))

    @part("MLP(GRU(Z))")
    def phi_U(self, t: Variables) -> Tensor:
        slots = self.gru(t.Z.flatten(0, 1), t.U.flatten(0, 1)).view_as(t.U)
        return slots + self.mlp(self.norm_mlp(slots))


# ---- group 3: re-weighting of the features ------------------------------------------------------------------------------


@part("sigma(MLP(U))")
def channel_gates(self: Any, t: Variables) -> Tensor:
    """timm's ``self.gates`` of the vector U [B, 1, D], without their own pooling and multiplication."""
    hidden = self.gates.act(self.gates.bn(self.gates.fc1(t.U.mT.unsqueeze(-1))))  # [B, D / reduction, 1, 1]
    return self.gates.gate(self.gates.fc2(hidden)).squeeze(-1).mT


@part("diag(q) X")
def gated_features(self: Any, t: Variables) -> Tensor:
    return t.Q * t.X


class SE(Pooling, name="se"):
    """Squeeze and excitation (Hu et al., 2018): a gate for every channel. ``reduction`` divides the channels inside the gate."""

    group, category_level = 3, True
    U0, phi_Q, phi_V, phi_X = average, channel_gates, gated_features, values

    def __init__(self, dim: int, reduction: int = 16):
        super().__init__(dim)
        self.gates = _squeeze_excite(dim, reduction)


class GE(Pooling, name="ge"):
    """Gather and excite (Hu et al., 2018) with parameters: a gate for every channel and position, computed from the neighbourhood.

    ``extent``, a power of two, is the side of the neighbourhood. The talk compares this method, but its table does not list it.
    """

    phi_X = values

    def __init__(self, dim: int, extent: int = 2):
        super().__init__(dim)
        if not isinstance(extent, int) or extent < 2 or extent & (extent - 1):
            raise ValueError(f"extent: got {extent!r}, accepts a power of two of at least 2")
        layers: list[nn.Module] = []
        for _ in range(extent.bit_length() - 1):
            layers += [nn.Conv2d(dim, dim, 3, stride=2, padding=1, groups=dim, bias=False), nn.BatchNorm2d(dim), nn.ReLU()]
        self.gather = nn.Sequential(*layers[:-1])

    @part("sigma(gather(X))")
    def phi_Q(self, t: Variables) -> Tensor:
        maps = t.as_map(t.X)
        gates = F.interpolate(self.gather(maps), size=maps.shape[-2:])
        return gates.sigmoid().flatten(2).mT  # [B, N, D]

    @part("Q X")
    def phi_V(self, t: Variables) -> Tensor:
        return t.Q * t.X


class CBAM(Pooling, name="cbam"):
    """Convolutional block attention (Woo et al., 2018): a gate for every channel, then one for every position.

    It is simplified as in the talk's table: gates use averages only. timm's ``CbamModule`` is the original.

    Args:
        reduction: divides the channels inside the gate.
        kernel: side of the convolution over positions, odd.
    """

    group, category_level, simplified = 3, True, True
    U0, phi_Q, phi_K, s, phi_V = average, channel_gates, features, dot_product, gated_features

    def __init__(self, dim: int, reduction: int = 16, *, kernel: int = 7):
        super().__init__(dim)
        if not isinstance(kernel, int) or kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel: got {kernel!r}, accepts an odd number")
        self.gates = _squeeze_excite(dim, reduction)
        self.conv = ConvNormAct(1, 1, kernel, apply_act=False)

    @part("sigma(conv_7(S))")
    def h(self, t: Variables) -> Tensor:
        return self.conv(t.as_map(t.S)).sigmoid().flatten(2).mT

    @part("V diag(a)")
    def phi_X(self, t: Variables) -> Tensor:
        return t.A * t.V


# ---- group 4: transformers --------------------------------------------------------------------------------------------


class _ClassToken(Pooling):
    """A learned token that attends to the features in ``block``, which is applied ``iterations`` times with the same weights.

    Subclasses define ``project(x, kind)``, the queries ("q"), keys ("k") or values ("v") of tokens, Float[B, T, D] each.
    """

    group, category_level, iterative, simplified = 4, True, True, True
    U0, s, f = learned_vectors, dot_product, weighted_sum
    block: Any  # a block of timm
    project: Callable[[Tensor, str], Tensor]

    def __init__(self, dim: int, heads: int, iterations: int):
        super().__init__(dim)
        self._check_heads("heads", heads)
        _check_count("iterations", iterations)
        self.heads, self.iterations = heads, iterations
        self.initial = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, dim), std=0.02))

    @part("g_m(W_Q U)")
    def phi_Q(self, t: Variables) -> Tensor:
        return split_heads(self.project(t.U, "q"), self.heads)

    @part("g_m(W_K X)")
    def phi_K(self, t: Variables) -> Tensor:
        return split_heads(self.project(t.X, "k"), self.heads)

    @part("g_m(W_V X)")
    def phi_V(self, t: Variables) -> Tensor:
        return split_heads(self.project(t.X, "v"), self.heads)

    @part("sigma_2(S_i/sqrt d), m heads")
    def h(self, t: Variables) -> Tensor:
        return over_tokens(t.S * self.block.attn.scale)


class CLS(_ClassToken, name="cls"):
    """The class token of a Vision Transformer (Dosovitskiy et al., 2021), in a separate block after the features.

    Args:
        heads: number m of attention heads.
        iterations: number of times that the block, with the same weights, is applied to token and features.
    """

    title = "ViT"

    def __init__(self, dim: int, heads: int = 4, *, iterations: int = 1):
        super().__init__(dim, heads, iterations)
        self.block = Block(dim, heads, qkv_bias=True)

    def project(self, x: Tensor, kind: str) -> Tensor:
        weight, bias = (parameters.chunk(3)["qkv".index(kind)] for parameters in (self.block.attn.qkv.weight, self.block.attn.qkv.bias))
        return F.linear(self.block.norm1(x), weight, bias)

    @part("MLP(MSA(X))")
    def phi_X(self, t: Variables) -> Tensor:
        return self.block(t.X)

    @part("MLP(g_m^-1(Z))")
    def phi_U(self, t: Variables) -> Tensor:
        token = t.U + self.block.attn.proj(merge_heads(t.Z))
        return token + self.block.mlp(self.block.norm2(token))


class CaiT(_ClassToken, name="cait"):
    """Class attention (Touvron et al., 2021): a class token attends to features that do not change.

    Args:
        heads, iterations: as in ``CLS``, for the token only.
        layer_scale: initial scale of the branches of the block.
    """

    title, phi_X = "CaiT", features

    def __init__(self, dim: int, heads: int = 4, *, iterations: int = 1, layer_scale: float = 1e-5):
        super().__init__(dim, heads, iterations)
        _check_positive("layer_scale", layer_scale)
        norm: Any = partial(nn.LayerNorm, eps=1e-6)
        self.block = LayerScaleBlockClassAttn(dim, heads, qkv_bias=True, init_values=layer_scale, norm_layer=norm)

    def project(self, x: Tensor, kind: str) -> Tensor:
        return getattr(self.block.attn, kind)(self.block.norm1(x))

    @part("MLP(g_m^-1(Z))")
    def phi_U(self, t: Variables) -> Tensor:
        token = t.U + self.block.gamma_1 * self.block.attn.proj(merge_heads(t.Z))
        return token + self.block.gamma_2 * self.block.mlp(self.block.norm2(token))


def _squeeze_excite(dim: int, reduction: int) -> nn.Module:
    _check_count("reduction", reduction)
    return SqueezeExcite(dim, rd_channels=max(dim // reduction, 1))


def _check_positive(name: str, value: float, *, finite: bool = False) -> None:
    if not isinstance(value, (int, float)) or not 0 < value or (finite and value == math.inf):
        raise ValueError(f"{name}: got {value!r}, accepts a number above 0")


def _check_count(name: str, value: int) -> None:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: got {value!r}, accepts a whole number of at least 1")
