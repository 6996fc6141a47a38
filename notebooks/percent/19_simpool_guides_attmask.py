# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 19 · Beyond both papers: SimPool's attention as AttMask's guide
#
# **CPU, 60 s at smoke scale** · neither paper has this · before it: 03 (AttMask) and 14 (SimPool with DINO)
#
# **Question.** AttMask hides what the teacher attends. If SimPool's attention is the better map, is it also the better mask?
#
# The first paper needs a good attention, and the second one reports one. It is natural to join them, and neither paper did. This
# chapter shows how such a question is turned into a comparison that can decide.

# %%
from lib.results.figures import quote, use_style

use_style()
quote("attmask-1", "simpool-6")

# %%
import timm
import torch

print(f"torch {torch.__version__.split('+')[0]}, timm {timm.__version__}")

# %% tags=["parameters"]
scale: str = "smoke"  # smoke: four runs of seconds on scenes; small: four runs of the entry for this machine
seed: int = 0  # of weights, order, views and masks: the same for all runs
record: bool = False  # leave a line in records/ for each finished run

# %%
from lib.keys import check_parameters

check_parameters(globals())

# %% [markdown]
# ## The idea in one line
#
# `attention_mask` takes any map over patches. A teacher with a class token gives the attention of [CLS], averaged over heads. A
# teacher with SimPool gives SimPool's. In a recipe this is `pooling: simpool` beside `masking: attmask_high`, and nothing else.

# %%
from lib.data.views import denormalise
from lib.keep import kept_networks
from lib.masking import attention_mask
from lib.results.figures import hide_patches, image_grid, overlay, photographs

view = photographs(scale, 3, 224)[-1:]
picture, rows = denormalise(view)[0], {}
for name, network in kept_networks("dino").items():
    with torch.no_grad():
        seen = network.features(view)
    attention = seen.attention.mean(1)
    mask = attention_mask(attention, 0.4, strategy="high")[0]
    rows[name] = [picture, overlay(picture, attention[0].view(seen.grid)), hide_patches(picture, mask, seen.grid)]
image_grid(rows, titles=["photograph", "attention", "hidden"], size=1.8)

# %% [markdown]
# A row is a DINO network, with [CLS] or with SimPool: what it attends, and what AttMask-High would hide by it.
#
# ## A fair comparison needs four runs
#
# To change the pooling changes two things: the features and the masks. So there are four runs: both poolings, each with AttMask-High
# and with block-wise masks. What the *guidance* by SimPool adds is a difference of differences. With the accuracy $y$,
#
# $$\big(y_{\text{SimPool, High}} - y_{\text{SimPool, block}}\big) - \big(y_{\text{[CLS], High}} - y_{\text{[CLS], block}}\big) .$$

# %% tags=["nbval-ignore-output"]
from tqdm import tqdm

from lib.train import entry_for, run

entry = entry_for(scale, "comparison")
grid = [(pooling, masking) for pooling in ("none", "simpool") for masking in ("block", "attmask_high")]
live = {pair: run(entry, pooling=pair[0], masking=pair[1], seed=seed, record=record, progress=False) for pair in tqdm(grid)}

# %% tags=["nbval-ignore-output"]
import pandas as pd

from lib.results.titles import TITLES

names = {"none": "[CLS]", "simpool": "SimPool"}
rows = {(names[p], TITLES[m]): {"k-NN": r.metrics["knn"], "untrained k-NN": r.metrics["untrained_knn"]} for (p, m), r in live.items()}
table = pd.DataFrame(rows).T
table.round(1)

# %% tags=["nbval-ignore-output"]
gain = table["k-NN"].unstack()[TITLES["attmask_high"]] - table["k-NN"].unstack()[TITLES["block"]]
print(f"AttMask-High less block-wise: {gain.round(1).to_dict()}; guidance by SimPool adds {gain['SimPool'] - gain['[CLS]']:.1f} points")

# %% [markdown]
# At smoke scale nine steps decide nothing. They show how the code computes the difference.
#
# ## What is hidden: object or background?
#
# In scenes the object is known. The table has the share of the objects' patches that AttMask-High hides with each teacher's
# attention, after the live runs. Random masks hide 30%.

# %% tags=["nbval-ignore-output"]
from torch.nn.functional import adaptive_avg_pool2d

from lib.data.scenes import render
from lib.data.views import center_view
from lib.train import load_encoder

scenes = render(torch.arange(128), size=64)
views = center_view(scenes.images, 48, crop=1.0)
hidden = {}
for (pooling, masking), found in live.items():
    with torch.no_grad():
        seen = load_encoder(found).features(views)
    objects = adaptive_avg_pool2d(scenes.masks[:, 0].float(), seen.grid).flatten(1) > 0.5  # Bool[n, N]
    mask = attention_mask(seen.attention.mean(1), 0.3, strategy="high")
    hidden[names[pooling], TITLES[masking]] = 100 * (mask & objects).sum().item() / objects.sum().item()
pd.Series(hidden, name="object patches hidden, %").to_frame().assign(random=30.0).round(1)

# %% [markdown]
# A teacher's attention is a guide to the objects where its share is above that of random masks.
#
# ## The evidence
#
# Recorded runs on real images with both poolings: the mean over seeds, and their number.

# %% tags=["nbval-ignore-output"]
from lib.results.tables import recorded

found = recorded("strategies")
found = found[found.masking.isin(["block", "attmask_high"])] if len(found) else found
found.groupby(["setting", "pooling", "masking"])[["knn", "untrained_knn"]].agg(["mean", "count"]).round(1) if len(
    found
) else "no records yet"

# %% [markdown]
# ## iBOT whose masks follow SimPool, recorded
#
# The runs of `small/ibot_simpool_cpu` pool with SimPool, and AttMask follows its attention. First the treatments: what do the masks hide
# of the boxed objects in photographs that no run has seen? Columns `low` and `high` are what AttMask would hide by each run's attention.

# %% tags=["nbval-ignore-output"]
from lib.results.tables import treatments

guided = recorded("simpool_strategies")
treatment = treatments(guided)
treatment.rename(index=TITLES, level="masking").round(1) if len(treatment) else "no recorded runs yet"

# %% [markdown]
# The treatments differ where `high` is clearly above `low`. Then their accuracies can be compared, with the same seeds:

# %% tags=["nbval-ignore-output"]
by_seed = guided.pivot_table(index="seed", columns="masking", values="knn") if len(guided) else pd.DataFrame()
by_seed.assign(untrained=guided.groupby("seed").untrained_knn.mean()).rename(columns=TITLES).round(1) if len(
    guided
) else "no recorded runs yet"

# %% tags=["nbval-ignore-output"]
pairs = by_seed.dropna(subset=["attmask_high", "attmask_low"]) if {"attmask_high", "attmask_low"} <= set(by_seed) else by_seed[:0]
for seed_of_pair, row in pairs.iterrows():
    print(f"seed {seed_of_pair}: AttMask-High less AttMask-Low is {row.attmask_high - row.attmask_low:+.1f} points of k-NN accuracy")
print(f"{len(pairs)} seed(s) with both; a verdict needs three")

# %% [markdown]
# These runs answer no claim of the papers by themselves: the papers' AttMask follows the class token. They ask what the two ideas do
# together.
#
# The two claims on which this chapter builds, with their verdicts:

# %% tags=["nbval-ignore-output"]
from lib.results.figures import verdict_table

verdict_table("attmask-1", "simpool-6")

# %% [markdown]
# Each row is one statement: the paper's gap, our gap with its 95% interval, and the verdict. Where the records could not decide, the
# last column says why.
#
# ## What to remember
#
# - AttMask takes any map over patches; SimPool gives one.
# - If a change has two effects, compare differences of differences.
# - The best of four runs is not yet a gain from joining the two ideas.
#
# ## References
#
# - Kakogeorgiou et al., *What to Hide from Your Students: Attention-Guided Masked Image Modeling*, ECCV 2022,
#   [arXiv:2203.12719](https://arxiv.org/abs/2203.12719)
# - Psomas et al., *Keep It SimPool: Who Said Supervised Transformers Suffer from Attention Deficit?*, ICCV 2023,
#   [arXiv:2309.06891](https://arxiv.org/abs/2309.06891)
# - Zhou et al., *iBOT: Image BERT Pre-Training with Online Tokenizer*, ICLR 2022,
#   [arXiv:2111.07832](https://arxiv.org/abs/2111.07832)
#
# ## What would change your mind?
#
# iBOT's patch loss already trains patches to speak for themselves, and SimPool pools patches. Suppose that AttMask-High loses its
# gain over block-wise masks as soon as SimPool is there. Then the ideas of the two papers buy the same thing twice.
#
# ## Exercises
#
# **1.** The k-NN accuracies are: [CLS] with block 30, [CLS] with AttMask-High 33, SimPool with block 32, SimPool with AttMask-High
# 34. How many points does SimPool's guidance add?

# %%
from course import exercises

answer = None
exercises.guidance(answer)

# %% [markdown]
# **2.** Write the share of the objects' patches that masks hide, in percent, over all images together.


# %%
def hidden_share(mask, objects):
    """Bool[B, N] (True = hidden), Bool[B, N] -> percent."""


exercises.hidden_share(hidden_share)

# %% [markdown]
# **3.** Let [CLS] pool, and let SimPool guide. Which line of `Distillation.draw_masks` would you change, and what would the teacher
# have to give?
#
# The answers are in `solutions/19_solutions.ipynb`.
