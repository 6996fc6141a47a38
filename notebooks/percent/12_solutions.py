# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Solutions to 12 · The pooling benchmark
#
# **1.** The published accuracies are data.

# %%
from course import exercises
from lib.results.papers import paper_table

accuracy = paper_table("simpool", "framework").accuracy
margin = accuracy["simpool"] - accuracy.drop("simpool").mean()
print(f"{margin:.2f}")
exercises.margin_over_mean(margin)

# %% [markdown]
# **2.** The table is printed from the declarations, so compare its rows.

# %%
from lib.pooling import landscape

parts = landscape().loc[["cait", "simpool"], "U0":]
different = set(parts.columns[parts.loc["cait"] != parts.loc["simpool"]])
print(sorted(different))
exercises.cait_and_simpool(different)

# %% [markdown]
# **3.** Power, mean, root.


# %%
def gem(x, gamma):
    """Float[B, N, D], float -> Float[B, D]."""
    return x.clamp(min=1e-6).pow(gamma).mean(1).pow(1 / gamma)


exercises.gem(gem)
