"""Do our records agree with a claim? Paired differences over seeds, with an interval."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from lib.results import papers
from lib.results.records import records as read_records

EVIDENCE = ("paper", "small")  # scales whose records count, the strongest first
VERDICTS = ("reproduced", "contradicted", "inconclusive", "not run")
COLUMNS = ["id", "gap_mean", "gap_low", "gap_high", "seeds", "scale", "verdict"]


class Interval(NamedTuple):
    """Mean and 95% interval; the bounds are NaN for a single value."""

    mean: float
    low: float
    high: float


def interval(values) -> Interval:
    """Student's t interval of the mean at 95%.

    Args:
        values: n >= 1 numbers.

    Raises:
        ValueError: no numbers.
    """
    from scipy import stats

    values = np.asarray(values, dtype=float)
    if not len(values):
        raise ValueError("values: got none, accepts at least one number")
    mean = float(values.mean())
    if len(values) == 1:
        return Interval(mean, float("nan"), float("nan"))
    half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return Interval(mean, mean - half, mean + half)


def verdict_of(gap: Interval, tolerance: float = 0.0) -> str:
    """``reproduced`` when the interval lies above ``-tolerance``, ``contradicted`` when below, else ``inconclusive``."""
    if gap.low > -tolerance:
        return "reproduced"
    if gap.high < -tolerance:
        return "contradicted"
    return "inconclusive"


def verdicts(records: pd.DataFrame | None = None) -> pd.DataFrame:
    """A verdict on every claim of the talk.

    Args:
        records: as ``lib.results.records.records`` gives them; None reads them.

    Returns:
        A row a claim: ``id, gap_mean, gap_low, gap_high, seeds, scale, verdict``. Gaps are in the metric's unit (points of
        percent), mean over the claim's metrics. The evidence is that of the largest scale that has any, and of the setting
        with the most seeds within it, the first recorded of equals.
    """
    records = read_records() if records is None else records
    rows = []
    for claim in papers.claim_details():
        scale, gaps = gaps_of(claim, records)
        gap = interval(gaps) if len(gaps) else Interval(*[float("nan")] * 3)
        verdict = verdict_of(gap, claim.get("tolerance", 0.0)) if len(gaps) else "not run"
        rows.append([claim["id"], *gap, len(gaps), scale, verdict])
    return pd.DataFrame(rows, columns=COLUMNS)


def gaps_of(claim: dict, records: pd.DataFrame) -> tuple[str, np.ndarray]:
    """The scale and the gaps, one a seed, that answer a claim; an empty scale and no gaps when there are none.

    A claim on several experiments has a rule for each: a seed counts that all of them have, with the mean of its gaps.
    """
    rules = rules_of(claim)
    for scale in EVIDENCE if rules and not records.empty else ():
        here = records[records.scale == scale]
        gaps = pd.concat([_gaps(here, rule) for rule in rules], axis=1, join="inner").mean(axis=1)
        if len(gaps):
            return scale, gaps.to_numpy()
    return "", np.empty(0)


def rules_of(claim: dict) -> list[dict]:
    """How our records answer a claim; empty when they do not."""
    return _listed(claim["evidence"] or [])


def _listed(value) -> list:
    return value if isinstance(value, list) else [value]


def _gaps(records: pd.DataFrame, rule: dict) -> pd.Series:
    chosen = records[records.experiment.isin(_listed(rule["experiment"]))]
    for key, value in rule.get("where", {}).items():
        chosen = chosen[chosen.get(f"config.{key}", pd.Series(index=chosen.index)) == value]
    return _margins(chosen, rule) if "limit" in rule else _paired(chosen, rule)


def _margins(records: pd.DataFrame, rule: dict) -> pd.Series:
    """How far a measured ratio stays below its limit, one a record."""
    column = f"metrics.{rule['metrics'][0]}"
    return rule["limit"] - records[column].dropna() if column in records else pd.Series(dtype=float)


def _paired(records: pd.DataFrame, rule: dict) -> pd.Series:
    """Differences, by seed, between runs that differ in the fields, of the setting with the most seeds.

    The runs share the keys that the rule names under ``same``, else all but those that one side has ``alone``. Of several runs of a seed
    the first recorded counts.
    """
    fields = [f"config.{name}" for name in _listed(rule["field"])]
    best = pd.Series(dtype=float)
    if records.empty or not set(fields) <= set(records):
        return best
    better, *worse = [tuple(_listed(side)) for side in (rule["better"], *rule["worse"])]
    apart = {*fields, "config.seed", *(f"config.{name}" for name in rule.get("alone", []))}
    shared = [f"config.{name}" for name in rule.get("same", [])]
    shared = shared or [c for c in records if c.startswith("config.") and c not in apart]
    if not set(shared) <= set(records):
        return best
    setting = records[[*shared, "device"]].map(repr).agg("|".join, axis=1)
    for _, group in records.groupby(setting, sort=False):
        scores = {names: part.drop_duplicates("config.seed").set_index("config.seed") for names, part in group.groupby(fields)}
        if not {better, *worse} <= set(scores):
            continue
        gaps = [_gap(scores[better], [scores[names] for names in worse], metric) for metric in rule["metrics"]]
        mean = pd.concat(gaps, axis=1).dropna().mean(axis=1)
        if len(mean) > len(best):
            best = mean
    return best


def _gap(better: pd.DataFrame, worse: list[pd.DataFrame], metric: str) -> pd.Series:
    """Per seed, the metric of ``better`` less the highest of ``worse``; of a curve, its mean over the epochs after 0."""
    column = f"metrics.{metric}"
    if any(column not in part for part in (better, *worse)):
        return pd.Series(dtype=float)
    first, *rest = [part[column].dropna().map(_level) for part in (better, *worse)]
    return first - pd.concat(rest, axis=1).max(axis=1, skipna=False)


def _level(value) -> float:
    return float(np.mean([y for x, y in value if x > 0])) if isinstance(value, list) else float(value)
