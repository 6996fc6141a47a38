"""The pooling algorithm, of which every method of the landscape is an instance (SimPool, section 3.2)::

    U <- U0(X)                      the first pooled vectors
    repeat
        Q, K <- phi_Q(U), phi_K(X)  queries of the pooled vectors, keys of the features
        S    <- s(K, Q)             S[i, j]: similarity of key i and query j
        A    <- h(S)                attention
        V    <- phi_V(X)            values
        Z    <- f^-1(f(V) A)        pooled values
        X, U <- phi_X(X), phi_U(Z)

The papers write features as columns. Here tokens are rows: X is [B, N, D], U and Z are [B, k, D], S and A are [B, N, k], and
Z = f^-1(A^T f(V)). A method is a class that declares its parts, see ``lib.pooling.methods``. The algorithm skips parts that a method
leaves out. A method without phi_U re-weights the features, and its pooled vector is their average.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeVar

import pandas as pd
import torch
from torch import Tensor, nn

COLUMNS = ("k", "U0", "phi_Q", "phi_K", "s", "A", "phi_V", "f", "phi_X", "phi_U")  # of the talk's table; A is the result of h
POOLINGS: dict[str, type["Pooling"]] = {}  # by name, in the order of their declaration


class Pooled(NamedTuple):
    """The output of a pooling method."""

    vector: Tensor  # Float[B, D], or [B, k, D] for k > 1 pooled vectors
    attention: Tensor | None  # Float[B, k, N], the mean over heads (SimPool: [B, heads, N]); None for a method without attention


class Variables:
    """The variables of the algorithm, by the talk's letters. All but X and grid exist only after their part has run. If there are several
    heads, their dimension comes after the batch.
    """

    X: Tensor  # [B, N, D]
    grid: tuple[int, int] | None  # (H, W) with N = H W; None for tokens without a grid
    U: Tensor  # [B, k, D]
    Q: Tensor  # [B, k, d]
    K: Tensor  # [B, N, d]
    S: Tensor  # [B, N, k]
    A: Tensor  # [B, N, k]
    V: Tensor  # [B, N, D]
    Z: Tensor  # [B, k, D]

    def __init__(self, X: Tensor, grid: tuple[int, int] | None):
        self.X, self.grid = X, grid

    def as_map(self, x: Tensor) -> Tensor:
        """[B, N, C] -> [B, C, H, W]; without a grid, the map is a square."""
        tokens, side = x.shape[1], math.isqrt(x.shape[1])
        if self.grid is None and side * side != tokens:
            raise ValueError(f"grid: got none with {tokens} tokens, this pooling accepts maps, a square number of tokens, or a grid (H, W)")
        return x.mT.unflatten(2, self.grid or (side, side))


Part = Callable[[Any, Variables], Tensor]
Function = TypeVar("Function", bound=Callable[..., Any])


def part(symbol: str) -> Callable[[Function], Function]:
    """Mark a method as a part of the algorithm, with its ``symbol`` in the talk's table."""

    def mark(function: Any) -> Any:
        function.symbol = symbol
        return function

    return mark


class Pooling(nn.Module):
    """The algorithm for features with ``dim`` channels D. Subclasses declare its parts, functions of ``(self, t)`` with t of type
    ``Variables``, marked by ``part``. A declaration ``class GAP(Pooling, name="gap")`` makes a method available to ``create_pooling``.
    """

    # The row of the talk's table, besides its parts.
    title: str | None = None  # name in the table, if it differs from the registered name
    group: int | None = None  # None for a method that is not in the table
    category_level: bool = False  # used in category-level tasks
    iterative: bool = False
    simplified: bool = False  # the table simplifies the original method
    pooled_vectors: str = "1"  # the table's k

    iterations: int = 1
    U0: ClassVar[Part | None] = None
    phi_Q: ClassVar[Part | None] = None
    phi_K: ClassVar[Part | None] = None
    s: ClassVar[Part | None] = None
    h: ClassVar[Part | None] = None
    phi_V: ClassVar[Part | None] = None
    f: ClassVar[Callable[[Any, Variables], "Power | Exponential"] | None] = None
    phi_X: ClassVar[Part | None] = None
    phi_U: ClassVar[Part | None] = None

    def __init_subclass__(cls, *, name: str | None = None, **rest: Any):
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
            grid: (H, W) of tokens, row-major; needed only by methods that use neighbouring tokens, and only if it is not square.

        Raises:
            ValueError: features or a grid of another shape.
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
        vectors = (t.X.mean(1, keepdim=True) if self.phi_U is None else t.U).to(x.dtype)
        attention = None if self.h is None else (t.A.mean(1) if t.A.ndim == 4 else t.A).mT  # the mean over heads
        return Pooled(vectors.squeeze(1) if vectors.shape[1] == 1 else vectors, attention)

    def variables(self, x: Tensor, grid: tuple[int, int] | None = None) -> Variables:
        """The variables at the start of the algorithm, with the arguments of ``forward``."""
        if x.ndim == 4 and x.shape[1] == self.dim and x.numel():
            return Variables(x.flatten(2).mT, (x.shape[2], x.shape[3]))
        if x.ndim != 3 or x.shape[2] != self.dim or not x.numel():
            raise ValueError(f"x: got shape {tuple(x.shape)}, accepts tokens [B, N, {self.dim}] or maps [B, {self.dim}, H, W]")
        is_pair = isinstance(grid, (tuple, list)) and len(grid) == 2 and min(grid) > 0
        if grid is not None and not (is_pair and grid[0] * grid[1] == x.shape[1]):
            raise ValueError(f"grid: got {grid} for {x.shape[1]} tokens, accepts (H, W) with H * W tokens")
        return Variables(x, grid)

    def _check_heads(self, name: str, heads: int) -> None:
        if not isinstance(heads, int) or heads < 1 or self.dim % heads:
            raise ValueError(f"{name}: got {heads!r}, accepts divisors of dim = {self.dim}")


def landscape() -> pd.DataFrame:
    """The talk's table, built from the declarations: one row for each method, empty where the method leaves a part out."""
    rows = {}
    for name, method in POOLINGS.items():
        parts = {column: getattr(method, "h" if column == "A" else column) for column in COLUMNS if column != "k"}
        rows[name] = {
            "name": method.title or name,
            **{key: getattr(method, key) for key in ("simplified", "group", "category_level", "iterative")},
            "k": method.pooled_vectors,
            **{column: "" if function is None else getattr(function, "symbol", "?") for column, function in parts.items()},
        }
    return pd.DataFrame(rows).T.rename_axis("method").astype({"group": "Int64"})


# ---- pooling functions ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Power:
    """f_alpha(x) = x^((1 - alpha) / 2), or ln x for alpha = 1 (SimPool), of x > 0, with gamma = (1 - alpha) / 2: 1 is the weighted
    sum, 0 the geometric mean, infinity the maximum.
    """

    gamma: float

    def mean(self, values: Tensor, attention: Tensor) -> Tensor:
        """f^-1(A^T f(V)) Float[..., k, D] of values Float[..., N, D], positive unless gamma is 1 or infinite, and attention
        Float[..., N, k], not negative. Values are divided by the maximum of their channel, so that powers do not overflow.
        """
        if self.gamma == 1:
            return attention.mT.to(values.dtype) @ values
        if self.gamma == 0:
            return (attention.mT.to(values.dtype) @ values.log()).exp()
        if self.gamma == math.inf:
            return torch.where(attention.mT.unsqueeze(-1) > 0, values.unsqueeze(-3), -math.inf).amax(-2)  # over [..., k, N, D]
        limits = torch.finfo(values.dtype)
        weights, values = attention.mT.unsqueeze(-1), values.unsqueeze(-3)  # [..., k, N, 1], [..., 1, N, D]
        scale = torch.where(weights > 0, values, 0).detach().amax(-2, keepdim=True).clamp(min=limits.tiny)
        powers = (values / scale).clamp(max=limits.max ** (0.5 / max(self.gamma, 1))).pow(self.gamma)
        mean = (weights * powers).sum(-2)  # no matrix product, because autocast would compute it in half precision
        return mean.clamp(min=limits.tiny).pow(1 / self.gamma) * scale.squeeze(-2)


@dataclass(frozen=True)
class Exponential:
    """f(x) = exp(tau x): the mean approaches the average for tau -> 0 and the maximum for tau -> infinity."""

    tau: Tensor | float

    def mean(self, values: Tensor, attention: Tensor) -> Tensor:
        """log(A^T exp(tau V)) / tau with the shapes of ``Power.mean``, computed so that exponentials do not overflow."""
        weights = attention.mT.unsqueeze(-1)  # [..., k, N, 1]
        logits = self.tau * values.unsqueeze(-3) + torch.where(weights > 0, weights, 1).log()
        logits = torch.where(weights > 0, logits, -math.inf)
        return logits.logsumexp(-2) / self.tau


# ---- parts that several methods share ----------------------------------------------------------------------------------


def variable(letter: str) -> Part:
    """The part that is one of the variables itself."""
    return part(letter)(lambda self, t: getattr(t, letter))


features = variable("X")
current_vectors = variable("U")
values = variable("V")
pooled_values = variable("Z")


@part("pi_A(X)")
def average(self: Any, t: Variables) -> Tensor:
    return t.X.mean(1, keepdim=True)


@part("U")
def learned_vectors(self: Any, t: Variables) -> Tensor:
    """The parameter ``self.initial`` [k, D], the same for all images."""
    return self.initial.expand(len(t.X), -1, -1)


@part("x^T y")
def dot_product(self: Any, t: Variables) -> Tensor:
    return t.K @ t.Q.mT


@part("-|x-y|^2")
def negative_distance(self: Any, t: Variables) -> Tensor:
    centre = t.K.detach().mean(-2, keepdim=True)  # without it, the difference of large squares would be inaccurate
    K, Q = t.K - centre, t.Q - centre
    return 2 * K @ Q.mT - K.square().sum(-1, keepdim=True) - Q.square().sum(-1).unsqueeze(-2)


@part("1_p/p")
def uniform(self: Any, t: Variables) -> Tensor:
    return t.X.new_full((*t.X.shape[:2], 1), 1 / t.X.shape[1])


@part("f_-1")
def weighted_sum(self: Any, t: Variables) -> Power:
    return Power(1.0)


def over_tokens(scores: Tensor) -> Tensor:
    """sigma_2: softmax of [..., N, k] over the tokens, in float32 or more precise."""
    return scores.softmax(-2, dtype=torch.promote_types(scores.dtype, torch.float32)).to(scores.dtype)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """g_m: [B, T, D] -> [B, m, T, D / m]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """g_m^-1: [B, m, T, d] -> [B, T, m d]."""
    return x.transpose(1, 2).flatten(2)
