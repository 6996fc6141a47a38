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
# **1.** Two parts of its own, three that are there.

# %%
from course import exercises
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


exercises.norm_softmax(NormSoftmax)

# %% [markdown]
# **2.** $\big((1^\gamma + 3^\gamma) / 2\big)^{1/\gamma} = \sqrt 5$ for $\gamma = 2$: $(1 + 9) / 2 = 5$.

# %%
exercises.gamma_of_root_five(2)
