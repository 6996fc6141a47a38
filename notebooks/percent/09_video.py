# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 09 · Video object segmentation
#
# **CPU, 30 s at smoke scale** · an object is marked in the first frame and followed by nothing but the similarity of patches · before it:
# 08 (retrieval) · after it: 10 (detection and segmentation)
#
# **Question.** Do patches of the same thing in two frames have similar features, and does AttMask make them more so?
#
# Somebody marks an object in the first frame of a video. Where is it in the next frames? Nothing is trained for this. If patches of
# the same thing have similar features, their labels can be handed on from frame to frame.

# %%
from lib.results.figures import quote, use_style

use_style()
quote("attmask-9")

# %%
import timm
import torch

print(f"torch {torch.__version__.split('+')[0]}, timm {timm.__version__}")

# %% tags=["parameters"]
scale: str = "smoke"  # smoke: recorded networks on procedural videos; small: the same on DAVIS-2016 under $COMPANION_DATA
shortest: int = 0  # pixels of the shorter side that the networks see; 0 takes the recipe's

# %%
from lib.keys import check_parameters

check_parameters(globals())

# %% [markdown]
# ## A label moves along
#
# Each patch of a frame looks back: at the first frame, and at the seven frames before its own. Among the patches that are at most 12
# patches away, it takes the five most similar ones, and the mean of their labels. With unit features $x_i$, labels $y_j$, and the
# five nearest patches $\mathcal N(i)$,
#
# $$y_i = \frac{\sum_{j \in \mathcal N(i)} \exp(x_i^\top x_j / 0.1)\; y_j}{\sum_{j \in \mathcal N(i)} \exp(x_i^\top x_j / 0.1)} .$$
#
# Later frames get their labels from this one, so errors are handed on as well.
#
# First without a network: one row of patches, each with a colour of its own. From frame to frame the colours move one step to the
# right, and the label follows them.

# %%
from lib.evaluation import propagate_labels

colours = torch.eye(6)
frames = [colours.roll(step, 0) for step in range(4)]
marked = torch.tensor([[[0.0, 1, 0, 0, 0, 0]]])
for step, labels in enumerate(propagate_labels(frames, marked, (1, 6), topk=1)):
    print(f"frame {step}: {labels.flatten().int().tolist()}")

# %% [markdown]
# The 1 is the label. It moves with its colour, one place in each frame.
#
# ## The videos
#
# The recipe of this scale says which videos are measured, and at which size.

# %%
from lib.keep import kept_networks
from lib.measure import create_evaluation

evaluation = create_evaluation("video", scale, **dict(shortest=shortest) if shortest else {})
inputs, settings = evaluation.load(), evaluation.options
table = inputs.test
networks = kept_networks("supervised", "ibot")
print(f"{len(set(table['sequence'].to_pylist()))} videos, {len(table)} frames; {settings}")

# %% [markdown]
# ## One of them
#
# This is the first video. The first frame's masks are given, and the network with AttMask follows the objects.

# %% tags=["nbval-ignore-output"]
from lib.data.reading import read_image
from lib.evaluation.video import segment_videos
from lib.results.figures import animation, image_grid, with_masks

names = table["sequence"].to_pylist()
video = table.filter([name == names[0] for name in names])
sequence, objects, predicted, truth = next(segment_videos(networks["iBOT, AttMask-High"], video, **settings))
pictures = [read_image(row) for row in video["image"].to_pylist()]
chosen = [0, len(video) // 3, 2 * len(video) // 3, len(video) - 1]
image_grid(
    {name: [with_masks(pictures[t], masks[t]) for t in chosen] for name, masks in {"true": truth, "followed": predicted}.items()}, size=1.8
)

# %% [markdown]
# The upper row has the true masks, the lower row those that were followed. Here is the whole video:

# %% tags=["nbval-ignore-output"]
animation([with_masks(picture, masks) for picture, masks in zip(pictures, predicted)])

# %% [markdown]
# ## J and F
#
# J is the intersection over union of the masks: $J = |M \cap T| \,/\, |M \cup T|$ for a predicted mask $M$ and the true mask $T$. F
# compares their outlines, with a tolerance of 0.8% of the diagonal. Both are means over the objects. An object's own figure is the
# mean over its frames, without the first, which is given, and the last.
#
# The last row of the table is an answer that looks at nothing: the masks of the first frame, left where they are.

# %% tags=["nbval-ignore-output"]
import pandas as pd

live = {name: evaluation.measure(network, inputs) for name, network in networks.items()}
titles = {"j_mean": "J", "f_mean": "F", "jf_mean": "J&F"}
scores = pd.DataFrame(live).T[list(titles)].rename(columns=titles)
scores.loc["first frame's masks, still"] = [next(iter(live.values()))[f"still_{name}"] for name in titles]
scores.round(1)

# %% tags=["nbval-ignore-output"]
from lib.results.figures import network_bars

network_bars(scores, title="Video object segmentation")

# %% [markdown]
# Each group of bars is a network. What lies above the still masks was gained by following, and what lies above the untrained network
# by learning.
#
# ## Recorded, and the paper's
#
# The paper follows objects in DAVIS-2017 with ViT-S/16, pre-trained on all of ImageNet-1k. First our recorded figures, the mean over
# seeds:

# %% tags=["nbval-ignore-output"]
from lib.results.tables import recorded

records = recorded("video")
shown = ["j_mean", "f_mean", "jf_mean", "untrained_jf_mean", "still_jf_mean"]
records.groupby(["setting", "masking", "pooling"], sort=False, dropna=False)[shown].mean().round(1) if len(records) else "no records yet"

# %% [markdown]
# And the paper's figures, with the verdicts:

# %% tags=["nbval-ignore-output"]
from lib.results.figures import verdict_table
from lib.results.papers import paper_table

print(paper_table("attmask", "downstream").filter(like="davis").to_string())
verdict_table("attmask-9")

# %% [markdown]
# Each row is one statement: the paper's gap, our gap with its 95% interval, and the verdict. Where the records could not decide, the
# last column says why.
#
# ## What to remember
#
# - Labels are handed on by the similarity of patches. Nothing is trained for it.
# - J compares areas, F compares outlines.
# - Two rows belong beside every figure: masks that do not move, and the untrained network.
#
# ## References
#
# - Jabri et al., *Space-Time Correspondence as a Contrastive Random Walk*, NeurIPS 2020,
#   [arXiv:2006.14613](https://arxiv.org/abs/2006.14613)
# - Perazzi et al., *A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation* (DAVIS-2016), CVPR
#   2016, [doi:10.1109/CVPR.2016.85](https://doi.org/10.1109/CVPR.2016.85)
# - Pont-Tuset et al., *The 2017 DAVIS Challenge on Video Object Segmentation*,
#   [arXiv:1704.00675](https://arxiv.org/abs/1704.00675)
# - Caron et al., *Emerging Properties in Self-Supervised Vision Transformers* (DINO), ICCV 2021,
#   [arXiv:2104.14294](https://arxiv.org/abs/2104.14294)
# - Kakogeorgiou et al., *What to Hide from Your Students: Attention-Guided Masked Image Modeling*, ECCV 2022,
#   [arXiv:2203.12719](https://arxiv.org/abs/2203.12719)
#
# ## What would change your mind?
#
# An untrained network compares colours, and in a short video colours hardly change. So much of J and F needs no learning at all. A
# network has learned to follow *things* only by what it gains over the untrained one.
#
# ## Exercises
#
# **1.** The network sees 480 pixels on the shorter side, in patches of 16. A label may come from at most 12 patches away. How many
# pixels may a thing move from one frame to the next without being lost?

# %%
from course import exercises

pixels = None
exercises.farthest_move(pixels)

# %% [markdown]
# **2.** A predicted mask has the right shape, but not the right place: it is a square of 10 x 10 pixels, moved by 5 pixels to the
# right. What is J?

# %%
j = None
exercises.moved_square(j)

# %% [markdown]
# **3.** Write J of two masks.


# %%
def region(mask, truth):
    """Bool[H, W], Bool[H, W] -> J in [0, 1]."""


exercises.region(region)

# %% [markdown]
# **4.** Write one step of the propagation by the equation above, without the window: all context patches may be among the `topk` nearest.


# %%
def propagation(frame, context, labels, topk, temperature):
    """Float[N, D], Float[M, D], Float[M, C], int, float -> Float[N, C]."""


exercises.propagation(propagation)

# %% [markdown]
# The answers are in `solutions/09_solutions.ipynb`.
