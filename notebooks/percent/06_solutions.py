# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Solutions to 06 · DINO, MST, iBOT, AttMask
#
# **1.** 72.8 against 72.1.

# %%
from course import exercises

exercises.hint_over_mst(0.7)

# %% [markdown]
# **2.** If the attention is spread evenly, they hold their share of the patches, $\lfloor rN \rfloor / N$. If one patch has all of
# it, they hold nothing. That is why MST's student still sees the object.

# %%
from lib.masking import attention_mask


def hidden_attention(attention, ratio):
    """Float[B, N], float -> Float[B]: what part of the attention MST's masks hide."""
    hidden = attention_mask(attention, ratio, strategy="low")
    return (attention * hidden).sum(1) / attention.sum(1)


exercises.hidden_attention(hidden_attention)

# %% [markdown]
# **3.** `True` chooses the token, which is broadcast over images and patches.

# %%
import torch


def masked_tokens(tokens, mask, mask_token):
    """Float[B, N, D], Bool[B, N] (True = hidden), Float[D] -> Float[B, N, D]."""
    return torch.where(mask.unsqueeze(-1), mask_token, tokens)


exercises.masked_tokens(masked_tokens)
