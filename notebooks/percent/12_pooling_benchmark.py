# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 12 · The pooling benchmark
#
# **CPU, 90 s at smoke scale** · the talk's table of pooling methods, run again · before it: 11 (the landscape) · after it: 13 (SimPool
# supervised)
#
# **Question.** With the same convolutional network under it, does the way of pooling matter, and does SimPool win?
#
# Notebook 11 showed that all poolings are one algorithm. Now they compete. The network below them is the same for all, so a
# difference in accuracy comes from the pooling.

# %%
from lib.results.figures import quote, use_style

use_style()
quote("simpool-1")

# %%
import timm
import torch

print(f"torch {torch.__version__.split('+')[0]}, timm {timm.__version__}")

# %% tags=["parameters"]
scale: str = "smoke"  # smoke: fourteen runs of seconds on scenes; small: fourteen runs of the entry for this machine
seed: int = 0  # of weights, order and views: the same for all methods
methods: list = []  # names of poolings; empty runs all fourteen
record: bool = False  # leave a line in records/ for each finished run

# %%
from lib.keys import check_parameters

check_parameters(globals())

# %% [markdown]
# ## The paper's table
#
# The paper trains ResNet-18 with labels on 20% of ImageNet-1k, for 100 epochs. The groups are those of the landscape: simple
# functions (1), clustering (2), re-weighting (3), transformers (4), SimPool (5). GE is in our landscape, and not in this table.

# %%
from lib.results.papers import paper_table, published_landscape
from lib.results.titles import TITLES

published = paper_table("simpool", "framework").accuracy
published.to_frame().join(published_landscape()[["group", "k", "iterative"]]).rename(index=TITLES)

# %% [markdown]
# Accuracies are in percent.
#
# ## One network, fourteen ends
#
# Everything up to the last map is the same network, with the same first weights. Only what happens to the last map differs.

# %%
from lib import recipes
from lib.models import network_of
from lib.pooling import pooling_names
from lib.train import entry_for

entry = entry_for(scale, "benchmark")
chosen = methods or pooling_names()
settings = recipes.entry(entry).settings
sizes = {}
for name in chosen:
    torch.manual_seed(seed)
    network = network_of(settings | {"pooling": name}).eval()
    seen = network.pool(torch.zeros(1, 3, settings["eval_size"], settings["eval_size"]))
    sizes[name] = {
        "map": seen.grid,
        "pooled": tuple(seen.cls.shape[1:]),
        "of the pooling": sum(p.numel() for p in network.pooling.parameters()),
    }
print(f"{settings['arch']}: {sum(p.numel() for p in network_of(settings).parameters()):,} parameters without a pooling of its own")

# %% tags=["nbval-ignore-output"]
import pandas as pd

pd.DataFrame(sizes).T.rename(index=TITLES, columns={"of the pooling": "parameters of the pooling"})

# %% [markdown]
# A row is a method: the size of the last map, the shape of what it is pooled to, and the number of parameters that this takes.
#
# ## The runs
#
# They are trained live at this scale, or loaded where they have been trained before.

# %% tags=["nbval-ignore-output"]
from tqdm import tqdm

from lib.train import run

live = {name: run(entry, pooling=name, seed=seed, record=record, progress=False) for name in tqdm(chosen)}

# %% tags=["nbval-ignore-output"]
columns = {"accuracy": "top-1 accuracy", "knn": "k-NN", "untrained_knn": "untrained k-NN"}
table = pd.DataFrame({name: {label: found.metrics[key] for key, label in columns.items()} for name, found in live.items()}).T
table.rename(index=TITLES).round(1)

# %% [markdown]
# At smoke scale these networks have seen 25 batches of scenes. The table shows that all fourteen train and are measured. With ten
# classes, chance is 10%. It ranks nothing.
#
# ## Where they look
#
# Some methods have an attention that depends on the image. Here it is after this training, on one scene. Each map is stretched to its
# own range.

# %% tags=["nbval-ignore-output"]
from lib.data.scenes import render
from lib.data.views import center_view, denormalise
from lib.results.figures import image_grid
from lib.train import load_encoder

view = center_view(render(torch.tensor([21]), size=64).images, settings["eval_size"], crop=1.0)
maps = {}
for name, found in live.items():
    with torch.no_grad():
        seen = load_encoder(found).features(view)
    if seen.attention is not None and seen.attention.std() > 1e-9:
        maps[TITLES[name]] = [denormalise(view)[0], *(a.view(seen.grid) for a in seen.attention[0])]
image_grid(maps, titles=["image", "1st vector", "2nd vector", "3rd vector"], size=1.0)

# %% [markdown]
# A row is a method. Those with several pooled vectors have a map for each of them.
#
# ## The evidence
#
# These are recorded runs on real images: a small ResNet on Imagenette at 64 pixels, the mean over the seeds that there are, beside
# the paper's figures.

# %% tags=["nbval-ignore-output"]
from lib.results.figures import dots
from lib.results.tables import beside_paper, recorded, spread

evidence = spread(recorded("benchmark"), "pooling", ("accuracy", "knn", "untrained_knn"))
comparison = beside_paper(evidence, published, "accuracy")
dots(comparison, title="Top-1 accuracy by pooling method", ylabel="%")
comparison.rename(index=TITLES).round(1)

# %% [markdown]
# The dots show accuracies by method, ours and the paper's, each on its own axis. Compare the order of the methods, and not their height.
#
# Next, a linear classifier on each frozen vector, as `python -m lib.measure linear` measures it, and the same on the untrained
# network's vector.

# %% tags=["nbval-ignore-output"]
benchmarked = evidence.index.unique("setting") if len(evidence) else []
probed = recorded("linear", method="supervised")
linear = spread(probed[probed.setting.isin(benchmarked)], "pooling", ("linear", "linear_best", "untrained_linear"))
linear.rename(index=TITLES, level="pooling").drop(columns="minutes").round(1) if len(linear) else "no records yet"

# %% [markdown]
# The verdict on the claim:

# %% tags=["nbval-ignore-output"]
from lib.results.figures import verdict_table

verdict_table("simpool-1")

# %% [markdown]
# Each row is one statement: the paper's gap, our gap with its 95% interval, and the verdict. Where the records could not decide, the
# last column says why.
#
# ## What to remember
#
# - A fair comparison of poolings keeps the network and its first weights the same.
# - A margin means something only beside the spread over seeds.
# - Methods differ in parameters as well as in parts; look at both.
#
# ## References
#
# - Psomas et al., *Keep It SimPool: Who Said Supervised Transformers Suffer from Attention Deficit?*, ICCV 2023,
#   [arXiv:2309.06891](https://arxiv.org/abs/2309.06891)
# - Radenović et al., *Fine-tuning CNN Image Retrieval with No Human Annotation* (GeM), PAMI 2019,
#   [arXiv:1711.02512](https://arxiv.org/abs/1711.02512)
# - Locatello et al., *Object-Centric Learning with Slot Attention*, NeurIPS 2020,
#   [arXiv:2006.15055](https://arxiv.org/abs/2006.15055)
# - Touvron et al., *Going deeper with Image Transformers* (CaiT), ICCV 2021,
#   [arXiv:2103.17239](https://arxiv.org/abs/2103.17239)
# - Hu et al., *Squeeze-and-Excitation Networks* (SE), CVPR 2018, [arXiv:1709.01507](https://arxiv.org/abs/1709.01507)
# - Hu et al., *Gather-Excite* (GE), NeurIPS 2018, [arXiv:1810.12348](https://arxiv.org/abs/1810.12348)
# - Woo et al., *CBAM: Convolutional Block Attention Module*, ECCV 2018,
#   [arXiv:1807.06521](https://arxiv.org/abs/1807.06521)
#
# ## What would change your mind?
#
# The paper's margin over the strongest of the others is 0.4 points, and it gives no spread. If a single method varies as much over
# seeds, the order of the first few is a matter of luck, and only the groups can be told apart. More seeds here (`make record`) would
# tell.
#
# ## Exercises
#
# **1.** By how many points does SimPool beat the *mean* of the other methods in the paper's table?

# %%
from course import exercises

answer = None
exercises.margin_over_mean(answer)

# %% [markdown]
# **2.** CaiT and SimPool look alike. In which parts of the algorithm do they have different entries in the paper's table,
# `published_landscape()`? An empty entry counts as different from one that is not empty. Give the set of their names, out of `U0`,
# `phi_Q`, `phi_K`, `s`, `A`, `phi_V`, `f`, `phi_X`, `phi_U`.

# %%
answer = None  # a set of names
exercises.cait_and_simpool(answer)

# %% [markdown]
# **3.** Write GeM: clamp the features to at least 1e-6, and take their generalised mean over the positions.


# %%
def gem(x, gamma):
    """Float[B, N, D], float -> Float[B, D]."""


exercises.gem(gem)

# %% [markdown]
# The answers are in `solutions/12_solutions.ipynb`.
