# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 11 · The pooling landscape
#
# **CPU, 20 s** · nothing downloaded · before it: 00 (map) · after it: 12 (the benchmark)
#
# **Question.** Fourteen methods turn the features of an image into one vector. Are they fourteen ideas, or one algorithm with
# fourteen settings?

# %%
from lib.results.figures import quote, use_style

use_style()
quote("simpool-1")

# %%
import timm
import torch

print(f"torch {torch.__version__.split('+')[0]}, timm {timm.__version__}")

# %% tags=["parameters"]
scale: str = "smoke"  # smoke: a photograph that is installed with the project; small: one of Imagenette under $COMPANION_DATA
seed: int = 0  # of the poolings' weights
network: str = "best"  # whose features are pooled: best, a name of lib.keep.kept_names(), or timm:NAME, a pre-trained ViT of timm

# %%
from lib.keys import check_parameters

check_parameters(globals())

# %% [markdown]
# ## The algorithm
#
# Features $X$ are $p$ vectors of $d$ channels, the patches of a transformer or the pixels of a convolutional network's last map. Pooled
# vectors $U$ are $k$ of them, mostly one. Start from $U^0$ and repeat:
#
# $$Q = \phi_Q(U), \quad K = \phi_K(X) \qquad \text{what the pooled vectors ask, what the features answer}$$
# $$S_{ij} = s(k_i, q_j), \quad A = h(S) \qquad \text{similarities, turned into attention}$$
# $$V = \phi_V(X), \quad Z = f^{-1}(f(V)\, A) \qquad \text{a generalised mean of values}$$
# $$X \leftarrow \phi_X(X), \quad U \leftarrow \phi_U(Z)$$
#
# `lib/pooling/framework.py` holds it once. These are the lines that run:

# %%
import inspect

from lib.pooling import Pooling

source = inspect.getsource(Pooling.forward)
print(source[source.index("        for iteration") : source.index("        vectors =")])

# %% [markdown]
# ## The talk's table, printed from the code
#
# A method is a class that declares its parts, each with the symbol that the talk gives it. So the table is not a description of the
# code, it *is* the code.

# %%
import pandas as pd

from lib.pooling import landscape

pd.set_option("display.max_columns", None, "display.width", 250)
landscape().drop(columns=["name", "simplified"])

# %% [markdown]
# The published table, cell by cell. GE is compared in the paper but not in the talk's table.

# %%
from lib.results.papers import published_landscape as published

ours, theirs = landscape().astype(str), published().astype(str)
different = ours.loc[theirs.index, theirs.columns] != theirs
print(f"{theirs.size} cells, {different.to_numpy().sum()} differ; only here: {[m for m in ours.index if m not in theirs.index]}")

# %% [markdown]
# ## One row in full: SimPool
#
# The query is the average of the features; keys and values are the features themselves, normalised; no value projection, no
# output projection. What is left of a transformer's class attention is the attention.

# %%
from lib.pooling import SimPool

source = inspect.getsource(SimPool)
print(source[source.index('    @part("W_Q U")') : source.index("    def shifted")])

# %% [markdown]
# ## The pooling function
#
# $f_\alpha(x) = x^{\gamma}$ with $\gamma = (1 - \alpha) / 2$ makes the mean a *generalised* mean: $\gamma = 1$ is the average, $\gamma \to 0$ the
# geometric mean, $\gamma \to \infty$ the maximum. Here it pools one channel with values 1 to 9, evenly attended.

# %%
import matplotlib.pyplot as plt
import seaborn as sns

from lib.pooling.framework import Power

values = torch.arange(1.0, 10.0).unsqueeze(1)  # [N, 1]
even = torch.full((9, 1), 1 / 9)
gammas = [0.0, 0.5, 1.0, 1.25, 2.0, 4.0, 8.0, 16.0, 32.0]
means = pd.Series({gamma: Power(gamma).mean(values, even).item() for gamma in gammas}, name="pooled value").rename_axis("gamma")
figure, axis = plt.subplots(figsize=(5, 2.6))
sns.lineplot(x=range(len(gammas)), y=means, marker="o", ax=axis)
axis.set(xticks=range(len(gammas)), xticklabels=[f"{g:g}" for g in gammas], xlabel=r"$\gamma$", title="Generalised mean of 1, …, 9")
plt.show()
means.round(2).to_frame().T

# %% [markdown]
# ## Every method on one image
#
# The features are a recorded network's patches (iBOT on photographs). The poolings' own weights are random, so what SimPool or
# [CLS] attends here is not learned yet; what HOW, k-means and OTK attend needs no learning. Maps are stretched to their range.

# %%
from lib.data.views import denormalise
from lib.keep import network_to_show
from lib.results.figures import photographs

view = photographs(scale, 3, 224)[-1:]
with torch.no_grad():
    seen = network_to_show(network).features(view)

# %%
from lib.pooling import create_pooling, pooling_names
from lib.results.figures import image_grid
from lib.results.titles import TITLES

torch.manual_seed(seed)
made, pooled = {}, {}
for name in pooling_names():
    made[name] = create_pooling(name, seen.patches.shape[2]).eval()
    with torch.no_grad():
        pooled[name] = made[name](seen.patches, seen.grid)
varied = {n: p.attention[0] for n, p in pooled.items() if p.attention is not None and p.attention.std() > 1e-9}
image_grid(
    {TITLES[n]: [denormalise(view)[0], *(a.view(seen.grid) for a in maps)] for n, maps in varied.items()},
    titles=["image", "1st vector", "2nd vector", "3rd vector"],
)

# %% tags=["nbval-ignore-output"]
rows = {
    TITLES[name]: {
        "pooled vectors": "x".join(map(str, pooled[name].vector.shape[1:])),
        "parameters": sum(p.numel() for p in made[name].parameters()),
        "attention": "varies" if name in varied else "constant" if pooled[name].attention is not None else "none",
    }
    for name in pooling_names()
}
pd.DataFrame(rows).T

# %% [markdown]
# ## Two sliders
#
# In a running notebook, move the power $\gamma$ of a generalised mean over the image's channels, and the number of clusters of k-means.
# The pictures above and below are their static rendering.


# %%
def show(gamma: float = 2.0, k: int = 3):
    """The feature map's generalised mean over channels, and k-means' clusters."""
    shifted = seen.patches[0] - seen.patches.min() + 1e-6  # [N, D]
    strength = shifted.pow(gamma).mean(1).pow(1 / gamma)
    clusters = create_pooling("kmeans", seen.patches.shape[2], k=k).eval()(seen.patches, seen.grid).attention[0].argmax(0)
    image_grid(
        {"": [denormalise(view)[0], strength.view(seen.grid), clusters.view(seen.grid)]},
        titles=["image", f"gamma {gamma:g}", f"{k} clusters"],
    )


show()

# %% tags=["nbval-ignore-output"]
import ipywidgets

ipywidgets.interactive(show, gamma=(0.25, 8.0, 0.25), k=(1, 6))

# %% [markdown]
# ## The paper's comparison
#
# ResNet-18 on 20% of ImageNet-1k. Notebook 12 runs our version of it.

# %% tags=["nbval-ignore-output"]
from lib.results.figures import dots, verdict_table
from lib.results.papers import paper_table

accuracy = paper_table("simpool", "framework").rename(columns={"accuracy": "top-1 accuracy"})
dots(accuracy, title="The paper's benchmark", ylabel="%")
accuracy.join(landscape().group).rename(index=TITLES)

# %% tags=["nbval-ignore-output"]
verdict_table("simpool-1")

# %% [markdown]
# ## What would change your mind?
#
# A pooling that needs a part which the algorithm does not have. Try to write one down: an attention that depends on the *other*
# images of a batch, for example, fits nowhere. (SimPool's released code has that property by accident: it takes the minimum of $V$ over the
# whole batch, see `min_scope`.)
#
# ## Exercises
#
# **1.** Declare a fifteenth pooling, `norm_softmax`: attention is the softmax over tokens of their l2 norms, values are the features, and the
# mean is the plain one. One class with two parts of your own; everything else is in `lib.pooling.framework`.

# %%
from course import exercises

NormSoftmax = None  # class NormSoftmax(Pooling, name="norm_softmax"): ...
exercises.norm_softmax(NormSoftmax)

# %% [markdown]
# **2.** For which $\gamma$ is the generalised mean of $(1, 3)$, evenly attended, equal to $\sqrt 5$?

# %%
answer = None
exercises.gamma_of_root_five(answer)

# %% [markdown]
# Answers: `solutions/11_solutions.ipynb`.
