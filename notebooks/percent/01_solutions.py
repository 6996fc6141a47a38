# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Solutions to 01 · Learning the encoder
#
# **1.** Each place agrees with probability 1/9, so of nine places one agrees on average: eight differ. Pairs that differ in all nine
# exist.

# %%
from course import exercises

exercises.average_distance(8.0)

# %% [markdown]
# **2.** All similarities are equal, so the softmax is uniform over the other $2B - 1$ views: $\ln(2B - 1)$.

# %%
import math

images = 64
exercises.blind_contrast(math.log(2 * images - 1), images)

# %% [markdown]
# **3.** The diagonal becomes minus infinity, and the right answer of view $i$ is $i + B$ or $i - B$.

# %%
import torch
import torch.nn.functional as F


def info_nce(first, second, temperature):
    """Float[B, D], Float[B, D], float -> scalar, in nats."""
    vectors = F.normalize(torch.cat([first, second]), dim=1)  # [2B, D]
    similarity = (vectors @ vectors.T / temperature).fill_diagonal_(-torch.inf)
    partner = torch.arange(len(vectors)).roll(len(first))
    return F.cross_entropy(similarity, partner)


exercises.info_nce(info_nce)

# %% [markdown]
# **4.** The turns run slowest, so each number stands $B$ times in a row.


# %%
def rotations(images):
    """Float[B, C, S, S] -> Float[4B, C, S, S], Long[4B]."""
    turned = torch.cat([images.rot90(turns, (2, 3)) for turns in range(4)])
    return turned, torch.arange(4).repeat_interleave(len(images))


exercises.rotations(rotations)
