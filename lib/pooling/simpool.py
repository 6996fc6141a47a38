"""SimPool: one step of attention, from the average of the features to a generalised mean of them (SimPool, section 3.3)."""

import torch
from torch import Tensor, nn

from lib.pooling.framework import Pooled, Pooling, Power, Variables, average, dot_product, merge_heads, over_tokens, part, split_heads

SCOPES = ("image", "channel", "batch")


class SimPool(Pooling, name="simpool"):
    """u0 = mean(X); q = W_Q u0; K = W_K LN(X); a = softmax(K q / sqrt d); u = (sum_p a_p (v_p - min V + 1e-6)^gamma)^(1/gamma)
    with V = LN(X), the same LayerNorm as for the keys, and no other weights (eq. 10 to 14). 2 D^2 + 2 D parameters.

    The authors' checkpoints load into it: ``norm_patches``, ``wq``, ``wk`` and ``beta``. timm's ``SimPool1d`` and ``SimPool2d``
    agree with it for gamma = None, and with ``min_scope="channel"`` otherwise.

    Args:
        dim: channels D.
        gamma: (1 - alpha) / 2; the papers use 1.25 for transformers and 2 for convolutional networks. None takes the plain
            weighted mean of V, without shifting it.
        beta: add a learned scalar to the result, as the paper's self-supervised transformers do; only with a gamma.
        num_heads: heads that attend each with its part of the channels.
        min_scope: what min V is taken over: ``image``, all elements of an image (the paper), so that an output does not depend
            on its neighbours in the batch; ``channel``, each channel's tokens (timm); ``batch``, everything (the released
            code).
    """

    group, category_level = 5, True
    U0, s = average, dot_product

    def __init__(self, dim: int, gamma: float | None = None, *, beta: bool = False, num_heads: int = 1, min_scope: str = "image"):
        super().__init__(dim)
        if gamma is not None and (not isinstance(gamma, (int, float)) or not gamma > 0):
            raise ValueError(f"gamma: got {gamma!r}, accepts None or a number above 0")
        if not isinstance(num_heads, int) or num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads: got {num_heads!r}, accepts divisors of dim = {dim}")
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
        """V - min V + 1e-6, in float32 at least; V itself without a gamma."""
        if self.gamma is None:
            return values
        values = values.to(torch.promote_types(values.dtype, torch.float32))  # half precision would lose the 1e-6
        dims = {"image": (1, 2), "channel": (1,), "batch": (0, 1, 2)}[self.min_scope]
        return values - values.amin(dims, keepdim=True) + 1e-6

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None) -> Pooled:
        """The algorithm above (``Pooling.forward``) with less work: LN(X) is computed once, and as there is one query, its
        product with all keys, LN(X) W_K^T q, is taken from the right: N D operations instead of N D^2.

        Args:
            x: tokens Float[B, N, D] or a map Float[B, D, H, W].
            grid: not needed.

        Returns:
            Pooled: vector Float[B, D], attention Float[B, heads, N].
        """
        X = self.variables(x, grid).X
        values = self.norm_patches(X)  # [B, N, D]
        query = self.wq(X.mean(1)).unflatten(1, (self.num_heads, -1))  # [B, m, d]
        folded = torch.einsum("bmd,mdc->bmc", query * self.scale, self.wk.weight.unflatten(0, (self.num_heads, -1)))
        scores = values @ folded.mT
        attention = scores.softmax(1, dtype=torch.promote_types(scores.dtype, torch.float32))  # [B, N, m]
        values = split_heads(self.shifted(values), self.num_heads)  # [B, m, N, d]
        weights = attention.mT.unsqueeze(-1).to(values.dtype)  # [B, m, N, 1]
        vector = self.f(None).mean(values, weights).flatten(1)  # [B, D]
        if self.beta is not None:
            vector = vector + self.beta
        return Pooled(vector.to(x.dtype), attention.mT.to(scores.dtype))
