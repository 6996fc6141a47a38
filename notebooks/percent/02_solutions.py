# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Solutions to 02 · Which tokens to mask?
#
# **1.** A random mask hides each token with probability 0.3, whatever another mask does: 0.3.

# %%
from course import exercises

exercises.expected_overlap(0.3)

# %% [markdown]
# **2.** Average over the heads, sort, and write `True` at the first places of the order.

# %%
import torch


def attmask_high(attention, ratio):
    """Float[B, heads, N], float -> Bool[B, N], True = hidden."""
    order = attention.mean(1).argsort(dim=1, descending=True, stable=True)
    first = order[:, : int(ratio * order.shape[1])]
    return torch.zeros_like(order, dtype=torch.bool).scatter_(1, first, True)


exercises.attmask_high(attmask_high)

# %% [markdown]
# **3.** Sort by attention, skip the first half of the rest, take the next ones.


# %%
def middle_mask(attention, ratio):
    """Float[B, N], float -> Bool[B, N], True = hidden."""
    tokens = attention.shape[1]
    count = int(ratio * tokens)
    first = (tokens - count) // 2
    order = attention.argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(attention, dtype=torch.bool).scatter_(1, order[:, first : first + count], True)


exercises.middle_mask(middle_mask)
