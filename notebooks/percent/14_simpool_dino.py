# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 14 · SimPool with DINO
#
# **CPU, 40 s at smoke scale** · the talk's table of self-supervised training · before it: 13 (supervised) · after it: 15 (attention
# maps)
#
# **Question.** DINO's class token already attends to objects. Is there anything left for SimPool to gain when nobody gives labels?

# %%
from lib.results.figures import quote, use_style

use_style()
quote("simpool-3")

# %%
import timm
import torch

print(f"torch {torch.__version__.split('+')[0]}, timm {timm.__version__}")

# %% tags=["parameters"]
scale: str = "smoke"  # smoke: two runs of seconds on scenes; small: two runs of the entry for this machine
seed: int = 0  # of weights, order and views: the same for both
record: bool = False  # leave a line in records/ for each finished run

# %%
from lib.keys import check_parameters

check_parameters(globals())

# %% [markdown]
# ## The paper's table
#
# DINO for 100 epochs on ImageNet-1k; k-NN and linear probe of the frozen features.

# %%
from lib.results.papers import paper_table

published = paper_table("simpool", "self_supervised")
published.T

# %% [markdown]
# ## A different place for the norm
#
# In self-supervised transformers SimPool sees the last block's tokens *before* the final norm, adds a learned scalar $\beta$ to the pooled
# vector, and the norm comes last. In supervised ones the norm comes first and there is no $\beta$. The recipe's `method` decides.

# %%
from lib import recipes
from lib.models import network_of
from lib.train import entry_for

for role in ("supervised", "dino"):
    settings = recipes.entry(entry_for(scale, role)).settings
    network = network_of(settings | {"pooling": "simpool"})
    kind = "before the norm" if network.norm_after else "after the norm"
    print(f"{settings['method']:10} pools {kind:15} beta: {'learned' if network.pooling.beta is not None else 'none'}")

# %% [markdown]
# ## The step on one batch
#
# Everything else is DINO's: student and teacher see crops of one image, the student names what the teacher named. Only *which vector*
# goes into the head changes.

# %%
from lib.data.scenes import render
from lib.train import build, configure
from lib.engine.seeds import seed_step

scenes = render(torch.arange(16), size=64)
sizes, labels = torch.full((16, 2), 64), torch.zeros(16).long()
for pooling in ("none", "simpool"):
    learner = build(configure(recipes.entry(entry_for("smoke", "dino")), {"pooling": pooling, "seed": seed}), 50, "cpu").train()
    losses = learner(scenes.images, sizes, labels, 0, seed_step(seed, 0))
    print(f"{pooling:8} [CLS] loss {losses['cls'].item():.2f} nats, {sum(p.numel() for p in learner.student.parameters()):,} parameters")

# %% [markdown]
# ## The runs

# %% tags=["nbval-ignore-output"]
from tqdm import tqdm

from lib.train import run

entry, names = entry_for(scale, "dino"), {"none": "[CLS]", "simpool": "SimPool"}
live = {p: run(entry, pooling=p, seed=seed, record=record, progress=False) for p in tqdm(names)}

# %% tags=["nbval-ignore-output"]
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns

from lib.results.figures import COLOURS

log = pd.concat(live[p].log().dropna(subset="loss").assign(pooling=name) for p, name in names.items())
figure, axes = plt.subplots(1, 2, figsize=(8, 2.8))
for axis, column, unit in zip(axes, ("loss", "agreement"), ("nats", "")):
    sns.lineplot(log, x="step", y=column, hue="pooling", palette={name: COLOURS[p] for p, name in names.items()}, ax=axis)
    axis.set(title=column, ylabel=unit)
plt.show()
log.groupby("pooling", sort=False)[["loss", "agreement"]].agg(["first", "last"]).round(2)

# %% [markdown]
# The loss first falls, when all answers become alike, and rises again, when centering spreads the targets over more prototypes; agreement
# stays far above chance ($1 / K$) throughout. What the features are worth is another question:

# %% tags=["nbval-ignore-output"]
columns = {"knn": "k-NN", "untrained_knn": "untrained k-NN"}
pd.DataFrame({names[p]: {label: run.metrics[key] for key, label in columns.items()} for p, run in live.items()}).T.round(1)

# %% [markdown]
# ## The evidence
#
# Recorded runs on real images, mean over seeds, beside the paper's ViT-S.

# %% tags=["nbval-ignore-output"]
from lib.results.tables import beside_paper, recorded, spread

evidence = spread(recorded("self_supervised", masking="none"), "pooling")
paper = published.vit_s_knn.rename({"baseline": "none"})
beside_paper(evidence, paper).rename(index=names).round(1)

# %% [markdown]
# And a linear classifier on frozen features: the last four blocks' class tokens, or SimPool's vector.

# %% tags=["nbval-ignore-output"]
linear = spread(recorded("linear", method="dino", masking="none"), "pooling", ("linear", "linear_best", "untrained_linear"))
beside_paper(linear, published.vit_s_linear.rename({"baseline": "none"}), "linear").rename(index=names).round(1)

# %% tags=["nbval-ignore-output"]
from lib.results.figures import verdict_table

verdict_table("simpool-3")

# %% [markdown]
# ## What would change your mind?
#
# The untrained networks of the two rows differ: SimPool's vector is close to an average of patches, whose k-NN can be better from the
# start than a random class token's. So a higher k-NN of SimPool counts only as far as it exceeds the difference that was there before
# training. The untrained column is that control.
#
# ## Exercises
#
# **1.** In the paper's table, which architecture gains most k-NN from SimPool: `resnet50`, `convnext_s` or `vit_s`?

# %%
from course import exercises

answer = None
exercises.largest_gain(answer)

# %% [markdown]
# **2.** Train DINO with `pooling=gap` (`python -m lib.train smoke/dino pooling=gap`). Which of its parts did SimPool add to that?
#
# Answers: `solutions/14_solutions.ipynb`.
