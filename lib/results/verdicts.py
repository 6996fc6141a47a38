"""Do our records agree with a claim? Paired differences over seeds with an interval, where checks show that the runs can answer.

A claim consists of one or more statements; each has a rule in ``published/claims.yaml`` that says which records answer it. A verdict is
given only if the comparison can decide. Otherwise the statement is ``not testable``, with the reason in words.
"""

from fnmatch import fnmatch
from typing import NamedTuple

import numpy as np
import pandas as pd

from lib.results import papers
from lib.results.records import records as read_records

EVIDENCE = ("paper", "small")  # scales whose records count, the strongest first
VERDICTS = ("reproduced", "contradicted", "inconclusive", "not testable", "not run")
COLUMNS = ["id", "gap_mean", "gap_low", "gap_high", "seeds", "scale", "verdict"]
MIN_SEEDS = 3  # fewer give no verdict
MIN_CONTRAST = 1.1  # the masks of the better arm must hide at least so many times more of the objects than those of the other
MARGIN = 1.0  # percent; figures nearer to 0 or 100 are saturated
NOTHING = float("nan")


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


class Arms(NamedTuple):
    """Runs of one setting, a row a seed: those that should be better, and each kind of those that should be worse."""

    better: pd.DataFrame
    worse: list[pd.DataFrame]


class Finding(NamedTuple):
    """What records say of a statement: their scale, the gaps, one a seed, why they can't answer it, or nothing, and the runs."""

    scale: str
    gaps: np.ndarray
    reason: str = ""
    arms: Arms | None = None


def verdicts(records: pd.DataFrame | None = None) -> pd.DataFrame:
    """A verdict on every claim of the talk.

    A claim of several statements is reproduced if all of them are, and contradicted if one of them is. It has no gap of its own, and the
    fewest seeds of the statements that have its verdict, or of all that are run.

    Args:
        records: as ``lib.results.records.records`` gives them; None reads them.

    Returns:
        A row a claim: ``id, gap_mean, gap_low, gap_high, seeds, scale, verdict``. Gaps are in the metric's unit (points of percent), mean
        over the metrics.
    """
    groups = statements(records).groupby("id", sort=False)
    return pd.DataFrame([rows.iloc[0] if len(rows) == 1 else _joined(rows) for _, rows in groups])[COLUMNS].reset_index(drop=True)


def statements(records: pd.DataFrame | None = None) -> pd.DataFrame:
    """A verdict on every statement of every claim; arguments as of ``verdicts``.

    Returns:
        A row a statement: the columns of ``verdicts``; ``statement``, its name within the claim; ``metrics``; ``reason``, why it is not
        testable; ``published``, the columns of the paper's table, and ``paper_gap``, its gap in them. The evidence is that of the largest
        scale that has any, and within it of the setting that is testable and has the most seeds, the first recorded of equals.
    """
    records = read_records() if records is None else records
    rows = []
    for claim in papers.claim_details():
        for rule in rules_of(claim) or [{}]:
            finding = finding_of(rule, records)
            gap = interval(finding.gaps) if len(finding.gaps) else Interval(NOTHING, NOTHING, NOTHING)
            verdict = "not testable" if finding.reason else verdict_of(gap, claim.get("tolerance", 0.0))
            row = dict(zip(COLUMNS, [claim["id"], *gap, len(finding.gaps), finding.scale, verdict if finding.scale else "not run"]))
            row |= {"statement": rule.get("statement", ""), "metrics": rule.get("metrics", []), "reason": finding.reason}
            columns = rule.get("columns", papers.published_columns(claim))
            rows.append(row | {"published": columns, "paper_gap": papers.paper_gap(claim, columns)})
    return pd.DataFrame(rows)


def _joined(rows: pd.DataFrame) -> dict:
    """The verdict on a claim of several statements."""
    given = set(rows.verdict)
    undecided = "not run" if given == {"not run"} else "not testable" if given <= {"not run", "not testable"} else "inconclusive"
    verdict = "reproduced" if given == {"reproduced"} else "contradicted" if "contradicted" in given else undecided
    scale, seeds = next(filter(None, rows.scale), ""), rows.seeds[rows.seeds > 0]
    seeds = seeds[rows.verdict == verdict] if verdict in given else seeds
    return dict(zip(COLUMNS, [rows.id.iloc[0], NOTHING, NOTHING, NOTHING, seeds.min() if len(seeds) else 0, scale, verdict]))


def rules_of(claim: dict) -> list[dict]:
    """How our records answer a claim, a rule a statement; empty when they do not."""
    return _listed(claim["evidence"] or [])


def finding_of(rule: dict, records: pd.DataFrame) -> Finding:
    """What the records say of a statement; an empty scale and no gaps when they say nothing."""
    for scale in EVIDENCE if rule and not records.empty else ():
        here = records[records.scale == scale]
        findings = _margins(here, rule, scale) if "limit" in rule else _comparisons(here, rule, scale)
        if findings:
            return max(findings, key=lambda finding: (not finding.reason, len(finding.gaps)))
    return Finding("", np.empty(0))


def _listed(value) -> list:
    return value if isinstance(value, list) else [value]


def _selected(records: pd.DataFrame, rule: dict, experiments: list[str]) -> pd.DataFrame:
    """The records of some experiments whose keys have the values that the rule names; of words, one of several patterns."""
    records = records[records.experiment.isin(experiments)]
    for key, value in rule.get("where", {}).items():
        column = records.get(f"config.{key}", pd.Series(index=records.index, dtype=object))
        records = records[[any(v == x or (isinstance(v, str) and fnmatch(v, str(x))) for x in _listed(value)) for v in column]]
    return records


def _margins(records: pd.DataFrame, rule: dict, scale: str) -> list[Finding]:
    """How far a measured ratio stays below its limit, one a record."""
    column = f"metrics.{rule['metrics'][0]}"
    records = _selected(records, rule, _listed(rule["experiment"]))
    gaps = (rule["limit"] - records[column].dropna() if column in records else pd.Series(dtype=float)).to_numpy()
    return [Finding(scale, gaps, _too_few(len(gaps)))] if len(gaps) else []


def _comparisons(records: pd.DataFrame, rule: dict, scale: str) -> list[Finding]:
    """Differences by seed, of every setting."""
    findings = []
    for arms in _arms(_selected(records, rule, _listed(rule["experiment"])), rule):
        gaps = pd.concat([_gap(arms, metric) for metric in rule["metrics"]], axis=1).dropna().mean(axis=1)
        if len(gaps):
            reason = _too_few(len(gaps)) or _uninformative(arms, rule) or _same_treatment(arms, rule, records)
            findings.append(Finding(scale, gaps.to_numpy(), reason, arms))
    return findings


def _arms(records: pd.DataFrame, rule: dict) -> list[Arms]:
    """Runs that differ in the fields of the rule, of every setting.

    The runs share the keys that the rule names under ``same``, else all but those that one side has ``alone``. Of several runs of a seed
    the first recorded counts.
    """
    fields = [f"config.{name}" for name in _listed(rule["field"])]
    if records.empty or not set(fields) <= set(records):
        return []
    better, *worse = [tuple(_listed(side)) for side in (rule["better"], *rule["worse"])]
    apart = {*fields, "config.seed", *(f"config.{name}" for name in rule.get("alone", []))}
    shared = [f"config.{name}" for name in rule.get("same", [])]
    shared = shared or [c for c in records if c.startswith("config.") and c not in apart]
    if not set(shared) <= set(records):
        return []
    arms = []
    setting = records[[*shared, "device"]].map(repr).agg("|".join, axis=1)
    for _, group in records.groupby(setting, sort=False):
        sides = {names: part.drop_duplicates("config.seed").set_index("config.seed") for names, part in group.groupby(fields)}
        if {better, *worse} <= set(sides):
            seeds = set.intersection(*(set(sides[names].index) for names in (better, *worse)))
            of_seeds = [sides[names].loc[sorted(seeds)] for names in (better, *worse)]
            arms += [Arms(of_seeds[0], of_seeds[1:])] if seeds else []
    return arms


def _gap(arms: Arms, metric: str) -> pd.Series:
    """Per seed, the metric of the better side less the highest of the others; of a curve, its mean over the epochs after 0."""
    column = f"metrics.{metric}"
    if any(column not in part for part in (arms.better, *arms.worse)):
        return pd.Series(dtype=float)
    first, *rest = [part[column].dropna().map(_level) for part in (arms.better, *arms.worse)]
    return first - pd.concat(rest, axis=1).max(axis=1, skipna=False)


def _level(value) -> float:
    return float(np.mean([y for x, y in value if x > 0])) if isinstance(value, list) else float(value)


# ---- why a comparison can't answer ---------------------------------------------------------------------------------------


def _too_few(seeds: int) -> str:
    return f"{seeds} seed{'s' * (seeds != 1)}; a verdict needs {MIN_SEEDS}" if seeds < MIN_SEEDS else ""


def _uninformative(arms: Arms, rule: dict) -> str:
    """No arm is better than the untrained network or than a trivial answer, or all are at an end of the scale."""
    sides, metrics = [arms.better, *arms.worse], rule["metrics"]
    levels = [_mean(side, metrics) for side in sides]
    text = " and ".join(f"{level:.1f}" for level in levels)
    floors = {"the untrained network": [f"untrained_{metric.removesuffix('_curve')}" for metric in metrics]}
    floors |= {name.replace("_", " "): [name] for name in rule.get("floors", [])}
    for name, columns in floors.items():
        floor = np.mean([_mean(side, columns) for side in sides])
        if max(levels) <= floor:
            return f"no arm is better than {name}: {text} against {floor:.1f}"
    return f"all arms are at an end of the scale: {text}" if max(levels) < MARGIN or min(levels) > 100 - MARGIN else ""


def _mean(runs: pd.DataFrame, metrics: list[str]) -> float:
    return float(np.mean([mean_of(runs, metric) for metric in metrics]))


def mean_of(runs: pd.DataFrame, metric: str) -> float:
    """A metric's mean over runs, NaN if they do not have it: of a curve over its epochs, but of ``hidden_…`` over their second half."""
    late = metric.startswith("hidden_") and f"metrics.{metric}_curve" in runs
    column = f"metrics.{metric}_curve" if late else f"metrics.{metric}"
    return float(runs[column].map(late_mean if late else _level).mean()) if column in runs else NOTHING


def _same_treatment(arms: Arms, rule: dict, records: pd.DataFrame) -> str:
    """The masks of the arms hide the same part of the objects, by the check that each run makes of itself."""
    if "treatment" not in rule:
        return ""
    checked = [column for column in records if column.startswith("metrics.hidden_")]
    runs = _selected(records, rule, _listed(rule["treatment"])).dropna(subset=checked, how="all") if checked else records[:0]
    settings = [column for column in arms.better if column.startswith("config.") and "." not in column.removeprefix("config.")]
    for other in _arms(runs, rule):
        apart = {f"config.{name}" for name in _listed(rule["field"])}
        if all(repr(other.better[c].iloc[0]) == repr(arms.better[c].iloc[0]) for c in settings if c not in apart and c in other.better):
            sides = (other.better, *other.worse)
            first, *rest = [mean_of(side, f"hidden_{side['config.masking'].iloc[0]}") for side in sides]
            text = " and ".join(f"{share:.1f}%" for share in (first, *rest))
            return "" if first >= MIN_CONTRAST * max(rest) else f"the masks do not hide more of the objects: {text}"
    return "what the masks hide of the objects is not recorded"


def late_mean(value) -> float:
    """The mean of a curve over the second half of its epochs; a number is itself."""
    return float(np.mean([y for x, y in value if x > value[-1][0] / 2])) if isinstance(value, list) else float(value)


def coverage(records: pd.DataFrame | None = None) -> pd.DataFrame:
    """How many of the published numbers on which a claim rests our records answer: a row a table of the papers."""
    decided = statements(records).query("verdict in @VERDICTS[:3]").groupby("id").published.sum()  # lists of columns, joined
    numbers: dict[tuple[str, str], set] = {}
    answered: dict[tuple[str, str], set] = {}
    for claim in papers.claim_details():
        if published := claim["published"]:
            place, sides = (claim["paper"], published["table"]), [published["better"], *published["worse"]]
            for counted, columns in ((numbers, papers.published_columns(claim)), (answered, decided.get(claim["id"], []))):
                counted.setdefault(place, set()).update((row, column) for row in sides for column in columns)
    table = pd.DataFrame({"numbers of claims": numbers, "answered": answered}).map(len)
    return table.rename_axis(["paper", "table"])
