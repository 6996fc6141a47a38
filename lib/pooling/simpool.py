"""SimPool: one attention step from the average of the features to their generalised mean (SimPool, section 3.3)."""

import torch
from torch import Tensor, nn

from lib.pooling.framework import Pooled, Pooling, Power, Variables, average, dot_product, merge_heads, over_tokens, part, split_heads
from lib.tensors import without_autocast

SCOPES = {"image": (1, 2), "channel": (1,), "batch": (0, 1, 2)}  # the dimensions of [B, N, D] over which min V is taken


class SimPool(Pooling, name="simpool"):
    """u0 = mean(X); q = W_Q u0; K = W_K LN(X); a = softmax(K q / sqrt d); u = (sum_p a_p (v_p - min V + 1e-6)^gamma)^(1/gamma)
    with V = LN(X), the same LayerNorm as for the keys, and no other weights (eq. 12 to 17). 2 D^2 + 2 D parameters.

    The parameters have the names of the authors' checkpoints: ``norm_patches``, ``wq``, ``wk`` and ``beta``. timm's ``SimPool1d`` and
    ``SimPool2d`` compute the same for gamma = None, and for other values of gamma with ``min_scope="channel"``.

    Args:
        gamma: (1 - alpha) / 2; the papers use 1.25 for transformers and 2 for convolutional networks. None computes the plain
            weighted mean of V, without subtracting the minimum.
        beta: add a learned scalar to the result, as the paper's self-supervised transformers do; only with a gamma.
        num_heads: number of heads; each attends with its part of the channels.
        min_scope: the elements over which min V is taken: ``image``, all elements of an image (the paper), so that an output does
            not depend on the rest of the batch; ``channel``, the tokens of a channel (timm); ``batch``, all elements (the released
            code).
    """

    wq: nn.Linear
    wk: nn.Linear
    beta: nn.Parameter | None

    group, category_level = 5, True
    U0, s = average, dot_product

    def __init__(self, dim: int, gamma: float | None = None, *, beta: bool = False, num_heads: int = 1, min_scope: str = "image"):
        super().__init__(dim)
        if gamma is not None and (not isinstance(gamma, (int, float)) or not gamma > 0):
            raise ValueError(f"gamma: got {gamma!r}, accepts None or a number above 0")
        self._check_heads("num_heads", num_heads)
        if min_scope not in SCOPES:
            raise ValueError(f"min_scope: got {min_scope!r}, accepts {', '.join(SCOPES)}")
        if beta and gamma is None:
            raise ValueError("beta: got True without a gamma, accepts False when gamma is None")
        self.gamma, self.num_heads, self.min_scope = gamma, num_heads, min_scope
        self.scale = (dim // num_heads) ** -0.5
        self.norm_patches = nn.LayerNorm(dim, eps=1e-6)
        self.wq = nn.Linear(dim, dim, bias=False)
        self.wk = nn.Linear(dim, dim, bias=False)
        self.beta = nn.Parameter(torch.zeros(1)) if beta else None

    @part("W_Q U")
    def phi_Q(self, t: Variables) -> Tensor:
        return split_heads(self.wq(t.U), self.num_heads)

    @part("W_K X")
    def phi_K(self, t: Variables) -> Tensor:
        return split_heads(self.wk(self.norm_patches(t.X)), self.num_heads)

    @part("sigma_2(S/sqrt d)")
    def h(self, t: Variables) -> Tensor:
        return over_tokens(t.S * self.scale)

    @part("X - min X")
    def phi_V(self, t: Variables) -> Tensor:
        return split_heads(self.shifted(self.norm_patches(t.X)), self.num_heads)

    @part("f_alpha")
    def f(self, t: Variables) -> Power:
        return Power(1.0 if self.gamma is None else self.gamma)

    @part("Z")
    def phi_U(self, t: Variables) -> Tensor:
        vector = merge_heads(t.Z)
        return vector if self.beta is None else vector + self.beta

    def shifted(self, values: Tensor) -> Tensor:
        """V - min V + 1e-6, in float32 or more precise; V itself without a gamma."""
        if self.gamma is None:
            return values
        values = values.to(torch.promote_types(values.dtype, torch.float32))  # half precision would lose the 1e-6
        return values - values.amin(SCOPES[self.min_scope], keepdim=True) + 1e-6

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None) -> Pooled:
        """The same result as that of ``Pooling.forward``, vector Float[B, D] and attention Float[B, heads, N], with less work; ``grid`` is not
        needed. LN(X) is computed once. As there is one query, its product with all keys, LN(X) W_K^T q, is computed from the right, which
        takes N D operations instead of N D^2. Under autocast all of it is in float32: 16 bits are too few for the scores and for the
        differences from min V.
        """
        with without_autocast(x):
            vector, attention = self._pooled(x.to(torch.promote_types(x.dtype, self.wq.weight.dtype)), grid)
        return Pooled(vector.to(x.dtype), attention)

    def _pooled(self, x: Tensor, grid: tuple[int, int] | None) -> Pooled:
        t = self.variables(x, grid)
        values = self.norm_patches(t.X)  # [B, N, D]
        query = self.wq(t.X.mean(1)).unflatten(1, (self.num_heads, -1))  # [B, m, d]
        projection = torch.einsum("bmd,mdc->bmc", query * self.scale, self.wk.weight.unflatten(0, (self.num_heads, -1)))
        scores = values @ projection.mT
        attention = scores.softmax(1, dtype=torch.promote_types(scores.dtype, torch.float32))  # [B, N, m]
        values = split_heads(self.shifted(values), self.num_heads)  # [B, m, N, d]
        weights = attention.mT.unsqueeze(-1).to(values.dtype)  # [B, m, N, 1]
        vector = self.f(t).mean(values, weights).flatten(1)  # [B, D]
        if self.beta is not None:
            vector = vector + self.beta
        return Pooled(vector, attention.mT.to(scores.dtype))
