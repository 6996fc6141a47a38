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
# Parameters and floating-point operations of one image at 224 px, counted, not measured, for ViT-S/16 and a classifier of 1000
# classes. The paper's accuracies stand beside them.

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
# A block costs 1.77 million parameters, SimPool $2d^2 + 2d = 0.30$ million less the class token. The claim "over 8M more parameters" is
# the distance from SimPool to [CLS] with five more blocks.
#
# ## One step on one image
#
# SimPool has a single query, so the product of all keys with it can be taken from the right: $\mathrm{LN}(X)\,(W_K^\top q)$ instead of
# $(\mathrm{LN}(X)\,W_K^\top)\,q$. The same numbers for a $d$-th of the work; `FLOP` counts both.

# %%
from lib.pooling import Pooling, SimPool

torch.manual_seed(seed)
pool, x = SimPool(384, gamma=1.25), torch.randn(1, 196, 384)
for name, forward in {"as the algorithm says": Pooling.forward, "as it runs": SimPool.forward}.items():
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        vector = forward(pool, x).vector
    print(f"{name:22} {counter.get_total_flops() / 1e6:6.1f} MFLOP, first channel {vector[0, 0].item():.4f}")

# %% [markdown]
# ## The step, timed
#
# A training step of ViT-S/16 on two images of 224 px, SimPool and the other alternately in one run: the median ratio of times, and the
# ratio of peak memory. `python -m benchmarks simpool_cls simpool_gap` prints the same.

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
# ## Gamma
#
# The paper draws accuracy over $\gamma$ without giving numbers. Live, at this scale:

# %% tags=["nbval-ignore-output"]
from tqdm import tqdm

from lib.train import entry_for, run

entry = entry_for(scale, "benchmark")
live = {gamma: run(entry, pooling="simpool", gamma=gamma, seed=seed, progress=False).metrics for gamma in tqdm(gammas)}
columns = {"accuracy": "top-1 accuracy", "knn": "k-NN", "untrained_knn": "untrained k-NN"}
pd.DataFrame(live).T.rename_axis("gamma")[[*columns]].rename(columns=columns).astype(float).round(1)

# %% tags=["nbval-ignore-output"]
from lib.results.tables import recorded, spread

gamma_runs = spread(recorded("benchmark", pooling="simpool"), "gamma", ("accuracy", "knn", "untrained_knn"))
depth_runs = recorded("depth")
print("recorded runs of depth:", len(depth_runs))
gamma_runs.round(1) if len(gamma_runs) else "no recorded runs of gamma yet"

# %% tags=["nbval-ignore-output"]
from lib.results.figures import verdict_table

verdict_table("simpool-8", "simpool-9", "simpool-10")

# %% [markdown]
# ## What would change your mind?
#
# Parameters are one price, time another: five more blocks cost [CLS] 40% more time, SimPool next to none. If the timed ratio above were
# near 1.4 as well, "low additional cost" would be a matter of words.
#
# ## Exercises
#
# **1.** How many blocks of ViT-S cost as many parameters as SimPool brings ($2d^2 + 2d$, $d = 384$)? Round to two places.

# %%
from course import exercises

answer = None
exercises.blocks_for_simpool(answer)

# %% [markdown]
# **2.** With `min_scope="batch"`, as in the released code, which step of a training loop with several GPUs becomes ambiguous?
#
# Answers: `solutions/18_solutions.ipynb`.
