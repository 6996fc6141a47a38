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
#
# An *encoder* turns an image into a vector. Labels are the direct way to teach it, but they cost work. The talk opens with the other
# way: take something out of the image, and ask the network for it. The answer is known, and nobody had to write it down.

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
# - **Supervised**: there are labels for every image of the task.
# - **Transfer**: there are labels on a large set first, and a few on the task. The encoder is then kept *frozen*, or it is
#   *fine-tuned*.
# - **Self-supervised**: there are no labels at first. The encoder answers a *pretext* question, whose answer was taken out of the
#   image itself.

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
# - **Rotation** (Gidaris et al., 2018): by how many quarter turns was the image turned?
# - **Jigsaw** (Noroozi and Favaro, 2016): the image is cut into nine tiles. In which of some known orders do they lie?
# - **Colorization** (Zhang et al., 2016): the image is grey. Which colours did it have?
# - **Contrastive** (Chen et al., 2020): which of all the other views in the batch shows the same image?
#
# Each row below shows one question. The first puzzle is in order. The last row has two views each of two images, side by side.

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
# **No answers for free.** A network takes the easiest way. If the tiles kept their edges, it could find neighbours by continuing a
# line, and it would not need to know what the image shows. So each tile is cut out at a random place of its cell, and normalised by
# itself. The orders are chosen so that any two of them differ in as many places as possible:

# %%
distance = (orders[:, None] != orders[None]).sum(-1)  # [8, 8] places in which two orders differ
print("places in which two of the eight orders differ:", sorted(distance[distance > 0].unique().tolist()))

# %% [markdown]
# **Rare colours count.** A colour is one of the bins of the *ab* plane of the Lab colour space, as far as a screen can show it. Most
# pixels of real images are greyish. If every pixel counted the same, a few greyish bins would rule the loss. So the loss weighs a
# colour by how rare it has been so far, and so does the share of right answers below.

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
# The dots are the colours that occur in four scenes; the brighter, the more often. The grey squares are colours that do not occur.
#
# ## The runs
#
# All five learners have the same encoder, the same training loop and the same number of steps. Only the question differs. Each
# question has a head of its own, and because of it the first weights are drawn differently. Each learner is a small module that
# `lib/engine/loop.py` trains: `lib/learning/pretext.py`, `lib/learning/contrastive.py`, `lib/learning/supervised.py`.

# %% tags=["nbval-ignore-output"]
from tqdm import tqdm

from lib.train import entry_for, run

learners = ["classifier", "rotation", "jigsaw", "colorization", "contrastive"]
live = {name: run(entry_for(scale, name), seed=seed, record=record, progress=False) for name in tqdm(learners)}
live["rotation"].log()[["step", "loss", "right", "chance"]].dropna().iloc[[0, -1]].round(2).set_index("step")

# %% [markdown]
# The table shows the rotation learner at its first and at its last step: its loss, its share of right answers, and what chance gives.
#
# ## Does each learn what it is asked?
#
# We ask each learner its own question, on images that it has not seen. Beside it stand the best constant answer, and the same network
# before training.

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
# A bar above the two others of its learner shows that something was learned about the question.
#
# ## Is what it learned good for another question?
#
# This is the talk's point: *learned representations may be tied to a specific pretext task.* So we freeze the encoders and ask
# another question: the classes of the images. Only the classifier has heard of them. We ask by the nearest neighbours and by a linear
# probe, beside the untrained network.

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
# At smoke scale, training takes a few seconds on drawn scenes. A learner can then be good at its own question, and its neighbours can
# be worse than those of the untrained network.
#
# ## Transfer: frozen, fine-tuned, from scratch
#
# *Frozen* is the linear probe above. It sees the labels of all images that the learner saw. The next table uses a tenth of the
# labels. *Fine-tuned* trains all weights from where the learner left them. *From scratch* trains all weights from where the learner
# began. The classifier has seen labels of these classes before.

# %% tags=["nbval-ignore-output"]
tuned = {name: measure("finetune", live[name], record=record, progress=False).metrics for name in ("classifier", "contrastive")}
pd.DataFrame(
    {name: [found["finetune"], found["untrained_finetune"]] for name, found in tuned.items()}, index=["fine-tuned", "from scratch"]
).T.round(1)

# %% [markdown]
# Compare the two columns: their difference is what the learner's training was worth for this task.
#
# ## The evidence
#
# These are recorded runs on real images (`python -m lib.evidence small`). Each took about half an hour on two cores that did nothing
# else. DINO, MST and AttMask inside iBOT stand beside the older methods; their recipe is longer.

# %% tags=["nbval-ignore-output"]
from lib.results.tables import beside_linear, recorded

found = [recorded("learners"), recorded("self_supervised", pooling="none", masking="none"), recorded("methods")]
found = pd.concat([*found, recorded("strategies", masking="attmask_high")])
beside_linear(found).round(1)

# %% [markdown]
# A row is a setting with its masks. Compare each figure with that of the untrained network beside it: what is not above it was not
# learned. Most rows have few seeds, ten classes, images of 48 pixels and a small network, so small differences between rows say
# little.
#
# The talk also speaks of transfer. Notebooks 08, 09 and 10 measure it with AttMask inside iBOT:

# %% tags=["nbval-ignore-output"]
from lib.results.figures import verdict_table

verdict_table("attmask-9")

# %% [markdown]
# Each row is one statement of the claim, with our figures and the verdict.
#
# ## What to remember
#
# - A pretext task takes its answers out of the images, so it needs no labels.
# - A network takes the easiest way to an answer. So the easy ways have to be closed.
# - Judge an encoder by questions that it was not asked, and beside the untrained network.
#
# ## References
#
# - Gidaris et al., *Unsupervised Representation Learning by Predicting Image Rotations*, ICLR 2018,
#   [arXiv:1803.07728](https://arxiv.org/abs/1803.07728)
# - Noroozi and Favaro, *Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles*, ECCV 2016,
#   [arXiv:1603.09246](https://arxiv.org/abs/1603.09246)
# - Zhang et al., *Colorful Image Colorization*, ECCV 2016, [arXiv:1603.08511](https://arxiv.org/abs/1603.08511)
# - Chen et al., *A Simple Framework for Contrastive Learning of Visual Representations* (SimCLR), ICML 2020,
#   [arXiv:2002.05709](https://arxiv.org/abs/2002.05709)
# - Caron et al., *Emerging Properties in Self-Supervised Vision Transformers* (DINO), ICCV 2021,
#   [arXiv:2104.14294](https://arxiv.org/abs/2104.14294)
#
# ## What would change your mind?
#
# A pretext task is *general* if the frozen encoder beats the untrained one at questions that it was not asked. One set of classes is
# one question. Depth, pose or texture may rank the tasks differently.
#
# ## Exercises
#
# **1.** In how many of nine places do two random orders differ on average? Orders that are chosen to be far apart should beat this.

# %%
from course import exercises

answer = None
exercises.average_distance(answer)

# %% [markdown]
# **2.** A batch holds two views each of `images` images. What is the contrastive loss, in nats, of an encoder that gives all views
# the same vector?

# %%
images = 64
answer = None
exercises.blind_contrast(answer, images)

# %% [markdown]
# **3.** Write the contrastive loss. Join both sets of views, compare all pairs by the cosine, and ask each view for the other view of
# its image. A view is not compared with itself.


# %%
def info_nce(first, second, temperature):
    """Float[B, D], Float[B, D], float -> scalar, in nats."""


exercises.info_nce(info_nce)

# %% [markdown]
# **4.** Write the rotation task: all images as they are, then all turned by one quarter (`rot90`), by two and by three; and the
# numbers of turns.


# %%
def rotations(images):
    """Float[B, C, S, S] -> Float[4B, C, S, S], Long[4B]."""


exercises.rotations(rotations)

# %% [markdown]
# The answers are in `solutions/01_solutions.ipynb`.
