# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 10 · Detection and segmentation
#
# **CPU, 60 s at smoke scale** · the talk's downstream table, fine-tuned half · before it: 09 (video) · after it: 11 (the pooling landscape)
#
# **Question.** Does an encoder that has learned whole images help where every object and every pixel counts?

# %%
from lib.results.figures import quote, use_style

use_style()
quote("attmask-9")

# %%
import timm
import torch

print(f"torch {torch.__version__.split('+')[0]}, timm {timm.__version__}")

# %% tags=["parameters"]
scale: str = "smoke"  # smoke: a classifier of scenes, then seconds of fine-tuning; small: COCO and CamVid, the entry for this machine
pooling: str = "none"  # of the pre-trained classifier: none is the network's own; simpool, gap …
seed: int = 0  # of weights, order and views
record: bool = False  # leave a line in records/ for each finished measurement

# %%
from lib.keys import check_parameters

check_parameters(globals())

# %% [markdown]
# ## The paper's table
#
# iBOT with and without AttMask, ViT-S/16 of full ImageNet-1k: COCO with Cascade Mask R-CNN (12 epochs), ADE20K with UPerNet (160,000 steps). Ours has
# Mask R-CNN with one head in place of a cascade of three, and makes its maps from the last block where theirs come from four.

# %%
from lib.results.papers import paper_table

published = paper_table("attmask", "downstream")[["coco_ap_box", "coco_ap_mask", "ade20k_miou"]]
published

# %% [markdown]
# ## What is to be found
#
# **Detection** wants a box and a class for each object, **instance segmentation** its mask as well, **semantic segmentation** a class for each pixel.

# %%
from torchvision.transforms.v2.functional import to_pil_image

from lib.data.loading import read_table
from lib.data.segmentation import InstanceDataset, SemanticDataset
from lib.results.figures import box_on, image_grid, with_masks

table = read_table("scenes", "several_validation")
objects = InstanceDataset(table, longest=64)
pixels = SemanticDataset(table, shortest=64, void=-1, num_classes=11)
rows = {"boxes": [], "masks": [], "classes": []}
for row in range(4):
    image, size, things = objects.read(row)
    numbers = torch.arange(1, len(things.masks) + 1).view(-1, 1, 1)
    rows["boxes"].append(box_on(to_pil_image(image), {"true": things.boxes.tolist()}))
    rows["masks"].append(with_masks(to_pil_image(image), (things.masks * numbers).amax(0)))
    rows["classes"].append(with_masks(to_pil_image(image), pixels.read(row)[2]))
image_grid(rows)

# %% [markdown]
# ## From one map to four
#
# A ViT has one map, at the stride of its patches; objects have all sizes. The *simple feature pyramid* (ViTDet) makes the last map finer by transposed
# convolutions and coarser by a maximum. A ResNet's or ConvNeXt's last map serves as well, so every network of this project does, with [CLS] or with SimPool.

# %%
from lib.models import create_model
from lib.models.pyramid import SimplePyramid

for arch in ("vit_nano", "resnet_mini", "convnext_mini"):
    pyramid = SimplePyramid(create_model(arch, pooling="simpool"), width=32).eval()
    with torch.no_grad():
        maps = pyramid(torch.zeros(1, 3, 64, 64))
    print(f"{arch:14} strides {pyramid.strides}, maps", [tuple(level.shape[-2:]) for level in maps.values()])

# %% [markdown]
# ## The layers' rates
#
# What was learned first is moved least: with a *layer decay* of 0.9, which the paper takes for ADE20K, each layer learns at 0.9 of the rate of
# the one above it. At smoke scale there is none: few steps have to move all layers.

# %%
from lib.learning.optimizers import layerwise_optimizer

heads = torch.nn.Linear(384, 10)
groups = layerwise_optimizer(create_model("vit_small_patch16_224"), 0.9, heads).param_groups
print("rates, of the peak:", sorted({round(group["lr_scale"], 2) for group in groups}))

# %% [markdown]
# ## The runs
#
# A pre-trained network, then Mask R-CNN and UPerNet on top of its pyramid, all weights trained; and the same from the untrained network. Live it is a
# classifier, so that this shows the way and tests no claim.

# %% tags=["nbval-ignore-output"]
from lib.measure import measure
from lib.train import entry_for, run

live = run(entry_for(scale, "downstream"), pooling=pooling, seed=seed, progress=False)
found = {name: measure(name, live, record=record, progress=False) for name in ("detection", "segmentation")}

# %% tags=["nbval-ignore-output"]
import pandas as pd

names = {
    "ap_box": "box AP",
    "ap_box_50": "box AP50",
    "ap_mask": "mask AP",
    "ap_mask_50": "mask AP50",
    "miou": "mIoU",
}
figures = {name: value for made in found.values() for name, value in made.metrics.items()}
table = {title: [figures[name], figures[f"untrained_{name}"]] for name, title in names.items()}
pd.DataFrame(table, index=["pre-trained", "from scratch"]).round(1)

# %% [markdown]
# ## What they find
#
# Unseen images. Above: true boxes in white, the three of which the detector is most certain in orange. Below: classes of pixels, found and true.

# %% tags=["nbval-ignore-output"]
from lib.data.segmentation import VOID
from lib.evaluation.segmentation import segment
from lib.measure import evaluation_of, load_tuned

detector, segmenter = (load_tuned(made) for made in found.values())
things, classes = (evaluation_of(made).load().test for made in found.values())
rows = {"objects": [], "pixels": [], "true pixels": []}
for part in torch.linspace(0, 1, 4):  # evenly spaced through both sets
    image, _, true = things.read(int(part * (len(things) - 1)))
    with torch.no_grad():
        boxes = detector([image.float() / 255])[0]["boxes"][:3].tolist()
    rows["objects"].append(box_on(to_pil_image(image), {"true": true.boxes.tolist(), "found": boxes}))
    image, size, true = classes.read(int(part * (len(classes) - 1)))
    picture = to_pil_image(image).resize(size[::-1])
    window = found["segmentation"].config["segmentation.eval_size"]
    rows["pixels"].append(with_masks(picture, segment(segmenter, image, size, window=window)))
    rows["true pixels"].append(with_masks(picture, torch.where(true == VOID, 0, true)))
image_grid(rows)

# %% [markdown]
# At smoke scale the detector has seen 80 pairs of images and the segmenter 120, from a classifier of 25 steps: which start is better cannot be
# told from that. With more steps the detector and the segmenter learn eight scenes by heart, which the tests ask of them.
#
# ## The evidence
#
# Recorded on subsets of COCO and CamVid, for every pre-trained network that was measured, beside the same from scratch (`untrained_`). A hundred
# images of eighty classes teach a detector nothing that average precision would show. On CamVid a start matters by two points at most, in either
# direction.

# %% tags=["nbval-ignore-output"]
from lib.results.tables import recorded

evidence = []
for name, columns in (("detection", ["ap_box_50", "ap_mask_50"]), ("segmentation", ["miou", "pixel_accuracy"])):
    lines = recorded(name)
    if len(lines):
        shown = [column for name in columns for column in (name, f"untrained_{name}")]
        lines["masking"] = lines.get("masking", pd.Series(index=lines.index)).fillna("no masks")
        evidence.append(lines.groupby(["setting", "masking", "pooling"], sort=False)[shown].mean().round(1))
pd.concat(evidence, axis=1) if evidence else "no records yet"

# %% tags=["nbval-ignore-output"]
from lib.results.figures import verdict_table

verdict_table("attmask-9")

# %% [markdown]
# ## What would change your mind?
#
# Fine-tuning moves all weights. With enough labels the start is forgotten, and a gain that is left after a long training of both says more than
# one after a short training of both. The paper's gain is 0.6 points of box AP.
#
# ## Exercises
#
# **1.** A sliding window of 512 pixels moves by 341, and the last one ends at the edge. How many windows cover an image of 512 x 683?

# %%
from course import exercises

answer = None
exercises.windows(answer)

# %% [markdown]
# **2.** With a layer decay of 0.8 and twelve blocks, at what part of the peak rate does the patch embedding learn? The heads have the full rate, the last block is
# one step below them, the embedding one step below the first block.

# %%
answer = None
exercises.lowest_rate(answer)

# %% [markdown]
# Answers: `solutions/10_solutions.ipynb`.
