# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 08 · Image retrieval
#
# **CPU, 30 s at smoke scale** · a query is answered by the images whose pooled vectors are nearest to its own · before it: 07
# (backgrounds) · after it: 09 (video)
#
# **Question.** Do two images of the same thing have similar features, with nothing trained for it, and does AttMask make them more so?
#
# Somebody shows a photograph of a building and asks for all other photographs of it. The network was never trained for this. It only
# turns images into vectors. If images of the same thing have similar vectors, the nearest ones are the answer.

# %%
from lib.results.figures import quote, use_style

use_style()
quote("attmask-9")

# %%
import timm
import torch

print(f"torch {torch.__version__.split('+')[0]}, timm {timm.__version__}")

# %% tags=["parameters"]
scale: str = "smoke"  # smoke: recorded networks on pairs of procedural scenes; small: the same on revisited Oxford under $COMPANION_DATA
longest: int = 0  # pixels of the longer side that the networks see; 0 takes the recipe's

# %%
from lib.keys import check_parameters

check_parameters(globals())

# %% [markdown]
# ## How a ranking is judged
#
# First without a network. A query shows a landmark. Somebody has sorted the images of the database by how hard it is to see this
# landmark in them: *easy*, *hard*, *junk* (it can hardly be seen, so the image is neither right nor wrong), and all others. There are
# three protocols, each harder than the one before. What a protocol ignores is taken out of the ranking before anything is counted.
#
# | protocol | right | ignored |
# |---|---|---|
# | easy | easy | hard, junk |
# | medium | easy, hard | junk |
# | hard | hard | easy, junk |
#
# Here is a ranking of eight images, the nearest first.

# %%
from lib.evaluation import revisited_map
from lib.evaluation.retrieval import PROTOCOLS

kinds = ["junk", "easy", "other", "hard", "easy", "other", "other", "hard"]
truth = {name: [i for i, kind in enumerate(kinds) if kind == name] for name in ("easy", "hard", "junk")}
ranks = torch.arange(len(kinds))[:, None]  # [n_db, one query]
for protocol, (right, ignored) in PROTOCOLS.items():
    left = " ".join("+" if kind in right else "-" for kind in kinds if kind not in ignored)
    print(f"{protocol:6}   {left:13}   average precision {revisited_map(ranks, [truth], protocol=protocol):.1f}")

# %% [markdown]
# Each line is a protocol; `+` is a right image and `-` a wrong one.
#
# *Average precision* is the area under the curve of precision over recall. Let the $R$ right images be at the places $n_1 < n_2 <
# \dots < n_R$ of the ranking. With the trapezoid rule,
#
# $$\mathrm{AP} = \frac1R \sum_{j=1}^{R} \frac12 \left( \frac{j - 1}{n_j - 1} + \frac{j}{n_j} \right),$$
#
# where the first fraction is 1 if $n_j = 1$. It is the precision just before the $j$-th right image, and the second one is the
# precision at it. Here is the medium protocol, drawn:

# %%
import matplotlib.pyplot as plt

right = torch.tensor([kind != "other" for kind in kinds if kind != "junk"])
found = right.cumsum(0)
precision = torch.cat([torch.ones(1), found / torch.arange(1, len(right) + 1)])  # from the point (0, 1) on
recall = torch.cat([torch.zeros(1), found / right.sum()])
plt.fill_between(recall, precision, alpha=0.3)
plt.plot(recall, precision, "o-")
plt.gca().set(xlabel="recall", ylabel="precision", ylim=(0, 1.05), title="Average precision under the medium protocol")
plt.show()
print(f"area: {100 * torch.trapezoid(precision, recall):.1f}%")

# %% [markdown]
# The blue area is the average precision; it equals the number that the table above gives for this protocol.
#
# ## Queries and a database
#
# At smoke scale, a query is a scene. The database holds one more scene with the same object: the same texture and the same two
# colours, in another pose and before another background. Around it are 159 others. All right images are easy, so the easy and the
# medium protocol agree. At small scale the data is revisited Oxford.
#
# The network describes an image by its pooled vector at three sizes, 1, $1/\sqrt2$ and 1/2. Each vector is normalised, and the three
# are added. The nearest image is the one with the highest cosine.

# %%
from lib.keep import kept_networks
from lib.measure import create_evaluation

evaluation = create_evaluation("retrieval", scale, **dict(longest=longest) if longest else {})
retrieval, settings = evaluation.load().test, evaluation.options
networks = kept_networks("supervised", "ibot")
print(f"{len(retrieval.queries)} queries, {len(retrieval.database)} images; {settings}")

# %% tags=["nbval-ignore-output"]
from lib.evaluation.retrieval import retrieve

answers = {name: retrieve(network, retrieval, **settings) for name, network in networks.items()}
print("ranked by", ", ".join(answers))

# %% [markdown]
# ## What comes first
#
# Two queries for each of two networks, with the five nearest images. Those that show the same thing are framed.

# %% tags=["nbval-ignore-output"]
from lib.results.figures import image_grid, neighbours

rows = {}
for name in ("iBOT, AttMask-High", "supervised, SimPool"):
    for query in range(2):
        rows[f"{name}, {query + 1}"] = neighbours(retrieval, answers[name], query)
image_grid(rows, titles=["query", *"12345"], size=1.2)

# %% [markdown]
# Look at what the wrong images have in common with the query: is it the background, or the colours?
#
# ## Mean average precision
#
# In percent, the mean over the queries, with the precision of the first image (mP@1) beside it. The row *chance* is the mean of 20
# random rankings.

# %% tags=["nbval-ignore-output"]
import pandas as pd

from lib.evaluation.retrieval import revisited_figures

live = {name: revisited_figures(answer.ranks, answer.ground_truth) for name, answer in answers.items()}
shuffled = torch.rand(len(retrieval.database), 20 * len(retrieval.queries)).argsort(0)
live["chance"] = revisited_figures(shuffled, 20 * retrieval.ground_truth)
titles = {f"{protocol}_{figure}": f"{protocol}, {title}" for protocol in PROTOCOLS for figure, title in (("map", "mAP"), ("p1", "mP@1"))}
scores = pd.DataFrame(live).T.filter(items=titles).rename(columns=titles)
scores.round(1)

# %% tags=["nbval-ignore-output"]
import seaborn as sns

long = scores.filter(like="mAP").rename_axis("network").reset_index().melt("network", var_name="protocol", value_name="percent")
sns.barplot(long, y="network", x="percent", hue="protocol").set_title("Image retrieval")
plt.show()

# %% [markdown]
# The bars show the mean average precision of each network, by protocol. Read them from the bar of chance on.
#
# ## Recorded, and the paper's
#
# The paper retrieves with the [CLS] of ViT-S/16, pre-trained on all of ImageNet-1k, at 512 pixels. First our recorded figures, the
# mean over seeds:

# %% tags=["nbval-ignore-output"]
from lib.results.tables import recorded

records = recorded("retrieval")
shown = [name for name in records if name.endswith("_map")]
records.groupby(["setting", "masking", "pooling"], sort=False, dropna=False)[shown].mean().round(1) if len(records) else "no records yet"

# %% [markdown]
# And the paper's figures, with the verdicts:

# %% tags=["nbval-ignore-output"]
from lib.results.figures import verdict_table
from lib.results.papers import paper_table

published = paper_table("attmask", "downstream")
print(published.filter(like="rox").join(published.filter(like="rparis")).dropna().to_string())
verdict_table("attmask-9")

# %% [markdown]
# Each row is one statement: the paper's gap, our gap with its 95% interval, and the verdict. Where the records could not decide, the
# last column says why.
#
# ## What to remember
#
# - Retrieval asks whether the same thing has similar features, with nothing trained for it.
# - Average precision is an area under precision over recall; the rule of integration is a part of its definition.
# - An untrained network is above chance already. Only what exceeds it was learned.
#
# ## References
#
# - Radenović et al., *Revisiting Oxford and Paris: Large-Scale Image Retrieval Benchmarking*, CVPR 2018,
#   [arXiv:1803.11285](https://arxiv.org/abs/1803.11285)
# - Kakogeorgiou et al., *What to Hide from Your Students: Attention-Guided Masked Image Modeling*, ECCV 2022,
#   [arXiv:2203.12719](https://arxiv.org/abs/2203.12719)
# - Caron et al., *Emerging Properties in Self-Supervised Vision Transformers* (DINO), ICCV 2021,
#   [arXiv:2104.14294](https://arxiv.org/abs/2104.14294)
#
# ## What would change your mind?
#
# The nearest images often share the query's background, and not its object. A background is most of an image, so two images before
# the same one are similar, whatever they show. These networks were asked for classes, or for nothing, and never for single things. An
# untrained network compares colours, and this already beats chance. With 60 queries of one right image each, a few percent of mAP are
# two or three lucky queries. So look for a gain over *untrained* that stays when the queries change.
#
# ## Exercises
#
# **1.** A query has one right image, and it comes third. What is its average precision, in percent?

# %%
from course import exercises

average_precision = None
exercises.third_alone(average_precision)

# %% [markdown]
# **2.** One image of 160 is right. What mean average precision does a random ranking reach, in percent? Compare it with the row *chance*.

# %%
chance = None
exercises.random_ranking(chance)

# %% [markdown]
# **3.** Write the average precision of a ranking by the equation above.


# %%
def average_precision(right):
    """Bool[n], True where an image of the ranking is right -> percent."""


exercises.average_precision(average_precision)

# %% [markdown]
# The answers are in `solutions/08_solutions.ipynb`.
