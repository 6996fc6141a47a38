# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Solutions to 07 · Backgrounds
#
# **1.** MS shows the object's own class behind it: 100%. MR shows each class with the same probability: 10%. MN never shows its own: 0%.

# %%
from course import exercises

exercises.background_only((100, 10, 0))

# %% [markdown]
# **2.** None: -1. In the hierarchy that ImageNet-9 was made with, game birds stand under *game* and not under *bird*. So a right
# answer can count as wrong.

# %%
exercises.peacock(-1)

# %% [markdown]
# **3.** -1 never equals a label, so nothing has to be left out.


# %%
def in9_accuracy(predicted, labels, mapping):
    """Long[B] of 1000 classes, Long[B] of nine, Long[1000] -> percent."""
    return 100 * (mapping[predicted] == labels).double().mean().item()


exercises.in9_accuracy(in9_accuracy)
