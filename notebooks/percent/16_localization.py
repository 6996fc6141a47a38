# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 16 · Localization
#
# **CPU, 40 s at smoke scale** · MaxBoxAccV2 and attention mass: maps against boxes and masks · before it: 15 (attention maps) · after it:
# 17 (object discovery)
#
# **Question.** Does the attention find the object, and is it better than a box that looks at nothing?
#
# A map of attention looks convincing or it does not. To compare networks, we need a number. Two are in use: how well a box drawn from
# the map fits the object, and how much of the attention lies on it.

# %%
from lib.results.figures import quote, use_style

use_style()
quote("simpool-4", "simpool-6", "simpool-11")

# %%
import timm
import torch

print(f"torch {torch.__version__.split('+')[0]}, timm {timm.__version__}")

# %% tags=["parameters"]
scale: str = "smoke"  # smoke: recorded networks on procedural scenes; small: on Imagenette and horses under $COMPANION_DATA
images: int = 100  # how many images of each set to measure, from the first on; 0 measures all
size: int = 64  # pixels a side that the networks see; patches are 8 pixels

# %%
from lib.keys import check_parameters

check_parameters(globals())

# %% [markdown]
# ## From a map to a box
#
# A map says how much, and a box says where. To get from one to the other, the map is enlarged to the size of the image, scaled to 0 …
# 255, and cut at a threshold. What is above it falls into parts. Each part has a contour, and each contour has a box. A box is right
# when its intersection over union (IoU) with a true box reaches a given level.
#
# First without a network. This map is made by hand, with a broad blob on the object and a smaller, brighter one beside it.

# %%
x, y = torch.meshgrid(torch.arange(14.0), torch.arange(14.0), indexing="xy")
on_object = 0.8 * torch.exp(-((x - 4.5) ** 2 / 12 + (y - 8) ** 2 / 8))
beside = torch.exp(-((x - 11) ** 2 + (y - 3) ** 2) / 2)
made = on_object + beside
true_box = torch.tensor([[20, 84, 130, 180]])

# %%
from lib.evaluation.localization import contour_boxes

for threshold in (5, 60, 120, 220):
    boxes, ious = contour_boxes(made, true_box, threshold)
    print(f"threshold {threshold}: " + ", ".join(f"{box} {iou:.2f}" for box, iou in zip(boxes.tolist(), ious)))

# %% tags=["nbval-ignore-output"]
from torch.nn.functional import interpolate

from lib.results.figures import box_on, heat_map, image_grid

large = interpolate(made[None, None], (224, 224), mode="bicubic")[0, 0]
cuts = {"map": [], "above it": []}
for threshold in (5, 60, 120, 220):
    boxes, _ = contour_boxes(made, true_box, threshold)
    cuts["map"].append(box_on(heat_map(made, 224), {"true": true_box.tolist(), "found": boxes.tolist()}))
    cuts["above it"].append((255 * (large - large.min()) / (large.max() - large.min()) > threshold).float())
image_grid(cuts, titles=["5", "60", "120", "220"], size=1.6)

# %% [markdown]
# Each line above is a threshold with its boxes and their IoU. In the pictures, the true box is white.
#
# A low threshold joins the two blobs. A high one leaves only the wrong one. In between there are two contours. *All* contours count,
# and the best of them is taken, so it does no harm that the wrong blob is brighter. Over all thresholds this gives a curve.

# %% tags=["nbval-ignore-output"]
import matplotlib.pyplot as plt

from lib.evaluation.localization import threshold_ious

levels = (0.3, 0.5, 0.7)
curve = threshold_ious(made[None], [true_box])[0]
figure, axis = plt.subplots()
axis.plot(curve)
for level in levels:
    axis.axhline(level, color="0.6", linestyle=":")
axis.set(xlabel="threshold", ylabel="IoU of the best contour's box", title="A map made by hand")
plt.show()

# %%
print(f"best IoU {curve.max():.2f} at threshold {int(curve.argmax())}")

# %% [markdown]
# MaxBoxAccV2 does this for many images. At each threshold it counts how many images have a right box. One threshold holds for all
# images. The maximum over the thresholds is the accuracy at one IoU level, and the mean over the levels 0.3, 0.5 and 0.7 is the
# figure that is reported.
#
# So the threshold is chosen *with* the true boxes. The figure says how good the maps could be, if somebody had known where to cut.
#
# ## Images, objects and networks
#
# The attention mass is measured inside the masks where they are known, and inside the boxes where they are not. The networks share
# one architecture, a Vision Transformer of width 128 and depth 4, with [CLS] and with SimPool. They were trained with labels, without
# (DINO), and not at all.

# %%
from lib.measure import create_evaluation

sources, boxes, objects = {}, {}, {}
for other in [{}] + [dict(data="horses", split="test")] * (scale == "small"):
    evaluation = create_evaluation("localization", scale, images=images, size=size, crop=1.0, **other)
    data = evaluation.settings.data
    sources[data], boxes[data], objects[data], areas = evaluation.load().test
    covered = ", ".join(f"{name} {area:.1f}%" for name, area in areas.items())
    print(f"{data}: {len(boxes[data])} images; {covered}")
pixels = evaluation.settings.box_size

# %%
from lib.keep import kept_networks

networks = kept_networks("supervised", "dino")

# %% [markdown]
# ## The run
#
# There are two kinds of maps: the attention of the pooled token, and the class activation map (CAM). The second one needs a
# classifier, and is taken for the class that the network itself names.

# %%
from lib.evaluation.localization import localization_maps

maps, curves = {}, {}
for data, source in sources.items():
    for name, network in networks.items():
        for kind, found in localization_maps(network, source, size=size).items():
            maps[data, name, kind] = found
            ious = threshold_ious(found, boxes[data], image_size=pixels)
            curves[data, name, kind] = {level: 100 * (ious >= level).double().mean(0) for level in levels}

# %% [markdown]
# ## Accuracy over thresholds
#
# Here the IoU level is 0.5. The dashed line is a box in the middle of the image that looks at nothing. Its side is the one that suits
# most images.

# %% tags=["nbval-ignore-output"]
from lib.evaluation.localization import trivial_accuracy

trivial = {data: trivial_accuracy(boxes[data], image_size=pixels) for data in sources}
figure, axes = plt.subplots(1, len(sources), figsize=(6.8 * len(sources), 3.8), squeeze=False)
for axis, data in zip(axes[0], sources):
    for name in networks:
        axis.plot(curves[data, name, "attention"][0.5], label=name)
    axis.axhline(trivial[data]["centred box"][0.5], color="0.3", linestyle="--", label="centred box")
    axis.set(xlabel="threshold", ylabel="right boxes, %", title=f"Attention on {data}, IoU 0.5")
axes[0][0].legend(fontsize=8)
plt.show()

# %% [markdown]
# A curve that never rises above the dashed line found less than a box that looks at nothing.
#
# ## MaxBoxAccV2
#
# The maxima of the curves, and their mean over the levels, with the trivial boxes after the networks.

# %% tags=["nbval-ignore-output"]
import pandas as pd

rows = {key: [curve[level].max().item() for level in levels] for key, curve in curves.items()}
rows |= {(data, name, ""): [found[level] for level in levels] for data in sources for name, found in trivial[data].items()}
index = pd.MultiIndex.from_tuples(rows, names=["images", "network", "map"])
scores = pd.DataFrame(rows.values(), index, columns=[f"IoU {level}" for level in levels])
scores = scores.assign(MaxBoxAccV2=scores.mean(axis=1)).sort_index(level="images", sort_remaining=False)
scores.round(1)

# %% [markdown]
# Compare a network first with the two trivial rows of its data, and then with another network.
#
# ## Attention mass
#
# This is the share of the attention that lies on the objects, in percent. It needs no threshold. An even attention has the objects' area.

# %% tags=["nbval-ignore-output"]
from lib.evaluation.localization import attention_mass

mass = {data: {"even attention": 100 * objects[data].mean().item()} for data in sources}
for (data, name, kind), found in maps.items():
    if kind == "attention":
        mass[data][name] = 100 * attention_mass(found, objects[data]).mean().item()
pd.DataFrame(mass).round(1)

# %% [markdown]
# A network whose share is above that of the even attention looks at the objects more than chance would.
#
# ## The talk's figure
#
# Four images, evenly spaced through the set. White: the true boxes. Coloured: the best contour's box, at the threshold that is best
# for this network at an IoU of 0.5. It is the same threshold for all images.

# %% tags=["nbval-ignore-output"]
from torchvision.transforms.functional import to_pil_image

from lib.data.views import center_view, denormalise

for data, source in sources.items():
    chosen = torch.linspace(0, len(source) - 1, 4).long()
    canvas, sizes, _ = next(source.batches([chosen]))
    views = denormalise(center_view(canvas, pixels, crop=1.0, sizes=sizes)).clamp(0, 1)
    shown = {"image": [box_on(to_pil_image(view), {"true": boxes[data][i].tolist()}) for view, i in zip(views, chosen)]}
    for name in networks:
        best, shown[name] = int(curves[data, name, "attention"][0.5].argmax()), []
        for i in chosen:
            single, true = maps[data, name, "attention"][i], boxes[data][i]
            found, _ = contour_boxes(single, true, best, image_size=pixels)
            shown[name].append(box_on(heat_map(single, pixels), {"true": true.tolist(), "best": found[:1].tolist()}))
    image_grid(shown, size=1.5)

# %% [markdown]
# A row is a network, and each picture its map of one image.
#
# ## Recorded, and the paper's
#
# These figures are over all images of Imagenette's validation set that have boxes, and over Weizmann's horses, with as many seeds as
# were recorded. The paper localizes birds (CUB) and the objects of ImageNet-1k with ViT-S.

# %% tags=["nbval-ignore-output"]
from lib.results.tables import recorded, spread

shown = ["attention_maxbox", "untrained_attention_maxbox", "cam_maxbox", "whole_image_maxbox", "centred_box_maxbox"]
shown += ["attention_mass", "untrained_attention_mass", "mask_area", "box_area"]
spread(recorded("localization"), "pooling", shown).drop(columns="minutes", errors="ignore").sort_index(
    level="setting", sort_remaining=False
).round(1)

# %% [markdown]
# Compare each figure with that of the untrained network and with the trivial boxes. The paper's figures and the verdicts:

# %% tags=["nbval-ignore-output"]
from lib.results.figures import verdict_table
from lib.results.papers import paper_table

print(paper_table("simpool", "localization").to_string())
verdict_table("simpool-4", "simpool-6", "simpool-11")

# %% [markdown]
# Each row is one statement: the paper's gap, our gap with its 95% interval, and the verdict. Where the records could not decide, the
# last column says why.
#
# ## What to remember
#
# - MaxBoxAccV2 asks whether a box drawn from the map fits the object, at the best threshold for all images.
# - Attention mass asks how much of the attention lies on the object; an even map has the area of the object.
# - Both need the trivial answers beside them.
#
# ## References
#
# - Choe et al., *Evaluating Weakly Supervised Object Localization Methods Right*, CVPR 2020,
#   [arXiv:2001.07437](https://arxiv.org/abs/2001.07437)
# - Psomas et al., *Keep It SimPool: Who Said Supervised Transformers Suffer from Attention Deficit?*, ICCV 2023,
#   [arXiv:2309.06891](https://arxiv.org/abs/2309.06891)
# - Zhou et al., *Learning Deep Features for Discriminative Localization* (CAM), CVPR 2016,
#   [arXiv:1512.04150](https://arxiv.org/abs/1512.04150)
# - Caron et al., *Emerging Properties in Self-Supervised Vision Transformers* (DINO), ICCV 2021,
#   [arXiv:2104.14294](https://arxiv.org/abs/2104.14294)
#
# ## What would change your mind?
#
# The two figures can disagree, because they ask for different things. MaxBoxAccV2 asks for the whole extent of the object, and
# forgives a faint halo that the threshold removes. Attention mass asks that nothing is wasted, and forgives that one part of the
# object has all of it.
#
# Where objects fill the picture, as horses do, the whole image is right nearly always. Then boxes say nothing about a map, and masks
# still do. So no figure counts without two others beside it: that of a box that looks at nothing, and that of the untrained network.
#
# ## Exercises
#
# **1.** An object's box covers 45% of the image. At which of the IoU levels 0.3, 0.5 and 0.7 is the whole image a right box?

# %%
from course import exercises

answer = None  # a list of levels
exercises.whole_image_levels(answer)

# %% [markdown]
# **2.** An object fills its square box. A network attends evenly to the upper left quarter of the box, half as wide and half as high,
# and to nothing else. What is its attention mass, in percent, and what is the IoU of the best box, about?

# %%
answer = None  # two numbers: attention mass, IoU
exercises.part_of_an_object(answer)

# %% [markdown]
# **3.** Write MaxBoxAcc's step for one map. Scale the map to 0 … 1. For each of the thresholds 0, 0.05, …, 0.95, draw the box around
# *all* pixels above it (there is only one box here). Give the best IoU with the true box. Ends are included: a box from x0 to x1 is
# x1 - x0 + 1 pixels wide.


# %%
def box_of_map(single, box):
    """Float[H, W], Long[4] (x0, y0, x1, y1) -> the best IoU."""


exercises.box_of_map(box_of_map)

# %% [markdown]
# The answers are in `solutions/16_solutions.ipynb`.
