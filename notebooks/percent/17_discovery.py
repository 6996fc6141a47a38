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
#
# In notebook 16 the true boxes chose the threshold. Here nothing is chosen with them: a method looks at one image, draws one box, and
# is right or wrong.

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
# **LOST** compares the patches with each other. Let $k_i$ be the key of patch $i$ in the last layer. The *degree* of a patch is the
# number of other patches that resemble it:
#
# $$\deg(i) = \big|\{\, j \ne i : k_i^\top k_j > 0 \,\}\big| .$$
#
# A patch of the background resembles many others, and a patch of an object only few. So the *seed* is the patch of lowest degree.
# Patches that resemble the seed join it. The box is drawn around what resembles all of them together.
#
# **DINO-seg** takes the attention of the pooled token. It keeps the most attended patches that hold 60% of it, and of these one
# connected component. The released code of this baseline looks at one component too few, and takes the background where there is only
# one. Both rules are shown.
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
# Left: the degree of each patch, lowest on the object. Right: the patches that LOST finds.
#
# ## On images
#
# The networks are recorded ones of one architecture, a Vision Transformer of width 128 and depth 4, with [CLS] and with SimPool. They
# were trained with labels, without (DINO), and not at all.

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
# A row is a network, a column an image. Four images are examples; the next table counts over all.
#
# ## CorLoc
#
# CorLoc is the share of images whose box has an IoU of at least 0.5 with a true one. The last two rows are boxes that look at nothing.

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
# Each group of bars is a network or a trivial box, and each colour a method.
#
# ## Recorded, and the paper's
#
# Our recorded figures, the mean over seeds, with those of the untrained networks and the trivial boxes:

# %% tags=["nbval-ignore-output"]
from lib.results.tables import recorded

records = recorded("discovery")
shown = ["lost", "dino_seg", "dino_seg_official", "untrained_lost", "untrained_dino_seg", "whole_image", "centred_box"]
records.groupby(["setting", "method", "pooling"], sort=False)[shown].mean().round(1) if len(records) else "no records yet"

# %% [markdown]
# The paper's figures and the verdict:

# %% tags=["nbval-ignore-output"]
from lib.results.figures import verdict_table
from lib.results.papers import paper_table

print(paper_table("simpool", "discovery").to_string())
verdict_table("simpool-5")

# %% [markdown]
# Each row is one statement: the paper's gap, our gap with its 95% interval, and the verdict. Where the records could not decide, the
# last column says why.
#
# ## What to remember
#
# - LOST starts at the patch that resembles the fewest others.
# - DINO-seg keeps the most attended patches and takes one connected component.
# - A box in the middle of the image is the answer to beat.
#
# ## References
#
# - Siméoni et al., *Localizing Objects with Self-Supervised Transformers and no Labels* (LOST), BMVC 2021,
#   [arXiv:2109.14279](https://arxiv.org/abs/2109.14279)
# - Caron et al., *Emerging Properties in Self-Supervised Vision Transformers* (DINO), ICCV 2021,
#   [arXiv:2104.14294](https://arxiv.org/abs/2104.14294)
# - Psomas et al., *Keep It SimPool: Who Said Supervised Transformers Suffer from Attention Deficit?*, ICCV 2023,
#   [arXiv:2309.06891](https://arxiv.org/abs/2309.06891)
#
# ## What would change your mind?
#
# On VOC, a box of half the image in its middle is right surprisingly often, because photographers put things there. A method has
# found something where it beats this box. Our networks have four blocks, and have seen ten kinds of things at 48 or 64 pixels. DINO's
# ViT-S has seen a million photographs.
#
# ## Exercises
#
# **1.** All patches of an image have the same key, and it is not zero. Which patch is LOST's seed (by its row-major number), and how
# many patches are in the mask of an image of 5 x 7 patches?

# %%
from course import exercises

answer = None  # two numbers: seed, patches in the mask
exercises.lost_of_equal_keys(answer)

# %% [markdown]
# **2.** A single object holds all the attention, in one component. It fills rows 2 and 3 and columns 3 and 4 of a grid of 6 x 8
# patches of 16 pixels. Which box does the released code of DINO-seg draw?

# %%
answer = None  # a list: x0, y0, x1, y1
exercises.official_box(answer)

# %% [markdown]
# **3.** Write LOST's seed: the number of the patch of lowest degree. Of equal degrees, the first patch counts.


# %%
def lost_seed(keys):
    """Float[N, D] -> the number of the seed."""


exercises.lost_seed(lost_seed)

# %% [markdown]
# The answers are in `solutions/17_solutions.ipynb`.
