# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Solutions to 18 · Depth, cost and gamma
#
# **1.** A block has 1,774,464 parameters, SimPool 295,680: a sixth of a block.

# %%
from course import exercises

blocks = (2 * 384**2 + 2 * 384) / 1_774_464
print(f"{blocks:.2f}")
exercises.blocks_for_simpool(round(blocks, 2))

# %% [markdown]
# **2.** Norms: $4d$. Attention: $4d^2 + 4d$. MLP: $8d^2 + 5d$.


# %%
def block_parameters(d):
    """int -> int."""
    norms = 2 * 2 * d
    attention = 4 * (d * d + d)
    mlp = d * 4 * d + 4 * d + 4 * d * d + d
    return norms + attention + mlp


exercises.block_parameters(block_parameters)

# %% [markdown]
# **3.** The minimum. Is it taken over the part of the batch that a GPU holds, or over all of it? Outputs depend on how the batch is
# split, and in evaluation on which images happen to share a batch. That is why the default here is the image.
