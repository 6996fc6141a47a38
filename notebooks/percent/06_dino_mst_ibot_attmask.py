# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 06 · DINO, MST, iBOT, AttMask
#
# **CPU, 60 s at smoke scale** · the talk's table on full ImageNet-1k · before it: 05 (convergence and data) · after it: 07 (backgrounds)
#
# **Question.** A student may be asked for the whole image, for the hidden patches, or for their pixels. Does what is asked decide
# whether hiding the attended patches helps?
#
# Four methods of self-distillation differ in two things: what the student may not see, and what it has to say about it. MST hides
# what is attended *least*, AttMask what is attended *most*. Both cannot be best, unless the question that is asked makes the
# difference.

# %%
from lib.results.figures import quote, use_style

use_style()
quote("attmask-6", "attmask-11")

# %%
import timm
import torch

print(f"torch {torch.__version__.split('+')[0]}, timm {timm.__version__}")

# %% tags=["parameters"]
scale: str = "smoke"  # smoke: five runs of nine steps; small: five runs of the entries for this machine
seed: int = 0  # of weights, order, views and masks: the same for all
record: bool = False  # leave a line in records/ for each finished run

# %%
from lib.keys import check_parameters

check_parameters(globals())

# %% [markdown]
# ## The paper's table
#
# The paper trains ViT-S/16 on all of ImageNet-1k. The columns on the right use only $\nu$ labelled images of each class.

# %%
from lib.results.papers import paper_table

published = paper_table("attmask", "full_imagenet")
published

# %% [markdown]
# Numbers are accuracies in percent; the paper gives no few-example figures for DINO and MST.
#
# ## Four methods, one step
#
# In all four, the student has to say what a moving average of itself says of other views of the image, by its [CLS] token. They
# differ in this:
#
# | | hidden from the student | asked besides [CLS] |
# |---|---|---|
# | **DINO** | nothing | nothing |
# | **MST** | patches that the teacher attends least | all pixels of the view, by a decoder |
# | **iBOT** | a block of patches | the teacher's output for each hidden patch |
# | **iBOT + AttMask** | patches that the teacher attends most | the teacher's output for each hidden patch |
#
# A fifth run is a control. **DINO + AttMask** hides the attended patches and asks nothing about them. The paper expects a gain from
# hiding alone, too. If that gain were as large as iBOT's, asking about the hidden patches would add nothing.
#
# The claims speak of **AttMask-Hint**, which shows a few of the attended patches again (notebook 02). The teacher below is a recorded
# one: iBOT with AttMask-High, on photographs.

# %%
from lib.data.scenes import render
from lib.data.views import denormalise, make_views, multi_crop_recipe
from lib.models import RestorationDecoder, create_model
from lib.keep import load_kept

torch.manual_seed(seed)
pixels = render(torch.arange(20, 28), size=64).images
generator = torch.Generator().manual_seed(seed)
view = make_views(pixels, multi_crop_recipe(48, 24, 0, (0.25, 1.0), (0.05, 0.25))[0], generator=generator)[0]  # [8, 3, 48, 48]
teacher = load_kept("ibot_cpu-attmask_high")
with torch.no_grad():
    seen = teacher.features(view)
attention = seen.attention.mean(1)  # [8, N]
print("teacher's attention:", tuple(attention.shape), "on a grid of", seen.grid)

# %%
from lib.masking import attention_mask, block_mask
from lib.results.figures import hide_patches, image_grid

low = attention_mask(attention, 0.4, strategy="low")
block = block_mask(8, seen.grid, 0.4, generator=generator)
high = attention_mask(attention, 0.4, strategy="high")
hint = attention_mask(attention, 0.4, strategy="hint", generator=generator)
image_grid(
    {
        f"image {i}": [denormalise(view[i]), *(hide_patches(denormalise(view[i]), mask[i], seen.grid) for mask in (low, block, high, hint))]
        for i in range(3)
    },
    titles=["DINO", "MST", "iBOT", "AttMask-High", "AttMask-Hint"],
)

# %% [markdown]
# Each row is one image. A column is what the student of this method sees; grey patches are hidden.
#
# ## MST's third question
#
# A small decoder turns all tokens of the student, the hidden ones too, back into the view. Its loss is the mean absolute difference
# of the pixels.

# %%
student = create_model("vit_nano", img_size=48, mask_token=True)
decoder = RestorationDecoder(student.embed_dim, 128, 8)
tokens = student.features(view, low)
restored = decoder(tokens.patches, tokens.grid)  # [8, 3, 48, 48]
print("restored:", tuple(restored.shape), f"l1 {(restored - view).abs().mean().item():.1f} before training")

# %% [markdown]
# The loss is that of an untrained network: it is what there is to learn.
#
# ## The runs
#
# Five short runs with the same seed.

# %% tags=["nbval-ignore-output"]
from tqdm import tqdm

from lib.train import entry_for, run

choices = {
    "DINO": ("comparison_dino", "none"),
    "DINO + AttMask": ("comparison_dino", "attmask_high"),
    "MST": ("comparison_mst", "attmask_low"),
    "iBOT": ("comparison", "block"),
    "iBOT + AttMask": ("comparison", "attmask_high"),
}
live = {}
for name, (role, masking) in tqdm(choices.items()):
    live[name] = run(entry_for(scale, role), masking=masking, seed=seed, record=record, progress=False)

# %% tags=["nbval-ignore-output"]
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns

from lib.results.figures import network_bars

log = pd.concat(found.log().dropna(subset="loss").assign(method=name) for name, found in live.items())
figure, axis = plt.subplots(figsize=(6, 3))
sns.lineplot(log, x="step", y="cls", hue="method", style="method", ax=axis)
axis.set(title="[CLS] loss, which all of them have", ylabel="nats")
axis.legend(title=None, fontsize=8)
plt.show()
log.groupby("method", sort=False).cls.agg(["first", "last"]).round(2)

# %% [markdown]
# The curves show the [CLS] loss, which all five have in common. They may not be compared with each other: each method learns from
# targets of its own. What can be compared is what the frozen features are worth.

# %% tags=["nbval-ignore-output"]
from lib.measure import measure

rows = {}
for name, found in live.items():
    linear = measure("linear", found, record=record, progress=False).metrics
    rows[name] = {"k-NN": found.metrics["knn"], "linear": linear["linear"], "untrained k-NN": found.metrics["untrained_knn"]}
    rows[name]["untrained linear"] = linear["untrained_linear"]
pd.DataFrame(rows).T.round(1)

# %% [markdown]
# The table shows that every method runs through the same measurements. Nine steps rank nothing.
#
# ## The evidence
#
# These are recorded runs on real images: Imagenette at 48 pixels, a Vision Transformer of width 128 and depth 4. A row is the mean
# over the seeds that there are.

# %% tags=["nbval-ignore-output"]
from lib.results.tables import beside_linear, recorded

found = [recorded("self_supervised", pooling="none"), recorded("methods"), recorded("strategies")]
ours = beside_linear(pd.concat(found))
ours.round(1)

# %% [markdown]
# Here are our figures beside the paper's rows:

# %% tags=["nbval-ignore-output"]
rows = {"dino": "dino_cpu", "mst": "mst_cpu", "ibot": "ibot_cpu", "ibot_attmask_high": "ibot_cpu", "ibot_attmask_hint": "ibot_cpu"}
masks = {"dino": "", "mst": "attmask_low", "ibot": "block", "ibot_attmask_high": "attmask_high", "ibot_attmask_hint": "attmask_hint"}
table = published[["knn", "linear"]].rename(columns={"knn": "k-NN, paper", "linear": "linear, paper"})
for name in table.index:
    place = (f"small/{rows[name]}", masks[name])
    for column, title in (("knn", "k-NN, ours"), ("linear", "linear, ours")):
        table.loc[name, title] = ours[column].get(place, float("nan")) if column in ours else float("nan")
titles = {
    "dino": "DINO",
    "mst": "MST",
    "ibot": "iBOT",
    "ibot_attmask_high": "iBOT + AttMask-High",
    "ibot_attmask_hint": "iBOT + AttMask-Hint",
}
table = table.rename(index=titles)
network_bars(table[["k-NN, paper", "k-NN, ours"]], title="Methods: full ImageNet-1k (paper), Imagenette (ours)")
table.round(1)

# %% [markdown]
# The bars compare k-NN accuracies: the paper's and ours, by method. Compare methods within one colour. Our images and our network are
# far smaller than the paper's, so the heights of two colours say nothing about each other. With few seeds, differences of about a
# point cannot tell methods apart.
#
# The verdicts on the two claims:

# %% tags=["nbval-ignore-output"]
from lib.results.figures import verdict_table

verdict_table("attmask-6", "attmask-11")

# %% [markdown]
# Each row is one statement: the paper's gap, our gap with its 95% interval, and the verdict. Where the records could not decide, the
# last column says why.
#
# ## What to remember
#
# - MST and AttMask use the same attention in opposite ways. What the student is asked makes the difference.
# - Losses of different methods do not compare them. Measurements of the frozen features do.
# - A control separates two causes: here, hiding patches and asking about them.
#
# ## References
#
# - Kakogeorgiou et al., *What to Hide from Your Students: Attention-Guided Masked Image Modeling*, ECCV 2022,
#   [arXiv:2203.12719](https://arxiv.org/abs/2203.12719)
# - Li et al., *MST: Masked Self-Supervised Transformer for Visual Representation*, NeurIPS 2021,
#   [arXiv:2106.05656](https://arxiv.org/abs/2106.05656)
# - Zhou et al., *iBOT: Image BERT Pre-Training with Online Tokenizer*, ICLR 2022,
#   [arXiv:2111.07832](https://arxiv.org/abs/2111.07832)
# - Caron et al., *Emerging Properties in Self-Supervised Vision Transformers* (DINO), ICCV 2021,
#   [arXiv:2104.14294](https://arxiv.org/abs/2104.14294)
#
# ## What would change your mind?
#
# Suppose that DINO + AttMask gained as much over DINO as iBOT + AttMask gains over iBOT. Then the masks would be one more
# augmentation, and nothing would need to be asked about what they hide. Or suppose that iBOT were as good with AttMask-Low as with
# AttMask-High. Then it would not matter which patches are hidden.
#
# ## Exercises
#
# **1.** By how many points of k-NN is AttMask-Hint above MST in the paper's table?

# %%
from course import exercises

answer = None
exercises.hint_over_mst(answer)

# %% [markdown]
# **2.** MST hides the `int(ratio * N)` patches of least attention. Write a function that gives the part of the attention which these
# patches hold. What is it if the attention is spread evenly, and if one patch has all of it?


# %%
def hidden_attention(attention, ratio):
    """Float[B, N], float -> Float[B]."""


exercises.hidden_attention(hidden_attention)

# %% [markdown]
# **3.** Hide patches from the student: replace the embeddings of the hidden patches by the learned mask token.


# %%
def masked_tokens(tokens, mask, mask_token):
    """Float[B, N, D], Bool[B, N] (True = hidden), Float[D] -> Float[B, N, D]."""


exercises.masked_tokens(masked_tokens)

# %% [markdown]
# The answers are in `solutions/06_solutions.ipynb`.
