# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 99 · Replication report
#
# **CPU, 10 s** · reads the records, trains nothing
#
# **Question.** For every claim of the talk: what does the paper say, what did we record, and do they agree?

# %%
from lib.results.figures import quote, use_style

use_style()
quote("attmask-1", "simpool-1")

# %%
import timm
import torch

print(f"torch {torch.__version__.split('+')[0]}, timm {timm.__version__}")

# %% tags=["parameters"]
experiment: str = ""  # show the runs of one experiment only; empty shows all

# %%
from lib.keys import check_parameters

check_parameters(globals())

# %% [markdown]
# ## The mechanism on one image: how a verdict comes about
#
# Differences between two methods, one a seed, and the 95% interval of their mean (Student's t). The same mean is *reproduced* with three
# close seeds and *inconclusive* with three scattered ones.

# %%
import matplotlib.pyplot as plt
import pandas as pd

from lib.results.verdicts import interval, verdict_of

examples = {"close seeds": [2.7, 3.0, 3.3], "scattered seeds": [0.5, 3.0, 5.5], "one seed": [3.0], "against": [-3.3, -3.0, -2.7]}
figure, axis = plt.subplots(figsize=(6, 2.2))
rows = {}
for line, (name, gaps) in enumerate(examples.items()):
    found = interval(gaps)
    rows[name] = [found.mean, found.low, found.high, verdict_of(found)]
    axis.plot(gaps, [line] * len(gaps), "o")
    if len(gaps) > 1:
        axis.plot([found.low, found.high], [line, line], "k-", lw=1)
axis.axvline(0, color="0.5", lw=1)
axis.set(yticks=range(len(examples)), yticklabels=list(examples), xlabel="difference, points")
plt.show()
pd.DataFrame(rows, index=["mean", "low", "high", "verdict"]).T.round(2)

# %% [markdown]
# ## All verdicts
#
# Each gap is the mean over the figures that are named beside it. Ours are often fewer than the paper's, so that the two gaps say the same only in
# their sign.

# %% tags=["nbval-ignore-output"]
from lib.results import claims, verdicts
from lib.results.figures import verdict_table

pd.set_option("display.max_colwidth", None)
verdict_table().join(claims().set_index("id").text)

# %% [markdown]
# ## The runs behind them
#
# Each line is a group of runs that differ in their seeds and in what their experiment compares. The command with one of the values of each
# key behind it trains, or measures, one of them again. A `+` behind a commit means that the sources were changed since.

# %% tags=["nbval-ignore-output"]
from lib.results.tables import recorded_commands

recorded_commands(experiment or None)

# %% [markdown]
# ## Coverage
#
# How many of the papers' published numbers belong to a claim that has evidence of ours?

# %% tags=["nbval-ignore-output"]
from lib.results.papers import claim_details, paper_tables

verdict_of_claim = verdicts().set_index("id").verdict
answered = {(c["paper"], c["published"]["table"]) for c in claim_details() if c["published"] and verdict_of_claim[c["id"]] != "not run"}
published = paper_tables()
published["evidence"] = [(p, t) in answered for p, t in zip(published.paper, published.table)]
published.groupby(["paper", "table"]).evidence.agg(["size", "first"]).rename(columns={"size": "published numbers", "first": "has evidence"})

# %% [markdown]
# ## What would change your mind?
#
# A verdict can be wrong in two honest ways: the setting is too small to show the effect, or the seeds are too few. Both show in the
# table: the scale and the number of seeds stand beside each verdict, and the untrained network beside each run.
#
# ## Exercises
#
# **1.** How far above zero must the mean of three paired differences with standard deviation 1.0 lie to be *reproduced*?

# %%
from course import exercises

answer = None
exercises.smallest_reproduced(answer)

# %% [markdown]
# Answers: `solutions/99_solutions.ipynb`.
