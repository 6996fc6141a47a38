# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 00 · Map of the talk
#
# **CPU, 10 s** · start here
#
# **Question.** What does the talk "Leveraging Attention in Masked Image Modeling and Pooling" claim, where is each claim looked
# at, and what do our records say about it today?
#
# The talk presents two papers. **AttMask** (Kakogeorgiou et al., ECCV 2022) lets a teacher's attention decide which patches a
# student may not see. **SimPool** (Psomas et al., ICCV 2023) replaces the last pooling of any network by one attention step, and gets
# sharp attention maps from it. One idea joins them: *attention is already there; use it*.

# %%
from lib.results.figures import quote, use_style

use_style()
quote("attmask-1", "simpool-6")

# %%
import timm
import torch

print(f"torch {torch.__version__.split('+')[0]}, timm {timm.__version__}")

# %% tags=["parameters"]
scale: str = "smoke"  # smoke or small: where the map's picture comes from
image: int = 11  # number of the image

# %%
from lib.keys import check_parameters

check_parameters(globals())

# %% [markdown]
# ## The idea on one image
#
# A small network that was trained without labels on photographs looks at an image. Its class token's attention says where
# the object is: hide what it attends (AttMask), or pool what it attends (SimPool).

# %%
from lib.data import bank
from lib.data.scenes import render
from lib.data.views import center_view, denormalise
from lib.masking import attention_mask
from lib.keep import load_kept
from lib.results.figures import hide_patches, image_grid

pixels = (
    render(torch.tensor([image]), size=112).images
    if scale == "smoke"
    else bank("imagenette", "validation", 112, progress=False).images[image : image + 1]
)
view = center_view(pixels, 112, crop=1.0)
with torch.no_grad():
    features = load_kept("ibot_cpu-attmask_high").features(view)
attention = features.attention.mean(1)
picture, mask = denormalise(view)[0], attention_mask(attention, 0.3, strategy="high")[0]
image_grid(
    {"": [picture, attention[0].view(features.grid), hide_patches(picture, mask, features.grid)]},
    titles=["image", "attention", "hidden"],
    size=2,
)

# %% [markdown]
# ## The notebooks

# %%
import pandas as pd

from course.chapters import chapters

pd.set_option("display.max_colwidth", None)
chapters()

# %% [markdown]
# ## The claims
#
# Every claim in the talk's words, with the advantage that the papers publish: the better method's figure minus the strongest
# alternative's, mean over the claim's columns.

# %%
from lib.results import claims

table = claims().set_index("id")
table[["text", "metric", "paper_gap"]].round(2).astype(object).fillna("")

# %% [markdown]
# ## The dashboard
#
# A verdict is computed from the records, never typed in: the paired difference over seeds with a 95% interval. It is `reproduced` when
# the interval lies on the claimed side of zero, `contradicted` on the other side, `inconclusive` across zero, and `not run` without
# records. A fifth verdict comes first: a comparison is `not testable` when it could not have decided, whatever came out of it. This is so
# with fewer than three seeds, when the masks of both arms hide the same part of the objects, when no arm is better than the untrained
# network or than a trivial answer, and when the figures are at an end of the scale. The reason stands beside the verdict.
#
# A claim that joins several statements (k-NN and linear probe, transformers and convolutional networks) has a verdict on each of them. The
# claim is reproduced if all its statements are, and contradicted if one of them is.

# %% tags=["nbval-ignore-output"]
import matplotlib.pyplot as plt
import seaborn as sns

from lib.results import verdicts
from lib.results.verdicts import VERDICTS

found = verdicts().assign(paper=table.paper.to_numpy())
counts = found.groupby(["paper", "verdict"]).size().unstack(fill_value=0).reindex(columns=VERDICTS, fill_value=0)
counts.plot.barh(stacked=True, figsize=(7, 1.8), color=[*sns.color_palette("colorblind")[2:4], "0.5", "0.7", "0.9"])
plt.legend(ncol=5, bbox_to_anchor=(0.5, 1.02), loc="lower center", frameon=False)
plt.xlabel("claims")
plt.show()
counts

# %% tags=["nbval-ignore-output"]
from lib.results.figures import verdict_table

verdict_table()

# %% [markdown]
# ## What would change your mind?
#
# A dashboard of green rows that could not have come out red. Each verdict here can: notebook 99 shows the runs behind it, and
# `make record BUDGET=60` adds those that are missing.
#
# ## Exercises
#
# **1.** Which published gap is the smallest that the talk still calls an improvement? Read it off the table of claims.

# %%
from course import exercises

answer = None  # the id of a claim
exercises.smallest_gap(answer)

# %% [markdown]
# Answers: `solutions/00_solutions.ipynb`.
