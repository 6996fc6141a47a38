# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Solutions to 04 · Masking strategies compared
#
# **1.** The half width of the interval is $t_{0.975, n-1}\, s / \sqrt n$. Raise $n$ until it is below the gap.

# %%
from scipy import stats

from course import exercises

seeds = next(n for n in range(2, 100) if stats.t.ppf(0.975, n - 1) * 1.5 / n**0.5 < 3.0)
print(seeds)
exercises.seeds_needed(seeds, gap=3.0, spread=1.5)

# %% [markdown]
# **2.** The *number* of hidden tokens now varies from crop to crop within a batch instead of from batch to batch. The mean is the same, but a
# batch's gradient averages over many ratios. A comparison in which only some strategies do so confounds where with how many.
