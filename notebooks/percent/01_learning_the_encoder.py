# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 01 · Learning the encoder
#
# **CPU, 90 s at smoke scale** · the talk's opening · before it: 00 (the map) · after it: 02 (which tokens to mask)
#
# **Question.** Without labels, which question about images teaches an encoder something that is good for other questions?

# %%
from lib.results.figures import quote, use_style

use_style()
quote("attmask-9")

# %%
import timm
import torch

print(f"torch {torch.__version__.split('+')[0]}, timm {timm.__version__}")

# %% tags=["parameters"]
scale: str = "smoke"  # smoke: five runs of seconds on scenes; small: five runs of the entries for this machine
seed: int = 0  # of weights, order and views: the same for all
record: bool = False  # leave a line in records/ for each finished run

# %%
from lib.keys import check_parameters

check_parameters(globals())

# %% [markdown]
# ## Three ways to an encoder
#
# **Supervised**: labels for every image of the task. **Transfer**: labels on a large set first, then a few on the task: the encoder is kept
# *frozen*, or *fine-tuned*. **Self-supervised**: no labels first. The encoder answers a *pretext* question whose answer was taken out of the
# image itself.

# %%
from lib.data.scenes import render
from lib.data.views import View, denormalise, make_views

scenes = render(torch.arange(20, 24), size=96).images
generator = torch.Generator().manual_seed(seed)
whole = make_views(scenes, [View(96, (1.0, 1.0), flip=0.0, jitter_probability=0.0, grey=0.0)], generator=generator)[0]
views = make_views(scenes, [View(96, (0.2, 1.0), blur=0.5)] * 2, generator=generator)
print("whole images:", tuple(whole.shape), "and two views of each")

# %% [markdown]
# ## Four questions about one image
#
# **Rotation** (Gidaris et al., 2018): by how many quarter turns? **Jigsaw** (Noroozi and Favaro, 2016): in which of some known orders do its
# nine tiles lie? **Colorization** (Zhang et al., 2016): which colours did it have? **Contrastive** (Chen et al., 2020): which of all the other
# views in the batch shows the same image? Below, the first puzzle is in order, and of two images two views each stand side by side.

# %%
from torchvision.utils import make_grid

from lib.learning.pretext import cut_tiles, distant_permutations
from lib.results.figures import image_grid

orders = distant_permutations(8, 9)
tiles = cut_tiles(whole, 32, 28, generator)  # [B, 9, 3, 28, 28], each normalised by itself
puzzles = [make_grid(tiles[0, order], nrow=3, padding=2, normalize=True, value_range=(-2, 2)) for order in orders[:4]]
image_grid(
    {
        "rotation": [denormalise(whole[0]).rot90(turns, (1, 2)) for turns in range(4)],
        "jigsaw": puzzles,
        "colorization": [denormalise(whole[i]).mean(0, keepdim=True).expand(3, -1, -1) for i in range(4)],
        "contrastive": [denormalise(view[i]) for i in range(2) for view in views],
    },
    size=1.2,
)

# %% [markdown]
# **No answers for free.** If all nine tiles carried their edges, two neighbours would be found by continuing a line. So each tile is cut out at a
# random place of its cell and normalised by itself, and the orders are chosen to differ in as many places as possible:

# %%
distance = (orders[:, None] != orders[None]).sum(-1)  # [8, 8] places in which two orders differ
print("places in which two of the eight orders differ:", sorted(distance[distance > 0].unique().tolist()))

# %% [markdown]
# **Rare colours count.** Colours are told as one of the bins of Lab's *ab* plane that a screen can show. Most pixels of real images are greyish, and
# the few greyish bins would rule the loss. So it weighs each colour by how rare it has been so far, and so do the shares of right answers below.

# %%
import matplotlib.pyplot as plt

from lib.learning.colours import BINS, quantise, rgb_to_lab

lab = rgb_to_lab(denormalise(whole))  # [B, 3, 96, 96]
bins, shares = quantise(lab[:, 1:].permute(0, 2, 3, 1))  # [B, 96, 96], [B, 96, 96, Q]
counts = shares.flatten(0, 2).sum(0)
figure, axis = plt.subplots(figsize=(4, 3.2))
seen = counts >= 1
axis.scatter(BINS[:, 1], BINS[:, 0], c="0.9", s=18, marker="s")
points = axis.scatter(BINS[seen, 1], BINS[seen, 0], c=counts[seen].log10(), s=18, marker="s", cmap="mako")
figure.colorbar(points, label="log10 of pixels")
axis.set(title=f"{len(BINS)} colours, four scenes; grey: none", xlabel="b", ylabel="a")
plt.show()
print(
    f"{(counts > 1).sum()} of {len(BINS)} colours occur; the most frequent one has {100 * counts.max() / counts.sum():.0f}% of the pixels"
)

# %% [markdown]
# ## The runs
#
# One encoder, one loop, one length; the question differs, and with its head the draw of the first weights. Each learner is a small module on `lib/engine/loop.py`'s loop:
# `lib/learning/pretext.py`, `lib/learning/contrastive.py`, `lib/learning/supervised.py`.

# %% tags=["nbval-ignore-output"]
from tqdm import tqdm

from lib.train import entry_for, run

learners = ["classifier", "rotation", "jigsaw", "colorization", "contrastive"]
live = {name: run(entry_for(scale, name), seed=seed, record=record, progress=False) for name in tqdm(learners)}
live["rotation"].log()[["step", "loss", "right", "chance"]].dropna().iloc[[0, -1]].round(2).set_index("step")

# %% [markdown]
# ## Does each learn what it is asked?
#
# On images that it has not seen, beside the best constant answer and beside the network before training.

# %% tags=["nbval-ignore-output"]
import pandas as pd

from lib.results.figures import network_bars

figures = {name: found.metrics for name, found in live.items()}
classes = live["classifier"].config["num_classes"]
figures["classifier"] |= {
    "task": figures["classifier"]["accuracy"],
    "untrained_task": figures["classifier"]["untrained_accuracy"],
    "task_guess": 100 / classes,
}
own = pd.DataFrame(figures).T[["task", "task_guess", "untrained_task"]].astype(float)
own.columns = ["right, %", "best constant answer", "untrained"]
network_bars(own, title="Its own question, unseen images")
own.round(1)

# %% [markdown]
# ## Is what it learned good for another question?
#
# The talk's point: *learned representations may be tied to a specific pretext task.* So the frozen encoder is asked for the classes, of which only
# the classifier has heard: by its nearest neighbours and by a linear probe, beside the untrained network.

# %% tags=["nbval-ignore-output"]
from lib.measure import measure

linear = {name: measure("linear", found, record=record, progress=False).metrics for name, found in live.items()}
other = pd.DataFrame(
    {
        name: [figures[name]["knn"], figures[name]["untrained_knn"], linear[name]["linear"], linear[name]["untrained_linear"]]
        for name in live
    },
    index=["k-NN", "untrained k-NN", "linear", "untrained linear"],
).T
other.astype(float).round(1)

# %% [markdown]
# At smoke scale a few seconds on drawn scenes: a learner can answer its own question well and lose neighbours that the network had before it
# learned anything.
#
# ## Transfer: frozen, fine-tuned, from scratch
#
# *Frozen* was the linear classifier above, which sees the labels of all images that the learner saw. With a tenth of the set's labels, *fine-tuned*
# trains all weights from where the learner left them, *from scratch* from where it began. The classifier has seen labels of these classes before.

# %% tags=["nbval-ignore-output"]
tuned = {name: measure("finetune", live[name], record=record, progress=False).metrics for name in ("classifier", "contrastive")}
pd.DataFrame(
    {name: [found["finetune"], found["untrained_finetune"]] for name, found in tuned.items()}, index=["fine-tuned", "from scratch"]
).T.round(1)

# %% [markdown]
# ## The evidence
#
# Recorded runs on real images (`python -m lib.evidence small`), each about half an hour on two cores that do nothing else. DINO, MST and AttMask
# inside iBOT stand beside the older ones; they have a longer recipe.

# %% tags=["nbval-ignore-output"]
from lib.results.tables import beside_linear, recorded

found = [recorded("learners"), recorded("self_supervised", pooling="none", masking="none"), recorded("methods")]
found = pd.concat([*found, recorded("strategies", masking="attmask_high")])
beside_linear(found).round(1)

# %% [markdown]
# Without labels contrastive learning leads here. Rotation has the neighbours and the linear probe of the talk's methods, jigsaw and colorization
# stay below the network that has learned nothing, and colorization does not even beat the best constant answer to its own question. That is ten
# classes at 48 pixels, a small network and mostly one seed.
#
# What the talk says of transfer is measured in notebooks 09 and 10, with AttMask inside iBOT:

# %% tags=["nbval-ignore-output"]
from lib.results.figures import verdict_table

verdict_table("attmask-9")

# %% [markdown]
# ## What would change your mind?
#
# A pretext task is *general* if the frozen encoder is better than the untrained one at questions it was not asked. One set of classes is one question.
# Depth, pose or texture may rank the tasks otherwise.
#
# ## Exercises
#
# **1.** In how many of nine places do two random orders differ on average? Orders chosen to be far apart should beat that.

# %%
from course import exercises

answer = None
exercises.average_distance(answer)

# %% [markdown]
# **2.** A batch holds two views each of `images` images. What is the contrastive loss, in nats, of an encoder that gives all views the same vector?

# %%
images = 64
answer = None
exercises.blind_contrast(answer, images)

# %% [markdown]
# Answers: `solutions/01_solutions.ipynb`.
