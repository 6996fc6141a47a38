# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 05 · Convergence, fractions of the data, few examples
#
# **CPU, 40 s at smoke scale** · before it: 04 (strategies) · after it: 06 (methods)
#
# **Question.** Does AttMask learn *faster*, and does it need *less*: fewer images to pre-train on, fewer labels to classify with?
#
# A harder exercise can teach more in the same time. The talk claims this of AttMask in three ways: the accuracy rises earlier, it is
# higher with less training data, and the gain is largest where labels are few.

# %%
from lib.results.figures import quote, use_style

use_style()
quote("attmask-4", "attmask-5", "attmask-7")

# %%
import timm
import torch

print(f"torch {torch.__version__.split('+')[0]}, timm {timm.__version__}")

# %% tags=["parameters"]
scale: str = "smoke"  # smoke: runs of seconds; small: the entry for this machine
seed: int = 0  # of weights, order, views, masks
record: bool = False  # leave a line in records/ for each finished run
strategies: list = ["block", "attmask_high"]  # what to compare
network: str = "best"  # whose attention is shown: best, a name of lib.keep.kept_names(), or timm:NAME, a pre-trained ViT of timm

# %%
from lib.keys import check_parameters

check_parameters(globals())

# %% [markdown]
# ## The mechanism on one image: a longer way to go
#
# Convergence is the k-NN accuracy over the epochs. A mask that hides what the teacher attends makes the patch loss *larger*: there is
# more to learn from the same image. Here is one image, and what is left of it when the least or the most attended 40% are hidden.

# %%
from lib.data.views import denormalise
from lib.keep import network_to_show
from lib.masking import attention_mask
from lib.results.figures import hide_patches, image_grid, photographs

view = photographs(scale, 3, 224)[-1:]
with torch.no_grad():
    features = network_to_show(network).features(view)
picture = denormalise(view)[0]
pictures = [picture]
for strategy in ("low", "high"):
    mask = attention_mask(features.attention.mean(1), 0.4, strategy=strategy)[0]
    pictures.append(hide_patches(picture, mask, features.grid))
image_grid({"": pictures}, titles=["image", "AttMask-Low", "AttMask-High"], size=2)

# %% [markdown]
# With AttMask-Low, the student still sees what matters; with AttMask-High, it has to infer it from the rest.
#
# ## Convergence
#
# First live: the two losses at the first and at the last logged step.

# %% tags=["nbval-ignore-output"]
import pandas as pd

from lib.train import entry_for, run

live = {name: run(entry_for(scale, "comparison"), masking=name, seed=seed, record=record, progress=False) for name in strategies}
log = pd.concat([r.log().dropna(subset="loss").assign(masking=name) for name, r in live.items()])
log.groupby("masking")[["cls", "patch"]].agg(["first", "last"]).round(2)

# %% [markdown]
# And now the recorded runs: the k-NN accuracy after each evaluated epoch. Epoch 0 is the untrained network. The band is the range
# over seeds. The entry `ibot_cpu` was a first try that hardly learns. The entry `ibot_strong_cpu` is the result of a search for
# settings that learn (`recipes/small.yaml`).

# %% tags=["nbval-ignore-output"]
from lib.results.figures import curves
from lib.results.tables import recorded_curves

history = recorded_curves("strategies", "masking", strategies)
if len(history):
    curves(history, x="epoch", y="k-NN, %", title="k-NN accuracy during pre-training (recorded)")
history.pivot_table(index=["setting", "epoch"], columns="masking", values="k-NN, %").round(1) if len(history) else "no recorded runs yet"

# %% [markdown]
# A curve that lies above another one over all epochs has learned faster. The table has the same numbers, the mean over seeds.
#
# ## Fractions of the data
#
# The paper pre-trains on 5%, 10%, 20% and 100% of ImageNet-1k. In our runs, the classifier votes with the images that pre-training
# saw. So compare strategies within a column, and not a column with another.

# %%
from lib.results.papers import paper_table

paper_table("attmask", "data_fraction")

# %% tags=["nbval-ignore-output"]
from lib.train import fractions_for

entry = entry_for(scale, "fractions")
rows = {name: {} for name in strategies}
for fraction in fractions_for(scale):
    for name in strategies:
        found = run(entry, masking=name, fraction=fraction, seed=seed, record=record, progress=False)
        rows[name][f"{100 * fraction:g}%"] = found.metrics["knn"]
pd.DataFrame(rows).T.rename_axis("live k-NN").round(1)

# %% [markdown]
# The live table has the same layout as the paper's. At smoke scale it shows that the runs work, and no more.
#
# ## Few examples
#
# Now the k-NN classifier has only $\nu$ labelled images of each class. We take the mean over five disjoint draws of these images. As
# in the paper, $\nu = 1$ uses $k = 1$, and the others use $k = 20$.

# %%
columns = ["knn_nu1", "knn_nu5", "knn_nu10", "knn_nu20"]
paper_table("attmask", "full_imagenet")[columns].dropna()

# %% tags=["nbval-ignore-output"]
from lib.results.tables import recorded

few = recorded("strategies")
few = few[few.masking.isin(strategies)] if len(few) else few
few.groupby(["setting", "masking"])[[*columns, *(f"untrained_{c}" for c in columns)]].mean().T.round(1) if len(
    few
) else "no recorded runs yet"

# %% [markdown]
# Each column is a setting and a strategy, and each row a number of examples; `untrained` rows are the same network before training.
#
# ## Ours and the paper's
#
# The verdicts on the three claims, with our gaps beside the paper's:

# %% tags=["nbval-ignore-output"]
from lib.results.figures import verdict_table

verdict_table("attmask-4", "attmask-5", "attmask-7")

# %% [markdown]
# Each row is one statement: the paper's gap, our gap with its 95% interval, and the verdict. Where the records could not decide, the
# last column says why.
#
# ## What to remember
#
# - Convergence compares whole curves, and not the last points.
# - With few labels, a classifier depends on how the features lie, so few examples test the features.
# - Compare strategies at the same fraction of the data, and beside the untrained network.
#
# ## References
#
# - Kakogeorgiou et al., *What to Hide from Your Students: Attention-Guided Masked Image Modeling*, ECCV 2022,
#   [arXiv:2203.12719](https://arxiv.org/abs/2203.12719)
# - Zhou et al., *iBOT: Image BERT Pre-Training with Online Tokenizer*, ICLR 2022,
#   [arXiv:2111.07832](https://arxiv.org/abs/2111.07832)
# - Wu et al., *Unsupervised Feature Learning via Non-Parametric Instance Discrimination*, CVPR 2018,
#   [arXiv:1805.01978](https://arxiv.org/abs/1805.01978)
#
# ## What would change your mind?
#
# "Faster" is a statement about the whole curve. We take the mean difference over all evaluated epochs. So a strategy that is ahead
# early and behind at the end does not pass. If block-wise masks were ahead by this measure, with an interval that excludes zero,
# claim attmask-4 would be *contradicted* here.
#
# ## Exercises
#
# **1.** Here are two curves of (epoch, k-NN). At which epoch, interpolated linearly, does the fast one reach the slow one's final
# accuracy?

# %%
from course import exercises

fast = [(0, 30.0), (10, 36.0), (20, 41.0), (30, 43.0)]
slow = [(0, 30.0), (10, 33.0), (20, 37.0), (30, 40.0)]
answer = None
exercises.epochs_saved(answer, fast, slow)

# %% [markdown]
# **2.** Write the k-NN classifier: cosine similarity, the `k` nearest, and votes of weight `exp(cosine / 0.07)`. Give back the class
# with the most votes.


# %%
def knn(train_x, train_y, test_x, k, classes):
    """Float[M, D], Long[M], Float[Q, D], int, int -> Long[Q]."""


exercises.knn(knn)

# %% [markdown]
# **3.** Why must the five draws of few examples be disjoint for their mean to be worth more than one draw?
#
# The answers are in `solutions/05_solutions.ipynb`.
