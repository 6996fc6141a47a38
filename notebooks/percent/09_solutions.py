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
