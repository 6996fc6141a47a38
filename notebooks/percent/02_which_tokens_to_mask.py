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
#
# *Masked image modeling* hides a part of an image's patches, and a network learns by guessing what is there. Random masks often hide
# patches that are easy to guess: a patch of sky looks like the sky around it. AttMask hides the patches that the network itself finds
# important, so that the guess needs an understanding of the object.

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
# The teacher is a small Vision Transformer that was trained without labels on photographs (notebook 04). Its weights are kept in
# `records/checkpoints`. The parameter `network` chooses it. With `best`, it is the kept network whose attention is best on objects:
# among the networks that were trained without labels, it has the largest difference between what AttMask-High and AttMask-Low hide of
# the objects, in photographs that it has not seen.
#
# The drawing shows the idea so far. In training, there are two random views of an image, and the teacher sees both of them **whole**.

# %%
import matplotlib.pyplot as plt

from course import drawings

drawings.ibot(3)
plt.show()

# %%
from lib.data.views import denormalise
from lib.keep import network_to_show
from lib.results.figures import photographs

views = photographs(scale, images, 224)  # Float[B, 3, 224, 224]
pictures = denormalise(views)
teacher = network_to_show(network)

# %% [markdown]
# Here the teacher sees each photograph as it is. Patches of 8 pixels on an image of 224 pixels give a grid of 28 x 28 tokens.
#
# ## Its attention
#
# In the last block, the class token [CLS] asks every patch: how much of you do I need? In head $h$ the answer is the part of a softmax
# that belongs to the patches, and the heads are averaged (AttMask, eq. 4 and 5):
#
# $$a^{(h)} = \mathrm{softmax}\!\left(\frac{q^{(h)} K^{(h)\top}}{\sqrt d}\right) \tag{4}$$
#
# $$\bar a = \frac1H \sum_{h=1}^{H} a^{(h)} \tag{5}$$
#
# - $q^{(h)}$, a vector of $d$ numbers, is the query of [CLS] in head $h$.
# - $K^{(h)}$ holds the keys of all tokens, one in each row.
# - $d$ is the width of one head, and $H$ is the number of heads.
# - $\bar a$ has one number for each of the $N$ patches; the number that belongs to [CLS] itself is left out.
#
# | equation | what it says | code in `lib/models/vit.py` |
# |---|---|---|
# | (4) | one row of the attention, that of [CLS] | `attention = ((q[:, :, :1].to(wide) * attn.scale) @ k.to(wide).mT).softmax(-1).squeeze(2)` |
# | (5) | mean over heads | `features.attention.mean(1)`, below |
#
# The index `:1` takes the query of [CLS] alone; `wide` is 32 bits, since fewer would not rank patches reliably.
#
# Only this one row is needed. So it is computed apart from the rest, and every block keeps its fused attention. This is what "zero
# additional cost" means.

# %%
drawings.ibot(4)
plt.show()

# %%
with torch.no_grad():
    features = teacher.features(views)
grid = features.grid
attention = features.attention.mean(1)  # Float[B, N]
print("grid", grid, "attention", tuple(attention.shape))

# %% [markdown]
# The output says the size of the grid, and the shape of the attention: one row for each photograph, one column for each patch.
#
# ## Six ways to choose
#
# A mask is `Bool[B, N]`, and `True` means *hidden*. AttMask ranks the patches by their attention (AttMask, section 3.2). Let $\sigma$ be
# the order of falling attention, $\bar a_{\sigma(1)} \ge \bar a_{\sigma(2)} \ge \dots \ge \bar a_{\sigma(N)}$. Let $r$ be the ratio of
# patches to hide and $n = \lfloor r N \rfloor$ their number. Then the set of hidden patches is
#
# $$M^{\text{High}} = \{\sigma(1), \dots, \sigma(n)\}, \qquad M^{\text{Low}} = \{\sigma(N - n + 1), \dots, \sigma(N)\} .$$
#
# **AttMask-Hint** starts with $M^{\text{High}}$. Then it shows some of the hidden patches again: $\lfloor 0.1\, r N \rfloor$ of them,
# drawn at random from the $\lfloor 0.1\, N \rfloor$ patches of highest attention. They are a hint at what the hidden object is.
#
# | what | code in `lib/masking.py` |
# |---|---|
# | $\sigma$; of equal patches the first comes first | `order = attention.argsort(dim=1, descending=strategy != "low", stable=True)` |
# | the first $n$ of $\sigma$ are hidden | `torch.zeros_like(is_first).scatter_(1, order, is_first)` |
#
# **Random** masks hide as many patches, wherever they are. **Random (75%)** hides three quarters of them, as MAE does. **Block-wise**
# masks hide rectangles, as BEiT and iBOT do.

# %%
drawings.ibot(5)
plt.show()

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
# The rows are the image, the attention of [CLS], and what each strategy leaves for the student to see. For AttMask-Hint, 5% of the
# patches are shown again here, so that you can see the hints. Training uses the paper's smaller share.

# %%
from lib.results.figures import hide_patches, image_grid, overlay
from lib.results.titles import TITLES

rows = {"Image": list(pictures), "Attention": [overlay(p, a.view(grid)) for p, a in zip(pictures, attention)]}
for name, mask in masks.items():
    rows[TITLES[name]] = [hide_patches(p, m, grid) for p, m in zip(pictures, mask)]
image_grid(rows, size=1.6)

# %% [markdown]
# Each column is one photograph. Compare the two last rows with the attention above them: the grey patches follow the bright ones.
#
# How much of an image, and how much of the teacher's attention, does each strategy hide? Random masks hide as much of the attention as
# of the patches. AttMask-High hides more, AttMask-Low less. Block-wise masks may hide fewer patches than asked; the others hide exactly
# their number.

# %% tags=["nbval-ignore-output"]
import pandas as pd

share = attention / attention.sum(1, keepdim=True)
table = pd.DataFrame(
    {TITLES[n]: [100 * m.double().mean().item(), 100 * (share * m).sum(1).mean().item()] for n, m in masks.items()},
    index=["tokens hidden, %", "attention hidden, %"],
).T
table.round(1)

# %% [markdown]
# Where a row's second number is larger than its first, the strategy hides more of the attention than random masks of its size do.
#
# ## What is hidden: object or background?
#
# AttMask-High is said to hide the objects. This depends on the teacher: does its attention know where the objects are? The measurement
# `hiding` asks each kept network, on images whose objects are known. It says which part of the objects each strategy would hide.
#
# Random masks hide as much of the objects as of everything else. Two more answers need no training: the untrained network, and a mask of
# the patches nearest to the centre, where photographers like to put their objects.

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
# The table and the bars show which part of the objects each strategy hides, for each network. Look for rows in which AttMask-High is
# clearly above AttMask-Low: only there do the two hide different things. Networks differ in this. On these scenes some networks attend
# the background, which also tells the class.
#
# The column `entropy` says how even the attention is: 100 means the same everywhere. Where it is near 100, AttMask-High and AttMask-Low
# hide nearly the same as random masks, and a comparison of them means nothing. Notebook 04 checks this for every recorded run.
#
# ## The paper beside us
#
# Notebook 04 measures what masks do to a student's accuracy. These are the claims that this chapter explains, with the evidence that is
# recorded so far:

# %% tags=["nbval-ignore-output"]
from lib.results.figures import verdict_table

verdict_table("attmask-2", "attmask-3", "attmask-10")

# %% [markdown]
# Each row is one statement, with the paper's difference, ours, and the verdict.
#
# ## What to remember
#
# - AttMask hides the patches that the teacher attends most. The teacher computes this attention anyway.
# - High, Low and Hint differ only in which part of one ranking they hide.
# - AttMask can hide objects only if the attention knows objects. Measure this before you compare strategies.
#
# ## References
#
# - Kakogeorgiou et al., *What to Hide from Your Students: Attention-Guided Masked Image Modeling*, ECCV 2022,
#   [arXiv:2203.12719](https://arxiv.org/abs/2203.12719)
# - Bao et al., *BEiT: BERT Pre-Training of Image Transformers*, ICLR 2022,
#   [arXiv:2106.08254](https://arxiv.org/abs/2106.08254)
# - He et al., *Masked Autoencoders Are Scalable Vision Learners*, CVPR 2022,
#   [arXiv:2111.06377](https://arxiv.org/abs/2111.06377)
# - Zhou et al., *iBOT: Image BERT Pre-Training with Online Tokenizer*, ICLR 2022,
#   [arXiv:2111.07832](https://arxiv.org/abs/2111.07832)
# - Dosovitskiy et al., *An Image is Worth 16x16 Words* (ViT), ICLR 2021,
#   [arXiv:2010.11929](https://arxiv.org/abs/2010.11929)
#
# ## What would change your mind?
#
# If the trained teacher's attention hid no more of the objects than random masks do, AttMask-High would not be "masking the foreground",
# whatever its accuracy. The table above is this test. Beware of the centre: a network whose attention is always in the middle would pass
# as well. Run the notebook with `-p scale small` for photographs.
#
# ## Exercises
#
# **1.** What fraction of the tokens that AttMask-High hides does an independent random mask of ratio 0.3 hide as well, on average?

# %%
from course import exercises

answer = None
exercises.expected_overlap(answer)

# %% [markdown]
# **2.** Write AttMask-High in three lines. You get the attention of each head. Average it, rank the patches of each image, and hide the
# first `int(ratio * N)` of them.


# %%
def attmask_high(attention, ratio):
    """Float[B, heads, N], float -> Bool[B, N], True = hidden."""


exercises.attmask_high(attmask_high)

# %% [markdown]
# **3.** Write AttMask-*Middle*. With `count = int(ratio * N)`, skip the `(N - count) // 2` most attended patches, and hide the next
# `count`. Of equal patches, the one with the lower index comes first.


# %%
def middle_mask(attention, ratio):
    """Float[B, N], float -> Bool[B, N], True = hidden."""


exercises.middle_mask(middle_mask)

# %% [markdown]
# The answers are in `solutions/02_solutions.ipynb`.
