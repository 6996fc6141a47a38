# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Solutions to 09 · Video object segmentation
#
# **1.** 12 patches of 16 pixels: 192 pixels.

# %%
from course import exercises

exercises.farthest_move(192)

# %% [markdown]
# **2.** The two squares share 5 x 10 pixels and cover 15 x 10 together: 1/3.

# %%
exercises.moved_square(1 / 3)

# %% [markdown]
# **3.** Divide by the union.


# %%
def region(mask, truth):
    """Bool[H, W], Bool[H, W] -> J in [0, 1]."""
    return ((mask & truth).sum() / (mask | truth).sum()).item()


exercises.region(region)

# %% [markdown]
# **4.** `labels[nearest]` has the shape [N, topk, C].

# %%
import torch.nn.functional as F


def propagation(frame, context, labels, topk, temperature):
    """Float[N, D], Float[M, D], Float[M, C], int, float -> Float[N, C]."""
    similarity, nearest = (F.normalize(frame) @ F.normalize(context).T).topk(topk)  # [N, topk]
    weights = (similarity / temperature).softmax(1)
    return (weights.unsqueeze(-1) * labels[nearest]).sum(1)


exercises.propagation(propagation)
