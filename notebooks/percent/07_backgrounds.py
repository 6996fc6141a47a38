# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 07 · Backgrounds
#
# **CPU, 40 s at smoke scale** · objects cut out and pasted before other backgrounds · before it: 06 (methods) · after it: 08
# (retrieval)
#
# **Question.** Does a classifier name the object, or what is usually behind it? And do AttMask and SimPool change that?
#
# A fish is mostly photographed in water, and a network may learn the water. On common test images nobody would notice. So we take the
# images apart and put the objects before other backgrounds.

# %%
from lib.results.figures import quote, use_style

use_style()
quote("attmask-8", "simpool-7")

# %%
import timm
import torch

print(f"torch {torch.__version__.split('+')[0]}, timm {timm.__version__}")

# %% tags=["parameters"]
scale: str = "smoke"  # smoke: recorded networks on procedural scenes; small: on Imagenette's boxed images under $COMPANION_DATA
count: int = 150  # how many images to take apart, from the first on; 0 takes all
seed: int = 0  # of the choice of backgrounds

# %%
from lib.keys import check_parameters

check_parameters(globals())

# %% [markdown]
# ## One image, eight ways
#
# ImageNet-9 shows a classifier the object and its background apart:
#
# - **OF** keeps only the object.
# - **MS**, **MR** and **MN** paste the object before a background of its own class, of a random class, and of the next class.
# - **NF** blackens the object, so that its silhouette is left.
# - **OBB** blackens the object's box, and **OBT** covers the box with background.
#
# A classifier of objects is good at the first four and bad at the last three.
#
# Here the images are of this scale's data. In scenes, the objects are known exactly. In photographs with boxes, GrabCut finds them,
# as it did for ImageNet-9.

# %%
from lib.evaluation.backgrounds import VARIANTS, background_variants, known_objects
from lib.measure import create_evaluation

fraction = 0.3 if scale == "smoke" else 1.0
evaluation = create_evaluation("backgrounds", scale, size=48 if scale == "smoke" else 64, crop=1.0, fraction=fraction)
source, _ = evaluation.test_stream()
images, masks, boxes, labels = (part[: count or None] for part in known_objects(source))
variants = background_variants(images, masks, boxes, labels, num_classes=10, generator=torch.Generator().manual_seed(seed))
print(f"{len(images)} of {len(source)} images, each with one object that covers at most 90% of it")

# %% [markdown]
# The talk's strip: the first image whose object covers between 15% and 40% of it.

# %% tags=["nbval-ignore-output"]
import pandas as pd

from lib.results.figures import image_grid

area = masks.float().mean((1, 2))
first = int(((area > 0.15) & (area < 0.4)).nonzero()[0])
order = ["IN-9", *(name for name in VARIANTS if name != "IN-9")]
image_grid({"": [variants[name][first] for name in order]}, titles=order, size=1.2)
pd.Series({name: what for name, (_, what) in VARIANTS.items()}, name="what is seen").to_frame()

# %% [markdown]
# The strip shows one image in its eight variants, and the table says what is seen in each.
#
# ## Classifiers that have learned backgrounds
#
# The networks are recorded ones, and they are frozen. On top of each, a linear classifier learns the images of this scale with their
# own backgrounds. Where a supervised network was trained for these very classes, it answers by itself. In scenes, the background is
# the class's own at least half of the time, so there is something to be tempted by.

# %% tags=["nbval-ignore-output"]
from lib.evaluation.backgrounds import background_accuracy
from lib.evaluation.linear import probed
from lib.keep import kept_networks

train, settings, view = evaluation.train_bank(), evaluation.settings, evaluation.view()
options = dict(lrs=settings.lrs, epochs=settings.epochs, batch_size=settings.batch_size)
networks = {}
for name, network in kept_networks("supervised", "ibot").items():
    if name.startswith("supervised") and scale != "smoke":
        networks[name] = network
    elif name != "untrained, SimPool":
        networks[name] = probed(network, train, source, blocks=settings.blocks_of(network), **view, **options)

# %% [markdown]
# ## Accuracy on every variant
#
# The difference between MS and MR is the price of a foreign background. The smaller it is, the less a classifier leans on the
# background. With ten classes, chance is 10%.

# %% tags=["nbval-ignore-output"]
pairs = {name: (changed, labels) for name, changed in variants.items()}
accuracies = pd.DataFrame({name: background_accuracy(network, pairs, **view) for name, network in networks.items()}).T
accuracies.rename(columns={"background_gap": "MS - MR"}).round(1)

# %% [markdown]
# Compare **OF**, the object alone, with **NF**, the background alone. At smoke scale the networks come from photographs and have seen
# few scenes. In scenes, a classifier of backgrounds alone would reach 55%: the background is right by itself in half of the images,
# and by luck in a tenth of the rest.

# %% tags=["nbval-ignore-output"]
import matplotlib.pyplot as plt
import seaborn as sns

long = accuracies[list(VARIANTS)].rename_axis("network").reset_index().melt("network", var_name="variant", value_name="accuracy, %")
sns.barplot(long, x="variant", y="accuracy, %", hue="network").set_title("Accuracy with other backgrounds")
plt.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncol=2, fontsize=8, frameon=False)
plt.show()

# %% [markdown]
# Each group of bars is a variant, and each colour a network; the numbers are those of the table.
#
# ## Recorded, and the paper's
#
# Our recorded runs, the mean over their seeds; `background_gap` is MS less MR.

# %% tags=["nbval-ignore-output"]
from lib.results.tables import recorded

records = recorded("backgrounds")
shown = [*VARIANTS, "background_gap", "untrained_IN-9"]
records.groupby(["setting", "masking", "pooling"], sort=False, dropna=False)[shown].mean().round(1) if len(records) else "no records yet"

# %% [markdown]
# The paper's tables, and the verdicts on the two claims:

# %% tags=["nbval-ignore-output"]
from lib.results.figures import verdict_table
from lib.results.papers import paper_table

print(paper_table("attmask", "backgrounds").loc[["block", "attmask_hint", "attmask_high"]].to_string(), end="\n\n")
print(paper_table("simpool", "backgrounds").to_string())
verdict_table("attmask-8", "simpool-7")

# %% [markdown]
# Each row is one statement: the paper's gap, our gap with its 95% interval, and the verdict. Where the records could not decide, the
# last column says why.
#
# ## What to remember
#
# - A high accuracy does not say what a network looks at. Change one thing and measure again.
# - The gap between MS and MR is what a foreign background costs.
# - Robustness is a smaller gap at the same accuracy, and not a higher accuracy everywhere.
#
# ## References
#
# - Xiao et al., *Noise or Signal: The Role of Image Backgrounds in Object Recognition* (ImageNet-9), ICLR 2021,
#   [arXiv:2006.09994](https://arxiv.org/abs/2006.09994)
# - Kakogeorgiou et al., *What to Hide from Your Students: Attention-Guided Masked Image Modeling*, ECCV 2022,
#   [arXiv:2203.12719](https://arxiv.org/abs/2203.12719)
# - Psomas et al., *Keep It SimPool: Who Said Supervised Transformers Suffer from Attention Deficit?*, ICCV 2023,
#   [arXiv:2309.06891](https://arxiv.org/abs/2309.06891)
# - Rother et al., *GrabCut: Interactive Foreground Extraction using Iterated Graph Cuts*, SIGGRAPH 2004,
#   [doi:10.1145/1015706.1015720](https://doi.org/10.1145/1015706.1015720)
#
# ## What would change your mind?
#
# A network that is better on every variant, the blackened ones too, is simply a better network. Robustness is something else: a
# smaller gap between MS and MR at the same accuracy on the originals. Look at both before you believe the claim.
#
# ## Exercises
#
# **1.** A classifier looks at backgrounds alone, and names their class without error. There are ten classes, all equally frequent.
# What is its accuracy, in percent, on MS, on MR and on MN?

# %%
from course import exercises

answer = None  # three numbers: MS, MR, MN
exercises.background_only(answer)

# %% [markdown]
# **2.** A classifier of ImageNet-1k sees an image of ImageNet-9 with a bird, and says *peacock* (class 84). Which of the nine classes
# is that (-1 for none)?

# %%
nine = None
exercises.peacock(nine)

# %% [markdown]
# **3.** Write the accuracy of ImageNet-9. `mapping` translates the 1000 classes into the nine, with -1 for all others, which always
# count as wrong.


# %%
def in9_accuracy(predicted, labels, mapping):
    """Long[B] of 1000 classes, Long[B] of nine, Long[1000] -> percent."""


exercises.in9_accuracy(in9_accuracy)

# %% [markdown]
# The answers are in `solutions/07_solutions.ipynb`.
