# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 13 · SimPool, supervised
#
# **CPU, 40 s at smoke scale** · the talk's table of supervised training · before it: 12 (the benchmark) · after it: 14 (SimPool with
# DINO)
#
# **Question.** Does a transformer classify better when it has no class token, and pools its patches at the end instead?
#
# A class token collects what it needs in every block. SimPool waits until the end, and then asks once. This is simpler and hardly
# costs anything. The paper finds it more accurate, and finds the objects in its attention.

# %%
from lib.results.figures import quote, use_style

use_style()
quote("simpool-2", "simpool-4")

# %%
import timm
import torch

print(f"torch {torch.__version__.split('+')[0]}, timm {timm.__version__}")

# %% tags=["parameters"]
scale: str = "smoke"  # smoke: three runs of seconds on scenes; small: three runs of the entry for this machine
seed: int = 0  # of weights, order and views: the same for all three
gamma: float = 1.25  # of SimPool
record: bool = False  # leave a line in records/ for each finished run

# %%
from lib.keys import check_parameters

check_parameters(globals())

# %% [markdown]
# ## The paper's table
#
# ImageNet-1k, 100 and 300 epochs, top-1 accuracy in percent. The baseline is global average pooling (GAP) for the convolutional
# networks and the class token [CLS] for the transformers.

# %%
from lib.results.papers import paper_table

published = paper_table("simpool", "supervised")
published

# %% [markdown]
# Compare the rows of SimPool with those of the baseline at the same number of epochs.
#
# ## Where SimPool sits
#
# A class token travels through all blocks together with the patches. With SimPool there is none: the blocks see patches only, and the
# output of the last norm is pooled once. SimPool's parameters are two matrices and a norm, $2d^2 + 2d$. The class token and its
# position are gone.

# %%
from lib.models import create_model

counts = {}
for arch in ("vit_small_patch16_224", "resnet50"):
    for pooling in (None, "simpool"):
        with torch.device("meta"):
            network = create_model(arch, pooling=pooling, num_classes=1000)
        counts[arch, pooling or "its own"] = sum(p.numel() for p in network.parameters())
for (arch, pooling), count in counts.items():
    print(f"{arch:22} {pooling:8} {count:>12,}")

# %% [markdown]
# Each line is an architecture with a pooling and its number of parameters.
#
# ## One image through both
#
# Both networks have the same blocks, with random first weights. What differs is who asks: [CLS] asks with a token of its own, and
# SimPool with the average of the patches. Neither of them is trained here.

# %%
from lib.data.scenes import render
from lib.data.views import center_view, denormalise
from lib.results.figures import image_grid

view = center_view(render(torch.tensor([21]), size=64).images, 64, crop=1.0)
maps = {}
for name, pooling in (("[CLS]", None), ("SimPool", "simpool")):
    torch.manual_seed(seed)
    with torch.no_grad():
        seen = create_model("vit_nano", img_size=64, pooling=pooling).eval().features(view)
    maps[name] = [denormalise(view)[0], seen.attention.mean(1)[0].view(seen.grid)]
image_grid(maps, titles=["image", "attention"])

# %% [markdown]
# The maps show where each pooling attends before any training.
#
# ## The runs
#
# Three runs with the same seed: [CLS], GAP and SimPool.

# %% tags=["nbval-ignore-output"]
from tqdm import tqdm

from lib.train import entry_for, run

entry, names = entry_for(scale, "supervised"), {"none": "[CLS]", "gap": "GAP", "simpool": "SimPool"}
live = {p: run(entry, pooling=p, gamma=gamma, seed=seed, record=record, progress=False) for p in tqdm(names)}

# %% tags=["nbval-ignore-output"]
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns

from lib.results.figures import COLOURS

log = pd.concat(live[p].log().dropna(subset="loss").assign(pooling=name) for p, name in names.items())
figure, axis = plt.subplots(figsize=(5, 2.8))
sns.lineplot(log, x="step", y="loss", hue="pooling", palette={name: COLOURS[p] for p, name in names.items()}, ax=axis)
axis.set(title="Training loss", ylabel="nats")
plt.show()
log.groupby("pooling", sort=False).loss.agg(["first", "last"]).round(2)

# %% [markdown]
# All three curves start near the same loss, because the networks are untrained. The next table has what they reach:

# %% tags=["nbval-ignore-output"]
columns = {"accuracy": "top-1 accuracy", "knn": "k-NN", "untrained_knn": "untrained k-NN"}
table = pd.DataFrame({names[p]: {label: run.metrics[key] for key, label in columns.items()} for p, run in live.items()}).T
table.round(1)

# %% [markdown]
# At smoke scale the order of the three means nothing; chance is 10%.
#
# ## The evidence
#
# These are recorded runs on real images, the mean over seeds, beside the paper's ViT-S at 100 epochs.

# %% tags=["nbval-ignore-output"]
from lib.results.figures import dots
from lib.results.tables import beside_paper, recorded, spread

evidence = spread(recorded("supervised"), "pooling", ("accuracy", "knn", "untrained_knn"))
paper = published.vit_s.rename({"baseline_100ep": "none", "simpool_100ep": "simpool"}).loc[["none", "simpool"]]
comparison = beside_paper(evidence, paper, "accuracy").rename(index=names)
dots(comparison, title="Top-1 accuracy", ylabel="%")
comparison.round(1)

# %% [markdown]
# The dots show our accuracy and the paper's, each on its own axis.
#
# ## Do their maps find the object?
#
# The measure is MaxBoxAccV2 (notebook 16) of the attention. GAP has no attention, but it has a class activation map (CAM). Two
# trivial boxes stand beside them. A map that does not beat the best centred box has found nothing.

# %% tags=["nbval-ignore-output"]
columns = [
    "attention_maxbox",
    "cam_maxbox",
    "attention_mass",
    "untrained_attention_maxbox",
    "centred_box_maxbox",
    "whole_image_maxbox",
    "box_area",
    "mask_area",
]
found = recorded("localization", method="supervised")
found.groupby(["setting", "pooling"], sort=False)[columns].mean().rename(index=names).T.round(1) if len(found) else "no records yet"

# %% [markdown]
# Each column is a setting and a pooling. `attention_mass` is the share of the attention on the objects, and `mask_area` or `box_area`
# what an even map would have. The verdicts:

# %% tags=["nbval-ignore-output"]
from lib.results.figures import verdict_table

verdict_table("simpool-2", "simpool-4", "simpool-6")

# %% [markdown]
# Each row is one statement: the paper's gap, our gap with its 95% interval, and the verdict. Where the records could not decide, the
# last column says why.
#
# ## What to remember
#
# - SimPool replaces the class token: the blocks see patches only, and one attention step pools them at the end.
# - It costs two matrices and a norm; the class token and its position leave.
# - GAP is the control: it leaves the token out, too, but has no attention.
#
# ## References
#
# - Psomas et al., *Keep It SimPool: Who Said Supervised Transformers Suffer from Attention Deficit?*, ICCV 2023,
#   [arXiv:2309.06891](https://arxiv.org/abs/2309.06891)
# - Dosovitskiy et al., *An Image is Worth 16x16 Words* (ViT), ICLR 2021,
#   [arXiv:2010.11929](https://arxiv.org/abs/2010.11929)
# - Zhou et al., *Learning Deep Features for Discriminative Localization* (CAM), CVPR 2016,
#   [arXiv:1512.04150](https://arxiv.org/abs/1512.04150)
# - Lin et al., *Network In Network* (GAP), ICLR 2014, [arXiv:1312.4400](https://arxiv.org/abs/1312.4400)
#
# ## What would change your mind?
#
# GAP has no class token either. Suppose that GAP gains over [CLS] as much as SimPool does. Then what helps is to leave the token out,
# and not the attention. The paper's depth table (notebook 18) has this row. For ViT-S it says GAP 73.3, [CLS] 72.7 and SimPool 74.3.
#
# ## Exercises
#
# **1.** How many more parameters has ViT-B (width 768) with SimPool than with [CLS]? Give a number; there is no need to build the
# network.

# %%
from course import exercises

answer = None
exercises.extra_parameters(answer)

# %% [markdown]
# **2.** Write the class activation map. For each patch, it is the product of the patch with the classifier's row of the class that
# the network names.


# %%
def class_map(patches, weight, logits):
    """Float[B, N, D], Float[C, D], Float[B, C] -> Float[B, N]."""


exercises.class_map(class_map)

# %% [markdown]
# **3.** Train SimPool with `gamma` 1.0 and 3.0 (`papermill … -p gamma 3.0`). With 1.0, how does its vector differ from the plain
# weighted mean of the normalised patches? Does the classifier care?
#
# The answers are in `solutions/13_solutions.ipynb`.
