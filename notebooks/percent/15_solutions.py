# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Solutions to 15 · Attention maps
#
# **1.** Each patch has the same share, so the mass inside is the covered area: 30%.

# %%
from course import exercises

exercises.even_attention_mass(30.0)

# %% [markdown]
# **2.** An even attention over $N$ patches has the entropy $\ln N$.

# %%
import math


def entropy(attention):
    """Float[B, heads, N], which sums to 1 over N -> Float[B], in percent."""
    a = attention.mean(1)
    return -100 * (a * a.log()).sum(1) / math.log(a.shape[1])


exercises.entropy(entropy)

# %% [markdown]
# **3.** Write `first = {int(labels[i]): i for i in suited}`: the last one of a class wins. If the impression depends on it, the
# number in the table decides, not the picture.
