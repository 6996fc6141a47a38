# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Solutions to 05 · Convergence, fractions of the data, few examples
#
# **1.** Find the pair of points around the slow curve's final accuracy and interpolate.

# %%
import numpy as np

from course import exercises

fast = [(0, 30.0), (10, 36.0), (20, 41.0), (30, 43.0)]
slow = [(0, 30.0), (10, 33.0), (20, 37.0), (30, 40.0)]
epochs, accuracies = zip(*fast)
answer = float(np.interp(slow[-1][1], accuracies, epochs))
print(answer)
exercises.epochs_saved(answer, fast, slow)

# %% [markdown]
# **2.** `scatter_add_` sums the weights of each class.

# %%
import torch
import torch.nn.functional as F


def knn(train_x, train_y, test_x, k, classes):
    """Float[M, D], Long[M], Float[Q, D], int, int -> Long[Q]."""
    similarity, nearest = (F.normalize(test_x) @ F.normalize(train_x).T).topk(k)  # [Q, k]
    votes = torch.zeros(len(test_x), classes).scatter_add_(1, train_y[nearest], (similarity / 0.07).exp())
    return votes.argmax(1)


exercises.knn(knn)

# %% [markdown]
# **3.** Draws that share images have errors in common, which a mean over draws does not remove. Five disjoint draws use five times as
# many labelled images; five copies of one draw would be worth one.
