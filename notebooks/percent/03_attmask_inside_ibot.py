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
# From every image come two large *global* crops and several small *local* ones, each augmented with parameters of its own. The
# whole batch is cropped at once, on its device (`lib/data/views.py`).

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
# ## Teacher and student
#
# Both are the same Vision Transformer with a projection head onto $K$ prototypes. The teacher $\theta'$ is a moving average of
# the student $\theta$, $\theta' \leftarrow m\,\theta' + (1 - m)\,\theta$; it is never trained by gradient.

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
# The teacher sees the whole global views. Its last [CLS] attention decides what the student may not see. Nothing extra is
# computed: the teacher's pass is needed for its targets anyhow.

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
# In training, each global crop is masked with probability 0.5 at a ratio $r \sim U(0.1, 0.5)$.

# %%
masks = draw_masks(masking, len(whole), target.grid, attention=attention, generator=generator)
print("hidden tokens of each crop:", masks.sum(1).tolist())

# %% [markdown]
# ## Two losses
#
# **[CLS]** (DINO eq. 3): a teacher's global view $q$ is the target of every *other* student view $v$,
# $-\sum_k p'_q(k) \log p_v(k)$. **Patches** (iBOT eq. 2): a hidden patch has to say what the teacher says at the same place, averaged
# over an image's hidden patches and then over images. Targets are centered and sharpened, which is what keeps all outputs from
# becoming the same.

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
# That is the whole method. `lib/distillation/methods.py` says the same in one `forward`, except that only hidden patches reach
# the last layer, which is where most of the time would go.
#
# ## The run
#
# `run` trains a recipe entry, or loads it if it has been trained before. Every number that it depends on stands in `recipes/`.

# %% tags=["nbval-ignore-output"]
from lib.train import entry_for, run

live = run(entry_for(scale, "main"), masking=masking, seed=seed, record=record)
log = live.log()
print(f"{live.config['epochs']} epochs, {log.step.max()} steps")

# %% [markdown]
# ## Do teacher and student agree?
#
# A loss falls when the student comes to agree with the teacher. *Agreement* is the share of [CLS] targets of which the student,
# on the other global view, names the same most likely prototype; by chance that is $1 / K$. The [CLS] loss does not fall to
# the end: it is measured against a teacher that improves as well, and centering spreads its targets over more prototypes.

# %% tags=["nbval-ignore-output"]
import matplotlib.pyplot as plt
import seaborn as sns

lines = log.dropna(subset="loss")
figure, axes = plt.subplots(1, 3, figsize=(10, 2.8))
for axis, column, title, unit in zip(axes, ("cls", "patch", "agreement"), ("[CLS] loss", "patch loss", "agreement"), ("nats", "nats", "")):
    sns.lineplot(lines, x="step", y=column, ax=axis)
    axis.set(title=title, ylabel=unit)
plt.show()
lines[["step", "loss", "cls", "patch", "agreement"]].iloc[[0, len(lines) // 2, -1]].round(2).set_index("step")

# %% [markdown]
# ## Which masks are hard to fill in?
#
# The talk says that filling in what AttMask-Low hides is very easy, and what AttMask-High hides very challenging. This can be asked of one
# network, whatever it was trained with: its patch loss on held-out images, with masks of each strategy at the same ratio of 0.3. The higher
# the loss, the harder the masks. Random masking is the measure: it hides as many patches, wherever they are.

# %% tags=["nbval-ignore-output"]
from lib.results.tables import fill_in_table, recorded

table = fill_in_table(recorded("strategies"), live).astype(float)
harder, easier = (table["AttMask-High"] > table["Random"]).sum(), (table["AttMask-Low"] < table["Random"]).sum()
print(
    f"AttMask-High is harder to fill in than random masking for {harder} of these {len(table)} networks; AttMask-Low is easier for {easier}."
)
table.round(3)

# %% [markdown]
# Two networks that give the same answer to every image agree perfectly, too. So agreement alone proves nothing: what the
# features are worth has to be measured on something else.
#
# ## Ours live, ours recorded, the paper's
#
# The k-NN classifier asks what the frozen features are worth. At smoke scale the few steps teach next to nothing, and the table
# promises nothing: evidence comes from the recorded runs on real images.

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
# ## What would change your mind?
#
# A recorded run whose k-NN does not rise above the untrained network's would say that the recipe learns nothing at this size,
# and no comparison of masks made with it would mean anything. That is why the untrained figure stands beside every result.
#
# ## Exercises
#
# **1.** What is the [CLS] loss, in nats, when every output is uniform over `prototypes`? A loss that stays there has collapsed.

# %%
from course import exercises

answer = None
exercises.collapse_loss(answer, prototypes)

# %% [markdown]
# **2.** Run this notebook with `-p masking attmask_low`. Which of the two losses becomes smaller, and why?
#
# Answers: `solutions/03_solutions.ipynb`.
