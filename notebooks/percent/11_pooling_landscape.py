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
#
# A network gives one vector for each place of an image. A classifier needs one vector for the whole image. *Pooling* is the step between
# them. Convolutional networks average, transformers use a class token, and many other ways were proposed. The paper writes all of them as
# one algorithm. So they can be compared part by part, and a new one can be put together from the parts: SimPool.

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
# - $X$ are the features: $p$ vectors with $d$ channels. They are the patches of a transformer, or the pixels of a convolutional
#   network's last map.
# - $U$ are the pooled vectors: $k$ of them, mostly one.
#
# Start from $U^0$ and repeat:
#
# $$Q = \phi_Q(U), \quad K = \phi_K(X) \qquad \text{what the pooled vectors ask, what the features answer}$$
# $$S_{ij} = s(k_i, q_j), \quad A = h(S) \qquad \text{similarities, turned into attention}$$
# $$V = \phi_V(X), \quad Z = f^{-1}(f(V)\, A) \qquad \text{a generalised mean of the values } V \text{, weighted by the attention } A$$
# $$X \leftarrow \phi_X(X), \quad U \leftarrow \phi_U(Z) \qquad \text{what the next round starts from}$$
#
# The drawing shows this, and below it SimPool as one instance. A dashed part is one that a method leaves out. SimPool's parts come
# from the same declarations as the table further below; `drawings.pooling("cait", "gem")` draws others.

# %%
import matplotlib.pyplot as plt

from course import drawings

drawings.pooling("simpool")
plt.show()

# %% [markdown]
# `lib/pooling/framework.py` holds the algorithm once. These are the lines that run:

# %%
import inspect

from lib.pooling import Pooling

source = inspect.getsource(Pooling.forward)
print(source[source.index("        for iteration") : source.index("        vectors =")])

# %% [markdown]
# ## The talk's table, printed from the code
#
# Each method is a class that declares its parts, each with the symbol that the talk gives it. So this table is not a description of
# the code: it is printed from the code. An empty cell is a part that the method leaves out.

# %%
import pandas as pd

from lib.pooling import landscape

pd.set_option("display.max_columns", None, "display.width", 250)
landscape().drop(columns=["name", "simplified"])

# %% [markdown]
# We compare it with the published table, cell by cell. GE is compared in the paper, but it is not in the talk's table.

# %%
from lib.results.papers import published_landscape as published

ours, theirs = landscape().astype(str), published().astype(str)
different = ours.loc[theirs.index, theirs.columns] != theirs
print(f"{theirs.size} cells, {different.to_numpy().sum()} differ; only here: {[m for m in ours.index if m not in theirs.index]}")

# %% [markdown]
# ## One row in full: SimPool
#
# SimPool is one attention step with as few parts as possible. The query is the average of the features. Keys and values are the features
# themselves, normalised. There is no projection of the values, and none of the output. The numbers are those of the paper (its figure 2).
#
# | equation | in words | code in `lib/pooling/simpool.py` |
# |---|---|---|
# | (12) $\; u^0 = \pi_A(X) = \frac1p X 1_p$ | the initial vector is the average of the features | `U0, s = average, dot_product` |
# | (13) $\; q = W_Q\, u^0$ | the query | `self.wq(t.U)` |
# | (14) $\; K = W_K\, \mathrm{LN}(X)$ | the keys, one for each feature | `self.wk(self.norm_patches(t.X))` |
# | (15) $\; a = \sigma_2\big(K^\top q / \sqrt d\big)$ | the attention: a softmax over the features | `over_tokens(t.S * self.scale)` |
# | $\; V = \mathrm{LN}(X) - \min \mathrm{LN}(X) + 10^{-6}$ | the values, all above zero | `values - values.amin(SCOPES[self.min_scope], keepdim=True) + 1e-6` |
# | (17) $\; u = f_\alpha^{-1}\big(f_\alpha(V)\, a\big)$ | the pooled vector: a generalised mean | `Power(1.0 if self.gamma is None else self.gamma)` |
#
# - $1_p$ is a vector of $p$ ones, so (12) is global average pooling, of features that are not normalised.
# - $W_Q$ and $W_K$ are learned matrices of $d \times d$ numbers, without a bias. Together with the LayerNorm they are all the parameters:
#   $2d^2 + 2d$.
# - $\mathrm{LN}$ is a LayerNorm over channels. Keys and values use the same one. The paper's table leaves it out and writes $X$.
# - $\sigma_2$ is the softmax over the $p$ features, so the weights $a$ sum to 1.
# - $\min$ runs over all elements of one image. It makes the values positive, which a power needs. It is not added back at the end.
# - $f_\alpha(x) = x^{(1 - \alpha) / 2}$, and $\ln x$ for $\alpha = 1$. The code calls the power $\gamma = (1 - \alpha) / 2$.
#
# Here are the same lines in the class:

# %%
from lib.pooling import SimPool

source = inspect.getsource(SimPool)
print(source[source.index('    @part("W_Q U")') : source.index("    def shifted")])

# %% [markdown]
# ## The pooling function
#
# The power $\gamma = (1 - \alpha) / 2$ makes the mean a *generalised* mean:
#
# $$u = \Big(\sum_{i=1}^{p} a_i\, v_i^{\gamma}\Big)^{1 / \gamma}$$
#
# $\gamma = 1$ gives the average. Towards $\gamma = 0$ it becomes the geometric mean, and for large $\gamma$ the maximum. The paper
# takes 1.25 for transformers and 2 for convolutional networks. Here it pools one channel with the values 1 to 9, evenly attended.

# %%
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
# The curve rises from the geometric mean of the nine values towards their maximum, 9.
#
# ## Every method on one image
#
# The features are the patches of a kept network, which was trained without labels on photographs. The poolings' own weights are
# random. So what SimPool or [CLS] attends here is not learned yet. What HOW, k-means and OTK attend needs no learning. Each map is
# stretched to its own range.

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

# %% [markdown]
# A row is a method whose attention depends on the image. Methods with several pooled vectors have one map for each.

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
# The table lists all methods: the shape of what they give back, their number of parameters, and whether their attention depends on
# the image.
#
# ## Two sliders
#
# In a running notebook, you can move the power $\gamma$ of a generalised mean over the image's channels, and the number of clusters
# of k-means. The picture below shows one setting.


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
# The paper trains ResNet-18 on 20% of ImageNet-1k with each method. Notebook 12 runs our version of it.

# %% tags=["nbval-ignore-output"]
from lib.results.figures import dots, verdict_table
from lib.results.papers import paper_table

accuracy = paper_table("simpool", "framework").rename(columns={"accuracy": "top-1 accuracy"})
dots(accuracy, title="The paper's benchmark", ylabel="%")
accuracy.join(landscape().group).rename(index=TITLES)

# %% tags=["nbval-ignore-output"]
verdict_table("simpool-1")

# %% [markdown]
# The dots and the table are the paper's accuracies. The last table has the verdict on the claim, from our records.
#
# ## What to remember
#
# - All these poolings are one algorithm: a query asks keys, and a generalised mean of values answers.
# - SimPool leaves out what it can: one query (the average), two matrices, no value or output projection, no iteration.
# - The power gamma moves the mean between the average and the maximum. It needs positive values, so the minimum is
#   subtracted.
#
# ## References
#
# - Psomas et al., *Keep It SimPool: Who Said Supervised Transformers Suffer from Attention Deficit?*, ICCV 2023,
#   [arXiv:2309.06891](https://arxiv.org/abs/2309.06891)
# - Lin et al., *Network In Network* (GAP), ICLR 2014, [arXiv:1312.4400](https://arxiv.org/abs/1312.4400)
# - Radenović et al., *Fine-tuning CNN Image Retrieval with No Human Annotation* (GeM), PAMI 2019,
#   [arXiv:1711.02512](https://arxiv.org/abs/1711.02512)
# - Tolias et al., *Learning and Aggregating Deep Local Descriptors for Instance-Level Recognition* (HOW), ECCV 2020,
#   [arXiv:2007.13172](https://arxiv.org/abs/2007.13172)
# - Mialon et al., *A Trainable Optimal Transport Embedding for Feature Aggregation* (OTK), ICLR 2021,
#   [arXiv:2006.12065](https://arxiv.org/abs/2006.12065)
# - Locatello et al., *Object-Centric Learning with Slot Attention*, NeurIPS 2020,
#   [arXiv:2006.15055](https://arxiv.org/abs/2006.15055)
# - Hu et al., *Squeeze-and-Excitation Networks* (SE), CVPR 2018, [arXiv:1709.01507](https://arxiv.org/abs/1709.01507)
# - Hu et al., *Gather-Excite* (GE), NeurIPS 2018, [arXiv:1810.12348](https://arxiv.org/abs/1810.12348)
# - Woo et al., *CBAM: Convolutional Block Attention Module*, ECCV 2018,
#   [arXiv:1807.06521](https://arxiv.org/abs/1807.06521)
# - Dosovitskiy et al., *An Image is Worth 16x16 Words* (ViT), ICLR 2021,
#   [arXiv:2010.11929](https://arxiv.org/abs/2010.11929)
# - Touvron et al., *Going deeper with Image Transformers* (CaiT), ICCV 2021,
#   [arXiv:2103.17239](https://arxiv.org/abs/2103.17239)
#
# ## What would change your mind?
#
# You would doubt the framework if a pooling needed a part that the algorithm does not have. Try to write one down. For example, an
# attention that depends on the *other* images of a batch fits nowhere. (SimPool's released code has this property by accident: it
# takes the minimum of $V$ over the whole batch, see `min_scope`.)
#
# ## Exercises
#
# **1.** Write SimPool in six lines, by the equations above. Take a LayerNorm without weights: `F.layer_norm(X, X.shape[2:], eps=1e-6)`.

# %%
from torch.nn import functional as F  # noqa: F401

from course import exercises


def simpool(X, W_Q, W_K, gamma):
    """Float[B, N, D], Float[D, D], Float[D, D], float -> Float[B, D]; a row x is mapped to x @ W.T."""


exercises.simpool(simpool)

# %% [markdown]
# **2.** Declare a fifteenth pooling, `norm_softmax`. Its attention is the softmax over tokens of their l2 norms, its values are the
# features, and its mean is the plain one. Write a class `NormSoftmax(Pooling, name="norm_softmax")` with the parts that it needs;
# everything else is in `lib.pooling.framework`. The answer is an instance for 5 channels, `NormSoftmax(5)`.

# %%
answer = None  # NormSoftmax(5)
exercises.norm_softmax(answer)

# %% [markdown]
# **3.** For which $\gamma$ is the generalised mean of $(1, 3)$, evenly attended, equal to $\sqrt 5$?

# %%
answer = None
exercises.gamma_of_root_five(answer)

# %% [markdown]
# The answers are in `solutions/11_solutions.ipynb`.
