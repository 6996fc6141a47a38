# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Solutions to 11 · The pooling landscape
#
# **1.** The softmax runs over the tokens (dimension 1), the minimum over all elements of an image.

# %%
import torch.nn.functional as F

from course import exercises


def simpool(X, W_Q, W_K, gamma):
    """Float[B, N, D], Float[D, D], Float[D, D], float -> Float[B, D]; a row x is mapped to x @ W.T."""
    LN = F.layer_norm(X, X.shape[2:], eps=1e-6)
    q = X.mean(1, keepdim=True) @ W_Q.T  # [B, 1, D]
    K = LN @ W_K.T  # [B, N, D]
    a = (K @ q.mT / X.shape[2] ** 0.5).softmax(1)  # [B, N, 1]
    V = LN - LN.amin((1, 2), keepdim=True) + 1e-6  # [B, N, D]
    return (a * V**gamma).sum(1) ** (1 / gamma)


exercises.simpool(simpool)

# %% [markdown]
# **2.** Two parts of its own, three that are there.

# %%
from lib.pooling import Pooling
from lib.pooling.framework import features, over_tokens, part, pooled_values, weighted_sum


class NormSoftmax(Pooling, name="norm_softmax"):
    phi_V, f, phi_U = features, weighted_sum, pooled_values

    @part("|x|")
    def phi_K(self, t):
        return t.X.norm(dim=-1, keepdim=True)

    @part("sigma_2(K)")
    def h(self, t):
        return over_tokens(t.K)


exercises.norm_softmax(NormSoftmax(5))

# %% [markdown]
# **3.** $\big((1^\gamma + 3^\gamma) / 2\big)^{1/\gamma} = \sqrt 5$ for $\gamma = 2$: $(1 + 9) / 2 = 5$.

# %%
exercises.gamma_of_root_five(2)
