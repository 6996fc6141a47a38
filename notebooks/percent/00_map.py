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
scale: str = "smoke"  # smoke: photographs that are installed with the project; small: Imagenette under $COMPANION_DATA
images: int = 5  # photographs to show
network: str = "best"  # whose attention is shown: best, a name of lib.keep.kept_names(), or timm:NAME, a pre-trained ViT of timm

# %%
from lib.keys import check_parameters

check_parameters(globals())

# %% [markdown]
# ## The idea on some photographs
#
# A small network looks at photographs that it has never seen. It was trained on other photographs, without labels. Its attention says which
# places it finds telling. Both papers build on this map: AttMask hides what is attended, so that a student has to guess it, and SimPool
# pools what is attended.

# %%
from lib.data.views import denormalise
from lib.keep import network_to_show
from lib.masking import attention_mask
from lib.results.figures import hide_patches, image_grid, overlay, photographs

views = photographs(scale, images, 224)
with torch.no_grad():
    features = network_to_show(network).features(views)
attention, grid, pictures = features.attention.mean(1), features.grid, denormalise(views)
masks = attention_mask(attention, 0.4, strategy="high")
image_grid(
    {
        "photograph": list(pictures),
        "attention": [overlay(picture, single.view(grid)) for picture, single in zip(pictures, attention)],
        "AttMask-High": [hide_patches(picture, mask, grid) for picture, mask in zip(pictures, masks)],
    },
    size=1.7,
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
