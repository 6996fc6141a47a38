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
# What the kept networks attend in photographs that none of them was trained on. A row is a network, its attention the mean over its heads,
# stretched to its range and laid over the picture. The networks are small and saw 48 or 64 pixels a side in training; here they see 224, so
# that the maps have 28 x 28 places.

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
# Even the untrained networks draw contours here and there: a random projection of a patch knows its brightness and colour. A map that looks
# like the picture is therefore no sign of learning. Learned maps differ in what they leave out.
#
# ## The images, and the rule that chooses them
#
# Maps are easy to choose by hand, so a rule chooses: of the split with boxes, in its order, the first image of each class whose boxes
# cover between 5% and 50% of the picture; then the first `images` of these. The rule sees no network.

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
# ## The networks
#
# Recorded checkpoints, one architecture (a Vision Transformer of width 128 and depth 4, patches of 8 pixels), with a class token and with
# SimPool: trained on the photographs of Imagenette with labels, without (DINO), and not at all.

# %%
networks = kept_networks("supervised", "dino")
view = center_view(pixels[chosen], size, crop=1.0, sizes=sizes[chosen])
with torch.no_grad():
    seen = {name: network.features(view) for name, network in networks.items()}
print({name: tuple(features.attention.shape) for name, features in seen.items()})

# %% [markdown]
# ## The talk's figure
#
# Each row is one network's attention, the mean over its heads. Brighter is more.

# %%
rows = {"image": list(denormalise(view))}
for name, features in seen.items():
    rows[name] = [a.view(features.grid) for a in features.attention.mean(1)]
image_grid(rows)

# %% [markdown]
# ## Heads apart
#
# [CLS] has several heads, and the mean hides that they differ. SimPool has one map, and nothing to choose between.

# %%
for name, features in seen.items():
    if features.attention.shape[1] > 1:
        heads = [a.view(features.grid) for a in features.attention[0, :3]]
        image_grid(
            {name: [denormalise(view)[0], features.attention[0].mean(0).view(features.grid), *heads]},
            titles=["image", "mean", "head 1", "head 2", "head 3"],
        )

# %% [markdown]
# ## Over training, and in convolutional networks too
#
# A convolutional network has no class token and no attention. With SimPool it gets one. Here a small ResNet and a small Vision
# Transformer learn to classify scenes, live; after every epoch SimPool's maps of unseen scenes are kept, and the share of the attention
# that lies on the objects, in percent.

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
# A share below the even one means that a network reads the class off what surrounds the object. In scenes it can: the background is the
# class's own at least half of the time (notebook 07). Attention shows what a network uses, and that need not be the object.

# %% [markdown]
# ## As a number
#
# The share of the attention that falls into the objects, over all images and not the chosen ones: into the masks where there are any, as of
# the horses, else into the boxes. Evenly spread attention has their area. And MaxBoxAccV2, with the trivial boxes beside it.

# %% tags=["nbval-ignore-output"]
from lib.results.tables import recorded

found = recorded("localization")
columns = ["attention_mass", "untrained_attention_mass", "mask_area", "box_area"]
columns += ["attention_maxbox", "centred_box_maxbox", "whole_image_maxbox"]
found.groupby(["setting", "method", "pooling"], sort=False)[columns].mean().round(1) if len(found) else "no records yet"

# %% tags=["nbval-ignore-output"]
from lib.results.figures import verdict_table
from lib.results.papers import paper_table

print(paper_table("simpool", "localization"))
verdict_table("simpool-4", "simpool-6", "simpool-11")

# %% [markdown]
# ## What would change your mind?
#
# A map that is bright on the object is not yet a map *of* the object: objects of photographs are in the middle, and a network that
# always looks at the middle would look good. The centred box in the table is that network. A map has found something where it beats it.
#
# ## Exercises
#
# **1.** Evenly spread attention, boxes that cover 30% of the pictures on average: what attention mass do you expect, in percent?

# %%
from course import exercises

answer = None
exercises.even_attention_mass(answer)

# %% [markdown]
# **2.** Change the rule to the *last* image of each class. Do you still see what you saw?
#
# Answers: `solutions/15_solutions.ipynb`.
