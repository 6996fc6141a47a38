# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Solutions to 99 · Replication report
#
# **1.** The half width of the interval of three values: $t_{0.975, 2}\, s / \sqrt 3$.

# %%
from scipy import stats

from course import exercises

answer = stats.t.ppf(0.975, 2) * 1.0 / 3**0.5
print(round(answer, 2))
exercises.smallest_reproduced(answer)
