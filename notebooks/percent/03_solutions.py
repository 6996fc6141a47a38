# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Solutions to 03 · AttMask inside iBOT
#
# **1.** The cross-entropy of two uniform distributions over $K$ is $\ln K$.

# %%
import math

from course import exercises

exercises.collapse_loss(math.log(256), prototypes=256)

# %% [markdown]
# **2.** The patch loss. Low-attended patches resemble their visible neighbours, so that what the teacher says of them can be guessed
# from next to nothing; highly attended ones have to be inferred from the rest of the image. Compare the patch loss of both runs at the same
# step: the [CLS] loss depends on the masks only through what the student still sees.

# %% tags=["nbval-ignore-output"]
import pandas as pd

from lib.train import entry_for, run

runs = {name: run(entry_for("smoke", "comparison"), masking=name, progress=False) for name in ("attmask_low", "attmask_high")}
pd.DataFrame({name: r.log().dropna(subset="loss").iloc[-1][["cls", "patch"]].astype(float) for name, r in runs.items()}).round(2)
