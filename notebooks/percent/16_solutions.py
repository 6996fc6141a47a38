# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Solutions to 16 · Localization
#
# **1.** The box lies inside the image, so they share 45% and cover 100% together: an IoU of 0.45, enough for 0.3 alone.

# %%
from course import exercises

exercises.whole_image_levels([0.3])

# %% [markdown]
# **2.** All the attention lies on the object: 100%. The box around it is a quarter of the true one and lies inside it: an IoU of
# about 0.25, right at no level.

# %%
exercises.part_of_an_object((100.0, 0.25))

# %% [markdown]
# **3.** `nonzero` gives rows and columns; x counts columns.

# %%
import torch


def box_of_map(single, box):
    """Float[H, W], Long[4] (x0, y0, x1, y1) -> the best IoU."""
    single = (single - single.min()) / (single.max() - single.min())
    best = 0.0
    for threshold in torch.arange(0, 1, 0.05):
        y, x = (single > threshold).nonzero(as_tuple=True)
        found = torch.stack([x.min(), y.min(), x.max(), y.max()])
        sides = torch.minimum(found[2:], box[2:]) - torch.maximum(found[:2], box[:2]) + 1
        shared = sides.clamp(min=0).prod()
        areas = (found[2:] - found[:2] + 1).prod() + (box[2:] - box[:2] + 1).prod()
        best = max(best, (shared / (areas - shared)).item())
    return best


exercises.box_of_map(box_of_map)
