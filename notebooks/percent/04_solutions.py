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
exercises.seeds_needed(seeds, 3.0, 1.5)

# %% [markdown]
# **2.** Take the differences first: what both arms of a seed have in common drops out.


# %%
def paired_interval(better, other):
    """Float[n], Float[n], scores of n seeds -> mean, low, high."""
    gaps = better - other
    mean = gaps.mean().item()
    half = stats.t.ppf(0.975, len(gaps) - 1) * gaps.std().item() / len(gaps) ** 0.5
    return mean, mean - half, mean + half


exercises.paired_interval(paired_interval)

# %% [markdown]
# **3.** The *number* of hidden tokens now varies from crop to crop within a batch instead of from batch to batch. The mean is the
# same, but a batch's gradient averages over many ratios. If only some strategies do so, the comparison cannot tell *where* they hide
# from *how many* they hide.
