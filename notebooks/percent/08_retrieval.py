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
# First without a network. A query shows a landmark, and somebody has sorted the images of the database by how hard it is to see there:
# *easy*, *hard*, *junk* (hardly at all: neither right nor wrong) and all the others. Three protocols ask for more and more. What a
# protocol ignores is taken out of the ranking before anything is counted.
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
# Average precision is the area under the curve of precision over recall, by the trapezoid rule. Medium, drawn:

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
# ## Queries and a database
#
# At smoke scale a query is a scene, and the database holds a second one of the same object (the same texture and the same two colours,
# posed anew before another background) among 159 others. All of these are easy, so that the easy and the medium protocol agree. At small
# scale it is revisited Oxford.
#
# An image is described by the network's pooled vector at three sizes, 1, $1/\sqrt2$ and 1/2, each normalised, and their sum. The nearest
# image is the one with the highest cosine.

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
# A query of two networks each, and its five nearest images. Framed: those that show the same thing.

# %% tags=["nbval-ignore-output"]
from lib.results.figures import image_grid, neighbours

rows = {}
for name in ("iBOT, AttMask-High", "supervised, SimPool"):
    for query in range(2):
        rows[f"{name}, {query + 1}"] = neighbours(retrieval, answers[name], query)
image_grid(rows, titles=["query", *"12345"], size=1.2)

# %% [markdown]
# ## Mean average precision
#
# In percent, mean over the queries, with the precision of the first image (mP@1) beside it. Chance is the mean of 20 random rankings.

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
# ## Recorded, and the paper's
#
# The paper retrieves with the [CLS] of ViT-S/16, pre-trained on all of ImageNet-1k, at 512 pixels.

# %% tags=["nbval-ignore-output"]
from lib.results.tables import recorded

records = recorded("retrieval")
shown = [name for name in records if name.endswith("_map")]
records.groupby(["setting", "masking", "pooling"], sort=False, dropna=False)[shown].mean().round(1) if len(records) else "no records yet"

# %% tags=["nbval-ignore-output"]
from lib.results.figures import verdict_table
from lib.results.papers import paper_table

published = paper_table("attmask", "downstream")
print(published.filter(like="rox").join(published.filter(like="rparis")).dropna().to_string())
verdict_table("attmask-9")

# %% [markdown]
# ## What would change your mind?
#
# The neighbours above share the query's background more often than its object: a background is most of an image, and two images before
# the same one are near to each other whatever they show. These networks were asked for classes, or for nothing, never for single things.
# An untrained one compares colours, which already beats chance. And with 60 queries of one right image each, a few percent of mAP are two
# or three queries' luck: look for a gain over *untrained* that stays when the queries change.
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
# Answers: `solutions/08_solutions.ipynb`.
