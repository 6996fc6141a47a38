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
# **2.** Divide by the objects' patches, not by the hidden ones.


# %%
def hidden_share(mask, objects):
    """Bool[B, N] (True = hidden), Bool[B, N] -> percent."""
    return 100 * ((mask & objects).sum() / objects.sum()).item()


exercises.hidden_share(hidden_share)

# %% [markdown]
# **3.** `attention=target.attention…`. Give it `SimPool(dim)(target.patches).attention` instead. Its two matrices would have to learn
# from something: without the [CLS] loss on its vector nothing teaches them where to look.
