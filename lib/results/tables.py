"""Tables of records, as the notebooks print them."""

import pandas as pd

from lib import recipes
from lib.results.records import records as read_records
from lib.results.runs import Run
from lib.results.titles import TITLES
from lib.results.verdicts import late_mean

METRICS = {"knn": "k-NN, %", "accuracy": "top-1 accuracy, %"}


def recorded(experiment: str, **where) -> pd.DataFrame:
    """Recorded runs of an experiment.

    Args:
        experiment: a file of ``records/``.
        where: keys of the configuration and the values to keep, ``masking="block"`` for one.

    Returns:
        A row a run, named by entry and seed: ``setting``, the entry, with the data where measurements on several sets are recorded, and by
        their own names all keys of the configuration, all metrics, ``device`` and ``seconds``.
    """
    records = read_records(experiment)
    if records.empty:
        return pd.DataFrame(columns=["setting", "seed", "data", "device", "seconds", *where])
    table = records.rename(columns=lambda name: name.removeprefix("metrics.").removeprefix("config."))
    table = table.loc[:, ~table.columns.duplicated(keep="last")].assign(setting=table.entry)
    measured = f"{experiment}.data"
    if measured in table and table[measured].nunique() > 1:
        table["setting"] += " on " + table[measured]
    for key, value in where.items():
        table = table[table[key] == value]
    return table.set_index(table.entry + ", seed " + table.seed.astype(str))


def spread(table: pd.DataFrame, field: str, metrics=("knn", "untrained_knn")) -> pd.DataFrame:
    """Mean over seeds of the metrics, the first one's standard deviation, and the number of runs, by setting and ``field``.

    ``table`` is from ``recorded``.
    """
    if table.empty:
        return pd.DataFrame()
    grouped = table.groupby(["setting", field], sort=False)
    columns = {metric: grouped[metric].mean() for metric in metrics if metric in table}
    return pd.DataFrame(columns).assign(std=grouped[metrics[0]].std(), runs=grouped.size(), minutes=grouped.seconds.mean() / 60)


def beside_paper(evidence: pd.DataFrame, published: pd.Series, metric: str = "knn") -> pd.DataFrame:
    """A column a recorded setting beside the paper's; ``<setting> ±`` is the standard deviation over seeds."""
    table = pd.DataFrame({"paper": published})
    for setting in evidence.index.unique("setting") if len(evidence) else ():
        here = evidence.loc[setting]
        table = table.reindex(table.index.union(here.index, sort=False))
        table[setting] = here[metric]
        if here["std"].notna().any():
            table[f"{setting} ±"] = here["std"]
    return table


def beside_linear(table: pd.DataFrame) -> pd.DataFrame:
    """What recorded runs are worth: means over seeds of k-NN and of the linear probe, beside the untrained network's, and of the accuracy on a
    learner's own task, in percent; a row a setting and masking strategy. ``table`` is from ``recorded``.
    """
    if table.empty:
        return pd.DataFrame()
    same = ["setting", "masking", "pooling", "seed"]
    metrics = ["task", "task_guess", "knn", "untrained_knn", "linear", "untrained_linear"]
    table = table.reindex(columns=[*table, *(name for name in same if name not in table)])
    table = table.merge(recorded("linear").reindex(columns=[*same, "linear", "untrained_linear"]), how="left", on=same)
    grouped = (
        table.reindex(columns=[*table, *(m for m in metrics if m not in table)])
        .fillna({"masking": "none"})
        .groupby(["setting", "masking"], sort=False)
    )
    return (
        grouped[metrics]
        .mean()
        .assign(runs=grouped.size())
        .dropna(axis=1, how="all")
        .rename(index={"none": ""}, columns={"task": "pretext accuracy", "task_guess": "chance"})
    )


def treatments(table: pd.DataFrame) -> pd.DataFrame:
    """What the masks of recorded runs hide of the objects, in percent: mean over seeds and the second half of the epochs, a row a setting and
    strategy. ``low`` and ``high`` are what AttMask would hide by the attention of each run, whatever the run was trained with.

    ``table`` is from ``recorded``; without runs that measured what they hide, the result is empty.
    """
    columns = [f"{name}_curve" for name in ("hidden_attmask_low", "hidden_attmask_high", "attention_mass", "attention_entropy")]
    if not set(columns) <= set(table):
        return pd.DataFrame()
    table = table.dropna(subset=columns)
    late = table[columns].map(late_mean).rename(columns=lambda name: name.removesuffix("_curve").removeprefix("hidden_attmask_"))
    means = late.assign(random=table.hidden_random, block=table.hidden_block, centre=table.hidden_centre)
    means = means.assign(setting=table.setting, masking=table.masking, runs=1)
    grouped = means.groupby(["setting", "masking"], sort=False)
    return grouped.mean(numeric_only=True).assign(runs=grouped.runs.sum())


def fill_in_table(table: pd.DataFrame, live: Run) -> pd.DataFrame:
    """The patch loss of networks with masks of each strategy, in nats: a row a network, a column a strategy. ``table`` is from ``recorded``; ``live`` is a run that is shown before them."""
    columns = [f"fill_{name}" for name in ("attmask_low", "random", "block", "attmask_hint", "attmask_high")]
    rows = {"live run": [live.metrics.get(name) for name in columns]}
    if set(columns) <= set(table):
        rows |= {
            f"recorded, trained with {TITLES[line.masking]}, seed {line.seed}": list(line[columns])
            for _, line in table.dropna(subset=columns).iterrows()
        }
    return pd.DataFrame(rows, index=[TITLES[name.removeprefix("fill_")] for name in columns]).T


def recorded_curves(experiment: str, field: str, values: list[str], metric: str = "knn") -> pd.DataFrame:
    """A recorded metric over the epochs, for some values of a field: ``setting``, the field, ``seed, epoch`` and the metric in percent."""
    table = recorded(experiment)
    rows = []
    for _, line in table[table[field].isin(values)].iterrows() if len(table) else ():
        rows += [(line.setting, line[field], line.seed, int(epoch), value) for epoch, value in line[f"{metric}_curve"]]
    return pd.DataFrame(rows, columns=["setting", field, "seed", "epoch", METRICS[metric]])


def recorded_commands(experiment: str | None = None) -> pd.DataFrame:
    """How the records were made: a row a command, with the keys and values that it needs in ``with``, those of several runs side by side, the
    number of ``runs``, their mean ``minutes``, ``device`` and ``commits``.
    """
    records = read_records(experiment)
    if records.empty:
        return pd.DataFrame(columns=["experiment", "with", "runs", "minutes", "device", "commits"])
    base = records.apply(_base, axis=1)
    rows = []
    for (command, kind, device), group in records.assign(command=base).groupby(["command", "experiment", "device"], sort=False):
        seconds = group.seconds.astype(float).mean()
        minutes = "" if pd.isna(seconds) else round(seconds / 60, 1)
        rows.append([command, kind, _differing(group), len(group), minutes, device, ", ".join(group.commit.unique())])
    return pd.DataFrame(rows, columns=["command", "experiment", "with", "runs", "minutes", "device", "commits"]).set_index("command")


def _differing(records: pd.DataFrame) -> str:
    """What runs of one command override, ``key=value|value``."""
    table = records[[name for name in records if name.startswith("config.")]]
    keys = [name.removeprefix("config.") for name in table]
    rows = (zip(keys, row) for row in table.itertuples(index=False))
    configs = [{key: value for key, value in row if not (isinstance(value, float) and pd.isna(value))} for row in rows]
    entries = records.get("entry", pd.Series("", index=records.index)).fillna("")  # benchmarks have none
    changed = {key for entry, config in zip(entries, configs) for key in _otherwise(entry, config)}
    values = {key: dict.fromkeys(str(config[key]) for config in configs if key in config) for key in keys if key in changed}
    return " ".join(f"{key}={'|'.join(sorted(those))}" for key, those in values.items())


def command_of(row: pd.Series) -> str:
    """The command that repeats a recorded run or measurement, a row of ``lib.results.records.records``."""
    config = {name.removeprefix("config."): value for name, value in row.items() if name.startswith("config.")}
    known = {key: value for key, value in config.items() if not (isinstance(value, float) and pd.isna(value))}
    return f"{_base(row)} {recipes.words(_otherwise(row.entry, known))}".strip()


def _base(row: pd.Series) -> str:
    """The command of a record without keys and values; the first records have none."""
    command = row.command if isinstance(row.command, str) else f"python -m lib.train {row.entry}"
    return " ".join(word for word in command.split() if "=" not in word)


def _otherwise(name: str, config: dict) -> dict:
    """The keys of a recorded configuration that the recipes, as far as they state them, have otherwise now."""
    try:
        stated = dict(recipes.entry(name).settings)
        for measured in {key.partition(".")[0] for key in config if "." in key}:
            settings = recipes.measurement(name.partition("/")[0], measured)
            stated |= {f"{measured}.{key}": value for key, value in settings.items()}
    except ValueError:  # records may be older than the recipes
        return {}
    return {key: value for key, value in config.items() if key in stated and not _equal(value, stated[key])}


def _equal(value, other) -> bool:
    try:
        return float(value) == float(other)  # YAML 1.1 reads 1e-4 as a string
    except (TypeError, ValueError):
        return value == other
