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
# A map says how much, a box says where. To get from one to the other, the map is enlarged to the image, scaled to 0 … 255 and cut at a
# threshold. What is left falls into parts, each with a contour, each contour with a box. A box is right when its IoU with a true one
# reaches a level.
#
# First without a network: a map made by hand, with a broad blob on the object and a smaller, brighter one beside it.

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
# A low threshold joins the two blobs, a high one leaves only the wrong one. In between there are two contours, and since *all* contours
# count, it does not matter that the wrong one is brighter: the best of them is taken. Over all thresholds that is a curve.

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
# MaxBoxAccV2 does this for many images. At each threshold it counts, over all of them, how many have a right box; a threshold is good
# for all images or not at all. The maximum of that curve is the accuracy at one IoU level, and the mean over 0.3, 0.5 and 0.7 the figure
# that is reported. So the threshold is chosen *with* the true boxes: the figure says how good the maps could be, had one known where
# to cut.
#
# ## Images, objects and networks
#
# Where masks are known, the attention mass is measured inside the masks, otherwise inside the boxes. One architecture (a Vision
# Transformer of width 128 and depth 4), with [CLS] and with SimPool: trained with labels, without (DINO), and not at all.

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
# Two kinds of maps: the attention of the pooled token, and where there is a classifier, the class activation map (CAM) of the class that
# the network itself names.

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
# At an IoU of 0.5. The dashed line is a box in the middle of the image, of the side that suits most images; it looks at nothing.

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
# ## MaxBoxAccV2
#
# The maxima of the curves, and their mean.

# %% tags=["nbval-ignore-output"]
import pandas as pd

rows = {key: [curve[level].max().item() for level in levels] for key, curve in curves.items()}
rows |= {(data, name, ""): [found[level] for level in levels] for data in sources for name, found in trivial[data].items()}
index = pd.MultiIndex.from_tuples(rows, names=["images", "network", "map"])
scores = pd.DataFrame(rows.values(), index, columns=[f"IoU {level}" for level in levels])
scores = scores.assign(MaxBoxAccV2=scores.mean(axis=1)).sort_index(level="images", sort_remaining=False)
scores.round(1)

# %% [markdown]
# ## Attention mass
#
# The share of the attention that lies on the objects, in percent, without any threshold. Evenly spread attention has the objects' area.

# %% tags=["nbval-ignore-output"]
from lib.evaluation.localization import attention_mass

mass = {data: {"even attention": 100 * objects[data].mean().item()} for data in sources}
for (data, name, kind), found in maps.items():
    if kind == "attention":
        mass[data][name] = 100 * attention_mass(found, objects[data]).mean().item()
pd.DataFrame(mass).round(1)

# %% [markdown]
# ## The talk's figure
#
# Four images, evenly spaced through the set. White: the true boxes. Coloured: the best contour's box at the network's best threshold for an
# IoU of 0.5, which is the same for all images.

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
# ## Recorded, and the paper's
#
# Over all images of Imagenette's validation set that have boxes, and of Weizmann's horses, with as many seeds as were recorded. The paper
# localizes birds (CUB) and the objects of ImageNet-1k with ViT-S.

# %% tags=["nbval-ignore-output"]
from lib.results.tables import recorded, spread

shown = ["attention_maxbox", "untrained_attention_maxbox", "cam_maxbox", "whole_image_maxbox", "centred_box_maxbox"]
shown += ["attention_mass", "untrained_attention_mass", "mask_area", "box_area"]
spread(recorded("localization"), "pooling", shown).drop(columns="minutes", errors="ignore").sort_index(
    level="setting", sort_remaining=False
).round(1)

# %% tags=["nbval-ignore-output"]
from lib.results.figures import verdict_table
from lib.results.papers import paper_table

print(paper_table("simpool", "localization").to_string())
verdict_table("simpool-4", "simpool-6", "simpool-11")

# %% [markdown]
# ## What would change your mind?
#
# The two figures can disagree, and then it matters what they ask. MaxBoxAccV2 asks for the whole extent of the object and forgives any
# faint halo that the threshold removes; attention mass asks that nothing be wasted and forgives that one part of the object has it all.
# Where objects fill the picture, as horses do, the whole image is right nearly always: boxes then say nothing about a map, masks
# still do. So no figure counts without the one of a box that looks at nothing, and without that of the untrained network, beside it.
#
# ## Exercises
#
# **1.** An object's box covers 45% of the image. At which of the IoU levels 0.3, 0.5 and 0.7 is the whole image a right box?

# %%
from course import exercises

answer = None  # a list of levels
exercises.whole_image_levels(answer)

# %% [markdown]
# **2.** An object fills its square box. A network attends evenly to the upper left quarter of it, half as wide and half as high, and to
# nothing else. What is its attention mass, in percent, and the IoU of the best box, about?

# %%
attention, iou = None, None
exercises.part_of_an_object(attention, iou)

# %% [markdown]
# Answers: `solutions/16_solutions.ipynb`.
