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
# Convergence is k-NN accuracy against the epoch. A mask that hides what the teacher attends makes the patch loss *larger*: there
# is more to learn from the same image. Here is one image before and after its most attended 40% are hidden.

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
# ## Convergence
#
# Live first: the two losses over the steps.

# %% tags=["nbval-ignore-output"]
import pandas as pd

from lib.train import entry_for, run

live = {name: run(entry_for(scale, "comparison"), masking=name, seed=seed, record=record, progress=False) for name in strategies}
log = pd.concat([r.log().dropna(subset="loss").assign(masking=name) for name, r in live.items()])
log.groupby("masking")[["cls", "patch"]].agg(["first", "last"]).round(2)

# %% [markdown]
# And the recorded runs: k-NN accuracy after each evaluated epoch. Epoch 0 is the untrained network. The band is the range over seeds. Entry
# `ibot_cpu` is a first protocol, which hardly learns; `ibot_strong_cpu` was looked for until it learned (`recipes/small.yaml`).

# %% tags=["nbval-ignore-output"]
from lib.results.figures import curves
from lib.results.tables import recorded_curves

history = recorded_curves("strategies", "masking", strategies)
if len(history):
    curves(history, x="epoch", y="k-NN, %", title="k-NN accuracy during pre-training (recorded)")
history.pivot_table(index=["setting", "epoch"], columns="masking", values="k-NN, %").round(1) if len(history) else "no recorded runs yet"

# %% [markdown]
# ## Fractions of the data
#
# The paper pre-trains on 5%, 10%, 20% and 100% of ImageNet-1k. In our runs the classifier's bank is the part of the data that
# pre-training saw, so compare strategies within a column.

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
# ## Few examples
#
# The k-NN classifier again, with only $\nu$ labelled images of each class in its bank; mean over five disjoint draws. $\nu = 1$ uses
# $k = 1$, the others $k = 20$.

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
# ## Ours and the paper's

# %% tags=["nbval-ignore-output"]
from lib.results.figures import verdict_table

verdict_table("attmask-4", "attmask-5", "attmask-7")

# %% [markdown]
# ## What would change your mind?
#
# "Faster" is a statement about the whole curve. We take the mean difference over all evaluated epochs, so a strategy that is ahead
# early and behind at the end does not pass. If block-wise masking led on that measure over three seeds, claim attmask-4 would be
# *contradicted* here.
#
# ## Exercises
#
# **1.** Two curves of (epoch, k-NN). At which epoch, interpolated linearly, does the fast one reach the slow one's final accuracy?

# %%
from course import exercises

fast = [(0, 30.0), (10, 36.0), (20, 41.0), (30, 43.0)]
slow = [(0, 30.0), (10, 33.0), (20, 37.0), (30, 40.0)]
answer = None
exercises.epochs_saved(answer, fast, slow)

# %% [markdown]
# **2.** Why must the five draws of few examples be disjoint for their mean to be worth more than one draw?
#
# Answers: `solutions/05_solutions.ipynb`.
