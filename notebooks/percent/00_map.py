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
# student may not see. **SimPool** (Psomas et al., ICCV 2023) replaces the last pooling of a network by one attention step. The paper
# reports sharp attention maps from it. One idea joins the two papers: *the attention is already there, so use it*.
#
# Each chapter goes the same way: a question, the idea, the equation, the code, a short run, the recorded evidence, and three things to
# remember. It ends with exercises. A check tries your answer, and says what may be wrong with it.

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
# A small network looks at photographs that it has never seen. It was trained on other photographs, without labels. Its attention says
# which places are important to it. Both papers start from this map. AttMask hides the places that are attended most, so that a student
# has to guess them. SimPool pools the features by their attention.

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
# Each column is one photograph. The second row shows where the network attends: the brighter, the more. The third row shows what
# AttMask-High leaves for a student to see, when it hides the 40% of the patches that are attended most.
#
# ## The notebooks
#
# A row is a chapter. They build on each other from 01 to 10 for AttMask, and from 11 to 18 for SimPool. Chapter 19 joins both.

# %%
import pandas as pd

from course.chapters import chapters

pd.set_option("display.max_colwidth", None)
chapters()

# %% [markdown]
# A title is what a chapter is about, and its question is what it tries to answer.
#
# ## The claims
#
# Every claim in the talk's words, with the advantage that the papers publish: the better method's figure minus the strongest
# alternative's, mean over the claim's columns.

# %%
from lib.results import claims

table = claims().set_index("id")
table[["text", "metric", "paper_gap"]].round(2).astype(object).fillna("")

# %% [markdown]
# An empty cell in the last column means that the talk shows a figure or a measurement of time in place of a table of numbers.
#
# ## From a run to a verdict
#
# Numbers in a notebook are never typed in. They come from runs, and this drawing shows the way that they go.

# %%
import matplotlib.pyplot as plt

from course import drawings

drawings.verdict()
plt.show()

# %% [markdown]
# A *recipe* holds every number that a run depends on. A *run* is one network, trained with one seed. A finished run leaves one line in
# `records/`. Two methods are compared seed by seed: each *paired difference* is one method's figure minus the other's, with everything
# else equal. The verdict is drawn from the mean of these differences and from its interval.
#
# ## The dashboard
#
# A claim has one of five verdicts:
#
# - `reproduced`: the 95% interval of the difference lies on the claimed side of zero.
# - `contradicted`: it lies on the other side.
# - `inconclusive`: it contains zero.
# - `not testable`: the comparison could not have decided, whatever its result. This is so with fewer than three seeds. It is also so when
#   the masks of both arms hide the same part of the objects, when no arm is better than the untrained network or than a trivial answer,
#   and when the figures are at an end of the scale. The reason stands beside the verdict.
# - `not run`: there are no records.
#
# Some claims join several statements, for example on k-NN and on the linear probe. Each statement has its own verdict. Such a claim is
# reproduced if all its statements are, and contradicted if one of them is.

# %% tags=["nbval-ignore-output"]
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

# %% [markdown]
# The bars and the table count the claims of each paper by their verdict. The next table has a row for each statement, with its reason.

# %% tags=["nbval-ignore-output"]
from lib.results.figures import verdict_table

verdict_table()

# %% [markdown]
# Each row is one statement: the paper's gap, our gap with its 95% interval, and the verdict. Where the records could not decide, the
# last column says why.
#
# ## What to remember
#
# - Both papers use an attention that the network computes anyway: AttMask to choose what is hidden, SimPool to pool.
# - A verdict is a paired difference over seeds with an interval, computed from records.
# - *Not testable* is a result too: it says that the comparison could not have decided.
#
# ## References
#
# - Kakogeorgiou et al., *What to Hide from Your Students: Attention-Guided Masked Image Modeling*, ECCV 2022,
#   [arXiv:2203.12719](https://arxiv.org/abs/2203.12719)
# - Psomas et al., *Keep It SimPool: Who Said Supervised Transformers Suffer from Attention Deficit?*, ICCV 2023,
#   [arXiv:2309.06891](https://arxiv.org/abs/2309.06891)
#
# ## What would change your mind?
#
# Do not trust a dashboard whose rows could not have come out differently. Here each verdict can: notebook 99 shows the runs behind it,
# and `make record BUDGET=60` adds runs that are missing.
#
# ## Exercises
#
# **1.** Which published gap is the smallest that the talk still calls an improvement? Read it off the table of claims.

# %%
from course import exercises

answer = None  # the id of a claim
exercises.smallest_gap(answer)

# %% [markdown]
# The answer is in `solutions/00_solutions.ipynb`.
