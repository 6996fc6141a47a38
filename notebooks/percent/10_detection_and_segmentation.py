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
# **CPU, 60 s at smoke scale** · the talk's downstream table, fine-tuned half · before it: 09 (video) · after it: 11 (the pooling
# landscape)
#
# **Question.** Does an encoder that has learned whole images help where every object and every pixel counts?
#
# Pre-training looks at whole images. Detection asks for each object, and segmentation for each pixel. A head is put on the encoder,
# and all weights are trained further. So the question is how much a good start is worth.

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
# The paper compares iBOT with and without AttMask, with ViT-S/16 pre-trained on full ImageNet-1k. COCO is measured with Cascade Mask
# R-CNN (12 epochs), ADE20K with UPerNet (160,000 steps). Ours are smaller: at the scales smoke and small, Mask R-CNN has one head in
# place of a cascade of three, and our feature maps come from the last block, where the paper's come from four.

# %%
from lib.results.papers import paper_table

published = paper_table("attmask", "downstream")[["coco_ap_box", "coco_ap_mask", "ade20k_miou"]]
published

# %% [markdown]
# The columns are average precision of boxes and of masks on COCO, and mean intersection over union on ADE20K, in percent.
#
# ## What is to be found
#
# - **Detection** wants a box and a class for each object.
# - **Instance segmentation** wants its mask as well.
# - **Semantic segmentation** wants a class for each pixel.

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
# Each column is one scene: its boxes, its masks with a colour for each object, and its pixels with a colour for each class.
#
# ## From one map to four
#
# A ViT has one feature map, at the stride of its patches, but objects have all sizes. The *simple feature pyramid* (ViTDet) makes
# finer maps from the last one by transposed convolutions, and a coarser one by a maximum. The last map of a ResNet or a ConvNeXt
# serves as well. So this works for every network of this project, with [CLS] or with SimPool.

# %%
from lib.models import create_model
from lib.models.pyramid import SimplePyramid

for arch in ("vit_nano", "resnet_mini", "convnext_mini"):
    pyramid = SimplePyramid(create_model(arch, pooling="simpool"), width=32).eval()
    with torch.no_grad():
        maps = pyramid(torch.zeros(1, 3, 64, 64))
    print(f"{arch:14} strides {pyramid.strides}, maps", [tuple(level.shape[-2:]) for level in maps.values()])

# %% [markdown]
# Each line is a network with the strides of its four maps, in pixels, and their sizes.
#
# ## The layers' rates
#
# Early layers have learned what all images share, so they are changed least. With a *layer decay* of $\lambda$, a layer that lies $l$
# steps below the heads learns at the rate $\lambda^l$ times that of the heads. The paper takes $\lambda = 0.9$ for ADE20K. At smoke
# scale there is no decay, because few steps have to move all layers.

# %%
from lib.learning.optimizers import layerwise_optimizer

heads = torch.nn.Linear(384, 10)
groups = layerwise_optimizer(create_model("vit_small_patch16_224"), 0.9, heads).param_groups
print("rates, of the peak:", sorted({round(group["lr_scale"], 2) for group in groups}))

# %% [markdown]
# The list goes from the lowest layer to the heads.
#
# ## The runs
#
# We take a pre-trained network and put Mask R-CNN and UPerNet on top of its pyramid. All weights are trained. Then we do the same
# with the untrained network. Live, the pre-trained network is a classifier, so this shows the way and tests no claim.

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
# Compare the two rows: their difference is what the pre-training was worth.
#
# ## What they find
#
# Images that were not seen in training. First row: true boxes in white, and the three boxes of which the detector is most certain in
# orange. The rows below have the classes of pixels, found and true.

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
# At smoke scale, the detector has seen 80 pairs of images and the segmenter 120, and they start from a classifier of 25 steps. This
# cannot tell which start is better. With more steps, both learn eight scenes by heart; the tests ask this of them.
#
# ## The evidence
#
# These figures are recorded on subsets of COCO and CamVid, for every pre-trained network that was measured, with the same from
# scratch beside it (`untrained_`). A hundred images of eighty classes teach a detector little. So compare each figure with its
# `untrained_` neighbour first.

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

# %% [markdown]
# The verdicts, a row for each statement of the claim:

# %% tags=["nbval-ignore-output"]
from lib.results.figures import verdict_table

verdict_table("attmask-9")

# %% [markdown]
# ## What to remember
#
# - A pyramid turns the one map of a transformer into maps for objects of all sizes.
# - With layer decay, what was learned first is changed least.
# - Fine-tuning can forget its start. So measure the same from scratch, with the same number of steps.
#
# ## References
#
# - Kakogeorgiou et al., *What to Hide from Your Students: Attention-Guided Masked Image Modeling*, ECCV 2022,
#   [arXiv:2203.12719](https://arxiv.org/abs/2203.12719)
# - He et al., *Mask R-CNN*, ICCV 2017, [arXiv:1703.06870](https://arxiv.org/abs/1703.06870)
# - Cai and Vasconcelos, *Cascade R-CNN: Delving into High Quality Object Detection*, CVPR 2018,
#   [arXiv:1712.00726](https://arxiv.org/abs/1712.00726)
# - Xiao et al., *Unified Perceptual Parsing for Scene Understanding* (UPerNet), ECCV 2018,
#   [arXiv:1807.10221](https://arxiv.org/abs/1807.10221)
# - Li et al., *Exploring Plain Vision Transformer Backbones for Object Detection* (ViTDet), ECCV 2022,
#   [arXiv:2203.16527](https://arxiv.org/abs/2203.16527)
# - Lin et al., *Microsoft COCO: Common Objects in Context*, ECCV 2014,
#   [arXiv:1405.0312](https://arxiv.org/abs/1405.0312)
# - Bao et al., *BEiT: BERT Pre-Training of Image Transformers*, ICLR 2022,
#   [arXiv:2106.08254](https://arxiv.org/abs/2106.08254)
#
# ## What would change your mind?
#
# Fine-tuning moves all weights. With enough labels and steps, the start is forgotten. So a gain that is left after a long training of
# both says more than a gain after a short training of both. The paper's gain is 0.6 points of box AP.
#
# ## Exercises
#
# **1.** A sliding window of 512 pixels moves by 341 pixels, and the last one ends at the edge. How many windows cover an image of 512
# x 683?

# %%
from course import exercises

answer = None
exercises.windows(answer)

# %% [markdown]
# **2.** The layer decay is 0.8, and the network has twelve blocks. The heads have the full rate, the last block is one step below
# them, and the patch embedding is one step below the first block. At which part of the full rate does the patch embedding learn?

# %%
answer = None
exercises.lowest_rate(answer)

# %% [markdown]
# **3.** Write the mean intersection over union of classes of pixels. Pixels whose true class is 255 do not count. A class that is
# neither there nor predicted has no IoU, and stays out of the mean.


# %%
def mean_iou(predicted, truth, classes):
    """Long[P], Long[P], int -> mean IoU in [0, 1]."""


exercises.mean_iou(mean_iou)

# %% [markdown]
# The answers are in `solutions/10_solutions.ipynb`.
