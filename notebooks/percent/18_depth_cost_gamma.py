# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 18 · Depth, cost and gamma
#
# **CPU, 90 s at smoke scale** · the talk's table of depth against pooling, and its figure of gamma · before it: 13 (supervised) · after
# it: 19 (beyond)
#
# **Question.** What does SimPool cost, what would the same money buy in blocks, and how much hangs on its one hyper-parameter?
#
# A better figure is easy to buy: take a larger network. So a method has to be compared with what the same cost would buy elsewhere.
# Parameters, operations and time are three prices.

# %%
from lib.results.figures import quote, use_style

use_style()
quote("simpool-8", "simpool-9", "simpool-10")

# %%
import timm
import torch

print(f"torch {torch.__version__.split('+')[0]}, timm {timm.__version__}")

# %% tags=["parameters"]
scale: str = "smoke"  # smoke: runs of seconds on scenes; small: runs of the entry for this machine
seed: int = 0  # of weights, order and views
gammas: list = [1.0, 2.0, 4.0]  # powers of SimPool's generalised mean to train
pairs: int = 3  # pairs of timed steps; 0 leaves the timing out

# %%
from lib.keys import check_parameters

check_parameters(globals())

# %% [markdown]
# ## The price list
#
# Parameters and floating-point operations of one image at 224 px, for ViT-S/16 and a classifier of 1000 classes. They are counted,
# not measured. The paper's accuracies stand beside them.

# %%
import pandas as pd
from torch.utils.flop_counter import FlopCounterMode

from lib.models import create_model


def price(pooling: str | None, depth: int) -> dict:
    with torch.device("meta"):
        network = create_model("vit_small_patch16_224", pooling=pooling, num_classes=1000, depth=depth).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.empty(1, 3, 224, 224))
    return {"parameters, millions": sum(p.numel() for p in network.parameters()) / 1e6, "GFLOP": counter.get_total_flops() / 1e9}


methods = {"gap": ("gap", 12), "cls": (None, 12)} | {f"cls+{i}": (None, 12 + i) for i in range(1, 6)}
methods |= {"simpool": ("simpool", 12)} | {f"simpool-{i}": ("simpool", 12 - i) for i in range(1, 4)}
counted = pd.DataFrame({name: price(*options) for name, options in methods.items()}).T

# %%
from lib.results.papers import paper_table

published = paper_table("simpool", "depth")
table = counted.join(published[["depth", "accuracy", "params_million"]])
table.rename(columns={"params_million": "published millions", "accuracy": "published accuracy"}).round(2)

# %% tags=["nbval-ignore-output"]
import matplotlib.pyplot as plt
import seaborn as sns

from lib.results.figures import COLOURS

kind = table.index.str.extract(r"^(gap|cls|simpool)", expand=False)
colours = {"gap": COLOURS["gap"], "cls": COLOURS["none"], "simpool": COLOURS["simpool"]}
figure, axis = plt.subplots(figsize=(5.5, 3.2))
sns.scatterplot(x=table["parameters, millions"], y=table.accuracy, hue=kind, palette=colours, s=60, ax=axis)
for name, line in table.iterrows():
    axis.annotate(name, (line["parameters, millions"], line.accuracy), xytext=(4, 4), textcoords="offset points", fontsize=8)
axis.set(ylabel="accuracy, % (published)", title="ViT-S on ImageNet-1k, 100 epochs")
axis.legend(title=None)
plt.show()

# %% [markdown]
# Each dot is a network: to the right it has more parameters, and upwards it is more accurate. A block costs 1.77 million parameters.
# SimPool costs $2d^2 + 2d = 0.30$ million, less the class token. The claim "over 8M more parameters" is the distance from SimPool to
# [CLS] with five more blocks.
#
# ## One step on one image
#
# SimPool has a single query. So the products of all keys with it can be computed from the right: $\mathrm{LN}(X)\,(W_K^\top q)$ in
# place of $(\mathrm{LN}(X)\,W_K^\top)\,q$, with one patch in each row of $X$. The result is the same. With $N$ patches of $d$
# channels, the first takes $d^2 + N d$ multiplications, and the second $N d^2 + N d$. Both are counted here:

# %%
from lib.pooling import Pooling, SimPool

torch.manual_seed(seed)
pool, x = SimPool(384, gamma=1.25), torch.randn(1, 196, 384)
for name, forward in {"as the algorithm says": Pooling.forward, "as it runs": SimPool.forward}.items():
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        vector = forward(pool, x).vector
    print(f"{name:22} {counter.get_total_flops() / 1e6:6.1f} MFLOP, first channel {vector[0, 0].item():.4f}")

# %% [markdown]
# Both lines give the same first channel.
#
# ## The step, timed
#
# A training step of ViT-S/16 on two images of 224 px, with SimPool and with the other pooling in turn, in one run. The table has the
# median ratio of their times, its range, and the ratio of their peak memory. `python -m benchmarks simpool_cls simpool_gap` prints
# the same.

# %% tags=["nbval-ignore-output"]
from benchmarks.measure import measure
from benchmarks.rows import ROWS

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
timed = {}
for name, other in {"simpool_cls": "[CLS]", "simpool_gap": "GAP"}.items() if pairs else ():
    found = measure(name, ROWS[name], device, pairs)
    timed[f"SimPool / {other}"] = {"time": found["time_ratio"], "lowest": found["time_ratio_low"], "highest": found["time_ratio_high"]}
    timed[f"SimPool / {other}"]["memory"] = found["memory_ratio"]
pd.DataFrame(timed).T.round(2)

# %% [markdown]
# A ratio of 1 means that SimPool costs as much as the other pooling.
#
# ## Gamma
#
# The paper draws the accuracy over $\gamma$ without giving numbers. Live, at this scale:

# %% tags=["nbval-ignore-output"]
from tqdm import tqdm

from lib.train import entry_for, run

entry = entry_for(scale, "benchmark")
live = {gamma: run(entry, pooling="simpool", gamma=gamma, seed=seed, progress=False).metrics for gamma in tqdm(gammas)}
columns = {"accuracy": "top-1 accuracy", "knn": "k-NN", "untrained_knn": "untrained k-NN"}
pd.DataFrame(live).T.rename_axis("gamma")[[*columns]].rename(columns=columns).astype(float).round(1)

# %% [markdown]
# At smoke scale the order means nothing. The recorded runs, the mean over seeds:

# %% tags=["nbval-ignore-output"]
from lib.results.tables import recorded, spread

gamma_runs = spread(recorded("benchmark", pooling="simpool"), "gamma", ("accuracy", "knn", "untrained_knn"))
depth_runs = recorded("depth")
print("recorded runs of depth:", len(depth_runs))
gamma_runs.round(1) if len(gamma_runs) else "no recorded runs of gamma yet"

# %% [markdown]
# And the verdicts:

# %% tags=["nbval-ignore-output"]
from lib.results.figures import verdict_table

verdict_table("simpool-8", "simpool-9", "simpool-10")

# %% [markdown]
# Each row is one statement: the paper's gap, our gap with its 95% interval, and the verdict. Where the records could not decide, the
# last column says why.
#
# ## What to remember
#
# - Compare a method with what the same cost would buy elsewhere: here, more blocks.
# - SimPool costs a sixth of a block in parameters. With one query, its products can be computed in the cheaper order.
# - Time ratios are measured alternately in one run, because a machine is not the same twice.
#
# ## References
#
# - Psomas et al., *Keep It SimPool: Who Said Supervised Transformers Suffer from Attention Deficit?*, ICCV 2023,
#   [arXiv:2309.06891](https://arxiv.org/abs/2309.06891)
# - Dosovitskiy et al., *An Image is Worth 16x16 Words* (ViT), ICLR 2021,
#   [arXiv:2010.11929](https://arxiv.org/abs/2010.11929)
# - Touvron et al., *Going deeper with Image Transformers* (CaiT), ICCV 2021,
#   [arXiv:2103.17239](https://arxiv.org/abs/2103.17239)
#
# ## What would change your mind?
#
# Parameters are one price, and time is another. Five more blocks cost [CLS] about 40% more time (17 blocks in place of 12). If the
# ratio of times above were near 1.4 as well, SimPool would not be cheap, however few its parameters.
#
# ## Exercises
#
# **1.** How many blocks of ViT-S cost as many parameters as SimPool brings ($2d^2 + 2d$, $d = 384$)? Round to two places.

# %%
from course import exercises

answer = None
exercises.blocks_for_simpool(answer)

# %% [markdown]
# **2.** Count the parameters of a block of a ViT of width `d`. It has two LayerNorms, an attention with projections to queries, keys,
# values and the output, and an MLP that is four times as wide. All linear layers have biases.


# %%
def block_parameters(d):
    """int -> int."""


exercises.block_parameters(block_parameters)

# %% [markdown]
# **3.** With `min_scope="batch"`, as in the released code, which step of a training loop with several GPUs becomes ambiguous?
#
# The answers are in `solutions/18_solutions.ipynb`.
