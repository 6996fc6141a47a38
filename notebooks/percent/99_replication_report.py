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
#
# This notebook trains nothing. It reads the records, and computes every number from them.

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
# Take the differences between two methods, one for each seed: $x_1, \dots, x_n$, with mean $\bar x$ and standard deviation $s$
# (computed with $n - 1$). The 95% interval of their mean is
#
# $$\bar x \pm t_{0.975,\, n-1} \, \frac{s}{\sqrt n} ,$$
#
# where $t$ is Student's factor: 4.30 for three seeds, and near 1.96 for many. The same mean is *reproduced* with three close seeds,
# and *inconclusive* with three scattered ones. One seed has no interval, and the interval of
# two seeds is not reliable. With fewer than three seeds a comparison is *not testable*.

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
pd.DataFrame(rows, index=["mean", "low", "high", "verdict"]).T.infer_objects().round(2)

# %% [markdown]
# The dots are differences, and the lines their intervals. The table gives the numbers and the verdict.
#
# ## All verdicts
#
# A claim has a row for each of its statements. Each gap is the mean over the figures that are named beside it. Our figures are often
# fewer than the paper's. Then only the signs of the two gaps can be compared. `not testable` says that the records could not have
# decided, and why.

# %% tags=["nbval-ignore-output"]
from lib.results import claims
from lib.results.figures import verdict_table

pd.set_option("display.max_colwidth", None)
verdict_table().join(claims().set_index("id").text)

# %% [markdown]
# Read a row from left to right: what the paper says, what we measured, and what follows from it.
#
# ## The runs behind them
#
# A row is a group of runs that differ only in their seeds, and in what their experiment compares. The command trains or measures one
# of them again; choose one value for each key behind it. A `+` behind a commit means that the sources were changed since.

# %% tags=["nbval-ignore-output"]
from lib.results.tables import recorded_commands

recorded_commands(experiment or None)

# %% [markdown]
# A group with many seeds answers more than one with few; the claims need three.
#
# ## Coverage
#
# Some of the papers' published numbers belong to a claim. How many of them do our records answer, with a verdict that is neither `not
# run` nor `not testable`? A number counts once for its row and its column.

# %% tags=["nbval-ignore-output"]
from lib.results.verdicts import coverage

coverage()

# %% [markdown]
# The table counts, for each of the papers' tables, the numbers that belong to a claim, and those of them that our records answer.
#
# ## The authors' settings and ours
#
# The recipes of the paper scale repeat the commands that the authors published. This table compares them setting by setting.

# %%
from lib.authors import author_settings

settings = author_settings().reset_index()
settings.groupby("command").equal.agg(equal="sum", settings="size")

# %% [markdown]
# The settings that differ, each with the reason:

# %%
different = settings[~settings.equal]
different.groupby("why", sort=False).agg(settings=("setting", lambda s: ", ".join(dict.fromkeys(s))), commands=("command", "nunique"))

# %% [markdown]
# What is not in this table is equal. A test fails when a number of a recipe changes, and when a difference has no reason here.
#
# ## What to remember
#
# - A verdict is an interval of paired differences, and not a comparison of two numbers.
# - Three seeds make a wide interval: Student's factor is 4.30.
# - What could not have decided is not testable, and counts neither for a claim nor against it.
#
# ## References
#
# - Kakogeorgiou et al., *What to Hide from Your Students: Attention-Guided Masked Image Modeling*, ECCV 2022,
#   [arXiv:2203.12719](https://arxiv.org/abs/2203.12719)
# - Psomas et al., *Keep It SimPool: Who Said Supervised Transformers Suffer from Attention Deficit?*, ICCV 2023,
#   [arXiv:2309.06891](https://arxiv.org/abs/2309.06891)
# - Student, *The Probable Error of a Mean*, Biometrika 1908,
#   [doi:10.1093/biomet/6.1.1](https://doi.org/10.1093/biomet/6.1.1)
#
# ## What would change your mind?
#
# A verdict can be wrong in two honest ways. The setting can be too small to show the effect, or the seeds can be too few. Both can be
# seen in the table: each verdict has its scale and its number of seeds beside it, and each run has its untrained network.
#
# ## Exercises
#
# **1.** How far above zero must the mean of three paired differences with standard deviation 1.0 lie to be *reproduced*?

# %%
from course import exercises

answer = None
exercises.smallest_reproduced(answer)

# %% [markdown]
# The answer is in `solutions/99_solutions.ipynb`.
