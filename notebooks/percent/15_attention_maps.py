# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 15 · Attention maps
#
# **CPU, 30 s at smoke scale** · the talk's qualitative figures · before it: 14 (SimPool with DINO) · after it: 16 (localization)
#
# **Question.** What do [CLS] and SimPool look at, and does it take self-supervision to look at the object?
#
# Attention comes free with a transformer, and it can be drawn. The talk shows that [CLS] of a *supervised* transformer attends to
# scattered places, while with DINO it attends to objects. Is supervision the problem, or is it the class token?

# %%
from lib.results.figures import quote, use_style

use_style()
quote("simpool-6", "simpool-11")

# %%
import timm
import torch

print(f"torch {torch.__version__.split('+')[0]}, timm {timm.__version__}")

# %% tags=["parameters"]
scale: str = "smoke"  # smoke: recorded networks on procedural scenes; small: the same on Imagenette under $COMPANION_DATA
images: int = 4  # images to show
size: int = 64  # pixels a side that the networks see; patches are 8 pixels

# %%
from lib.keys import check_parameters

check_parameters(globals())

# %% [markdown]
# ## On photographs
#
# A row is a kept network, and shows where it attends in photographs that it was not trained on. The attention is the mean over its
# heads, stretched to its own range and laid over the picture. The networks are small, and they saw 48 or 64 pixels a side in
# training. Here they see 224, so the maps have 28 x 28 places.

# %%
from lib.data.views import denormalise
from lib.keep import kept_networks
from lib.results.figures import image_grid, overlay, photographs

views = photographs(scale, 4, 224)
pictures = denormalise(views)
rows = {"photograph": list(pictures)}
for name, network in kept_networks().items():
    with torch.no_grad():
        features = network.features(views)
    rows[name] = [overlay(p, a.view(features.grid)) for p, a in zip(pictures, features.attention.mean(1))]
image_grid(rows, size=1.3)

# %% [markdown]
# Look at the untrained networks, too: even they draw contours here and there. A random projection of a patch knows the patch's
# brightness and colour. So a map that looks like the picture is no sign of learning. Learned maps differ in what they leave out.
#
# ## The images, and the rule that chooses them
#
# It is easy to choose beautiful maps by hand. So a rule chooses. Go through the images with boxes in their order, and keep those
# whose boxes cover between 5% and 50% of the picture. Take the first image of each class, and the first `images` of these. The rule
# sees no network.

# %%
from lib.data.views import center_view
from lib.evaluation.objects import boxes_in_view
from lib.measure import create_evaluation

source, _ = create_evaluation("localization", scale).test_stream(boxed=True)
pixels, sizes, labels = next(source.batches([torch.arange(len(source))]))
boxes = [boxes_in_view(torch.tensor(b), s, 1.0, size) for b, s in zip(source.table["boxes"].to_pylist(), sizes)]
areas = torch.tensor([((b[:, 2:] - b[:, :2]).prod(1).sum() / size**2).item() for b in boxes])
suited = [i for i in range(len(boxes)) if 0.05 < areas[i] < 0.5]
first = {int(labels[i]): i for i in reversed(suited)}
chosen = sorted(first.values())[:images]
print(f"{len(suited)} of {len(boxes)} images suit; images {chosen} are shown")

# %% [markdown]
# The numbers are the places of the chosen images in the set.
#
# ## The networks
#
# These are recorded checkpoints of one architecture, a Vision Transformer of width 128 and depth 4 with patches of 8 pixels. Each
# comes with a class token and with SimPool. They were trained on the photographs of Imagenette: with labels, without labels (DINO),
# and not at all.

# %%
networks = kept_networks("supervised", "dino")
view = center_view(pixels[chosen], size, crop=1.0, sizes=sizes[chosen])
with torch.no_grad():
    seen = {name: network.features(view) for name, network in networks.items()}
print({name: tuple(features.attention.shape) for name, features in seen.items()})

# %% [markdown]
# The shapes are images, heads and patches. SimPool has one head.
#
# ## The talk's figure
#
# Each row is one network's attention, the mean over its heads. The brighter, the more.

# %%
rows = {"image": list(denormalise(view))}
for name, features in seen.items():
    rows[name] = [a.view(features.grid) for a in features.attention.mean(1)]
image_grid(rows)

# %% [markdown]
# Compare rows that differ in one thing only: [CLS] with SimPool, or supervised with DINO.
#
# ## Heads apart
#
# [CLS] has several heads, and they differ, which their mean hides. SimPool has one map, so there is nothing to choose.

# %%
for name, features in seen.items():
    if features.attention.shape[1] > 1:
        heads = [a.view(features.grid) for a in features.attention[0, :3]]
        image_grid(
            {name: [denormalise(view)[0], features.attention[0].mean(0).view(features.grid), *heads]},
            titles=["image", "mean", "head 1", "head 2", "head 3"],
        )

# %% [markdown]
# Each row is one network with [CLS], on the first image: the mean over its heads, and three heads alone.
#
# ## Over training, and in convolutional networks too
#
# A convolutional network has no class token, and so it has no attention. With SimPool it gets one. Here a small ResNet and a small
# Vision Transformer learn to classify scenes, live. After every epoch we keep SimPool's maps of scenes that were not seen in
# training, and the share of the attention that lies on the objects, in percent.

# %%
from lib.data.scenes import render
from lib.evaluation.localization import attention_mass

unseen = render(torch.arange(2020, 2084), size=64)
views, objects = center_view(unseen.images, 48, crop=1.0), unseen.masks[:, 0].float()
kept = {}


def keep_maps(network, epoch):
    with torch.inference_mode():
        features = network.eval().features(views)
    maps = features.attention.mean(1).unflatten(1, features.grid)
    kept[type(network).__name__, epoch] = maps
    return {"attention mass": 100 * attention_mass(maps, objects).mean().item()}


# %% tags=["nbval-ignore-output"]
from tempfile import TemporaryDirectory

import pandas as pd

from lib import recipes
from lib.data import bank
from lib.engine.log import read_log
from lib.engine.loop import train, training_steps
from lib.train import build, configure

train_set = bank("scenes", "train", 64, fraction=0.4, progress=False)
mass = {"even": {epoch: 100 * objects.mean().item() for epoch in range(4)}}
for entry in ("benchmark", "supervised"):
    config = configure(recipes.entry(f"smoke/{entry}"), {"pooling": "simpool", "epochs": 3})
    learner = build(config, training_steps(train_set, config)[1], "cpu")
    with TemporaryDirectory() as folder:
        train(learner, train_set, config, folder, seed=config.seed, evaluate=keep_maps, evaluation_epochs=1, progress=False)
        mass[type(learner.encoder).__name__] = {
            line["epoch"]: line["attention mass"] for line in read_log(folder) if "attention mass" in line
        }

# %% tags=["nbval-ignore-output"]
rows = {"scene": list(denormalise(views[:4]))}
for (name, epoch), maps in kept.items():
    rows[f"{name}, epoch {epoch}"] = list(maps[:4])
image_grid(rows)
pd.DataFrame(mass).rename_axis("epoch").round(1)

# %% [markdown]
# The maps are those after each epoch, and the table has the share of the attention on the objects. An even attention has the objects'
# area, the column `even`.
#
# A share *below* the even one means that a network reads the class off what surrounds the object. In scenes this works: the
# background is the class's own at least half of the time (notebook 07). Attention shows what a network uses, and that need not be the
# object.
#
# ## As a number
#
# Pictures are examples. The numbers below are over all images. `attention_mass` is the share of the attention that falls into the
# objects. For data with masks, such as the horses, it is the share inside the masks (compare `mask_area`), else inside the boxes
# (compare `box_area`). MaxBoxAccV2 stands beside it, with the trivial boxes.

# %% tags=["nbval-ignore-output"]
from lib.results.tables import recorded

found = recorded("localization")
columns = ["attention_mass", "untrained_attention_mass", "mask_area", "box_area"]
columns += ["attention_maxbox", "centred_box_maxbox", "whole_image_maxbox"]
found.groupby(["setting", "method", "pooling"], sort=False)[columns].mean().round(1) if len(found) else "no records yet"

# %% [markdown]
# A network whose `attention_mass` is above the area has found something. Compare it also with `untrained_attention_mass`. The paper's
# figures and the verdicts:

# %% tags=["nbval-ignore-output"]
from lib.results.figures import verdict_table
from lib.results.papers import paper_table

print(paper_table("simpool", "localization"))
verdict_table("simpool-4", "simpool-6", "simpool-11")

# %% [markdown]
# Each row is one statement: the paper's gap, our gap with its 95% interval, and the verdict. Where the records could not decide, the
# last column says why.
#
# ## What to remember
#
# - An attention map is a picture of what a network uses. This need not be the object.
# - Choose the images by a rule that does not see the maps.
# - Attention mass means something beside the area of the objects, beside the untrained network, and beside a map of the
#   middle.
#
# ## References
#
# - Psomas et al., *Keep It SimPool: Who Said Supervised Transformers Suffer from Attention Deficit?*, ICCV 2023,
#   [arXiv:2309.06891](https://arxiv.org/abs/2309.06891)
# - Caron et al., *Emerging Properties in Self-Supervised Vision Transformers* (DINO), ICCV 2021,
#   [arXiv:2104.14294](https://arxiv.org/abs/2104.14294)
# - Dosovitskiy et al., *An Image is Worth 16x16 Words* (ViT), ICLR 2021,
#   [arXiv:2010.11929](https://arxiv.org/abs/2010.11929)
#
# ## What would change your mind?
#
# A map that is bright on the object is not yet a map *of* the object. Photographers put objects in the middle, and a network that
# always looks at the middle looks good. The centred box in the table is this network. A map has found something where it beats that
# box.
#
# ## Exercises
#
# **1.** An attention is spread evenly, and the boxes cover 30% of the pictures on average. What attention mass do you expect, in percent?

# %%
from course import exercises

answer = None
exercises.even_attention_mass(answer)

# %% [markdown]
# **2.** Write the entropy of an attention, in percent of that of an even attention. Average over the heads first. It says how much a
# map leaves out: 100 is an even map.


# %%
def entropy(attention):
    """Float[B, heads, N], which sums to 1 over N -> Float[B], in percent."""


exercises.entropy(entropy)

# %% [markdown]
# **3.** Change the rule to the *last* image of each class. Do you still see what you saw?
#
# The answers are in `solutions/15_solutions.ipynb`.
