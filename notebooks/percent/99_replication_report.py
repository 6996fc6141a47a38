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
# close seeds and *inconclusive* with three scattered ones. One seed has no interval: such a comparison is *not testable*.

# %%
import matplotlib.pyplot as plt
import pandas as pd

from lib.results.verdicts import interval, verdict_of

examples = {"close seeds": [2.7, 3.0, 3.3], "scattered seeds": [0.5, 3.0, 5.5], "against": [-3.3, -3.0, -2.7]}
figure, axis = plt.subplots(figsize=(6, 2.2))
rows = {}
for line, (name, gaps) in enumerate(examples.items()):
    found = interval(gaps)
    rows[name] = [found.mean, found.low, found.high, verdict_of(found)]
    axis.plot(gaps, [line] * len(gaps), "o")
    axis.plot([found.low, found.high], [line, line], "k-", lw=1)
axis.axvline(0, color="0.5", lw=1)
axis.set(yticks=range(len(examples)), yticklabels=list(examples), xlabel="difference, points")
plt.show()
pd.DataFrame(rows, index=["mean", "low", "high", "verdict"]).T.round(2)

# %% [markdown]
# ## All verdicts
#
# A claim has a row for each of its statements. Each gap is the mean over the figures that are named beside it. Ours are often fewer than the
# paper's, so that the two gaps say the same only in their sign. `not testable` says that the records could not have decided, and why.

# %% tags=["nbval-ignore-output"]
from lib.results import claims
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
# How many of the papers' published numbers that belong to a claim do our records answer, with a verdict that is neither `not run` nor
# `not testable`? A number counts once for its row and column.

# %% tags=["nbval-ignore-output"]
from lib.results.verdicts import coverage

coverage()

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
