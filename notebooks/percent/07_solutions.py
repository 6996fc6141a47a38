# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Solutions to 07 · Backgrounds
#
# **1.** MS shows the object's own class behind it: 100%. MR shows each class with the same probability: 10%. MN never shows its own: 0%.

# %%
from course import exercises

exercises.background_only(100, 10, 0)

# %% [markdown]
# **2.** None: -1. In the hierarchy that ImageNet-9 was made with, game birds stand under *game* and not under *bird*. So an answer can be
# right and count as wrong.

# %%
exercises.peacock(-1)
