# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Solutions to 00 · Map of the talk
#
# **1.** Sort the published gaps and take the smallest that is above zero.

# %%
from course import exercises
from lib.results import claims

gaps = claims().set_index("id").paper_gap
answer = gaps[gaps > 0].idxmin()
exercises.smallest_gap(answer)
gaps[gaps > 0].sort_values().head(3).round(2)
