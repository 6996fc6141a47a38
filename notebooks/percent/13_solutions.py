# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Solutions to 13 · SimPool, supervised
#
# **1.** SimPool brings $2d^2 + 2d$, the class token ($d$) and its position ($d$) leave: $2d^2$ remain.

# %%
from course import exercises

exercises.extra_parameters(2 * 768**2)

# %% [markdown]
# **2.** The row of the predicted class, one for each image, times each patch.

# %%
import torch


def class_map(patches, weight, logits):
    """Float[B, N, D], Float[C, D], Float[B, C] -> Float[B, N]."""
    return torch.einsum("bnd,bd->bn", patches, weight[logits.argmax(1)])


exercises.class_map(class_map)

# %% [markdown]
# **3.** By $-\min V + 10^{-6}$, which is one number for each image, added to every channel. A linear classifier sees it as a
# direction in which all channels move together. It can ignore this direction, at the price of one dimension.
