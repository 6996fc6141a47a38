"""Tables of records, as the notebooks print them."""

import pandas as pd

from lib.results import runs


def recorded(experiment: str, masking: str | None = None) -> pd.DataFrame:
    """Recorded runs of an experiment.

    Returns:
        A row a run, named by scale and entry: ``setting, masking, seed, data, device, seconds`` and every metric.
    """
    records = runs.records(experiment)
    if records.empty:
        return pd.DataFrame(columns=["setting", "masking", "seed", "data", "device", "seconds", "knn", "untrained_knn"])
    table = records.rename(columns=lambda name: name.removeprefix("metrics."))
    table = table.assign(setting=table.entry, masking=table["config.masking"], seed=table["config.seed"], data=table["config.data"])
    if masking is not None:
        table = table[table.masking == masking]
    return table.set_index(table.entry + ", seed " + table.seed.astype(str))


def spread(table: pd.DataFrame, metrics=("knn", "untrained_knn")) -> pd.DataFrame:
    """Mean, standard deviation over seeds and number of runs, by setting and strategy; ``table`` is from ``recorded``."""
    if table.empty:
        return pd.DataFrame()
    grouped = table.groupby(["setting", "masking"], sort=False)
    columns = {metric: grouped[metric].mean() for metric in metrics}
    return pd.DataFrame(columns).assign(std=grouped[metrics[0]].std(), runs=grouped.size(), minutes=grouped.seconds.mean() / 60)


def beside_paper(evidence: pd.DataFrame, published: pd.Series) -> pd.DataFrame:
    """A column a recorded setting beside the paper's; ``<setting> ±`` is the standard deviation over seeds."""
    table = pd.DataFrame({"paper": published})
    for setting in evidence.index.unique("setting") if len(evidence) else ():
        here = evidence.loc[setting]
        table[setting] = here.knn
        if here["std"].notna().any():
            table[f"{setting} ±"] = here["std"]
    return table


def knn_curves(experiment: str, strategies: list[str]) -> pd.DataFrame:
    """Recorded k-NN accuracy over the epochs: ``setting, masking, seed, epoch`` and ``k-NN, %``."""
    table = recorded(experiment)
    rows = []
    for _, line in table[table.masking.isin(strategies)].iterrows():
        rows += [(line.setting, line.masking, line.seed, int(epoch), knn) for epoch, knn in line.knn_curve]
    return pd.DataFrame(rows, columns=["setting", "masking", "seed", "epoch", "k-NN, %"])


def provenance(experiment: str | None = None) -> pd.DataFrame:
    """How the records were made: a row a command, with the number of ``runs``, their mean ``minutes``, ``device`` and ``commits``."""
    records = runs.records(experiment)
    if records.empty:
        return pd.DataFrame(columns=["experiment", "runs", "minutes", "device", "commits"])
    grouped = records.groupby(["command", "experiment", "device"], sort=False)
    table = pd.DataFrame({"runs": grouped.size(), "minutes": (grouped.seconds.mean() / 60).round(1).astype(object).fillna("")})
    table["commits"] = grouped.commit.unique().map(", ".join)
    return table.reset_index().set_index("command")
