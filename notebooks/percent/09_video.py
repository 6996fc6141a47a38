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
# Each patch of a frame asks the patches of the first frame and of the seven frames before: which five of you, not more than 12 patches
# away, look most like me? It takes their labels, weighted by the exponential of the cosine over a temperature of 0.1. What it has taken
# is what later frames get from it, so an error is handed on as well.
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
# ## The videos

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
# The first video, its objects as the network with AttMask follows them. The first frame is given.

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

# %% tags=["nbval-ignore-output"]
animation([with_masks(picture, masks) for picture, masks in zip(pictures, predicted)])

# %% [markdown]
# ## J and F
#
# J is the intersection over union of the masks, F compares their outlines with a tolerance of 0.8% of the diagonal. Both are means
# over the objects, each over its frames without the first, which is given, and the last. Beside them: the masks of the first frame,
# left where they are.

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
# ## Recorded, and the paper's
#
# The paper follows objects in DAVIS-2017 with ViT-S/16, pre-trained on all of ImageNet-1k.

# %% tags=["nbval-ignore-output"]
from lib.results.tables import recorded

records = recorded("video")
shown = ["j_mean", "f_mean", "jf_mean", "untrained_jf_mean", "still_jf_mean"]
records.groupby(["setting", "masking", "pooling"], sort=False, dropna=False)[shown].mean().round(1) if len(records) else "no records yet"

# %% tags=["nbval-ignore-output"]
from lib.results.figures import verdict_table
from lib.results.papers import paper_table

print(paper_table("attmask", "downstream").filter(like="davis").to_string())
verdict_table("attmask-9")

# %% [markdown]
# ## What would change your mind?
#
# An untrained network compares colours, and in a short video colours hardly change: much of J and F needs no learning at all. A network has
# learned to follow *things* only by what it gains over that row.
#
# ## Exercises
#
# **1.** The network sees 480 pixels on the shorter side in patches of 16, and 12 patches away is as far as a label may come from. How many
# pixels may a thing move from one frame to the next without being lost?

# %%
from course import exercises

pixels = None
exercises.farthest_move(pixels)

# %% [markdown]
# **2.** A predicted mask is right but for its position: it is a square of 10 x 10 pixels, moved by 5 to the right. What is J?

# %%
j = None
exercises.moved_square(j)

# %% [markdown]
# Answers: `solutions/09_solutions.ipynb`.
