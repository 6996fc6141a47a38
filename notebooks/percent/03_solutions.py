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

exercises.collapse_loss(math.log(256), 256)

# %% [markdown]
# **2.** A cross-entropy for each patch; the mask times it, summed over an image, and divided by the number of its hidden patches.


# %%
def patch_loss(student, targets, mask):
    """Float[B, N, K] logits, Float[B, N, K] distributions, Bool[B, N] -> scalar, in nats."""
    entropy = -(targets * (student / 0.1).log_softmax(-1)).sum(-1)  # [B, N]
    of_images = (entropy * mask).sum(1) / mask.sum(1).clamp(min=1)  # [B]
    return of_images.mean()


exercises.patch_loss(patch_loss)

# %% [markdown]
# **3.** The momentum is the weight of what the teacher was before.


# %%
def ema(teacher, student, momentum):
    """Float[D], Float[D], float -> Float[D]."""
    return momentum * teacher + (1 - momentum) * student


exercises.ema(ema)

# %% [markdown]
# **4.** The patch loss becomes smaller. Low-attended patches resemble their visible neighbours, so that what the teacher says of them
# can be guessed from next to nothing; highly attended ones have to be inferred from the rest of the image. Compare the patch loss of
# both runs at the same step: the [CLS] loss depends on the masks only through what the student still sees.

# %% tags=["nbval-ignore-output"]
import pandas as pd

from lib.train import entry_for, run

runs = {name: run(entry_for("smoke", "comparison"), masking=name, progress=False) for name in ("attmask_low", "attmask_high")}
pd.DataFrame({name: r.log().dropna(subset="loss").iloc[-1][["cls", "patch"]].astype(float) for name, r in runs.items()}).round(2)
