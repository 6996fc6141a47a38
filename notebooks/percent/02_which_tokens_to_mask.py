# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 02 · Which tokens to mask?
#
# **CPU, 20 s at smoke scale** · nothing downloaded · before it: 00 (map) · after it: 03 (training)
#
# **Question.** A student has to guess the patches that are hidden from it. Does it matter *which* patches we hide?

# %%
from lib.results.figures import quote, use_style

use_style()
quote("attmask-2", "attmask-3", "attmask-10")

# %%
import timm
import torch

print(f"torch {torch.__version__.split('+')[0]}, timm {timm.__version__}")

# %% tags=["parameters"]
scale: str = "smoke"  # smoke: photographs and scenes that are installed with the project; small: Imagenette under $COMPANION_DATA
seed: int = 0  # of the masks
ratio: float = 0.3  # masked fraction r of the patches, in [0, 1)
images: int = 5  # photographs to show
network: str = "best"  # whose attention is shown: best, a name of lib.keep.kept_names(), or timm:NAME, a pre-trained ViT of timm

# %%
from lib.keys import check_parameters

check_parameters(globals())

# %% [markdown]
# ## The images and a teacher
#
# The teacher is a small Vision Transformer that was trained without labels on photographs (notebook 04; its weights are kept in
# `records/checkpoints`). Of the networks that were trained without labels and checked what masks hide, `best` is the one whose attention is
# best on objects: by it, AttMask-High would hide the most of the objects over what AttMask-Low would hide, in photographs that it was not
# trained on. The teacher sees the **whole** image: patches of 8 pixels on 224 pixels give a grid of 28 x 28 tokens.

# %%
from lib.data.views import denormalise
from lib.keep import network_to_show
from lib.results.figures import photographs

views = photographs(scale, images, 224)  # Float[B, 3, 224, 224]
pictures = denormalise(views)
teacher = network_to_show(network)

# %% [markdown]
# ## Its attention
#
# In the last block, the class token [CLS] asks every patch "how much of you do I need?". With its query
# $q_{\text{cls}}$ and the patches' keys $K$, head $h$ answers (AttMask eq. 4 and 5)
#
# $$a^{(h)} = \mathrm{softmax}\big(q_{\text{cls}}^{(h)} K^{(h)\top} / \sqrt{d}\big), \qquad \bar a = \frac1H \sum_h a^{(h)} .$$
#
# Only this one row is needed, so it is computed apart and every block keeps its fused attention: that is what "zero
# additional cost" means.

# %%
with torch.no_grad():
    features = teacher.features(views)
grid = features.grid
attention = features.attention.mean(1)  # Float[B, N]
print("grid", grid, "attention", tuple(attention.shape))

# %% [markdown]
# ## Six ways to choose
#
# A mask is `Bool[B, N]`, and `True` means *masked*. `lib/masking.py` holds all strategies on one page.

# %%
from lib.masking import attention_mask, block_mask, random_mask

generator = torch.Generator().manual_seed(seed)
tokens = grid[0] * grid[1]
masks = {
    "block": block_mask(images, grid, ratio, generator=generator),
    "random": random_mask(images, tokens, ratio, generator=generator),
    "random75": random_mask(images, tokens, 0.75, generator=generator),
    "attmask_low": attention_mask(attention, ratio, strategy="low"),
    "attmask_hint": attention_mask(attention, ratio, strategy="hint", hint_ratio=0.05, generator=generator),
    "attmask_high": attention_mask(attention, ratio, strategy="high"),
}

# %% [markdown]
# ## The talk's figure
#
# Rows: the image, the attention of [CLS], and what each strategy leaves for the student to see. For AttMask-Hint the share of
# revealed tokens is raised to 5% here, so that the hints can be seen; training uses the paper's smaller share.

# %%
from lib.results.figures import hide_patches, image_grid, overlay
from lib.results.titles import TITLES

rows = {"Image": list(pictures), "Attention": [overlay(p, a.view(grid)) for p, a in zip(pictures, attention)]}
for name, mask in masks.items():
    rows[TITLES[name]] = [hide_patches(p, m, grid) for p, m in zip(pictures, mask)]
image_grid(rows, size=1.6)

# %% [markdown]
# How much of an image, and how much of the teacher's attention, does each strategy hide? Block-wise masking may end below its
# target; the others are exact. Random masking hides as much attention as tokens. AttMask-High hides more, AttMask-Low less.

# %% tags=["nbval-ignore-output"]
import pandas as pd

share = attention / attention.sum(1, keepdim=True)
table = pd.DataFrame(
    {TITLES[n]: [100 * m.double().mean().item(), 100 * (share * m).sum(1).mean().item()] for n, m in masks.items()},
    index=["tokens hidden, %", "attention hidden, %"],
).T
table.round(1)

# %% [markdown]
# ## What is hidden: object or background?
#
# AttMask-High is said to hide the objects. That depends on the teacher: does its attention know where the objects are? The measurement
# `hiding` asks each kept network, on images whose objects are known (the masks of procedural scenes, or boxes in photographs), how much of
# the objects each strategy would hide. Random masking hides as much of the objects as of everything. Two rows need no training: the
# untrained network, and a mask of the patches nearest to the centre, where photographers like to put their objects.

# %% tags=["nbval-ignore-output"]
from lib.keep import kept_networks
from lib.measure import evaluate

hidden = {
    name: evaluate("hiding", network, scale=scale, ratio=ratio, images=128, progress=False) for name, network in kept_networks().items()
}
columns = {f"hidden_{name}": title for name, title in TITLES.items() if f"hidden_{name}" in next(iter(hidden.values()))}
table = pd.DataFrame(hidden).T.rename(columns=columns)
always = table.iloc[0]
print(
    f"{always.images:.0f} images; objects cover {always.object_area:.0f}% of them; the centre mask hides {always.hidden_centre:.0f}% of the objects"
)
table = table[["AttMask-Low", "Random", "AttMask-High", "attention_entropy"]].rename(columns={"attention_entropy": "entropy"})
table.rename_axis("part of the objects that is hidden, %").round(1)

# %% tags=["nbval-ignore-output"]
from lib.results.figures import network_bars

network_bars(table[["AttMask-Low", "Random", "AttMask-High"]], title="What the masks hide", xlabel="part of the objects, %")

# %% [markdown]
# Only where the bar of AttMask-High is clearly longer than that of AttMask-Low do the two hide different things. On these scenes, networks
# differ: some attend the object, some its background, which also tells the class here.
#
# `entropy` is that of the attention, in percent of an attention that is the same everywhere. Where it is near 100, AttMask-High and Low
# hide nearly the same as random masking, and no comparison of them means anything. Notebook 04 makes this check for every recorded run.

# %% [markdown]
# ## The paper beside us
#
# What masking does to a student's accuracy is measured in notebook 04. The claims that this chapter explains, with the
# evidence recorded so far:

# %% tags=["nbval-ignore-output"]
from lib.results.figures import verdict_table

verdict_table("attmask-2", "attmask-3", "attmask-10")

# %% [markdown]
# ## What would change your mind?
#
# If the trained teacher's attention hid no more of the objects than random masking does, then AttMask-High could not be "masking
# the foreground", whatever its accuracy. The figure above is that test. It also shows what a fixed map of the centre does: a network whose
# attention merely sits in the middle would pass as well. Run the notebook with `-p scale small` for photographs.

# %% [markdown]
# ## Exercises
#
# **1.** What fraction of the tokens that AttMask-High hides does an independent random mask of ratio 0.3 hide as well, on
# average? Put a number.

# %%
from course import exercises

answer = None
exercises.expected_overlap(answer)

# %% [markdown]
# **2.** Write AttMask-*Middle*: leave out the most attended half of what is not to be masked, then mask the next
# `int(ratio * N)` tokens, ties to the lower index.


# %%
def middle_mask(attention, ratio):
    """Float[B, N], float -> Bool[B, N], True = masked."""


exercises.middle_mask(middle_mask if middle_mask(attention, ratio) is not None else None)

# %% [markdown]
# Answers: `solutions/02_solutions.ipynb`.
