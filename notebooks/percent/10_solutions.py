# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Solutions to 10 · Detection and segmentation
#
# **1.** One down; across, one starts at 0 and the last one ends at the edge, at 683 - 512 = 171: two.

# %%
from course import exercises

exercises.windows(2)

# %% [markdown]
# **2.** From the heads down to the embedding are thirteen steps: $0.8^{13} = 0.055$.

# %%
exercises.lowest_rate(0.8**13)
