"""The settings of the authors' published commands beside ours: ``recipes/authors.yaml`` against the entries of ``recipes/paper.yaml``."""

import math
from typing import Any

import pandas as pd

from lib import files, paths, recipes
from lib.measure import create_evaluation
from lib.train import configure

SCALE = "paper"


def author_settings() -> pd.DataFrame:
    """Every setting of every published command, a row each, indexed by ``command, entry, setting``.

    Columns: ``authors`` and ``ours``, the values (None where we have no such setting), ``equal``, and ``why``, the reason where they differ, from
    ``deviations`` in ``recipes/paper.yaml``: a list of ``settings``, ``commands`` and ``why``.

    Raises:
        ValueError: a setting that is stated twice or that differs without a reason, a deviation that is none, or a measurement that the evidence
            of its entries lacks.
    """
    commands = files.read_yaml(paths.RECIPES / "authors.yaml")["commands"]
    reasons = deviations()
    rows = []
    for command, stated in commands.items():
        for entry in stated["of"]:
            ours = _ours(entry, stated.get("measurement"))
            for setting, value in stated["settings"].items():
                equal = setting in ours and same(value, ours[setting])
                why = "" if equal else reasons.get((command, setting))
                rows.append((command, entry, setting, value, ours.get(setting), equal, why))
    table = pd.DataFrame(rows, columns=["command", "entry", "setting", "authors", "ours", "equal", "why"])
    unlisted = table[table.why.isna()]
    if len(unlisted):
        row = unlisted.iloc[0]
        raise ValueError(f"deviations: lacks {row.setting} of {row.command} ({row.authors!r}, ours {row.ours!r}), accepts all that differ")
    if none := reasons.keys() - set(table.loc[~table.equal, ["command", "setting"]].itertuples(index=False, name=None)):
        raise ValueError(f"deviations: got {sorted(none)}, which do not differ, accepts what differs alone")
    return table.set_index(["command", "entry", "setting"])


def deviations() -> dict[tuple[str, str], str]:
    """(command, setting) -> why it differs with us."""
    reasons: dict[tuple[str, str], str] = {}
    for item in recipes.deviations():
        for key in ((command, setting) for command in item["commands"] for setting in item["settings"]):
            if key in reasons:
                raise ValueError(f"deviations: got {key} twice, accepts it once")
            reasons[key] = item["why"]
    return reasons


def same(authors: Any, ours: Any) -> bool:
    """Whether two values are equal, numbers up to rounding."""
    if isinstance(authors, list) and isinstance(ours, list):
        return len(authors) == len(ours) and all(map(same, authors, ours))
    numbers = all(type(value) in (int, float) for value in (authors, ours))
    return math.isclose(authors, ours, rel_tol=1e-9) if numbers else type(authors) is type(ours) and authors == ours


def _ours(entry: str, measurement: str | None) -> dict[str, Any]:
    """Our settings of an entry, or of a measurement of its runs in the words of the evidence, with the learning rate itself as ``rate``."""
    if measurement is None:
        settings: Any = configure(recipes.entry(f"{SCALE}/{entry}"), {})
    else:
        name, *words = measurement.split()
        overrides = recipes.parse(words)
        wanted = [measured for run, _, measured in recipes.evidence(SCALE, "cuda") if run == f"{SCALE}/{entry}"]
        if not wanted or not all((name, overrides) in measured for measured in wanted):
            raise ValueError(f"measurement: got {measurement!r}, which the evidence of {entry} lacks")
        settings = create_evaluation(name, SCALE, **overrides).settings
    ours = vars(settings)
    return ours | ({"rate": ours["lr"] * ours["batch_size"] / 256} if "lr" in ours else {})
