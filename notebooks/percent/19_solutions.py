# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Solutions to 19 · Beyond both papers
#
# **1.** $(34 - 32) - (33 - 30) = -1$: it takes a point away, although SimPool with AttMask-High is the best of the four.

# %%
from course import exercises

exercises.guidance((34 - 32) - (33 - 30))

# %% [markdown]
# **2.** `attention=target.attention…`: give it `SimPool(dim)(target.patches).attention` instead. Its two matrices would have to learn from
# something: without the [CLS] loss on its vector nothing teaches them where to look.
