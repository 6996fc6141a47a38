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
# **1.** Recall goes from 0 to 1 at the third image. Precision is 0 before it and 1/3 at it. The trapezoid has the area 1/6,
# half of the precision at this place.

# %%
from course import exercises

exercises.third_alone(100 / 6)

# %% [markdown]
# **2.** The right image comes at each of the 160 places equally often. At the first the area is 1, at place k > 1 it is 1 / (2k).

# %%
areas = [1.0] + [1 / (2 * place) for place in range(2, 161)]
exercises.random_ranking(100 * sum(areas) / 160)

# %% [markdown]
# **3.** Places count from 1. Before the first place there is nothing, and the precision is 1.


# %%
def average_precision(right):
    """Bool[n], True where an image of the ranking is right -> percent."""
    places = right.nonzero().flatten() + 1
    areas = 0.0
    for j, place in enumerate(places.tolist(), 1):
        before = (j - 1) / (place - 1) if place > 1 else 1.0
        areas += (before + j / place) / 2
    return 100 * areas / len(places)


exercises.average_precision(average_precision)
