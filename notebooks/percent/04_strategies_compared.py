# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 04 · Masking strategies compared
#
# **CPU, 40 s at smoke scale** · the talk's strategy table · before it: 03 (the method) · after it: 05 (convergence and data)
#
# **Question.** With everything else equal, which masks teach the best features?
#
# Notebook 02 showed what each strategy hides, and notebook 03 how a student learns from it. Now only the strategy changes: the
# network, the images, the masking ratio and the seed stay the same. So a difference in accuracy comes from *where* the
# masks are.

# %%
from lib.results.figures import quote, use_style

use_style()
quote("attmask-1", "attmask-2", "attmask-3")

# %%
import timm
import torch

print(f"torch {torch.__version__.split('+')[0]}, timm {timm.__version__}")

# %% tags=["parameters"]
scale: str = "smoke"  # smoke: six runs of seconds; small: six runs of the entry for this machine
seed: int = 0  # of weights, order, views and masks: the same for all strategies
record: bool = False  # leave a line in records/ for each finished run

# %%
from lib.keys import check_parameters

check_parameters(globals())

# %% [markdown]
# ## The paper's table
#
# The paper trains iBOT with ViT-S/16 on 20% of ImageNet-1k for 100 epochs. Block-wise masks are iBOT's default, and 75% is MAE's ratio.

# %%
from lib.results.papers import paper_table
from lib.results.titles import TITLES

published = paper_table("attmask", "strategies")
published.rename(index=TITLES)

# %% [markdown]
# A row is a strategy. The columns are accuracies in percent: k-NN and linear probe on ImageNet-1k, and fine-tuning on CIFAR-10 and
# CIFAR-100.
#
# ## Eight crops, six strategies, one seed
#
# A comparison is fair if all strategies hide equally many patches. So all of them draw **one ratio $r \sim U(0.1, 0.5)$ for a batch**
# (`share_ratio: true`), and mask a crop with probability 0.5. The authors' code draws a ratio for each crop with block and random
# masks. Still, some strategies hide another number of patches: Random (75%) hides more, Hint shows a few of the
# hidden patches again, and block-wise masks may hide fewer.

# %%
from lib.masking import STRATEGIES, draw_masks

attention = torch.rand(8, 36, generator=torch.Generator().manual_seed(seed))
for name in STRATEGIES:
    masks = draw_masks(name, 8, (6, 6), attention=attention, generator=torch.Generator().manual_seed(seed))
    print(f"{TITLES[name]:18} hidden tokens of 8 crops: {masks.sum(1).tolist()}")

# %% [markdown]
# Each line is a strategy with its eight crops. Crops with 0 stay whole, and these are the same crops for all strategies.
#
# ## The runs
#
# They are trained live at this scale, or loaded where they have been trained before.

# %% tags=["nbval-ignore-output"]
from tqdm import tqdm

from lib.train import entry_for, run

live = {name: run(entry_for(scale, "comparison"), masking=name, seed=seed, record=record, progress=False) for name in tqdm(STRATEGIES)}

# %% tags=["nbval-ignore-output"]
import pandas as pd

from lib.results.tables import spread

table = pd.DataFrame(
    {"k-NN": {n: r.metrics["knn"] for n, r in live.items()}, "untrained": {n: r.metrics["untrained_knn"] for n, r in live.items()}}
)
table.rename(index=TITLES).round(1)

# %% [markdown]
# At smoke scale these networks are nine steps away from the untrained one. The table shows that all six strategies run. It ranks nothing.
#
# ## First of all: were the treatments different?
#
# AttMask-High is said to hide the objects, and AttMask-Low the background. This is so only if the teacher's attention knows the
# objects. With an attention that is the same everywhere, all strategies are random masks under other names, and a comparison of
# accuracies says nothing.
#
# So each recorded run, except those of the first entry `ibot_cpu`, measures, after each epoch, what its masks would hide of the boxed objects in photographs that it has not seen.
# The table has the mean over the second half of the epochs. Random masks hide as much of the objects as of everything.

# %% tags=["nbval-ignore-output"]
from lib.results.tables import recorded, treatments

treatment = treatments(recorded("strategies"))
treatment.rename(index=TITLES, level="masking").round(1) if len(treatment) else "no recorded runs yet"

# %% [markdown]
# Each row is a setting and a strategy. Two strategies are different treatments only if they hide different parts of the objects.
#
# ## The evidence
#
# These are recorded runs on real images: Imagenette at 48 pixels, a Vision Transformer of width 128 and depth 4. A row has the mean
# over seeds, and `std` is the standard deviation from seed to seed. `records/` holds each run with its configuration, device and
# commit.
#
# The entry `ibot_cpu` was a first try. It gains only about four points over the untrained network, and it did not yet measure what its
# masks hide. The entry `ibot_strong_cpu` is
# the result of a search for settings that learn (`recipes/small.yaml` lists what was tried).

# %% tags=["nbval-ignore-output"]
evidence = spread(recorded("strategies"), "masking")
evidence.rename(index=TITLES, level="masking").round(2)

# %% tags=["nbval-ignore-output"]
from lib.results.figures import dots
from lib.results.tables import beside_paper

comparison = beside_paper(evidence, published["imagenet_knn"])
dots(comparison, title="k-NN accuracy by masking strategy", ylabel="top-1, %")
comparison.rename(index=TITLES).round(1)

# %% [markdown]
# The dots show our k-NN accuracies beside the paper's, by strategy, with the standard deviation over seeds as a bar where there are
# several.
#
# Next, a linear classifier on frozen features: the class tokens of the last four blocks, as `python -m lib.measure linear` measures
# it. `linear` is the accuracy after the last epoch, `linear_best` after the best one.

# %% tags=["nbval-ignore-output"]
linear = spread(recorded("linear", method="ibot"), "masking", ("linear", "linear_best", "untrained_linear"))
print(linear.rename(index=TITLES, level="masking").drop(columns="minutes").round(1).to_string())
beside_paper(linear, published["imagenet_linear"], "linear").rename(index=TITLES).round(1)

# %% [markdown]
# Last, all weights are fine-tuned on CIFAR-10 by DeiT's recipe, as `python -m lib.measure finetune` measures it, and the same from
# the untrained network. `finetune` is the accuracy after the last epoch, `finetune_best` after the best one. Our runs see a tenth of
# the images for ten epochs. The paper's see all of them for far longer.

# %% tags=["nbval-ignore-output"]
tuned = spread(recorded("finetune", method="ibot"), "masking", ("finetune", "finetune_best", "untrained_finetune"))
print(tuned.rename(index=TITLES, level="masking").round(1).to_string())
beside_paper(tuned, published["cifar10_finetune"], "finetune").rename(index=TITLES).round(1)

# %% [markdown]
# These are the verdicts on the three claims, by the rule of notebook 00:

# %% tags=["nbval-ignore-output"]
from lib.results.figures import verdict_table

verdict_table("attmask-1", "attmask-2", "attmask-3")

# %% [markdown]
# Each row is one statement: the paper's gap, our gap with its 95% interval, and the verdict. Where the records could not decide, the
# last column says why.
#
# ## What to remember
#
# - A comparison of masks is fair if they hide equally many patches, with the same seed.
# - First check that the treatments differ: what do the masks hide of the objects?
# - A gap without its interval over seeds is no result.
#
# ## References
#
# - Kakogeorgiou et al., *What to Hide from Your Students: Attention-Guided Masked Image Modeling*, ECCV 2022,
#   [arXiv:2203.12719](https://arxiv.org/abs/2203.12719)
# - Zhou et al., *iBOT: Image BERT Pre-Training with Online Tokenizer*, ICLR 2022,
#   [arXiv:2111.07832](https://arxiv.org/abs/2111.07832)
# - He et al., *Masked Autoencoders Are Scalable Vision Learners*, CVPR 2022,
#   [arXiv:2111.06377](https://arxiv.org/abs/2111.06377)
# - Touvron et al., *Training data-efficient image transformers* (DeiT), ICML 2021,
#   [arXiv:2012.12877](https://arxiv.org/abs/2012.12877)
# - Student, *The Probable Error of a Mean*, Biometrika 1908,
#   [doi:10.1093/biomet/6.1.1](https://doi.org/10.1093/biomet/6.1.1)
#
# ## What would change your mind?
#
# The verdict is the mean paired difference over seeds, with its 95% interval (Student's t). A comparison is *not testable* with fewer
# than three seeds, however large the gap, and also where the masks of both arms hide the same part of the objects. Beside each gap
# stand the figures of which it is the mean. `make record BUDGET=60` adds missing runs in order.
#
# ## Exercises
#
# **1.** The paper's gap between AttMask-High and block-wise masks is 3.0 points of k-NN. Suppose that the paired differences between
# seeds have a standard deviation of 1.5 points. How many seeds does the interval need to exclude zero?

# %%
from course import exercises

answer = None
exercises.seeds_needed(answer, 3.0, 1.5)  # the gap and the standard deviation

# %% [markdown]
# **2.** Write the paired interval: the mean of the differences, and the two ends of its 95% interval. `scipy.stats.t.ppf(0.975, n -
# 1)` is Student's factor.


# %%
def paired_interval(better, other):
    """Float[n], Float[n], scores of n seeds -> mean, low, high."""


exercises.paired_interval(paired_interval)

# %% [markdown]
# **3.** Train block and random with `share_ratio=false` (`python -m lib.train` takes it as an argument). What else changes with it?
#
# The answers are in `solutions/04_solutions.ipynb`.
