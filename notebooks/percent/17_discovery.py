# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 17 · Object discovery
#
# **CPU, 40 s at smoke scale** · LOST and DINO-seg: a box from a network that was never told of boxes · before it: 16 (localization) ·
# after it: 18 (depth, cost, gamma)
#
# **Question.** Can the objects of an image be found with nothing but a frozen network, and does SimPool's attention find them better
# than [CLS]'s?

# %%
from lib.results.figures import quote, use_style

use_style()
quote("simpool-5")

# %%
import timm
import torch

print(f"torch {torch.__version__.split('+')[0]}, timm {timm.__version__}")

# %% tags=["parameters"]
scale: str = "smoke"  # smoke: recorded networks on procedural scenes; small: the same on VOC 2007 under $COMPANION_DATA
images: int = 100  # how many images to measure, from the first on; 0 measures all

# %%
from lib.keys import check_parameters

check_parameters(globals())

# %% [markdown]
# ## Two ways to a box
#
# **LOST** compares the patches with each other. A patch of the background resembles many others, a patch of an object few. So the
# *seed* is the patch with the lowest degree, the number of patches whose key has a positive inner product with its own. Patches that
# resemble the seed join it, and the box is drawn around what resembles all of them.
#
# **DINO-seg** takes the attention of the pooled token: the most attended patches that hold 60% of it, and of these one connected
# component. The released code of this baseline looks at one component too few, and takes the background where there is a single
# one; both rules are shown.
#
# First without a network: an image of 6 x 8 patches, whose features are two numbers each, with an object in the middle.

# %%
from lib.evaluation import lost

grid = (6, 8)
thing = torch.zeros(grid, dtype=torch.bool)
thing[2:5, 3:6] = True
features = torch.where(thing.flatten()[:, None], torch.tensor([-0.5, 1.0]), torch.tensor([1.0, 0.1]))
found = lost(features, grid, patch_size=1, k_patches=9)
print(f"seed: row {found.seed // 8}, column {found.seed % 8}; box {found.box.tolist()}")

# %% tags=["nbval-ignore-output"]
from lib.results.figures import box_on, image_grid

similar = features @ features.T
image_grid({"degree": [(similar > 0).sum(1).view(grid)], "LOST's mask": [found.mask.float()]}, size=2)

# %% [markdown]
# ## On images
#
# The networks are recorded ones, of one architecture (a Vision Transformer of width 128 and depth 4), with [CLS] and with SimPool:
# trained with labels, without (DINO), and not at all.

# %%
from lib.keep import kept_networks
from lib.measure import create_evaluation

evaluation = create_evaluation("discovery", scale, images=images)
inputs, settings = evaluation.load(), evaluation.options
table = inputs.test
networks = kept_networks("supervised", "dino")
print(f"{len(table)} images, {sum(len(boxes) for boxes in table['boxes'].to_pylist())} boxes; {settings}")

# %% [markdown]
# ## The talk's figure
#
# The first four images. White: the true boxes. Orange: LOST. Green: DINO-seg.

# %% tags=["nbval-ignore-output"]
from lib.data.reading import read_image
from lib.evaluation.discovery import discover

first = table.slice(0, 4)
rows = {}
for name in ("supervised, [CLS]", "supervised, SimPool", "DINO, [CLS]", "DINO, SimPool"):
    rows[name] = []
    for found in discover(networks[name], first, **settings):
        boxes = {"true": first["boxes"][found.row].as_py()}
        boxes |= {method: [found.discoveries[method].box.tolist()] for method in ("lost", "dino_seg")}
        rows[name].append(box_on(read_image(first["image"][found.row].as_py()), boxes))
image_grid(rows, size=2)

# %% [markdown]
# ## CorLoc
#
# The share of images whose box meets a true one with an IoU of at least 0.5, beside two boxes that look at nothing.

# %% tags=["nbval-ignore-output"]
import pandas as pd

live = {name: evaluation.measure(network, inputs) for name, network in networks.items()}
titles = {"lost": "LOST", "dino_seg": "DINO-seg", "dino_seg_official": "DINO-seg (released code)"}
corlocs = pd.DataFrame(live).T[list(titles)].rename(columns=titles)
for trivial in ("whole_image", "centred_box"):
    corlocs.loc[trivial.replace("_", " ")] = next(iter(live.values()))[trivial]
corlocs.round(1)

# %% tags=["nbval-ignore-output"]
from lib.results.figures import network_bars

network_bars(corlocs, title="Object discovery", xlabel="CorLoc, %")

# %% [markdown]
# ## Recorded, and the paper's

# %% tags=["nbval-ignore-output"]
from lib.results.tables import recorded

records = recorded("discovery")
shown = ["lost", "dino_seg", "dino_seg_official", "untrained_lost", "untrained_dino_seg", "whole_image", "centred_box"]
records.groupby(["setting", "method", "pooling"], sort=False)[shown].mean().round(1) if len(records) else "no records yet"

# %% tags=["nbval-ignore-output"]
from lib.results.figures import verdict_table
from lib.results.papers import paper_table

print(paper_table("simpool", "discovery").to_string())
verdict_table("simpool-5")

# %% [markdown]
# ## What would change your mind?
#
# On VOC a box of half the image in its middle is right surprisingly often, because photographers put things there. A method has found
# something where it beats that box. These networks are four blocks deep and have seen ten kinds of things at 48 or 64 pixels; DINO's
# ViT-S has seen a million photographs.
#
# ## Exercises
#
# **1.** All patches of an image have the same key, and it is not zero. Which patch is LOST's seed (row-major number), and how many patches
# are in the mask of an image of 5 x 7?

# %%
from course import exercises

seed, size = None, None
exercises.lost_of_equal_keys(seed, size)

# %% [markdown]
# **2.** A single object holds all the attention, in one component. Which box does the released code of DINO-seg draw, with patches of 16
# pixels, when the object fills rows 2 and 3 and columns 3 and 4 of a grid of 6 x 8?

# %%
box = None
exercises.official_box(box)

# %% [markdown]
# Answers: `solutions/17_solutions.ipynb`.
