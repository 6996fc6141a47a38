"""Pooling, once: the algorithm of which every method of the landscape is an instance (SimPool, section 3.2)::

    U <- U0(X)                      the first pooled vectors
    repeat
        Q, K <- phi_Q(U), phi_K(X)  queries of the pooled vectors, keys of the features
        S    <- s(K, Q)             S[i, j]: similarity of key i and query j
        A    <- h(S)                attention
        V    <- phi_V(X)            values
        Z    <- f^-1(f(V) A)        pooled values
        X, U <- phi_X(X), phi_U(Z)

The papers write features as columns; here tokens are rows: X is [B, N, D], U and Z are [B, k, D], S and A are [B, N, k], and
Z = f^-1(A^T f(V)). A method is a class that declares its parts, see ``lib.pooling.methods``; a part that it leaves out is
skipped. A method without phi_U re-weights the features, and their average is its pooled vector.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

COLUMNS = ("k", "U0", "phi_Q", "phi_K", "s", "A", "phi_V", "f", "phi_X", "phi_U")  # of the talk's table; A is what h gives
POOLINGS: dict[str, type["Pooling"]] = {}  # by name, in the order of their declaration


class Pooled(NamedTuple):
    """vector: Float[B, D], or [B, k, D] for k > 1 pooled vectors; attention: Float[B, k, N], the mean over heads (of SimPool
    [B, heads, N]), or None where the method has none.
    """

    vector: Tensor
    attention: Tensor | None


@dataclass
class Variables:
    """The variables of the algorithm, by the talk's letters. Heads, where there are several, are a dimension after the batch."""

    X: Tensor  # [B, N, D]
    grid: tuple[int, int] | None  # (H, W) with N = H W; None when tokens came without one
    U: Tensor | None = None  # [B, k, D]
    Q: Tensor | None = None  # [B, k, d]
    K: Tensor | None = None  # [B, N, d]
    S: Tensor | None = None  # [B, N, k]
    A: Tensor | None = None  # [B, N, k]
    V: Tensor | None = None  # [B, N, D]
    Z: Tensor | None = None  # [B, k, D]

    def as_map(self, x: Tensor) -> Tensor:
        """[B, N, C] -> [B, C, H, W]."""
        height, width = self.grid or _square(x.shape[1])
        return x.mT.unflatten(2, (height, width))


def _fits(grid, tokens: int) -> bool:
    return isinstance(grid, (tuple, list)) and len(grid) == 2 and min(grid) > 0 and grid[0] * grid[1] == tokens


def _square(tokens: int) -> tuple[int, int]:
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise ValueError(f"grid: got none with {tokens} tokens, this pooling accepts maps, a square number of tokens, or a grid (H, W)")
    return side, side


def part(symbol: str):
    """Mark a method as a part of the algorithm that the talk's table writes as ``symbol``."""

    def mark(function):
        function.symbol = symbol
        return function

    return mark


class Pooling(nn.Module):
    """The algorithm. Subclasses declare its parts: functions of ``(self, t)``, t being ``Variables``, marked by ``part``.

    ``class GAP(Pooling, name="gap")`` is known to ``create_pooling`` from its declaration on.

    Args:
        dim: channels D.
    """

    # The row of the talk's table, besides its parts.
    title: str | None = None  # where the table names the method otherwise
    group: int | None = None  # of the table; None for a method that is not in it
    category_level: bool = False  # used in category-level tasks
    iterative: bool = False
    simplified: bool = False  # the table simplifies the original method
    pooled_vectors: str = "1"  # the table's k

    iterations: int = 1
    U0 = phi_Q = phi_K = s = h = phi_V = f = phi_X = phi_U = None

    def __init_subclass__(cls, *, name: str | None = None, **rest):
        super().__init_subclass__(**rest)
        if name is not None:
            POOLINGS[name] = cls

    def __init__(self, dim: int):
        super().__init__()
        if not isinstance(dim, int) or dim < 1:
            raise ValueError(f"dim: got {dim!r}, accepts a number of channels of at least 1")
        self.dim = dim

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None) -> Pooled:
        """Pool features.

        Args:
            x: tokens Float[B, N, D] or a map Float[B, D, H, W].
            grid: (H, W) of tokens, row-major; needed only by poolings that look at neighbours, and only when it is not square.

        Returns:
            Pooled.

        Raises:
            ValueError: another shape than promised.
        """
        t = self.variables(x, grid)
        if self.U0 is not None:
            t.U = self.U0(t)
        for iteration in range(self.iterations):
            if self.phi_Q is not None:
                t.Q = self.phi_Q(t)
            if self.phi_K is not None:
                t.K = self.phi_K(t)
            if self.s is not None:
                t.S = self.s(t)
            if self.h is not None:
                t.A = self.h(t)
            if self.phi_V is not None:
                t.V = self.phi_V(t)
            if self.f is not None:
                t.Z = self.f(t).mean(t.V, t.A)
            if self.phi_X is not None and (self.phi_U is None or iteration + 1 < self.iterations):
                t.X = self.phi_X(t)
            if self.phi_U is not None:
                t.U = self.phi_U(t)
        vectors = (t.U if self.phi_U is not None else t.X.mean(1, keepdim=True)).to(x.dtype)
        return Pooled(vectors.squeeze(1) if vectors.shape[1] == 1 else vectors, None if t.A is None else _maps(t.A))

    def variables(self, x: Tensor, grid: tuple[int, int] | None = None) -> Variables:
        """The algorithm's variables at its start, see ``forward``."""
        if x.ndim == 4 and x.shape[1] == self.dim and x.numel():
            return Variables(x.flatten(2).mT, (x.shape[2], x.shape[3]))
        if x.ndim != 3 or x.shape[2] != self.dim or not x.numel():
            raise ValueError(f"x: got shape {tuple(x.shape)}, accepts tokens [B, N, {self.dim}] or maps [B, {self.dim}, H, W]")
        if grid is not None and not _fits(grid, x.shape[1]):
            raise ValueError(f"grid: got {grid} for {x.shape[1]} tokens, accepts (H, W) with H * W tokens")
        return Variables(x, grid)


def _maps(attention: Tensor) -> Tensor:
    """[B, N, k] or, of several heads, [B, m, N, k] -> [B, k, N], the mean over heads."""
    return (attention.mean(1) if attention.ndim == 4 else attention).mT


def landscape() -> pd.DataFrame:
    """The talk's table, read off the declarations: a row a method, empty where it leaves a part out."""
    rows = {}
    for name, method in POOLINGS.items():
        parts = {"A": method.h, **{column: getattr(method, column, None) for column in COLUMNS if column not in ("k", "A")}}
        symbols = {
            column: "" if parts.get(column) is None else getattr(parts[column], "symbol", "?") for column in COLUMNS if column != "k"
        }
        rows[name] = {
            "name": method.title or name,
            "simplified": method.simplified,
            "group": method.group,
            "category_level": method.category_level,
            "iterative": method.iterative,
            "k": method.pooled_vectors,
            **symbols,
        }
    return pd.DataFrame(rows).T.rename_axis("method").astype({"group": "Int64"})


# ---- pooling functions ------------------------------------------------------------------------------------------------


def f_alpha(x: Tensor, alpha: float) -> Tensor:
    """x^((1 - alpha) / 2), and ln x at alpha = 1 (SimPool, eq. 4), for x > 0."""
    return x.log() if alpha == 1 else x.pow((1 - alpha) / 2)


def f_alpha_inverse(y: Tensor, alpha: float) -> Tensor:
    """The x with f_alpha(x) = y."""
    return y.exp() if alpha == 1 else y.pow(2 / (1 - alpha))


@dataclass(frozen=True)
class Power:
    """f_alpha with gamma = (1 - alpha) / 2: 1 is the weighted sum, 0 the geometric mean, infinity the maximum."""

    gamma: float

    def mean(self, values: Tensor, attention: Tensor) -> Tensor:
        """f^-1(A^T f(V)): values Float[..., N, D], positive unless gamma is 1 or infinite; attention Float[..., N, k], not
        negative -> Float[..., k, D]. Values are scaled by the largest of their channel, so that no power overflows.
        """
        if self.gamma == 1:
            return attention.mT.to(values.dtype) @ values
        if self.gamma == 0:
            return (attention.mT.to(values.dtype) @ values.log()).exp()
        if self.gamma == math.inf:
            seen = torch.where(attention.mT.unsqueeze(-1) > 0, values.unsqueeze(-3), -math.inf)  # [..., k, N, D]
            return seen.amax(-2)
        tiny, largest = torch.finfo(values.dtype).tiny, torch.finfo(values.dtype).max
        weights, values = attention.mT.unsqueeze(-1), values.unsqueeze(-3)  # [..., k, N, 1], [..., 1, N, D]
        scale = torch.where(weights > 0, values, 0).detach().amax(-2, keepdim=True).clamp(min=tiny)
        powers = (values / scale).clamp(max=largest ** (0.5 / max(self.gamma, 1))).pow(self.gamma)
        mean = (weights * powers).sum(-2)  # not a matrix product, which autocast would take in half precision
        return mean.clamp(min=tiny).pow(1 / self.gamma) * scale.squeeze(-2)


@dataclass(frozen=True)
class Exponential:
    """f(x) = exp(tau x): the mean goes from the average at tau -> 0 to the maximum at tau -> infinity."""

    tau: Tensor | float

    def mean(self, values: Tensor, attention: Tensor) -> Tensor:
        """log(A^T exp(tau V)) / tau, shapes as in ``Power.mean``; no exponential overflows."""
        weights = attention.mT.unsqueeze(-1)  # [..., k, N, 1]
        logits = self.tau * values.unsqueeze(-3) + torch.where(weights > 0, weights, 1).log()
        logits = torch.where(weights > 0, logits, -math.inf)
        return logits.logsumexp(-2) / self.tau


# ---- parts that several methods share ----------------------------------------------------------------------------------


@part("pi_A(X)")
def average(self, t: Variables) -> Tensor:
    return t.X.mean(1, keepdim=True)


@part("U")
def learned(self, t: Variables) -> Tensor:
    """``self.initial`` [k, D], the same for all images."""
    return self.initial.expand(len(t.X), -1, -1)


@part("U")
def current(self, t: Variables) -> Tensor:
    return t.U


@part("X")
def features(self, t: Variables) -> Tensor:
    return t.X


@part("x^T y")
def dot_product(self, t: Variables) -> Tensor:
    return t.K @ t.Q.mT


@part("-|x-y|^2")
def negative_distance(self, t: Variables) -> Tensor:
    centre = t.K.detach().mean(-2, keepdim=True)  # far from the origin, squares would cancel
    K, Q = t.K - centre, t.Q - centre
    return 2 * K @ Q.mT - K.square().sum(-1, keepdim=True) - Q.square().sum(-1).unsqueeze(-2)


@part("1_p/p")
def uniform(self, t: Variables) -> Tensor:
    return t.X.new_full((*t.X.shape[:2], 1), 1 / t.X.shape[1])


@part("f_-1")
def weighted_sum(self, t: Variables) -> Power:
    return Power(1.0)


@part("Z")
def pooled_values(self, t: Variables) -> Tensor:
    return t.Z


def over_tokens(scores: Tensor) -> Tensor:
    """sigma_2: softmax over the tokens, [..., N, k]; in float32 at least."""
    return scores.softmax(-2, dtype=torch.promote_types(scores.dtype, torch.float32)).to(scores.dtype)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """g_m: [B, T, D] -> [B, m, T, D / m]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """g_m^-1: [B, m, T, d] -> [B, T, m d]."""
    return x.transpose(1, 2).flatten(2)
