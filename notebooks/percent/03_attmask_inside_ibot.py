# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 03 · AttMask inside iBOT
#
# **CPU, 60 s at smoke scale** · the main job, step by step · before it: 02 (masks) · after it: 04 (strategies compared)
#
# **Question.** How does a network learn from its own moving average, and where does the mask come in?
#
# Without labels, somebody else has to say what is right. In *self-distillation* this is a teacher, and the teacher is an average of what
# the student was before. The student sees less of an image than the teacher does, and has to say the same. What the student learns
# depends on what is hidden from it. That is where AttMask comes in.

# %%
from lib.results.figures import quote, use_style

use_style()
quote("attmask-1", "attmask-10")

# %%
import timm
import torch

print(f"torch {torch.__version__.split('+')[0]}, timm {timm.__version__}")

# %% tags=["parameters"]
scale: str = "smoke"  # smoke: scenes, half a minute; small: real images, the entry for this machine
masking: str = "attmask_high"  # block, random, random75, attmask_low, attmask_hint or attmask_high
seed: int = 0  # of weights, order, views and masks
record: bool = False  # leave a line in records/ when the run is finished

# %%
from lib.keys import check_parameters

check_parameters(globals())

# %% [markdown]
# ## One image, many views
#
# From every image come two large *global* views and several small *local* ones. Each is cropped at a random place and changed in its
# colours. The whole batch is cropped at once, on its device (`lib/data/views.py`).

# %%
import matplotlib.pyplot as plt

from course import drawings

drawings.ibot(2)
plt.show()

# %%
from lib.data.scenes import render
from lib.data.views import denormalise, make_views, multi_crop_recipe
from lib.results.figures import image_grid

pixels = render(torch.arange(20, 28), size=64).images  # uint8[8, 3, 64, 64]
global_views, local_views = multi_crop_recipe(48, 24, 2, (0.25, 1.0), (0.05, 0.25))
generator = torch.Generator().manual_seed(seed)
views = make_views(pixels, global_views + local_views, generator=generator)
image_grid(
    {f"image {i}": [pixels[i], *(denormalise(v[i]) for v in views)] for i in range(3)},
    titles=["canvas", "global 1", "global 2", "local 1", "local 2"],
)

# %% [markdown]
# Each row is one image with its views. All views of a row show the same thing, so a network should say the same of all of them.
#
# ## Teacher and student
#
# Both are the same Vision Transformer, with a *projection head* that gives $K$ numbers, one for each *prototype*. The student has the
# weights $\theta$. The teacher's weights $\theta'$ are a moving average of them, with momentum $m$. After each step
#
# $$\theta' \leftarrow m\,\theta' + (1 - m)\,\theta .$$
#
# No gradient ever reaches the teacher. The momentum rises to 1 during training, so that the teacher moves less and less.

# %%
from lib.models import ProjectionHead, create_model

torch.manual_seed(seed)
prototypes = 256
student = create_model("vit_nano", img_size=48, mask_token=True)
head = ProjectionHead(student.embed_dim, prototypes, hidden_dim=256, bottleneck_dim=64)
teacher = create_model("vit_nano", img_size=48)
missing = teacher.load_state_dict(student.state_dict(), strict=False).unexpected_keys
print("only the student has:", missing)

# %% [markdown]
# ## The teacher looks, the mask follows
#
# The teacher sees the whole global views. Its [CLS] attention in the last block decides which patches the student may not see. This
# needs hardly any extra computation, because the teacher's answer is needed anyway.

# %%
drawings.ibot(6)
plt.show()

# %%
from lib.masking import attention_mask, draw_masks
from lib.results.figures import hide_patches

whole = torch.cat(views[:2])  # [2B, 3, 48, 48]
with torch.no_grad():
    target = teacher.features(whole)
attention = target.attention.mean(1)  # [2B, N]
shown = attention_mask(attention, 0.4, strategy="high")
image_grid(
    {
        f"image {i}": [denormalise(whole[i]), attention[i].view(target.grid), hide_patches(denormalise(whole[i]), shown[i], target.grid)]
        for i in range(2)
    },
    titles=["teacher sees", "attention", "student sees"],
)

# %% [markdown]
# Each row is one image. This teacher is not trained yet, so its attention does not know objects.
#
# In training, each global view is masked with probability 0.5. The ratio $r$ is drawn evenly from 0.1 to 0.5.

# %%
masks = draw_masks(masking, len(whole), target.grid, attention=attention, generator=generator)
print("hidden tokens of each crop:", masks.sum(1).tolist())

# %% [markdown]
# A zero in this list is a view that stays whole.
#
# ## Two losses
#
# Both losses are cross-entropies. The teacher gives a distribution over the prototypes, the *target*, and the student has to give the
# same. With the logits $z$ of the student and $z'$ of the teacher, and for each prototype $k$,
#
# $$P(z)_k = \frac{\exp(z_k / \tau)}{\sum_j \exp(z_j / \tau)}, \qquad P'(z')_k = \frac{\exp((z'_k - c_k) / \tau')}{\sum_j \exp((z'_j - c_j) / \tau')} .$$
#
# - $\tau$ and $\tau'$ are temperatures. The teacher's is lower, which makes its targets sharp.
# - $c$ is the *center*, a moving average of the teacher's logits: $c \leftarrow 0.9\,c + 0.1\,\overline{z'}$. Without it, all targets
#   would become the same.
#
# **[CLS] loss** (iBOT, eq. 2; DINO, eq. 3). The teacher's view $u$ is the target of every *other* view $v$ of the student:
#
# $$L_{[\mathrm{CLS}]} = -\frac{1}{2 (V - 1)} \sum_{u \in \{1, 2\}} \sum_{v \ne u} P'\big(z'^{[\mathrm{CLS}]}_u\big)^{\!\top} \log P\big(z^{[\mathrm{CLS}]}_v\big) \tag{2}$$
#
# Here $V$ is the number of views, two global ones and the local ones. The loss is averaged over the images of the batch.
#
# **Patch loss** (iBOT, eq. 3). The student has to say of each hidden patch what the teacher says at the same place of the same view:
#
# $$L_{\mathrm{MIM}} = -\frac12 \sum_{u \in \{1, 2\}} \frac{1}{\max(1, \sum_i m_{u,i})} \sum_{i=1}^{N} m_{u,i}\; P'\big(z'_{u,i}\big)^{\!\top} \log P\big(\hat z_{u,i}\big) \tag{3}$$
#
# Here $m_{u,i}$ is 1 where patch $i$ of view $u$ is hidden, else 0, and $\hat z$ are the logits of the student, which saw the masked
# view. A view without hidden patches counts as 0. The loss is averaged over the images of the batch, and the total is the sum of both
# losses.
#
# | what | code in `lib/distillation/losses.py` |
# |---|---|
# | $P'$, centered and sharpened | `((at_least_float32(teacher.detach()) - center) / temperature).softmax(-1)` |
# | [CLS] loss, all pairs at once | `total = (normalisers.sum(0, keepdim=True) - normalisers[:2] - agreement).sum(0)` |
# | cross-entropy of each hidden patch | `entropy = F.cross_entropy(logits, targets, reduction="none")` |
# | mean over a view's hidden patches, then over views and images | `patch = (entropy / counts).sum() / (masks.shape[0] * masks.shape[1])` |
# | total | `{"cls": cls, "patch": patch, "total": cls + patch}` |

# %%
drawings.ibot(7)
plt.show()

# %%
from lib.distillation import IBOTLoss

loss = IBOTLoss(prototypes)
seen = student.features(whole, masks)
parts = student.features(torch.cat(views[2:]))
student_cls = head(torch.cat([seen.cls, parts.cls])).unflatten(0, (4, 8))  # [V, B, K]
with torch.no_grad():
    teacher_cls = head(target.cls).unflatten(0, (2, 8))  # [2, B, K]
    teacher_patches = head(target.patches).unflatten(0, (2, 8))  # [2, B, N, K]
student_patches = head(seen.patches).unflatten(0, (2, 8))
losses = loss(student_cls, student_patches, teacher_cls, teacher_patches, masks.unflatten(0, (2, 8)), 0.04, 0.04)
print({name: round(value.item(), 1) for name, value in losses.items()})

# %% [markdown]
# Before training, both losses are large, because the student cannot know what the teacher says.
#
# The whole method is in this drawing. `lib/distillation/methods.py` says the same in one `forward`. There, only hidden patches reach the
# last layer of the head, where most of the time would go.

# %%
drawings.ibot(8)
plt.show()

# %% [markdown]
# The dashed arrow is the only way from the student to the teacher.
#
# ## The run
#
# `run` trains a recipe entry, or loads the run if it has been trained before. Every number that it depends on stands in `recipes/`.

# %% tags=["nbval-ignore-output"]
from lib.train import entry_for, run

live = run(entry_for(scale, "main"), masking=masking, seed=seed, record=record)
log = live.log()
print(f"{live.config['epochs']} epochs, {log.step.max()} steps")

# %% [markdown]
# ## Do teacher and student agree?
#
# A loss falls when the student learns to agree with the teacher. *Agreement* is the share of [CLS] targets for which the student, on the
# other global view, names the same prototype as the most likely one. By chance, it is $1 / K$.
#
# The [CLS] loss need not fall to the end. It compares the student with a teacher that changes as well, and centering spreads the
# targets over more prototypes.

# %% tags=["nbval-ignore-output"]
import seaborn as sns

lines = log.dropna(subset="loss")
figure, axes = plt.subplots(1, 3, figsize=(10, 2.8))
for axis, column, title, unit in zip(axes, ("cls", "patch", "agreement"), ("[CLS] loss", "patch loss", "agreement"), ("nats", "nats", "")):
    sns.lineplot(lines, x="step", y=column, ax=axis)
    axis.set(title=title, ylabel=unit)
plt.show()
lines[["step", "loss", "cls", "patch", "agreement"]].iloc[[0, len(lines) // 2, -1]].round(2).set_index("step")

# %% [markdown]
# The three curves show both losses and the agreement over the steps; the table has their values at the start, in the middle and at
# the end.
#
# Two networks that give the same answer to every image agree perfectly, too. So agreement alone proves nothing. What the features are
# worth has to be measured with something else.
#
# ## Which masks are hard to fill in?
#
# The talk says: what AttMask-Low hides is very easy to fill in, and what AttMask-High hides is very challenging. One network can
# answer this, whatever masks it was trained with. We measure its patch loss on images that it has not seen, with the masks of each
# strategy, at the same ratio of 0.3. The higher the loss, the harder the masks. Random masks are the reference: they hide as many
# patches, wherever they are.

# %% tags=["nbval-ignore-output"]
from lib.results.tables import fill_in_table, recorded

table = fill_in_table(recorded("strategies"), live).astype(float)
harder, easier = (table["AttMask-High"] > table["Random"]).sum(), (table["AttMask-Low"] < table["Random"]).sum()
print(
    f"AttMask-High is harder to fill in than random masking for {harder} of these {len(table)} networks; AttMask-Low is easier for {easier}."
)
table.round(3)

# %% [markdown]
# A row is a network, a column is the strategy that made the masks, and the numbers are patch losses in nats. The sentence above the table
# counts for how many networks the talk's statement holds.
#
# ## Ours live, ours recorded, the paper's
#
# The k-NN classifier asks what the frozen features are worth. At smoke scale, a few steps teach next to nothing, so the first row is no
# evidence. Evidence comes from the recorded runs on real images.

# %% tags=["nbval-ignore-output"]
import pandas as pd

from lib.results.figures import verdict_table
from lib.results.titles import TITLES
from lib.results.papers import paper_table

rows = {"ours, live": {"k-NN": live.metrics["knn"], "untrained k-NN": live.metrics["untrained_knn"], "data": live.config["data"]}}
for name, line in recorded("strategies", masking=masking).iterrows():
    rows[f"ours, recorded ({name})"] = {"k-NN": line.knn, "untrained k-NN": line.untrained_knn, "data": line.data}
rows["paper, ViT-S/16"] = {"k-NN": paper_table("attmask", "strategies").loc[masking, "imagenet_knn"], "data": "ImageNet-1k, 20%"}
pd.DataFrame(rows).T.rename_axis(TITLES[masking]).astype(object).fillna("").map(lambda v: f"{v:.1f}" if isinstance(v, float) else v)

# %% tags=["nbval-ignore-output"]
verdict_table("attmask-1", "attmask-10")

# %% [markdown]
# The first table puts our k-NN accuracies beside the paper's, each with that of the untrained network. The second has the verdicts.
#
# ## What to remember
#
# - The teacher is a moving average of the student. It sees everything, the student sees less.
# - The [CLS] loss compares different views, the patch loss compares the hidden patches of the same view.
# - The mask comes from the teacher's attention, which is computed anyway. So AttMask adds little more than a ranking.
#
# ## References
#
# - Kakogeorgiou et al., *What to Hide from Your Students: Attention-Guided Masked Image Modeling*, ECCV 2022,
#   [arXiv:2203.12719](https://arxiv.org/abs/2203.12719)
# - Zhou et al., *iBOT: Image BERT Pre-Training with Online Tokenizer*, ICLR 2022,
#   [arXiv:2111.07832](https://arxiv.org/abs/2111.07832)
# - Caron et al., *Emerging Properties in Self-Supervised Vision Transformers* (DINO), ICCV 2021,
#   [arXiv:2104.14294](https://arxiv.org/abs/2104.14294)
#
# ## What would change your mind?
#
# Suppose that a recorded run's k-NN accuracy is not above the untrained network's. Then the recipe learns nothing at this size, and no
# comparison of masks that was made with it means anything. That is why the untrained figure stands beside every result.
#
# ## Exercises
#
# **1.** What is the [CLS] loss, in nats, when every output is uniform over `prototypes`? A loss that stays there has collapsed.

# %%
from course import exercises

answer = None
exercises.collapse_loss(answer, prototypes)

# %% [markdown]
# **2.** Write iBOT's patch loss. The teacher's targets are distributions already; the student's logits still need the temperature
# 0.1. Average over the hidden patches of an image first, and then over the images. An image without hidden patches counts as 0.


# %%
def patch_loss(student, targets, mask):
    """Float[B, N, K] logits, Float[B, N, K] distributions, Bool[B, N] -> scalar, in nats."""


exercises.patch_loss(patch_loss)

# %% [markdown]
# **3.** Write the step of the moving average: the teacher's new weights.


# %%
def ema(teacher, student, momentum):
    """Float[D], Float[D], float -> Float[D]."""


exercises.ema(ema)

# %% [markdown]
# **4.** Run this notebook with `-p masking attmask_low`. Which of the two losses becomes smaller, and why?
#
# The answers are in `solutions/03_solutions.ipynb`.
