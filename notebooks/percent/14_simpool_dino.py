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
#
# DINO is the distillation of notebook 03 without masks. Its class token is known for attention maps that show objects. If SimPool is
# better even here, then the reason is not supervision alone.

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
# The paper trains DINO for 100 epochs on ImageNet-1k, and measures k-NN and linear probe of the frozen features.

# %%
from lib.results.papers import paper_table

published = paper_table("simpool", "self_supervised")
published.T

# %% [markdown]
# Each row is an architecture with one of the two measures, in percent.
#
# ## A different place for the norm
#
# In self-supervised transformers, SimPool sees the last block's tokens *before* the final norm. A learned scalar $\beta$ is added to
# the pooled vector, and the norm comes last. In supervised ones, the norm comes first, and there is no $\beta$. The recipe's `method`
# decides.

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
# Everything else is DINO's. Student and teacher see crops of one image, and the student has to say what the teacher says of another
# crop (notebook 03, eq. 2). What changes is *which vector* goes into the head.

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
# Each line has the first loss and the size of the student with its pooling.
#
# ## The runs
#
# Two runs with the same seed: [CLS] and SimPool.

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
# The left curves show the loss, the right ones the agreement of student and teacher; chance is $1 / K$. A loss may fall at first,
# when all answers become alike, and rise again, when centering spreads the targets over more prototypes. So a low loss is no proof of
# good features. These are measured separately:

# %% tags=["nbval-ignore-output"]
columns = {"knn": "k-NN", "untrained_knn": "untrained k-NN"}
pd.DataFrame({names[p]: {label: run.metrics[key] for key, label in columns.items()} for p, run in live.items()}).T.round(1)

# %% [markdown]
# Compare each k-NN accuracy with that of the untrained network beside it.
#
# ## The evidence
#
# These are recorded runs on real images, the mean over seeds, beside the paper's ViT-S.

# %% tags=["nbval-ignore-output"]
from lib.results.tables import beside_paper, recorded, spread

evidence = spread(recorded("self_supervised", masking="none"), "pooling")
paper = published.vit_s_knn.rename({"baseline": "none"})
beside_paper(evidence, paper).rename(index=names).round(1)

# %% [markdown]
# Next, a linear classifier on frozen features: the class tokens of the last four blocks, or SimPool's vector.

# %% tags=["nbval-ignore-output"]
linear = spread(recorded("linear", method="dino", masking="none"), "pooling", ("linear", "linear_best", "untrained_linear"))
beside_paper(linear, published.vit_s_linear.rename({"baseline": "none"}), "linear").rename(index=names).round(1)

# %% [markdown]
# A row is a setting with its pooling, beside the paper. The verdicts:

# %% tags=["nbval-ignore-output"]
from lib.results.figures import verdict_table

verdict_table("simpool-3")

# %% [markdown]
# Each row is one statement: the paper's gap, our gap with its 95% interval, and the verdict. Where the records could not decide, the
# last column says why.
#
# ## What to remember
#
# - With DINO, only the pooling changes: SimPool before the norm, with a learned scalar added.
# - A low loss is no proof: without centering, all outputs could become the same.
# - An untrained SimPool is a different start from an untrained class token. Compare gains, and not only results.
#
# ## References
#
# - Psomas et al., *Keep It SimPool: Who Said Supervised Transformers Suffer from Attention Deficit?*, ICCV 2023,
#   [arXiv:2309.06891](https://arxiv.org/abs/2309.06891)
# - Caron et al., *Emerging Properties in Self-Supervised Vision Transformers* (DINO), ICCV 2021,
#   [arXiv:2104.14294](https://arxiv.org/abs/2104.14294)
#
# ## What would change your mind?
#
# The untrained networks of the two rows differ. SimPool's vector is close to an average of patches, and this can have a better k-NN
# accuracy from the start than a random class token. So SimPool's lead counts only as far as it is larger than the lead that was there
# before training. The untrained column is this control.
#
# ## Exercises
#
# **1.** In the paper's table, which architecture gains most k-NN from SimPool: `resnet50`, `convnext_s` or `vit_s`?

# %%
from course import exercises

answer = None
exercises.largest_gain(answer)

# %% [markdown]
# **2.** Write DINO's loss of one batch: center and sharpen the teacher's logits, and take the mean cross-entropy over all pairs of
# different views, and over the batch.


# %%
def cls_loss(student, teacher, center, student_temp, teacher_temp):
    """Float[V, B, K] logits, globals first, Float[2, B, K] logits, Float[K], float, float -> scalar, in nats."""


exercises.cls_loss(cls_loss)

# %% [markdown]
# **3.** Train DINO with `pooling=gap` (`python -m lib.train smoke/dino pooling=gap`). Which parts did SimPool add to that?
#
# The answers are in `solutions/14_solutions.ipynb`.
