# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Solutions to 08 · Image retrieval
#
# **1.** Recall goes from 0 to 1 at the third image. Precision is 0 before it and 1/3 with it: the trapezoid's area is 1/6, half of what
# the place itself would give.

# %%
from course import exercises

exercises.third_alone(100 / 6)

# %% [markdown]
# **2.** The right image comes at each of the 160 places equally often. At the first the area is 1, at place k > 1 it is 1 / (2k).

# %%
areas = [1.0] + [1 / (2 * place) for place in range(2, 161)]
exercises.random_ranking(100 * sum(areas) / 160)
