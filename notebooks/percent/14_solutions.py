# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Solutions to 14 · SimPool with DINO
#
# **1.** Subtract the rows.

# %%
from course import exercises
from lib.results.papers import paper_table

table = paper_table("simpool", "self_supervised")
gain = (table.loc["simpool"] - table.loc["baseline"]).filter(like="knn")
print(gain.round(1).to_dict())
exercises.largest_gain(gain.idxmax().removesuffix("_knn"))

# %% [markdown]
# **2.** The query, the keys and the softmax (weights that depend on the image), and the generalised mean. GAP is SimPool with even attention
# and $\gamma = 1$, up to the shift by the minimum.
