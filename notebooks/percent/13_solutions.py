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
# **2.** By $-\min V + 10^{-6}$, one number for each image that is added to every channel. A linear classifier sees it as a direction in
# which all channels move together; it can ignore that direction, at the price of one dimension.
