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
# **1.** Each place agrees with probability 1/9, so of nine places one agrees on average: eight differ. Pairs that differ in all nine exist.

# %%
from course import exercises

exercises.average_distance(8.0)

# %% [markdown]
# **2.** All similarities are equal, so the softmax is uniform over the other $2B - 1$ views: $\ln(2B - 1)$.

# %%
import math

images = 64
exercises.blind_contrast(math.log(2 * images - 1), images)
