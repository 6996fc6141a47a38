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
# **2.** Two loops over views. The student's first two views are the global ones, so view $q$ of the teacher is view $q$ of the student.


# %%
def cls_loss(student, teacher, center, student_temp, teacher_temp):
    """Float[V, B, K] logits, globals first, Float[2, B, K] logits, Float[K], float, float -> scalar, in nats."""
    targets = ((teacher - center) / teacher_temp).softmax(-1)
    logs = (student / student_temp).log_softmax(-1)
    pairs = [(q, v) for q in range(2) for v in range(len(student)) if q != v]
    return sum(-(targets[q] * logs[v]).sum(-1).mean() for q, v in pairs) / len(pairs)


exercises.cls_loss(cls_loss)

# %% [markdown]
# **3.** The query, the keys and the softmax (weights that depend on the image), and the generalised mean. GAP is SimPool with even
# attention and $\gamma = 1$, up to the shift by the minimum.
